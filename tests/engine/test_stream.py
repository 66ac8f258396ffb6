"""What a stream adds up to, from recorded and made-up chunks."""

from pathlib import Path

import pytest

from llmtier.core.errors import EngineRequestError
from llmtier.engine.stream import Completion, StreamedAnswer


def complete(*pieces: bytes) -> Completion:
    answer = StreamedAnswer()
    for second, piece in enumerate(pieces):
        answer.take(piece, float(second))
    return answer.finish(scheduled_s=0.0, sent_s=0.0, done_s=float(len(pieces)))


def events_of(stream: bytes) -> list[bytes]:
    return [part + b"\n\n" for part in stream.split(b"\n\n") if part]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_recorded_vllm_stream_adds_up(golden: Path, kind: str) -> None:
    completion = complete(*events_of((golden / f"vllm_0.32.0_{kind}_stream.sse").read_bytes()))

    assert 8 == len(completion.text)
    assert 8 == completion.timing.n_output_tokens
    assert 8 == len(completion.timing.content_s)
    assert "length" == completion.finish_reason
    assert {"chat": 6, "completion": 5}[kind] == completion.n_input_tokens


def test_role_chunk_is_no_token(golden: Path) -> None:
    completion = complete(*events_of((golden / "vllm_0.32.0_chat_stream.sse").read_bytes()))

    assert 1.0 == completion.timing.ttft_s  # the event after the role chunk


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_counts_for_the_first_token_but_is_not_the_text(name: str) -> None:
    thought = b'data: {"choices":[{"delta":{"%s":"hm"}}]}\n\n' % name.encode()
    completion = complete(thought, b'data: {"choices":[{"delta":{"content":"yes"},"finish_reason":"stop"}]}\n\n')

    assert "yes" == completion.text
    assert (0.0, 1.0) == completion.timing.content_s


def test_usage_and_finish_that_are_absent_stay_none() -> None:
    completion = complete(b'data: {"choices":[{"delta":{"content":"yes"}}]}\n\n', b"data: [DONE]\n\n")

    assert completion.finish_reason is None
    assert completion.n_input_tokens is None
    assert completion.timing.n_output_tokens is None


@pytest.mark.parametrize("error", ['{"message":"boom","code":500}', '"boom"'])
def test_error_chunk_raises_with_its_words(error: str) -> None:
    with pytest.raises(EngineRequestError, match="boom"):
        complete(f'data: {{"error": {error}}}\n\n'.encode())


@pytest.mark.parametrize("data", [b"{", b'"text"', b'{"choices": 3}', b'{"choices":[{"delta":{"content":5}}]}'])
def test_malformed_chunk_raises_and_is_quoted(data: bytes) -> None:
    with pytest.raises(EngineRequestError, match="malformed chunk"):
        complete(b"data: " + data + b"\n\n")


def chat_event(text: str, logprobs: str, *, field: str = "content") -> bytes:
    return f'data: {{"choices":[{{"delta":{{"{field}":"{text}"}},"logprobs":{logprobs}}}]}}\n\n'.encode()


def one(logprob: float) -> str:
    return f'{{"content":[{{"token":"x","logprob":{logprob},"bytes":null,"top_logprobs":[]}}]}}'


def complete_with_logprobs(*pieces: bytes) -> Completion:
    answer = StreamedAnswer(reads_logprobs=True)
    for piece in (*pieces, b"data: [DONE]\n\n"):
        answer.take(piece, 0.0)
    return answer.finish(scheduled_s=0.0, sent_s=0.0, done_s=0.0)


def test_logprobs_of_the_answers_tokens_are_kept() -> None:
    completion = complete_with_logprobs(
        chat_event("", "null"), chat_event("hm", one(-9.0), field="reasoning"), chat_event("a", one(-0.5)),
        chat_event("b", one(-1.5)), chat_event("c", one(1e-9)),
    )  # fmt: skip

    assert (-0.5, -1.5, 0.0) == completion.logprobs
    assert pytest.approx(-2 / 3) == completion.mean_logprob


@pytest.mark.parametrize("logprobs", ['{"token_logprobs":[-1]}', '"none"', '{"content":null}', '{"content":["x"]}'])
def test_logprobs_of_another_shape_cost_no_answer(logprobs: str) -> None:
    completion = complete_with_logprobs(chat_event("a", logprobs))

    assert ("a", (), None) == (completion.text, completion.logprobs, completion.mean_logprob)


def test_logprobs_that_nobody_asked_for_are_not_read() -> None:
    assert () == complete(chat_event("a", one(-0.5))).logprobs
