"""The log's thread: never waits, never grows, never dies of the disk, and knows what a crash cost."""

import logging
import threading
from dataclasses import astuple

import pytest
from typing_extensions import override

from llmtier.core.errors import DiskError
from llmtier.serve.log import QueueBounds, TrafficLog
from llmtier.store.traffic import Rotation, TrafficRow, TrafficWriter, read_traffic

QUICK = QueueBounds(interval_s=0.001)


class Entry:
    """A finished request."""

    def __init__(self, number, *, is_row=True):
        self.row = TrafficRow(
            request_id=f"r{number}",
            received_at="2026-01-01T00:00:00+00:00",
            tier="a",
            reason="pinned",
            alias="a",
            domain=None,
            predicted_accuracy=None,
            need_accuracy=None,
            n_in_flight=0,
            ttft_s=None,
            e2el_s=None,
            n_input_tokens=None,
            n_output_tokens=None,
            usd=None,
            status=200,
            stream=False,
            misses="",
            prompt_sha256="0" * 64,
        )
        self.is_row = is_row

    def write_down(self):
        return astuple(self.row), self.is_row


class BadEntry:
    def write_down(self):
        raise RuntimeError("a bug")


class FakeWriter:
    """Remembers request ids; waits before its first rows until it may go on."""

    def __init__(self):
        self.n_dropped = 0
        self.n_files_removed = 0
        self.n_taken = self.n_skipped = 0
        self.ids = []
        self.has_rows = threading.Event()
        self.may_go_on = threading.Event()

    def open(self):
        return 0

    def note_taken(self, n_rows):
        self.n_taken = n_rows

    def note_skipped(self, n_rows):
        self.n_skipped += n_rows

    def extend(self, rows):
        self.has_rows.set()
        self.may_go_on.wait(5)
        self.ids += [row[0] for row in rows]

    def flush_if_due(self):
        pass

    def close(self):
        pass


class BrokenWriter(FakeWriter):
    """A disk that refuses everything."""

    @override
    def open(self):
        raise DiskError("disk full")

    @override
    def extend(self, rows):
        self.n_dropped += len(rows)
        raise DiskError("disk full")

    @override
    def close(self):
        raise DiskError("disk full")


class FakeLines:
    def __init__(self):
        self.ids = []
        self.is_closed = False

    def put(self, cells):
        self.ids.append(cells[0])

    def flush(self):
        pass

    def close(self):
        self.is_closed = True


def test_rows_are_on_disk_after_close(tmp_path):
    log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail)
    log.start()
    entries = [Entry(number) for number in range(100)]
    for entry in entries:
        log.put(entry)
    log.close()

    assert [entry.row for entry in entries] == read_traffic(tmp_path)


def test_rows_are_on_disk_when_they_have_waited_long_enough(tmp_path):
    flushed = threading.Event()

    class Writer(TrafficWriter):
        @override
        def flush(self):
            path = super().flush()
            if path is not None:
                flushed.set()
            return path

    log = TrafficLog(Writer(tmp_path, rotation=Rotation(age_s=0.002)), on_dropped=pytest.fail, bounds=QUICK)
    log.start()
    log.put(Entry(0))

    assert flushed.wait(5)
    assert 1 == len(read_traffic(tmp_path))
    log.close()


def test_a_full_queue_drops_and_counts():
    writer, dropped = FakeWriter(), []
    log = TrafficLog(writer, on_dropped=dropped.append, bounds=QueueBounds(n_requests=2, interval_s=0.001))
    log.start()
    log.put(Entry(0))
    assert writer.has_rows.wait(5)
    for number in range(1, 5):
        log.put(Entry(number))
    writer.may_go_on.set()
    log.close()

    assert ["r0", "r1", "r2"] == writer.ids
    assert 2 == sum(dropped)
    assert 3 == writer.n_taken


def test_large_bodies_fill_the_queue_as_well_and_leave_it_again():
    writer, dropped = FakeWriter(), []
    log = TrafficLog(writer, on_dropped=dropped.append, bounds=QueueBounds(n_bytes=100, interval_s=0.001))
    log.start()
    log.put(Entry(0), n_bytes=100)
    assert writer.has_rows.wait(5)
    log.put(Entry(1), n_bytes=60)
    log.put(Entry(2), n_bytes=60)
    log.put(Entry(3), n_bytes=40)
    writer.may_go_on.set()
    log.close()

    assert ["r0", "r1", "r3"] == writer.ids
    assert 1 == sum(dropped)


def test_large_bodies_are_not_kept_waiting():
    writer = FakeWriter()
    writer.may_go_on.set()
    log = TrafficLog(writer, on_dropped=pytest.fail, bounds=QueueBounds(interval_s=3600))
    log.start()
    for number in range(3):
        log.put(Entry(number), n_bytes=10_000_000)

    assert writer.has_rows.wait(5)
    log.close()


def test_a_failing_disk_is_counted_and_survived(caplog):
    dropped = []
    log = TrafficLog(BrokenWriter(), on_dropped=dropped.append, bounds=QUICK)
    log.start()
    log.put(Entry(0))
    log.put(Entry(1))
    log.close()

    assert 2 == sum(dropped)
    assert "could not write" in caplog.text
    assert "could not be marked as open" in caplog.text


def test_a_request_that_cannot_be_written_down_costs_no_other(caplog):
    writer, dropped = FakeWriter(), []
    writer.may_go_on.set()
    log = TrafficLog(writer, on_dropped=dropped.append)
    log.start()
    for entry in (Entry(0), BadEntry(), Entry(2)):
        log.put(entry)
    log.close()

    assert ["r0", "r2"] == writer.ids
    assert (1, 1) == (sum(dropped), writer.n_skipped)
    assert "a bug" in caplog.text


def test_a_request_without_decision_has_a_line_and_no_row():
    writer, lines = FakeWriter(), FakeLines()
    writer.may_go_on.set()
    log = TrafficLog(writer, on_dropped=pytest.fail, lines=lines)
    log.start()
    log.put(Entry(0, is_row=False))
    log.put(Entry(1))
    log.close()

    assert (["r1"], ["r0", "r1"]) == (writer.ids, lines.ids)
    assert (2, 1, True) == (writer.n_taken, writer.n_skipped, lines.is_closed)


def test_lines_need_no_traffic_log():
    lines = FakeLines()
    log = TrafficLog(None, on_dropped=pytest.fail, lines=lines)
    log.start()
    log.put(Entry(0))
    log.close()

    assert ["r0"] == lines.ids
    assert log.writes_lines


def test_a_log_that_never_started_closes():
    log = TrafficLog(FakeWriter(), on_dropped=pytest.fail)
    log.close()

    assert not log.writes_lines


class Killed(TrafficWriter):
    """Ends as a killed process does: whatever it held is gone, and its mark stays."""

    @override
    def close(self):
        self._mark.abandon()


@pytest.mark.parametrize(("n_rows", "n_without_row"), [(25, 0), (40, 3), (9, 2), (0, 5)])
def test_the_next_gateway_says_how_many_rows_a_crash_cost(tmp_path, caplog, n_rows, n_without_row):
    crashed = TrafficLog(Killed(tmp_path, rotation=Rotation(rows=10)), on_dropped=pytest.fail)
    crashed.start()
    for number in range(n_rows):
        crashed.put(Entry(number))
    for number in range(n_without_row):
        crashed.put(Entry(n_rows + number, is_row=False))
    crashed.close()
    n_written = sum(len(read_traffic(path)) for path in tmp_path.glob("*.parquet"))
    lost, caplog_before = [], caplog.text
    log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail, on_lost=lost.append)
    log.start()
    log.close()

    assert n_rows - n_written == sum(lost)
    assert "" == caplog_before
    assert bool(lost) == ("ended without writing its last rows" in caplog.text)
    assert [] == list(tmp_path.glob("*.open"))


def test_removed_files_are_counted(tmp_path):
    removed = []
    writer = TrafficWriter(tmp_path, rotation=Rotation(rows=1, keep_bytes=1))
    log = TrafficLog(writer, on_dropped=pytest.fail, on_removed=removed.append)
    log.start()
    for number in range(40):  # files of at most a slice
        log.put(Entry(number))
    log.close()

    assert 1 == len(list(tmp_path.iterdir()))
    assert 2 <= writer.n_files_removed == sum(removed)


def test_nothing_is_said_when_all_is_well(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    for _ in range(2):
        log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail, on_lost=pytest.fail)
        log.start()
        log.put(Entry(0))
        log.close()

    assert "" == caplog.text
