"""The traffic log's thread: never waits, never grows, never dies of the disk."""

import threading

import pytest
from typing_extensions import override

from llmtier.core.errors import DiskError
from llmtier.serve.log import TrafficLog
from llmtier.store.traffic import TrafficRow, TrafficWriter, read_traffic


def make_row(number):
    return TrafficRow(
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


class SlowWriter:
    """Takes its first row only when allowed."""

    def __init__(self):
        self.n_dropped = 0
        self.rows = []
        self.has_first = threading.Event()
        self.may_go_on = threading.Event()

    def append(self, row):
        self.has_first.set()
        self.may_go_on.wait(5)
        self.rows.append(row)

    def flush(self):
        pass

    def close(self):
        pass


class BrokenWriter(SlowWriter):
    """Keeps what the disk refuses, up to one row."""

    @override
    def append(self, row):
        self.n_dropped += 1
        raise DiskError("disk full")

    @override
    def flush(self):
        raise DiskError("disk full")

    @override
    def close(self):
        raise DiskError("disk full")


def test_rows_are_on_disk_after_close(tmp_path):
    log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail)
    log.start()
    for number in range(5):
        log.put(make_row(number))
    log.close()

    assert [make_row(number) for number in range(5)] == read_traffic(tmp_path)


def test_rows_are_on_disk_after_a_pause(tmp_path):
    flushed = threading.Event()

    class Writer(TrafficWriter):
        @override
        def flush(self):
            path = super().flush()
            if path is not None:
                flushed.set()
            return path

    log = TrafficLog(Writer(tmp_path), on_dropped=pytest.fail, idle_flush_s=0.01)
    log.start()
    log.put(make_row(0))

    assert flushed.wait(5)
    assert 1 == len(read_traffic(tmp_path))
    log.close()


def test_a_full_queue_drops_and_counts():
    writer, dropped = SlowWriter(), []
    log = TrafficLog(writer, on_dropped=dropped.append, n_queued_max=2)
    log.start()
    log.put(make_row(0))
    assert writer.has_first.wait(5)
    for number in range(1, 5):
        log.put(make_row(number))
    writer.may_go_on.set()
    log.close()

    assert ["r0", "r1", "r2"] == [row.request_id for row in writer.rows]
    assert 2 == sum(dropped)


def test_a_failing_disk_is_counted_and_survived(caplog):
    dropped = []
    log = TrafficLog(BrokenWriter(), on_dropped=dropped.append, idle_flush_s=0.01)
    log.start()
    log.put(make_row(0))
    log.put(make_row(1))
    log.close()

    assert 2 == sum(dropped)
    assert "could not write" in caplog.text
