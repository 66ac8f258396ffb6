"""Streams: what is complained about and when, and that healthy ones never are."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmtier.serve.answer_check import Complaint, Expected
from llmtier.serve.stream_check import StreamCheck

GOLDEN = Path(__file__).parents[1] / "golden"
EMPTY, NAN, REPETITION, ERROR = Complaint
DONE = b"data: [DONE]\n\n"
DIED = b'data: {"error":{"message":"engine died","type":"Internal","code":500}}\n\n'
WORDS = st.text(min_size=1, max_size=6) | st.sampled_from([" the", " a", "!", '"', "\\", "\n", "ab", "好", "🎉", "NaN"])


def event(document, end=b"\n\n"):
    return b"data: " + json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + end


def chunk(content, key="content", finish=None, stop=None, **fields):
    choice = {"index": 0, "delta": {key: content}, "logprobs": None, "finish_reason": finish, "stop_reason": stop}
    named = {"id": "chatcmpl-8994d41add1dbaeb", "object": "chat.completion.chunk", "created": 1795203242, "model": "m"}
    return event({**named, "choices": [{**choice, **fields}]})


def written(text, **fields):
    named = {"id": "cmpl-8994d41add1dbaeb", "object": "text_completion", "created": 1795203242, "model": "m"}
    return event({**named, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": None, **fields}]})


ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
END = chunk("", finish="stop")
USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 64}})


def feed(check, pieces):
    """Return the number of the piece that gave rise to a complaint, and that."""
    return next(((number, found) for number, piece in enumerate(pieces) if (found := check.feed(piece))), None)


def join(pieces, sizes):
    """Put neighbours together, as one read of a socket may."""
    pieces, joined = list(pieces), []
    for size in sizes:
        joined.append(b"".join(pieces[:size]))
        del pieces[:size]
    return [*joined, *pieces]


@pytest.mark.parametrize("name", ["vllm_0.32.0_chat_stream.sse", "vllm_0.32.0_completion_stream.sse"])
@pytest.mark.parametrize("at_once", [False, True])
def test_recorded_streams_are_fine(name, at_once):
    data = (GOLDEN / name).read_bytes()
    check = StreamCheck()

    assert feed(check, [data] if at_once else [part + b"\n\n" for part in data.split(b"\n\n")]) is None
    assert check.finish() is None
    assert check.has_text


@given(
    words=st.lists(WORDS, min_size=1, max_size=300),
    make=st.sampled_from([chunk, written]),
    sizes=st.lists(st.integers(1, 5), max_size=80),
)
def test_ordinary_text_is_never_complained_about(words, make, sizes):
    differing = [word for before, word in zip(["", *words], words, strict=False) if word not in before + word[:-1]]
    check = StreamCheck()

    assert feed(check, join([ROLE, *map(make, differing or ["a"]), END, USAGE, DONE], sizes)) is None
    assert check.finish(64) is None


@given(data=st.binary(max_size=200), sizes=st.lists(st.integers(1, 50)), after=st.integers(0, 12))
def test_no_bytes_raise(data, sizes, after):
    check = StreamCheck()
    feed(check, [chunk(f"w{n}") for n in range(after)])
    for size in sizes:
        check.feed(data[:size])
        data = data[size:]

    check.finish()


@given(words=st.lists(WORDS, min_size=1, max_size=40), cuts=st.lists(st.integers(1, 60)))
@example(words=["0"], cuts=[1, 1, 14, 60, 17, 60, 60])
def test_pieces_cut_in_the_midst_of_events_give_no_complaint(words, cuts):
    data, check = b"".join([ROLE, *map(chunk, words), END, DONE]), StreamCheck()
    for cut in cuts:
        assert check.feed(data[:cut]) is None
        data = data[cut:]
    assert check.feed(data) is None
    assert check.finish() is None


@pytest.mark.parametrize("unit", ["!", " the", "\n", "好", '"', "\\", " --"])
@pytest.mark.parametrize("make", [chunk, written, lambda text: chunk(text, "reasoning")])
@pytest.mark.parametrize("before", [[], ["Sure", ":"]])
def test_one_token_again_and_again_is_told_after_64_chunks(unit, make, before):
    pieces = [ROLE, *map(make, before), *[make(unit)] * 200]
    check = StreamCheck()

    assert (len(before) + 64, REPETITION) == feed(check, pieces)
    assert feed(check, [make(unit)] * 100) is None
    assert check.finish() is None
    assert REPETITION is check.complaint


@given(counts=st.lists(st.integers(1, 4), min_size=64, max_size=80), unit=st.sampled_from(["!", " the", "好"]))
def test_tokens_that_came_as_one_chunk_are_the_same_run(counts, unit):
    check = StreamCheck()

    assert (63, REPETITION) == feed(check, [chunk(unit * count) for count in counts])


@given(sizes=st.lists(st.integers(1, 7), max_size=40))
def test_events_that_came_as_one_piece_are_counted_each(sizes):
    healthy, broken = [chunk(f" w{n}") for n in range(40)], [chunk("!")] * 63

    assert feed(StreamCheck(), join(broken, sizes)) is None
    found = feed(StreamCheck(), join([*broken, broken[0]], sizes))
    assert found is not None
    assert REPETITION is found[1]
    assert feed(StreamCheck(), join([*healthy, *broken * 5], sizes)) is None  # 315 of 355 chunks


def test_a_run_after_a_good_part_is_told_when_it_is_nearly_all():
    check = StreamCheck()
    assert feed(check, [chunk(f" w{n}") for n in range(10)]) is None

    assert (189, REPETITION) == feed(check, [chunk("-")] * 500)


def test_a_run_that_ends_is_forgotten():
    pieces = ([chunk("-")] * 63 + [chunk(" x")]) * 4

    assert feed(StreamCheck(), pieces) is None


def test_pieces_without_text_are_no_run():
    pads = [chunk("a"), *[chunk("")] * 200]

    assert feed(StreamCheck(), [*[chunk(f"w{n}") for n in range(20)], *pads]) is None


def test_nan_in_the_first_chunks():
    token = {"token": "!", "logprob": None, "bytes": [33], "top_logprobs": []}
    bare = chunk("!", logprobs={"content": [{"token": "!", "logprob": float("nan")}]})

    assert (1, NAN) == feed(StreamCheck(), [ROLE, chunk("!", logprobs={"content": [token]})])
    assert (1, NAN) == feed(StreamCheck(), [ROLE, bare])
    assert (0, NAN) == feed(StreamCheck(), [written("!", logprobs={"token_logprobs": [None]})])
    echoed = written("ab", logprobs={"token_logprobs": [None, -0.5]})
    assert feed(StreamCheck(Expected(echoes=True)), [echoed]) is None


@pytest.mark.parametrize("n_before", [0, 1, 30])
@pytest.mark.parametrize("joined", [False, True])
def test_an_error_event_inside_a_success(n_before, joined):
    check = StreamCheck()
    assert feed(check, [ROLE, *(chunk(f" w{n}") for n in range(n_before))]) is None

    assert (0, ERROR) == feed(check, [chunk("a") + DIED + DONE] if joined else [DIED, DONE])
    assert check.finish() is None


def test_error_events_of_responses():
    created = {"type": "response.created", "response": {"error": None, "output": []}}
    delta = {"type": "response.output_text.delta", "delta": "Hi"}
    failed = {"type": "response.failed", "response": {"error": {"code": "server_error"}}}

    assert feed(StreamCheck(), map(event, [created, delta, delta])) is None
    assert (2, ERROR) == feed(StreamCheck(), map(event, [created, delta, failed]))
    assert (1, ERROR) == feed(StreamCheck(), map(event, [created, {"type": "error", "message": "no"}]))
    check = StreamCheck()
    check.feed(event(created))
    assert check.finish() is None  # what else it brought is not known


def test_words_in_the_text_are_no_error():
    text = 'data: {"error": {"message": 1}} "error": NaN'

    assert feed(StreamCheck(), [chunk(f"{text}{n}") for n in range(40)]) is None


@pytest.mark.parametrize("pieces", [[DONE], [ROLE, END, DONE], [ROLE, END + DONE], [b": ping\n\n", ROLE, END, DONE]])
def test_a_stream_that_brought_nothing(pieces):
    check = StreamCheck()

    assert feed(check, pieces) is None
    assert EMPTY is check.finish(1)
    assert check.finish(1) is None


def test_a_stream_that_brought_nothing_for_a_reason():
    def finish(*pieces, expected=None, n_tokens=1):
        check = StreamCheck(expected or Expected())
        assert feed(check, pieces) is None
        return check.finish(n_tokens)

    call = event({"choices": [{"index": 0, "delta": {"tool_calls": [{"id": "1", "function": {"name": "f"}}]}}]})
    length = chunk("", finish="length")
    assert finish(ROLE, END, expected=Expected(may_stop_at_once=True)) is None
    assert finish(ROLE, chunk("", finish="stop", stop="\n")) is None
    assert finish(ROLE, call, chunk("", finish="tool_calls")) is None
    assert finish(ROLE, length) is None
    assert EMPTY is finish(ROLE, *[chunk("")] * 63, length, USAGE)
    assert EMPTY is finish(ROLE, length, n_tokens=64)
    assert finish(ROLE, length, USAGE, expected=Expected(hides_thoughts=True)) is None
    assert finish(b"data: garbage\n\n", END) is None


def test_streams_of_other_engines_are_read_as_well():
    def other(text, n):  # the instant changes, so no two chunks begin alike
        return event({"choices": [{"delta": {"content": text}}], "created": n}, end=b"\r\n\r\n")

    assert feed(StreamCheck(), [other(f" w{n}", n) for n in range(100)]) is None
    assert (63, REPETITION) == feed(StreamCheck(), [other("!", n) for n in range(100)])


def test_choices_side_by_side_are_a_run_only_together():
    def choice(text, index):
        return chunk(text, index=index)

    both = [choice("!", n % 2) for n in range(100)]
    one = [choice("!" if n % 2 else f" w{n}", n % 2) for n in range(400)]

    assert (63, REPETITION) == feed(StreamCheck(), both)
    assert feed(StreamCheck(), one) is None
