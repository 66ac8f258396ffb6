"""The event-stream parser against the standard's own examples, recorded bytes, and its law."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmtier.core.errors import EngineRequestError
from llmtier.engine.sse import MAX_EVENT_BYTES, SseEvent, SseParser


def parse(*pieces: bytes, max_event_bytes: int = MAX_EVENT_BYTES) -> list[SseEvent]:
    parser = SseParser(max_event_bytes=max_event_bytes)
    return [event for piece in pieces for event in parser.feed(piece)]


def data_of(*pieces: bytes) -> list[str]:
    return [event.data for event in parse(*pieces)]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_end_with_any_of_three(end: bytes) -> None:
    assert ["one\ntwo", "three"] == data_of(end.join([b"data: one", b"data: two", b"", b"data:three", b"", b""]))


def test_crlf_cut_in_two_is_one_line_end() -> None:
    assert ["one", "two"] == data_of(b"data: one\r", b"\n\r", b"\ndata: two\r\n\r\n")


def test_event_is_dispatched_at_cr_without_waiting_for_lf() -> None:
    assert ["one"] == data_of(b"data: one\r\r")


def test_byte_order_mark_counts_only_at_the_start() -> None:
    mark = b"\xef\xbb\xbf"

    assert ["one", "two"] == data_of(mark[:1], mark[1:] + b"data: one\n\n", b"data: two\n\n")
    assert [] == data_of(b"\n", mark + b"data: one\n\n")


def test_comments_ids_and_types_follow_the_standard() -> None:
    stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\nevent: add\n\n"

    assert [
        SseEvent(data="first event", last_event_id="1"),
        SseEvent(data="second event", last_event_id=""),
        SseEvent(data=" third event", event="add", last_event_id=""),
    ] == parse(stream)


def test_empty_data_lines_make_events_and_absent_ones_do_not() -> None:
    assert ["", "\n"] == data_of(b"data\n\ndata\ndata\n\nevent: nothing\n\ndata:")


def test_id_with_null_and_unknown_fields_are_ignored() -> None:
    assert [SseEvent(data="x")] == parse(b"id: a\0b\nretry: 10\nfoo: bar\ndata: x\n\n")


def test_broken_utf8_becomes_replacement_characters() -> None:
    assert ["a\ufffd"] == data_of(b"data: a\xe2\x82\n\n")


def test_close_tells_whether_an_event_was_unfinished() -> None:
    unfinished, finished = SseParser(), SseParser()
    unfinished.feed(b"data: x\n")
    finished.feed(b"data: x\n\n")

    assert unfinished.close()
    assert not finished.close()


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 100, b"data: xxxxxxxx\n" * 10, b"data: " + b"x" * 100 + b"\n\n"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_event_that_outgrows_the_limit_is_refused(stream: bytes, size: int) -> None:
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]

    with pytest.raises(EngineRequestError, match="longer than 64 bytes"):
        parse(*pieces, max_event_bytes=64)


def test_comments_do_not_add_up_to_the_limit() -> None:
    parser = SseParser(max_event_bytes=64)

    for _ in range(1000):
        assert [] == parser.feed(b": still here\n")


LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data", b"", b"", b": c", b"id: 7", b"event: e", b"\xef\xbb\xbfdata: x"]
)
STREAMS = st.lists(st.tuples(LINES | st.binary(max_size=8), st.sampled_from([b"\n", b"\r", b"\r\n"]))).map(
    lambda pairs: b"".join(line + end for line, end in pairs)
)


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 200)))
@example(stream=b"\xef\xbb\xbfdata: \xe2\x82\xac\r\n\r\n", cuts=[1, 2, 10, 11, 13, 14, 15])
def test_events_do_not_depend_on_how_bytes_are_cut(stream: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(bounds)]

    assert parse(stream) == parse(*pieces)


def test_recorded_vllm_stream_cut_anywhere_gives_the_same_events(golden: Path) -> None:
    stream = (golden / "vllm_0.32.0_chat_stream.sse").read_bytes()
    whole = parse(stream)

    assert "[DONE]" == whole[-1].data
    assert 11 == len(whole)  # role, 8 tokens, usage, [DONE]
    assert all(whole == parse(stream[:cut], stream[cut:]) for cut in range(len(stream)))
