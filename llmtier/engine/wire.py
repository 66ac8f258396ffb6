"""The parts of OpenAI-shaped responses that llmtier reads, and nothing more.

Pure: bytes in, structs out. Fields that are not named here are skipped while
decoding. Shapes as vLLM 0.32 sends them (tests/golden) and as
https://platform.openai.com/docs/api-reference/chat-streaming describes them.
"""

import msgspec

_MAX_QUOTED_CHARACTERS = 300


class Delta(msgspec.Struct, gc=False):
    """What a chat chunk adds; reasoning models name their thoughts in either way."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct, gc=False):
    """One alternative: ``delta`` in chat streams, ``text`` in completion streams."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct, gc=False):
    """Token counts of the whole request."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class ErrorBody(msgspec.Struct, gc=False):
    """The object under ``error``."""

    message: str | None = None
    type: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """One ``data:`` document of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: ErrorBody | str | None = None


class ModelCard(msgspec.Struct):
    """One entry of ``/v1/models``; ``max_model_len`` is vLLM's addition."""

    id: str
    max_model_len: int | None = None


class ModelList(msgspec.Struct):
    """The document at ``/v1/models``."""

    data: list[ModelCard]


class VersionDocument(msgspec.Struct):
    """The document at ``/version``."""

    version: str


class _Failure(msgspec.Struct):
    error: ErrorBody | str | None = None
    message: str | None = None
    detail: str | None = None


CHUNK_DECODER = msgspec.json.Decoder(Chunk)
MODEL_LIST_DECODER = msgspec.json.Decoder(ModelList)
VERSION_DECODER = msgspec.json.Decoder(VersionDocument)
_FAILURE_DECODER = msgspec.json.Decoder(_Failure)


def error_text(error: ErrorBody | str) -> str:
    """Return the words of an ``error`` value."""
    if isinstance(error, str):
        return error
    return error.message or error.type or "no reason given"


def failure_text(body: bytes) -> str:
    """Return the words of a response with an error status, whatever shape its body has."""
    try:
        failure = _FAILURE_DECODER.decode(body)
    except msgspec.DecodeError:
        return quote(body)
    if failure.error is not None:
        return error_text(failure.error)
    return failure.message or failure.detail or quote(body)


def quote(body: bytes) -> str:
    """Return the beginning of a body as one line of text."""
    text = " ".join(body.decode("utf-8", errors="replace").split())
    return f"{text[:_MAX_QUOTED_CHARACTERS]}…" if len(text) > _MAX_QUOTED_CHARACTERS else text or "empty body"
