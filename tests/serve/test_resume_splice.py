"""A spliced stream is one valid stream with the uncut answer's text, wherever it broke and however bytes come."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.engine.sse import SseParser
from llmtier.serve.resume import Closing, Recipe, ResumeAsk, ResumePlan, plan
from llmtier.serve.resume_log import ResumeLog, read_sent
from llmtier.serve.resume_splice import Seam, Splicer
from llmtier.serve.sse_relay import SseRelay
from llmtier.serve.wire import Endpoint

PROMPT_IDS = [1, 2, 3]
TOKENS = st.lists(st.text('ab .é😀\n"', min_size=1, max_size=3), min_size=1, max_size=24)


def event(document):
    return b"data: " + json.dumps(document).encode() + b"\n\n"


class Engine:
    """Generates ``tokens`` greedily after any prefix of them, as vLLM words its chunks."""

    def __init__(self, tokens):
        self.tokens = tokens

    def answer(self, request, *, is_chat, name, has_ids):
        start = self.count_given(request, is_chat=is_chat)
        limit = request.get("max_tokens", len(self.tokens) - start)
        stop = min(start + limit, len(self.tokens))
        frame = {"id": name, "created": hash(name) % 1000, "model": name}
        first = {"prompt_token_ids": PROMPT_IDS if has_ids else None}
        out = []
        if is_chat:
            out.append(
                event({**frame, **first, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            )
        for index in range(start, stop):
            ids = {"token_ids": [100 + index] if has_ids else None, **({} if is_chat or index > start else first)}
            text = self.tokens[index]
            body = {"delta": {"content": text}} if is_chat else {"text": text}
            finish = None if index + 1 < stop else "stop" if stop == len(self.tokens) else "length"
            out.append(event({**frame, "choices": [{"index": 0, **body, "finish_reason": finish, **ids}]}))
        usage = {"prompt_tokens": 3 + start, "completion_tokens": stop - start, "total_tokens": 3 + stop}
        return [*out, event({**frame, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]

    def count_given(self, request, *, is_chat):
        if is_chat:
            last = request["messages"][-1]
            given = last["content"] if last["role"] == "assistant" else ""
        elif isinstance(request["prompt"], list):
            return len(request["prompt"]) - 3
        else:
            given = request["prompt"].removeprefix("P:")
        return next(n for n in range(len(self.tokens) + 1) if "".join(self.tokens[:n]) == given)


def read(stream):
    """Return what a client library makes of a stream, and how often each of its parts came."""
    parser = SseParser()
    events = [one.data for one in parser.feed(stream)]
    assert not parser.close()
    chunks = [json.loads(data) for data in events if data != "[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    deltas = [choice.get("delta", {}) for choice in choices]
    return {
        "text": "".join(
            choice.get("text") or delta.get("content") or "" for choice, delta in zip(choices, deltas, strict=True)
        ),
        "frames": {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks},
        "n_roles": sum("role" in delta for delta in deltas),
        "finish": [choice["finish_reason"] for choice in choices if choice.get("finish_reason")],
        "usage": [chunk["usage"] for chunk in chunks if chunk.get("usage")],
        "shapes": {"delta" in choice for choice in choices},
        "n_done": events.count("[DONE]"),
        "is_last_done": events[-1] == "[DONE]",
    }


def cut(data, draw):
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def sent_before(data, at):
    """Return what the relay passed on of the bytes that came before the break."""
    return SseRelay(strips_usage=False).feed(data[:at])


def carry_on(ask, engine, log, draw, *, has_ids, name="second", at=None):
    """Return what a continuation adds to ``log``, up to where it breaks itself."""
    planned = plan(ask, log)
    if isinstance(planned, Closing):
        return planned.tail
    assert isinstance(planned, ResumePlan), planned
    is_chat = planned.endpoint is Endpoint.CHAT
    second = b"".join(engine.answer(json.loads(planned.body("m")), is_chat=is_chat, name=name, has_ids=has_ids))
    splicer = planned.splicer()
    out = b"".join(splicer.feed(piece) for piece in cut(second[:at], draw))
    assert splicer.error is None
    return out


def make_case(draw):
    engine = Engine(draw(TOKENS))
    is_chat, has_ids = draw(st.booleans()), draw(st.booleans())
    max_tokens = draw(st.sampled_from([30, 7, 1]))
    prompt = {"messages": [{"role": "user", "content": "P:"}]} if is_chat else {"prompt": "P:"}
    request = {"model": "m", "stream": True, "temperature": 0, "max_tokens": max_tokens, **prompt}
    raw = msgspec.json.decode(json.dumps(request), type=dict[str, msgspec.Raw])
    endpoint = Endpoint.CHAT if is_chat else Endpoint.COMPLETIONS
    ask = ResumeAsk(
        endpoint=endpoint,
        fields=raw,
        max_tokens=max_tokens,
        wants_usage=True,
        max_repeated_tokens=draw(st.sampled_from([0, 8])),
    )
    uncut = b"".join(engine.answer(request, is_chat=is_chat, name="first", has_ids=has_ids))
    return engine, ask, uncut, has_ids


def resumes(ask, log):
    return isinstance(plan(ask, log), (ResumePlan, Closing))


@given(data=st.data())
def test_spliced_stream_reads_as_the_uncut_one(data):
    engine, ask, uncut, has_ids = make_case(data.draw)
    log = ResumeLog()
    log.note(sent_before(uncut, data.draw(st.integers(0, len(uncut)))))
    if not resumes(ask, log):
        return  # nothing was sent, or greedy text that ends in a space
    log.note(carry_on(ask, engine, log, data.draw, has_ids=has_ids))

    expected = read(uncut)
    found = read(log.data)
    if not found["usage"]:  # closed by the gateway itself, which was never told the prompt's length
        expected["usage"] = []
    assert expected == found


@given(data=st.data())
def test_continuation_that_breaks_too_is_carried_on_again(data):
    engine, ask, uncut, has_ids = make_case(data.draw)
    log = ResumeLog()
    log.note(sent_before(uncut, data.draw(st.integers(0, len(uncut)))))
    for name in ("second", "third"):
        if not resumes(ask, log):
            return
        at = data.draw(st.integers(0, 3000)) if name == "second" else None
        log.note(carry_on(ask, engine, log, data.draw, has_ids=has_ids, name=name, at=at))

    expected, found = read(uncut), read(log.data)
    for key in ("text", "frames", "n_roles", "finish", "shapes", "n_done", "is_last_done"):
        assert expected[key] == found[key], key


def splicer_of(overlap="", *, data=None):
    sent = ResumeLog()
    sent.note(
        data
        or event(
            {
                "id": "one",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a b"}}],
            }
        )
    )
    raw = msgspec.json.decode(b'{"model":"m","stream":true,"messages":[]}', type=dict[str, msgspec.Raw])
    planned = plan(ResumeAsk(endpoint=Endpoint.CHAT, fields=raw, max_tokens=None, wants_usage=True), sent)
    assert isinstance(planned, ResumePlan)
    assert Recipe.TEXT is planned.recipe
    return Splicer(Seam(sent=planned.seam.sent, is_chat=True, overlap=overlap, n_resent_tokens=2))


def says(text, finish=None):
    return event({"id": "two", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def test_other_words_before_the_seam_fail_the_splice():
    splicer = splicer_of(" b")

    assert b"" == splicer.feed(says(" ") + says("c") + says("d"))
    assert "the continuation differs from what was sent before the cut" == splicer.error
    assert b"" == splicer.feed(says("b"))


def test_end_before_the_seam_fails_the_splice():
    splicer = splicer_of(" b")

    assert b"" == splicer.feed(says(" ", finish="stop"))
    assert "the continuation ended before the place of the cut" == splicer.error


def test_overlap_that_ends_within_a_token_leaves_its_rest():
    splicer = splicer_of(" b")
    choice = {"index": 0, "delta": {"role": "assistant", "content": " bc"}, "token_ids": [7]}
    out = splicer.feed(event({"id": "two", "choices": [choice]}))

    expected = {"index": 0, "delta": {"content": "c"}, "token_ids": None}  # the token is not what was added
    assert [expected] == json.loads(out[6:])["choices"]


def test_error_event_is_withheld_and_what_came_before_it_is_not():
    splicer = splicer_of()
    out = splicer.feed(says("c") + event({"error": {"message": "out of memory"}}) + says("d") + b"data: [DONE]\n\n")

    assert 1 == out.count(b"data:")
    assert "the continuing engine failed: out of memory" == splicer.error
    assert not splicer.is_done


def test_done_without_a_finish_reason_is_no_end():
    splicer = splicer_of()

    assert b"" == splicer.feed(b"data: [DONE]\n\n")
    assert "the continuation ended without a finish reason" == splicer.error


def test_role_that_was_not_sent_yet_is_sent_once():
    frame = {"id": "one", "created": 1, "model": "m"}
    sent = read_sent(event({**frame, "choices": [{"index": 0, "delta": {}}]}))
    splicer = Splicer(Seam(sent=sent, is_chat=True))
    out = splicer.feed(says("") + says("c", finish="stop"))

    roles = [
        choice["delta"].get("role") for part in out.split(b"\n\n")[:-1] for choice in json.loads(part[6:])["choices"]
    ]
    assert ["assistant", None] == roles


@pytest.mark.parametrize("usage", [{"prompt_tokens": 12}, {"completion_tokens": 5}])
def test_usage_that_is_not_whole_gets_no_total(usage):
    out = splicer_of().feed(event({"id": "two", "choices": [], "usage": usage}))

    assert "total_tokens" not in json.loads(out[6:])["usage"]


def test_nothing_follows_done():
    splicer = splicer_of()
    out = splicer.feed(says("c", finish="stop") + says("again", finish="stop") + b"data: [DONE]\n\n" * 2)

    assert (1, 1) == (out.count(b"finish_reason"), out.count(b"[DONE]"))
    assert b"" == splicer.feed(b"data: [DONE]\n\n")


def test_prompt_is_counted_from_the_second_engine_where_the_first_did_not_tell():
    splicer = splicer_of()
    usage = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}
    out = splicer.feed(event({"id": "two", "choices": [], "usage": usage}))

    assert {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17} == json.loads(out[6:])["usage"]


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"choices": [{"index": 0, "delta": {"reasoning": "hm"}}]}, "the continuation adds more than text: reasoning"),
        ({"choices": [{"index": 1, "delta": {}}]}, "the continuation adds more than text: several_answers"),
        ({"choices": 3}, "the continuation is not a stream of chunks"),
        ({"choices": [1]}, "the continuation is not a stream of chunks"),
        ({"choices": [{"delta": 1}]}, "the continuation is not a stream of chunks"),
        ({"choices": [], "usage": 3}, "the continuation is not a stream of chunks"),
        ([], "the continuation is not a stream of chunks"),
    ],
)
def test_events_that_cannot_be_joined_fail_the_splice(document, error):
    splicer = splicer_of()

    assert b"" == splicer.feed(event(document))
    assert error == splicer.error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["choices", "usage", "delta", "text", "content", "error", "index", "id"]), inner, max_size=4
        )
    ),
)


@given(documents=st.lists(JSON.map(event) | st.binary(max_size=40), max_size=6))
def test_any_bytes_give_whole_events_or_an_error(documents):
    splicer = splicer_of()
    out = b"".join(splicer.feed(piece) for piece in documents)

    assert out == b"" or (out.startswith(b"data: ") and out.endswith(b"\n\n"))
