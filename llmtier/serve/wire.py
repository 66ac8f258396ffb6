"""The request body as the gateway sees it: the few fields that routing needs, and the splice.

Reads body bytes, writes body bytes. An engine gets the client's own bytes with the model's name replaced in
place and, for streams, the request for usage put before it: values of any size are never built and encoded
again. Where the top level is not written plainly (a key twice, a key with escapes), or a field must go or change,
it is written anew from the values' own bytes, each key once, so that gateway and engine cannot read two
requests. Does no I/O and knows no tier.
"""

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from llmtier.core.prompt import Message, Prompt
from llmtier.serve.caps import Caps, make_readers
from llmtier.serve.needs import Stated
from llmtier.serve.prompt_text import PromptText, read_chat, read_inputs, read_responses
from llmtier.serve.refusal import RequestRefusedError
from llmtier.store.permissions import Permission

EXTENSION = "llmtier"
"""The body's own key for what headers say otherwise; no engine gets it."""

_STATE_FIELDS = ("previous_response_id", "conversation")
_MEMBER = re.compile(rb'[ \t\r\n]*[{,][ \t\r\n]*"([^"\\]*)"[ \t\r\n]*:[ \t\r\n]*')
_END = re.compile(rb"[ \t\r\n]*}[ \t\r\n]*")
_NULL = msgspec.Raw(b"null")
_USAGE_ONLY = msgspec.Raw(b'{"include_usage":true}')

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STATED = msgspec.json.Decoder(Stated | None)
_OPTIONS = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


class Endpoint(StrEnum):
    """The endpoints that are routed; the value is the path."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"


class WireRequest:
    """One decoded request; ``BodyReader`` makes it.

    Attributes:
        endpoint: Where it was posted.
        model: The model that was asked for: a tier's name or an alias.
        messages: The conversation as text; one user turn for completions and embeddings; empty for token ids.
        is_stream: Whether the client wants SSE.
        wants_usage: False where the stream's usage chunk is not the client's wish but the gateway's.
        max_tokens: Longest answer; ``None`` when neither the client nor a cap says.
        n: Answers asked for.
        n_prompt_tokens: Exact for token ids, else a low estimate from the characters.
        stated: What the body's ``llmtier`` object asks for; ``None`` without one.
    """

    __slots__ = (
        "_body",
        "_edits",
        "_fields",
        "_span",
        "endpoint",
        "is_stream",
        "max_tokens",
        "messages",
        "model",
        "n",
        "n_prompt_tokens",
        "stated",
        "wants_usage",
    )

    def __init__(self, endpoint: Endpoint, body: bytes, fields: dict[str, msgspec.Raw], prompt: PromptText) -> None:
        self.endpoint = endpoint
        self.messages: tuple[Message, ...] = prompt.messages
        self.n_prompt_tokens = prompt.n_tokens
        self.model = ""
        self.is_stream = False
        self.wants_usage = True
        self.max_tokens: int | None = None
        self.n = 1
        self.stated: Stated | None = None
        self._body = body
        self._fields = fields
        self._edits: dict[str, msgspec.Raw] = {}
        self._span: tuple[int, int, int] | tuple[()] | None = None  # not yet looked for

    @property
    def fields(self) -> Mapping[str, msgspec.Raw]:
        """The top level of the body."""
        return self._fields

    @property
    def context_tokens(self) -> int:
        """Prompt plus longest answer: what must fit in the tier's context."""
        return self.n_prompt_tokens + (self.max_tokens or 0)

    @property
    def needs_pin(self) -> str | None:
        """Why no router may choose the tier, for the client to read; ``None`` when one may."""
        if self.endpoint is Endpoint.EMBEDDINGS:
            return "vectors of two tiers cannot be compared"
        stateful = [name for name in _STATE_FIELDS if bytes(self._fields.get(name, _NULL)) != b"null"]
        return f"{stateful[0]} speaks of what one tier keeps" if stateful else None

    @property
    def messages_json(self) -> bytes:
        """The conversation's text as ``[{"role": ..., "content": ...}]``."""
        return msgspec.json.encode(self.messages)

    @property
    def prompt_sha256(self) -> str:
        """Digest of ``messages_json``, or of the token ids as they were sent."""
        ids = self._fields.get("prompt" if self.endpoint is Endpoint.COMPLETIONS else "input", _NULL)
        return hashlib.sha256(self.messages_json if self.messages else ids).hexdigest()

    def to_prompt(self, request_id: str, *, domain: str | None) -> Prompt | None:
        """Return what a scorer reads; ``None`` when the prompt has no text."""
        if not self.messages:
            return None
        return Prompt(id=request_id, messages=self.messages, domain=domain, max_tokens=self.max_tokens)

    def add(self, name: str, value: msgspec.Raw) -> None:
        """Give the engine a field of the gateway's own, in the place of the client's where it has one."""
        self._edits[name] = value

    def take_back(self, name: str) -> None:
        """Give the engine no such field after all, or the client's own."""
        self._edits.pop(name, None)

    def forwarded(self, model: str) -> bytes:
        """Return the body for an engine that calls the tier ``model``, with the fields that were added."""
        name = msgspec.json.encode(model)
        if self._span is None:
            self._span = self._find_span()
        if not self._span:
            fields = {**self._fields, **self._edits, "model": msgspec.Raw(name)}
            fields.pop(EXTENSION, None)
            return msgspec.json.encode(fields)
        key, start, end = self._span
        body = self._body
        added = [b'"%b":%b,' % (field.encode(), bytes(value)) for field, value in self._edits.items()]
        return b"".join((body[:key], *added, body[key:start], name, body[end:]))

    def _find_span(self) -> tuple[int, int, int] | tuple[()]:
        """Return where the model stands; empty when the body is to be written anew.

        That is where a field goes or changes or the top level is not plain, and where nothing stands between
        fields: there, writing them anew gives the same bytes.
        """
        if EXTENSION in self._fields or not self._edits.keys().isdisjoint(self._fields):
            return ()
        if msgspec.json.encode(self._fields) == self._body:
            return ()
        return find_value("model", self._body, self._fields) or ()


class BodyReader:
    """Decodes bodies under one set of bounds.

    Args:
        caps: What a body may hold.
    """

    def __init__(self, caps: Caps | None = None) -> None:
        self._caps = caps or Caps()
        self._readers = make_readers(self._caps)
        most = self._caps.max_tokens
        self._longest = None if most is None else msgspec.Raw(b"%d" % most)

    def read(self, endpoint: Endpoint, body: bytes) -> WireRequest:
        """Decode ``body``.

        Raises:
            RequestRefusedError: 400 when it is not JSON, lacks a field, holds a wrong type or more than it may.
        """
        try:
            fields = _FIELDS.decode(body)
            prompt = _read_prompt(endpoint, fields, self._caps)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise RequestRefusedError(f"the request body is not a valid {endpoint.value} request: {exc}") from exc
        readers = self._readers
        values = {name: readers[name](fields[name]) for name in fields if name in readers}
        if "model" not in values:
            raise RequestRefusedError("the request body lacks 'model'", param="model")
        if values.get("echo") and values.get("logprobs") is not None and Permission.ECHO not in self._caps.allowed:
            message = "'echo' together with 'logprobs' is not taken here; 'gateway.allow_fields' can allow 'echo'"
            raise RequestRefusedError(message, code="field_not_allowed", param="echo")
        request = WireRequest(endpoint, body, fields, prompt)
        self._fill(request, fields, values)
        if EXTENSION in fields:
            request.stated = _read_stated(fields[EXTENSION])
        return request

    def _fill(self, request: WireRequest, fields: dict[str, msgspec.Raw], values: dict[str, Any]) -> None:
        request.model = values["model"]
        request.n = values.get("n") or 1
        if request.endpoint is Endpoint.EMBEDDINGS:
            return
        request.is_stream = bool(values.get("stream"))
        limit = "max_output_tokens" if request.endpoint is Endpoint.RESPONSES else "max_tokens"
        request.max_tokens = values.get(limit)
        if request.endpoint is Endpoint.CHAT and values.get("max_completion_tokens") is not None:
            request.max_tokens = values["max_completion_tokens"]
        if request.max_tokens is None and self._longest is not None:
            request.max_tokens = self._caps.max_tokens
            request.add(limit, self._longest)
        if request.is_stream and request.endpoint is not Endpoint.RESPONSES:
            options = values.get("stream_options")
            request.wants_usage = options is not None and bool(options.include_usage)
            if not request.wants_usage:
                request.add("stream_options", _with_usage(fields.get("stream_options")))


def find_value(key: str, body: bytes, fields: dict[str, msgspec.Raw]) -> tuple[int, int, int] | None:
    """Return where a top-level key, its value and the end of that lie in ``body``.

    Walks the members that ``fields`` holds and compares each: ``None`` unless they are all of the body, in its
    order, each once and its key without escapes.
    """
    found, at, opening = None, 0, b'{"'
    for name, value in fields.items():
        prefix = b'%b%b": ' % (opening, name.encode())
        if body.startswith(prefix, at):  # as Python's own encoder spaces it
            at, opened = at + len(prefix), at + len(opening) - 1
        else:
            member = _MEMBER.match(body, at)
            if member is None or member[1] != name.encode():
                return None
            at, opened = member.end(), member.start(1) - 1
        data = bytes(value)
        if not body.startswith(data, at):
            return None
        start, at, opening = at, at + len(data), b', "'
        if name == key:
            found = (opened, start, at)
    return found if _END.fullmatch(body, at) else None


_DEFAULT_READER = BodyReader()


def decode_request(endpoint: Endpoint, body: bytes) -> WireRequest:
    """Decode ``body`` under the default bounds; raises as ``BodyReader.read`` does."""
    return _DEFAULT_READER.read(endpoint, body)


def _read_prompt(endpoint: Endpoint, fields: dict[str, msgspec.Raw], caps: Caps) -> PromptText:
    match endpoint:
        case Endpoint.CHAT:
            return read_chat(fields, caps)
        case Endpoint.COMPLETIONS:
            return read_inputs("prompt", fields, caps)
        case Endpoint.EMBEDDINGS:
            return read_inputs("input", fields, caps)
        case Endpoint.RESPONSES:
            return read_responses(fields, caps)


def _read_stated(value: msgspec.Raw) -> Stated | None:
    try:
        stated: Stated | None = _STATED.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestRefusedError(f"{EXTENSION}: {exc}", param=EXTENSION) from exc
    return stated


def _with_usage(options: msgspec.Raw | None) -> msgspec.Raw:
    """Return ``stream_options`` with the wish for usage among the client's own."""
    others = None if options is None else _OPTIONS.decode(options)
    if not others:
        return _USAGE_ONLY
    return msgspec.Raw(msgspec.json.encode({**others, "include_usage": True}))
