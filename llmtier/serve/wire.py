"""The request body as the gateway sees it: the few fields that routing needs, and the splice.

Reads body bytes, writes body bytes. Everything that is not named here is carried over byte for
byte: ``messages`` of any size are never built and re-encoded. Top-level keys that occur twice are
forwarded once, with the value that was routed on, so gateway and engine cannot read two requests.
Does no I/O and knows no tier.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

from llmtier.core.prompt import Message, Prompt
from llmtier.serve.refusal import RequestRefusedError

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]  # what engines hold in an int32
Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]  # 128: the API's own limit

CHARACTERS_PER_TOKEN = 6
"""Deliberately above English's 4 or so: a prompt is refused for length only when it surely does not fit."""


class Endpoint(StrEnum):
    """The two endpoints that are routed; the value is the path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


class _Part(msgspec.Struct, gc=False):
    text: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Body(msgspec.Struct, gc=False):
    model: str
    messages: list[_Message] | None = None
    prompt: str | list[str | int | list[int]] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Choices | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WireRequest:
    """One decoded request.

    Attributes:
        endpoint: Where it was posted.
        model: The model that was asked for: a tier's name or an alias.
        messages: The conversation as text; one user turn for a completion; empty when the prompt is token ids.
        is_stream: Whether the client wants SSE.
        wants_usage: Whether the client asked for the usage chunk itself.
        max_tokens: Longest answer asked for; ``None`` when the client left it open.
        n_prompt_tokens: Exact for token ids, else a low estimate from the characters.
    """

    endpoint: Endpoint
    model: str
    messages: tuple[Message, ...]
    is_stream: bool
    wants_usage: bool
    max_tokens: int | None
    n_prompt_tokens: int
    _fields: dict[str, msgspec.Raw]

    @property
    def context_tokens(self) -> int:
        """Prompt plus longest answer: what must fit in the tier's context."""
        return self.n_prompt_tokens + (self.max_tokens or 0)

    @property
    def messages_json(self) -> bytes:
        """The conversation's text as ``[{"role": ..., "content": ...}]``."""
        return msgspec.json.encode(self.messages)

    @property
    def prompt_sha256(self) -> str:
        """Digest of ``messages_json``, or of the token ids as they were sent."""
        return hashlib.sha256(self.messages_json if self.messages else self._fields["prompt"]).hexdigest()

    def to_prompt(self, request_id: str, *, domain: str | None) -> Prompt | None:
        """Return what a scorer reads; ``None`` when the prompt has no text."""
        if not self.messages:
            return None
        return Prompt(id=request_id, messages=self.messages, domain=domain, max_tokens=self.max_tokens)

    def forwarded(self, model: str) -> bytes:
        """Return the body for an engine that calls the tier ``model``; streams also ask for usage."""
        fields: dict[str, object] = {**self._fields, "model": model}
        if self.is_stream and not self.wants_usage:
            given = self._fields.get("stream_options")
            options = None if given is None else msgspec.json.decode(given, type=dict[str, msgspec.Raw] | None)
            fields["stream_options"] = {**(options or {}), "include_usage": True}
        return msgspec.json.encode(fields)


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_BODY = msgspec.json.Decoder(_Body)


def decode_request(endpoint: Endpoint, body: bytes) -> WireRequest:
    """Decode ``body``.

    Raises:
        RequestRefusedError: 400 when it is not JSON, lacks a field or holds a wrong type.
    """
    try:
        decoded = _BODY.decode(body)
        fields = _FIELDS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestRefusedError(f"the request body is not a valid {endpoint.value} request: {exc}") from exc
    messages, n_prompt_tokens = _read_prompt(endpoint, decoded)
    options = decoded.stream_options
    return WireRequest(
        endpoint=endpoint,
        model=decoded.model,
        messages=messages,
        is_stream=bool(decoded.stream),
        wants_usage=options is not None and bool(options.include_usage),
        max_tokens=decoded.max_tokens if decoded.max_completion_tokens is None else decoded.max_completion_tokens,
        n_prompt_tokens=n_prompt_tokens,
        _fields=fields,
    )


def _read_prompt(endpoint: Endpoint, body: _Body) -> tuple[tuple[Message, ...], int]:
    if endpoint is Endpoint.CHAT:
        if not body.messages:
            raise RequestRefusedError("messages must hold at least one message", param="messages")
        messages = tuple(Message(role=message.role, content=_text_of(message.content)) for message in body.messages)
        return messages, _estimate_tokens([message.content for message in messages])
    if body.prompt is None or body.prompt in ("", []):
        raise RequestRefusedError("prompt must not be empty", param="prompt")
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts:
        return (Message(role="user", content="\n".join(texts)),), _estimate_tokens(texts)
    return (), max(len(prompts), *(len(ids) for ids in prompts if isinstance(ids, list)), 0)


def _text_of(content: str | list[_Part] | None) -> str:
    if isinstance(content, list):
        return "\n".join(part.text for part in content if part.text is not None)
    return content or ""


def _estimate_tokens(texts: Sequence[str]) -> int:
    return sum(map(len, texts)) // CHARACTERS_PER_TOKEN
