"""The relay of events: the same bytes out, however they came in, less one chunk."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.sse_relay import MAX_HELD_BYTES, SseRelay, read_usage

GOLDEN = Path(__file__).parents[1] / "golden" / "vllm_0.32.0_chat_stream.sse"


def event(payload, end=b"\n\n"):
    return b"data: " + payload + end


TOKENS = [event(b'{"choices":[{"delta":{"content":"%d"}}],"usage":null}' % n) for n in range(3)]
ROLE = event(b'{"choices":[{"delta":{"role":"assistant","content":""}}]}')
QUOTED = event(b'{"choices":[{"delta":{"content":"say \\"usage\\": {} and [DONE]"}}]}')
USAGE = event(b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}')
ERROR = event(b'{"error":{"message":"engine died","code":500}}')
DONE = event(b"[DONE]")


def relay(data, cuts=(), *, strips_usage=True):
    events = SseRelay(strips_usage=strips_usage)
    ends = [*sorted(cuts), len(data)]
    out = b"".join(events.feed(data[start:end]) for start, end in zip([0, *ends], ends, strict=False))
    return events, out + events.finish()


@given(data=st.data(), strips=st.booleans(), end=st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_output_does_not_depend_on_the_cuts(data, strips, end):
    parts = data.draw(
        st.lists(st.sampled_from([*TOKENS, ROLE, QUOTED, ERROR, event(b"\xf0\x9f\x98\x80"), b": ping\n\n"]))
    )
    stream = [part.replace(b"\n\n", end) for part in [*parts, USAGE, DONE]]
    whole = b"".join(stream)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12))

    events, out = relay(whole, cuts, strips_usage=strips)

    assert (b"".join([*stream[:-2], stream[-1]]) if strips else whole) == out
    assert events.usage is not None
    assert (3, 2) == (events.usage.prompt_tokens, events.usage.completion_tokens)
    assert events.is_done
    assert (ERROR in parts) == events.has_error


MIDDLES = [
    b"a",
    b" b",
    b'\\"',
    b"\\n",
    b"\\\\",
    b"",
    b"[DONE]",
    b'"}}],"error":{"message":"m"},"x":[{"y":{"z":"',
    b'","usage":{"completion_tokens":9',
    b"\n\ndata: [DONE]",
]


@given(texts=st.lists(st.lists(st.sampled_from(MIDDLES), max_size=3).map(b"".join), min_size=1, max_size=20))
def test_events_of_one_form_are_read_like_any_others(texts):
    parts = [event(b'{"choices":[{"delta":{"content":"%b"}}],"usage":null}' % text) for text in texts]
    alone, together = SseRelay(strips_usage=True), SseRelay(strips_usage=True)

    out = b"".join(map(alone.feed, parts))

    assert together.feed(b"".join(parts)) == out  # no form can be learned from several at once
    for name in ("usage", "is_done", "has_error", "has_content", "finish_reason"):
        assert getattr(together, name) == getattr(alone, name), name


@pytest.mark.parametrize("size", [1, 7, 100, 10**6])
def test_recorded_vllm_stream_loses_only_its_usage_chunk(size):
    recorded = GOLDEN.read_bytes()

    events, out = relay(recorded, range(size, len(recorded), size))

    assert [part for part in recorded.split(b"\n\n") if b'"choices":[]' not in part] == out.split(b"\n\n")
    assert events.usage is not None
    assert (6, 8) == (events.usage.prompt_tokens, events.usage.completion_tokens)
    assert events.is_done


def test_content_is_noticed_when_it_comes_and_not_before():
    events = SseRelay(strips_usage=True)
    events.feed(ROLE)
    assert not events.has_content

    events.feed(TOKENS[0])
    assert events.has_content


def test_usage_beside_content_stays():
    chunk = event(b'{"choices":[{"delta":{}}],"usage":{"completion_tokens":9}}')

    events, out = relay(chunk + DONE)

    assert chunk + DONE == out
    assert events.usage is not None


def test_half_an_event_is_held_back():
    events = SseRelay(strips_usage=False)

    assert TOKENS[0] == events.feed(TOKENS[0] + TOKENS[1][:9])


@pytest.mark.parametrize("payload", [b'{"usage":', b'{"error":1}', b'{"usage":"many"}', b"[DONE] ", b'"usage"'])
def test_what_cannot_be_read_is_passed_on(payload):
    events, out = relay(event(payload))

    assert event(payload) == out
    assert events.usage is None


def test_an_event_without_end_is_not_held_for_ever():
    events = SseRelay(strips_usage=True)
    huge = b"data: " + b"x" * MAX_HELD_BYTES

    assert huge == events.feed(huge)


@pytest.mark.parametrize("document", [b"", b"[1]", b"{", b'{"usage":5}', b"\xff", b'{"choices":[]}'])
def test_no_usage_is_none(document):
    assert read_usage(document) is None
