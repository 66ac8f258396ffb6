"""A client that costs little while it measures: bytes are stamped as they arrive and parsed afterwards.

Speaks HTTP/1.1 to any OpenAI-compatible URL over its own kept-alive connections. While an answer
streams in, a piece costs one clock reading, two list appends and the C parser that looks for the end of the response;
events and JSON are for ``exchange.py``, off the clock. A failure is a field of the exchange, never an exception: what a
load does about it is the load's choice.
"""

import asyncio
import ssl
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

import httptools
from typing_extensions import override

from llmtier.core.errors import ConfigError

# Below the 5 s after which a vLLM of default settings closes an idle connection.
_KEEPALIVE_S = 4.0
_MAX_RESPONSE_BYTES = 256 * 1024 * 1024


@dataclass(slots=True, kw_only=True, eq=False)
class Exchange:
    """One request and whatever came back, undecoded; instants on ``time.perf_counter``.

    Attributes:
        scheduled_s: When the load wanted it sent.
        sent_s: When its bytes were handed to the connection; ``scheduled_s`` until then.
        done_s: When the response, or the attempt, ended.
        status: HTTP status; ``None`` when no head arrived.
        pieces: The response as it came off the socket, head included.
        arrived_s: When each piece came.
        failure: Why it did not end by itself; ``None`` when it did.
    """

    scheduled_s: float
    sent_s: float
    done_s: float
    status: int | None = None
    pieces: list[bytes] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    failure: str | None = None


class _Connection(asyncio.Protocol):
    """One socket; serves one exchange at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.idle_since_s = 0.0
        self.n_served = 0
        self.is_reusable = False
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._exchange: Exchange | None = None
        self._ended: asyncio.Future[None] | None = None
        self._n_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether the socket still takes a request."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes, exchange: Exchange) -> asyncio.Future[None]:
        """Send a request; the future is done when the exchange has ended."""
        if self._transport is None:
            raise RuntimeError("ask needs an open connection")
        self._exchange, self._ended = exchange, self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._n_bytes = 0
        self.is_reusable = False
        exchange.sent_s = time.perf_counter()
        self._transport.write(request)
        return self._ended

    def close(self) -> None:
        """Close the socket at once; an exchange on it ends."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, reason: str) -> None:
        """End the exchange for ``reason`` and close."""
        self._end(reason)
        self.close()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    @override
    def data_received(self, data: bytes) -> None:
        """Stamp and keep what came."""
        arrived_s = time.perf_counter()
        exchange = self._exchange
        if exchange is None or self._parser is None:
            self.close()  # nobody asked
            return
        exchange.arrived_s.append(arrived_s)
        exchange.pieces.append(data)
        self._n_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"no HTTP response: {error}")
            return
        if self._n_bytes > _MAX_RESPONSE_BYTES:
            self.fail(f"the response is longer than {_MAX_RESPONSE_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Keep the status."""
        if self._exchange is not None and self._parser is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        """End the exchange; the connection may serve another."""
        self.is_reusable = self._parser is not None and bool(self._parser.should_keep_alive())
        self._end(None)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange: a response without a stated length ends so, any other was cut."""
        exchange = self._exchange
        if exchange is not None:
            said = f": {exc}" if exc is not None else ""
            self._end(f"the connection closed before the end of the response{said}")
        self._transport = None

    def _end(self, failure: str | None) -> None:
        exchange, ended = self._exchange, self._ended
        self._exchange = self._ended = None
        self.n_served += 1
        if exchange is None:
            return
        exchange.done_s = exchange.arrived_s[-1] if failure is None else time.perf_counter()
        exchange.failure = failure
        if ended is not None and not ended.done():
            ended.set_result(None)


class LoadClient:
    """Sends requests to one engine; an asynchronous context manager that owns the connections.

    Args:
        base_url: Such as ``http://127.0.0.1:8000``; a trailing ``/v1`` is ignored.
        api_key: Sent as a bearer token.
        timeout_s: Limit of one whole request, connecting included.

    Raises:
        ConfigError: ``base_url`` is no HTTP address.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        parts = urlsplit(base_url.rstrip("/").removesuffix("/v1").rstrip("/"))
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"{base_url!r} is no address; expected such as http://127.0.0.1:8000")
        self.base_url = parts.geturl()
        self._host, self._prefix = parts.hostname, parts.path
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self._timeout_s = timeout_s
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"Host: {parts.netloc.rpartition('@')[2]}\r\nUser-Agent: llmtier\r\nAccept: text/event-stream\r\n"
            f"Accept-Encoding: identity\r\nContent-Type: application/json\r\n{key}Content-Length: "
        ).encode("latin-1")

    async def __aenter__(self) -> Self:
        """Enter; connections open when they are needed, or by ``prepare``."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection."""
        for connection in list(self._open):
            connection.close()
        self._open.clear()
        self._idle.clear()
        await asyncio.sleep(0)  # lets the transports close

    async def prepare(self, n: int) -> None:
        """Open connections until ``n`` are idle, so that no measured request pays for one; failures are left to ``send``."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                for _ in range(n - len(self._idle)):
                    self._give_back(await self._connect())

    async def send(self, body: bytes, *, path: str, scheduled_s: float | None = None) -> Exchange:
        """Post ``body`` and wait for the end of the response.

        Args:
            body: JSON.
            path: Such as ``/v1/chat/completions``.
            scheduled_s: When the load shape wanted it sent; now when ``None``.
        """
        now_s = time.perf_counter()
        scheduled_s = now_s if scheduled_s is None else min(scheduled_s, now_s)
        exchange = Exchange(scheduled_s=scheduled_s, sent_s=now_s, done_s=now_s)
        head = b"POST %b%b HTTP/1.1\r\n%b%d\r\n\r\n" % (self._prefix.encode(), path.encode(), self._head, len(body))
        try:
            await self._exchange(head + body, exchange, ends_s=now_s + self._timeout_s)
        except OSError as error:
            exchange.done_s = time.perf_counter()
            exchange.failure = f"{self.base_url}: {error.strerror or str(error) or 'no connection in time'}"
        return exchange

    async def _exchange(self, request: bytes, exchange: Exchange, *, ends_s: float) -> None:
        connection = self._take_idle()
        if connection is not None:
            await self._ask(connection, request, exchange, ends_s=ends_s)
            if exchange.failure is None or exchange.pieces or time.perf_counter() >= ends_s:
                return
            exchange.failure = None  # the engine had closed an idle connection; send again on a new one
        async with asyncio.timeout(max(ends_s - time.perf_counter(), 0.0)):
            connection = await self._connect()
        await self._ask(connection, request, exchange, ends_s=ends_s)

    async def _ask(self, connection: _Connection, request: bytes, exchange: Exchange, *, ends_s: float) -> None:
        ended = connection.ask(request, exchange)
        late = f"no complete answer within {self._timeout_s:g} s"
        timer = asyncio.get_running_loop().call_later(ends_s - exchange.sent_s, connection.fail, late)
        try:
            await ended
        except asyncio.CancelledError:
            connection.close()  # which makes the engine abort the request
            raise
        finally:
            timer.cancel()
            self._give_back(connection)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(loop), self._host, self._port, ssl=self._ssl)
        self._open.add(connection)
        connection.is_reusable = True
        return connection

    def _take_idle(self) -> _Connection | None:
        oldest_s = time.perf_counter() - _KEEPALIVE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since_s >= oldest_s:
                return connection
            self._drop(connection)
        return None

    def _give_back(self, connection: _Connection) -> None:
        if connection.is_open and connection.is_reusable:
            connection.idle_since_s = time.perf_counter()
            self._idle.append(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.close()
