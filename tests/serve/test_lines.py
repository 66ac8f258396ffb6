"""Request lines: what they say, and that a standard error nobody reads blocks nothing."""

import json
import os
import re

import pytest

from llmtier.serve.lines import FIELDS, LineFormat, LineWriter, make_json_line, make_text_line
from llmtier.store.traffic import TRAFFIC_COLUMNS

NAMES = [column.name for column in TRAFFIC_COLUMNS]


def cells(**changes):
    values = dict.fromkeys(NAMES) | {
        "request_id": "r1",
        "received_at": "2026-01-01T12:30:01.250000+00:00",
        "tier": "small",
        "reason": "cheapest_feasible",
        "status": 200,
        "misses": "",
        "outcome": "ok",
        "ttft_s": 0.0123456,
        "messages_json": "a secret prompt",
    }
    return tuple((values | changes)[name] for name in NAMES)


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def read_all(reader):
    os.set_blocking(reader, False)
    found = b""
    try:
        while piece := os.read(reader, 1 << 16):
            found += piece
    except BlockingIOError:
        pass
    return found


def test_a_json_line_has_every_field_and_no_prompt():
    line = make_json_line(cells())
    document = json.loads(line)

    assert {"time", "level", "logger", "event", *FIELDS} == document.keys()
    assert ("request", "info", "llmtier.serve.record") == (document["event"], document["level"], document["logger"])
    assert ("r1", 0.0123456, None) == (document["request_id"], document["ttft_s"], document["usd"])
    assert b"secret" not in line
    assert line.endswith(b"}\n")


def test_a_line_for_people_leaves_out_what_is_unknown():
    line = make_text_line(cells(misses="large: cost 2, needs 1")).decode()

    assert re.fullmatch(
        r"\d\d:\d\d:01 request request_id=r1 tier=small reason=cheapest_feasible outcome=ok status=200 "
        r"misses=large: cost 2, needs 1 ttft_s=0\.01235\n",
        line,
    )


@pytest.mark.parametrize("name", ["outcome", "rule"])
def test_nothing_a_client_chose_breaks_a_line(name):
    assert 1 == make_json_line(cells(**{name: 'a"\nb'})).count(b"\n")


def test_lines_arrive_whole_and_in_order(pipe):
    reader, writer = pipe
    lines = LineWriter(writer, on_dropped=pytest.fail)
    for number in range(50):
        lines.put(cells(request_id=f"r{number}"))
    lines.flush()
    found = [json.loads(line)["request_id"] for line in read_all(reader).splitlines()]

    assert [f"r{number}" for number in range(50)] == found


def test_a_pipe_that_nobody_reads_drops_whole_lines_and_counts_them(pipe):
    reader, writer = pipe
    dropped = []
    lines = LineWriter(writer, on_dropped=dropped.append, capacity_bytes=20_000)
    for number in range(1000):
        lines.put(cells(request_id=f"r{number}"))
        lines.flush()
    n_dropped_early = sum(dropped)
    first = read_all(reader)
    lines.close()
    found = [json.loads(line)["request_id"] for line in (first + read_all(reader)).splitlines()]

    assert n_dropped_early > 0
    assert 1000 == len(found) + sum(dropped)
    assert [f"r{number}" for number in range(len(found))] == found


def test_lines_that_can_never_be_written_are_counted_at_the_end():
    reader, writer = os.pipe()
    os.close(reader)
    dropped = []
    lines = LineWriter(writer, format=LineFormat.TEXT, on_dropped=dropped.append)
    for _ in range(3):
        lines.put(cells())
    lines.close()
    os.close(writer)

    assert 3 == sum(dropped)


def test_a_line_longer_than_a_pipe_takes_at_once_is_written_alone(pipe):
    reader, writer = pipe
    lines = LineWriter(writer, on_dropped=pytest.fail)
    for misses in ("", "x" * 9000, ""):
        lines.put(cells(misses=misses))
    lines.flush()

    assert [0, 9000, 0] == [len(json.loads(line)["misses"]) for line in read_all(reader).splitlines()]


def test_much_that_gathers_is_written_without_being_asked(pipe):
    reader, writer = pipe
    lines = LineWriter(writer, on_dropped=pytest.fail)
    for _ in range(80):
        lines.put(cells(misses="x" * 1000))

    assert 16 <= len(read_all(reader).splitlines()) < 80
