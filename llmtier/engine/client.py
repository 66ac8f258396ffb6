"""The HTTP client of an engine: one streamed request, timed.

Reads any OpenAI-compatible URL and writes nothing. The instants of a request
are taken when bytes arrive, before they are parsed. Every failure leaves as
EngineRequestError; requests are never retried once the engine has answered a
byte: what to do then is the caller's choice.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from llmtier.core.errors import EngineRequestError
from llmtier.core.prompt import Message
from llmtier.engine.stream import Completion, StreamedAnswer
from llmtier.engine.wire import MODEL_LIST_DECODER, VERSION_DECODER, failure_text

logger = logging.getLogger(__name__)

_Document = TypeVar("_Document")

# Below the 5 s after which a vLLM of default settings closes an idle connection.
_KEEPALIVE_TIMEOUT_S = 4.0
_READ_BUFFER_BYTES = 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model that the engine offers.

    Attributes:
        name: What requests call it.
        context_tokens: Longest prompt plus output; ``None`` when the server does not say.
    """

    name: str
    context_tokens: int | None


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """What the connection pool tells of one attempt."""

    sent_s: float
    is_connection_reused: bool = False


class EngineClient:
    """Asks one engine; an asynchronous context manager that owns the connection pool.

    Args:
        base_url: Such as ``http://127.0.0.1:8000``; a trailing ``/v1`` is ignored.
        model_name: What the engine calls the model.
        api_key: Sent as a bearer token.
        timeout_s: Limit of one whole request, connecting included.
    """

    def __init__(self, base_url: str, *, model_name: str, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.model_name = model_name
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the pool."""
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        tracing.on_request_headers_sent.append(_note_sent)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_TIMEOUT_S),
            headers={"Authorization": f"Bearer {self._api_key}"} if self._api_key else None,
            timeout=aiohttp.ClientTimeout(total=None),  # asyncio.timeout bounds the whole request
            read_bufsize=_READ_BUFFER_BYTES,
            auto_decompress=True,
            trace_configs=[tracing],
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None,
        temperature: float = 0.0,
        scheduled_s: float | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> Completion:
        """Ask for a chat completion and wait for its end.

        Args:
            messages: The conversation, oldest first.
            max_tokens: Longest answer; ``None`` leaves it to the engine.
            temperature: 0 for the most probable answer.
            scheduled_s: When the load shape wanted it sent; now when ``None``.
            extra: More fields of the body, such as ``seed`` or vLLM's ``ignore_eos``; with ``logprobs`` the
                completion carries each token's log probability.

        Raises:
            EngineRequestError: Refused, failed, cut, malformed or late.
        """
        fields = {"messages": [{"role": message.role, "content": message.content} for message in messages]}
        body = self._body(fields, max_tokens=max_tokens, temperature=temperature, extra=extra)
        answer = StreamedAnswer(reads_logprobs=bool(extra and extra.get("logprobs")))
        return await self._stream("/v1/chat/completions", body, answer, scheduled_s=scheduled_s)

    async def stream_completion(
        self,
        prompt: str,
        *,
        max_tokens: int | None,
        temperature: float = 0.0,
        scheduled_s: float | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> Completion:
        """Ask for the continuation of raw text; otherwise as ``stream_chat``."""
        body = self._body({"prompt": prompt}, max_tokens=max_tokens, temperature=temperature, extra=extra)
        return await self._stream("/v1/completions", body, StreamedAnswer(), scheduled_s=scheduled_s)

    async def list_models(self) -> list[ServedModel]:
        """Return what ``/v1/models`` offers.

        Raises:
            EngineRequestError: No answer, or none of that shape.
        """
        document = await self._get("/v1/models", MODEL_LIST_DECODER)
        return [ServedModel(name=card.id, context_tokens=card.max_model_len) for card in document.data]

    async def version(self) -> str | None:
        """Return what ``/version`` says; ``None`` where the server has no such page.

        Raises:
            EngineRequestError: No answer, or none of that shape.
        """
        try:
            return (await self._get("/version", VERSION_DECODER)).version
        except EngineRequestError as error:
            if error.status is not None and 400 <= error.status < 500:
                return None
            raise

    async def health(self) -> bool:
        """Return whether ``/health`` answers 200 now.

        A true answer does not prove that the engine still makes steps: vLLM's
        page stays green while its core hangs (vllm-project/vllm#39863).
        """
        try:
            async with self._respond("GET", "/health", None, timeout_s=_PROBE_TIMEOUT_S):
                return True
        except EngineRequestError:
            return False

    def _body(
        self,
        fields: Mapping[str, object],
        *,
        max_tokens: int | None,
        temperature: float,
        extra: Mapping[str, object] | None,
    ) -> bytes:
        limit = {} if max_tokens is None else {"max_tokens": max_tokens}
        shape: dict[str, object] = {"model": self.model_name, "temperature": temperature, "stream": True}
        return msgspec.json.encode(
            shape | dict(fields) | limit | {"stream_options": {"include_usage": True}} | dict(extra or {})
        )

    async def _stream(self, path: str, body: bytes, answer: StreamedAnswer, *, scheduled_s: float | None) -> Completion:
        called_s = time.perf_counter()
        async with self._respond("POST", path, body, timeout_s=self._timeout_s) as (response, attempt):
            await self._read(response, answer)
        done_s = time.perf_counter()
        return answer.finish(
            scheduled_s=min(called_s if scheduled_s is None else scheduled_s, attempt.sent_s),
            sent_s=attempt.sent_s,
            done_s=done_s,
        )

    async def _read(self, response: aiohttp.ClientResponse, answer: StreamedAnswer) -> None:
        try:
            async for data in response.content.iter_any():
                answer.take(data, time.perf_counter())
        except aiohttp.ClientError as error:
            if not answer.is_whole:  # a connection that breaks after the last word harms nobody
                raise EngineRequestError(
                    f"stream cut after {answer.n_chunks} chunks: {error}", status=response.status
                ) from error
        if not answer.is_whole:
            raise EngineRequestError(
                f"stream cut: it ended after {answer.n_chunks} chunks without [DONE] or a finish_reason",
                status=response.status,
            )

    async def _get(self, path: str, decoder: msgspec.json.Decoder[_Document]) -> _Document:
        async with self._respond("GET", path, None, timeout_s=min(self._timeout_s, _PROBE_TIMEOUT_S)) as (response, _):
            body = await response.read()
        try:
            return decoder.decode(body)
        except msgspec.DecodeError as error:
            raise EngineRequestError(f"{self.base_url}{path}: unexpected document: {error}", status=200) from error

    @asynccontextmanager
    async def _respond(
        self, method: str, path: str, body: bytes | None, *, timeout_s: float
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, _Attempt]]:
        """Send, check the status, and lend the response; leaving early closes its connection."""
        url = f"{self.base_url}{path}"
        try:
            async with asyncio.timeout(timeout_s):
                response, attempt = await self._send(method, url, body)
                async with response:
                    await _require_ok(response)
                    yield response, attempt
        except TimeoutError as error:
            raise EngineRequestError(f"{url}: no complete answer within {timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise EngineRequestError(f"{url}: {str(error) or type(error).__name__}") from error

    async def _send(self, method: str, url: str, body: bytes | None) -> tuple[aiohttp.ClientResponse, _Attempt]:
        attempt = _Attempt(sent_s=time.perf_counter())
        try:
            return await self._send_once(method, url, body, attempt), attempt
        except aiohttp.ClientConnectionError:
            if not attempt.is_connection_reused:
                raise
        logger.debug("the engine had closed an idle connection; sending again", extra={"url": url})
        attempt = _Attempt(sent_s=time.perf_counter())
        return await self._send_once(method, url, body, attempt), attempt

    async def _send_once(self, method: str, url: str, body: bytes | None, attempt: _Attempt) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("an EngineClient works inside 'async with' only")
        return await self._session.request(
            method,
            url,
            data=body,
            headers=None if body is None else {"Content-Type": "application/json"},
            allow_redirects=False,  # a redirect could carry the key elsewhere
            trace_request_ctx=attempt,
        )


async def _require_ok(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        reason = failure_text(await response.content.read(_MAX_ERROR_BYTES))
        raise EngineRequestError(f"{response.url}: HTTP {response.status}: {reason}", status=response.status)


async def _note_reuse(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceConnectionReuseconnParams
) -> None:
    _attempt_of(context).is_connection_reused = True


async def _note_sent(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceRequestHeadersSentParams
) -> None:
    _attempt_of(context).sent_s = time.perf_counter()


def _attempt_of(context: SimpleNamespace) -> _Attempt:
    attempt: _Attempt = context.trace_request_ctx
    return attempt
