"""Send one request to one engine and carry its answer back, byte for byte.

Before the first byte a failure is raised, so that the caller may try another tier; after it, the
client is told inside the stream. Deadlines bound every wait; a slow reader slows the engine's
connection instead of filling memory; a cancelled relay closes that connection at once, which is what
makes an engine abort. Chooses nothing.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO

import aiohttp

from llmtier.core.errors import EngineRequestError
from llmtier.engine.wire import failure_text
from llmtier.serve.asgi import JSON, Reply
from llmtier.serve.pool import ServedTier
from llmtier.serve.refusal import error_event
from llmtier.serve.sse_relay import SseRelay

KEEPALIVE_S = 4.0
"""Less than the 5 s after which vLLM closes an idle connection, so that none is reused while it dies."""

_LARGE_BODY_BYTES = 1 << 20
"""From here on aiohttp wants a file: it writes that piece by piece and lets other requests in between."""

_LAST_WORD_S = 1.0
"""How long the error event may wait for a reader that has stopped reading."""


class UpstreamFault(StrEnum):
    """What went wrong before the first byte."""

    CONNECT = "connect"
    TIMEOUT = "timeout"
    STATUS = "status"
    BROKEN = "broken"


class UpstreamError(EngineRequestError):
    """An engine did not begin to answer.

    Args:
        message: Which tier, and what happened.
        fault: What kind of failure.
        status: The engine's HTTP status; ``None`` when no status line arrived.
    """

    def __init__(self, message: str, *, fault: UpstreamFault, status: int | None = None) -> None:
        self.fault = fault
        super().__init__(message, status=status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """The longest waits of one request.

    Attributes:
        connect_s: For a connection to an engine.
        first_byte_s: For the first byte of a stream, per engine.
        total_s: For the whole request, fail-over included.
    """

    connect_s: float = 5.0
    first_byte_s: float = 60.0
    total_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRequest:
    """What is sent, whichever tier it goes to.

    Attributes:
        path: The endpoint.
        request_id: Sent along, so that the engine's log can be matched.
        is_stream: Whether SSE is expected.
        ends_s: Loop time at which the whole request is over.
    """

    path: str
    request_id: str
    is_stream: bool
    ends_s: float


class Upstream:
    """An answer that has begun.

    Attributes:
        status: HTTP status.
        content_type: As the engine sent it; likewise ``retry_after``, empty when it sent none.
        is_events: Whether the rest must be read with ``read``.
        first: The first piece of an event stream, else the whole body.
    """

    def __init__(self, response: aiohttp.ClientResponse, *, is_events: bool, first: bytes) -> None:
        self._response = response
        self.status = response.status
        self.content_type = _raw_header(response, "Content-Type") or JSON
        self.retry_after = _raw_header(response, "Retry-After")
        self.is_events = is_events
        self.first = first

    async def read(self) -> bytes:
        """Return what has arrived since; empty at the end."""
        return await self._response.content.readany()

    def close(self) -> None:
        """Close the connection unless the whole answer has been read."""
        self._response.close()


def open_session(deadlines: Deadlines) -> aiohttp.ClientSession:
    """Return the client session of one gateway; must be called inside the event loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=deadlines.connect_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"User-Agent": "llmtier", "Accept-Encoding": "identity"},
    )


async def open_upstream(
    session: aiohttp.ClientSession, tier: ServedTier, request: UpstreamRequest, body: bytes, deadlines: Deadlines
) -> Upstream:
    """Send ``body`` to the tier's engine and wait for the first byte of its answer.

    Raises:
        UpstreamError: No connection, no byte in time, a redirect or 5xx, or an empty answer.
    """
    ends_s = request.ends_s
    if request.is_stream:
        ends_s = min(ends_s, asyncio.get_running_loop().time() + deadlines.first_byte_s)
    try:
        async with asyncio.timeout_at(ends_s):
            return await _exchange(session, tier, request, body)
    except TimeoutError as exc:
        fault = UpstreamFault.TIMEOUT
        raise UpstreamError(f"tier {tier.name}: no answer within its deadline", fault=fault) from exc
    except aiohttp.ClientConnectorError as exc:
        raise UpstreamError(f"tier {tier.name}: no connection to its engine", fault=UpstreamFault.CONNECT) from exc
    except (aiohttp.ClientError, OSError) as exc:
        message = f"tier {tier.name}: its engine dropped the connection"
        raise UpstreamError(message, fault=UpstreamFault.BROKEN) from exc


async def relay_whole(upstream: Upstream, reply: Reply) -> None:
    """Send a complete answer to the client."""
    retry = [(b"retry-after", upstream.retry_after)] if upstream.retry_after else []
    await reply.send_whole(upstream.status, upstream.first, content_type=upstream.content_type, headers=retry)


async def relay_events(
    upstream: Upstream, reply: Reply, events: SseRelay, *, ends_s: float, on_piece: Callable[[], None]
) -> str | None:
    """Send an event stream to the client; return why it broke, ``None`` when it is complete.

    A broken stream ends with an error event and without ``[DONE]``, so that client libraries raise.
    """
    await reply.start(upstream.status, content_type=upstream.content_type, headers=[(b"cache-control", b"no-cache")])
    broken = await _pump(upstream, reply, events, ends_s=ends_s, on_piece=on_piece)
    if broken is None:
        await reply.send(events.finish(), is_last=True)
        return "the engine sent an error event" if events.has_error else None
    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORD_S):
            await reply.send(error_event(broken, code="upstream_interrupted"), is_last=True)
    return broken


async def _exchange(
    session: aiohttp.ClientSession, tier: ServedTier, request: UpstreamRequest, body: bytes
) -> Upstream:
    headers = {"Content-Type": "application/json", "X-Request-Id": request.request_id}
    if tier.api_key is not None:
        headers["Authorization"] = f"Bearer {tier.api_key}"
    data = body if len(body) < _LARGE_BODY_BYTES else BytesIO(body)
    response = await session.post(tier.base_url + request.path, data=data, headers=headers, allow_redirects=False)
    try:
        return await _begin(response, tier, request)
    except BaseException:  # closes on cancellation too, which is what aborts the engine's work
        response.close()
        raise


async def _begin(response: aiohttp.ClientResponse, tier: ServedTier, request: UpstreamRequest) -> Upstream:
    if response.status >= 500 or 300 <= response.status < 400:
        told = failure_text(await response.read())
        message = f"tier {tier.name}: its engine answered {response.status}: {told}"
        raise UpstreamError(message, fault=UpstreamFault.STATUS, status=response.status)
    is_events = request.is_stream and response.content_type == "text/event-stream"
    first = await (response.content.readany() if is_events else response.read())
    if response.status < 300 and not first:
        raise UpstreamError(f"tier {tier.name}: its engine sent an empty answer", fault=UpstreamFault.BROKEN)
    return Upstream(response, is_events=is_events, first=first)


def _raw_header(response: aiohttp.ClientResponse, name: str) -> bytes:
    return response.headers.get(name, "").encode("utf-8", "surrogateescape")  # as aiohttp decoded it


async def _pump(
    upstream: Upstream, reply: Reply, events: SseRelay, *, ends_s: float, on_piece: Callable[[], None]
) -> str | None:
    try:
        async with asyncio.timeout_at(ends_s):
            piece = upstream.first
            while piece:
                whole = events.feed(piece)
                on_piece()
                if whole:
                    await reply.send(whole)
                piece = await upstream.read()
    except TimeoutError:
        return "the answer took longer than the gateway allows"
    except (aiohttp.ClientError, OSError):
        return "the engine dropped the connection before the end of its answer"
    return None if events.is_done else "the engine ended its answer early"
