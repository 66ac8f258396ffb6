"""The mock engine's HTTP surface: requests in, documents out, shaped as vLLM 0.32 sends them.

Holds the shapes and one exchange's ASGI calls; decides nothing. The recorded
answers of the real engine are in tests/golden.
"""

import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_CREATED = 1_700_000_000  # a constant: answers of a mock never differ between runs
DONE = b"data: [DONE]\n\n"


class RefusalError(Exception):
    """A request that is answered with an error status.

    Args:
        message: For the client.
        status: HTTP status.
        headers: Further response headers.
    """

    def __init__(self, message: str, *, status: int, headers: Mapping[str, str] | None = None) -> None:
        self.message = message
        self.status = status
        self.headers = headers
        super().__init__(message)


class ContentPart(msgspec.Struct):
    """One part of a message whose content is a list."""

    text: str | None = None


class ChatMessage(msgspec.Struct):
    """One message of a request."""

    role: str
    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class StreamOptions(msgspec.Struct):
    """What a stream shall carry besides content."""

    include_usage: bool = False


class GenerationRequest(msgspec.Struct):
    """The fields that the mock obeys, of both endpoints; others are ignored."""

    model: str
    messages: list[ChatMessage] | None = None
    prompt: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    logprobs: bool | int | None = None
    n: int = 1

    @property
    def texts(self) -> list[str]:
        """Every text of the prompt, oldest first."""
        if self.messages is not None:
            return [message.text for message in self.messages]
        return [self.prompt or ""]

    @property
    def last_user_text(self) -> str:
        """What is answered: the last user turn, else the last turn, else the raw prompt."""
        for message in reversed(self.messages or []):
            if message.role == "user":
                return message.text
        return self.texts[-1]

    @property
    def output_limit(self) -> int | None:
        """The longest answer asked for, under either name."""
        return self.max_completion_tokens or self.max_tokens


_REQUEST_DECODER = msgspec.json.Decoder(GenerationRequest)


def decode_request(body: bytes, *, is_chat: bool) -> GenerationRequest:
    """Return the request in a body.

    Raises:
        RefusalError: 400, malformed or incomplete.
    """
    try:
        request = _REQUEST_DECODER.decode(body)
    except msgspec.DecodeError as error:
        raise RefusalError(f"1 validation error: {error}", status=400) from error
    if not request.messages if is_chat else request.prompt is None:
        raise RefusalError(
            f"1 validation error: body.{'messages' if is_chat else 'prompt'}: Field required", status=400
        )
    if request.n != 1:
        raise RefusalError(f"n must be 1, got {request.n}", status=400)
    if request.output_limit is not None and request.output_limit < 1:
        raise RefusalError(f"max_tokens must be at least 1, got {request.output_limit}", status=400)
    return request


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerShape:
    """Writes the documents of one answer.

    Attributes:
        is_chat: Whether the chat endpoint was asked.
        model_name: Repeated in each document.
        request_id: Likewise.
        n_prompt_tokens: For ``usage``.
        has_logprobs: Whether chat tokens carry a log probability.
    """

    is_chat: bool
    model_name: str
    request_id: str
    n_prompt_tokens: int
    has_logprobs: bool = False

    def opening(self) -> bytes:
        """Return the event before the first token; empty for raw completions."""
        delta = {"role": "assistant", "content": ""}
        return (
            self._event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])
            if self.is_chat
            else b""
        )

    def token(self, text: str, *, finish_reason: str | None) -> bytes:
        """Return the event of one token; the last one carries the reason."""
        content = {"delta": {"content": text}} if self.is_chat else {"text": text}
        logprobs = {"content": [_token_logprob(text)]} if self.has_logprobs and self.is_chat else None
        return self._event([{"index": 0, **content, "logprobs": logprobs, "finish_reason": finish_reason}])

    def usage(self, n_output_tokens: int) -> bytes:
        """Return the event with the token counts."""
        return self._event([], usage=self._usage(n_output_tokens))

    def whole(self, text: str, *, n_output_tokens: int, finish_reason: str) -> bytes:
        """Return the document of a request that did not ask for a stream."""
        content = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
        kind = "chat.completion" if self.is_chat else "text_completion"
        return msgspec.json.encode({**self._head(kind), "choices": [choice], "usage": self._usage(n_output_tokens)})

    def _event(self, choices: list[dict[str, object]], **more: object) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return event({**self._head(kind), "choices": choices, **more})

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self.request_id, "object": kind, "created": _CREATED, "model": self.model_name}

    def _usage(self, n_output_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.n_prompt_tokens,
            "total_tokens": self.n_prompt_tokens + n_output_tokens,
            "completion_tokens": n_output_tokens,
        }


def _token_logprob(text: str) -> dict[str, object]:
    """Return a token's entry; its log probability in (-1, 0] depends on the text alone."""
    data = text.encode(errors="surrogatepass")
    return {"token": text, "logprob": -(zlib.crc32(data) % 1000) / 1000, "bytes": list(data), "top_logprobs": []}


def event(document: object) -> bytes:
    """Return one ``data:`` event."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def error_document(message: str, *, status: int) -> dict[str, object]:
    """Return vLLM's error object."""
    kinds = {400: "BadRequestError", 404: "NotFoundError", 429: "RateLimitError", 503: "ServiceUnavailableError"}
    kind = kinds.get(status, "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def model_list(model_name: str, context_tokens: int) -> dict[str, object]:
    """Return the document at ``/v1/models``."""
    card = {
        "id": model_name,
        "object": "model",
        "created": _CREATED,
        "owned_by": "llmtier",
        "max_model_len": context_tokens,
    }
    return {"object": "list", "data": [card]}


class Exchange:
    """One HTTP request and its response, over ASGI."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.has_started = False
        self._receive = receive
        self._send = send

    async def body(self) -> bytes:
        """Return the whole request body."""
        pieces = []
        while (message := await self._receive())["type"] == "http.request":
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        return b"".join(pieces)

    async def until_disconnected(self) -> None:
        """Wait until the client has gone; call after ``body``."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Send the status and the headers."""
        pairs = {"content-type": content_type, **(headers or {})}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs.items()]
        self.has_started = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """End the body."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def respond(
        self,
        body: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a whole response."""
        await self.start(status, content_type, {"content-length": str(len(body)), **(headers or {})})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
