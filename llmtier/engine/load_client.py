"""A client that costs little while it measures: bytes are stamped as they arrive and parsed afterwards.

Speaks HTTP/1.1 to any OpenAI-compatible URL over its own kept-alive connections (``load_connection.py``). While an answer
streams in, a piece costs one read, two list appends and the C parser that looks for the end of the response;
events and JSON are for ``exchange.py``, off the clock. A failure is a field of the exchange, never an exception: what a
load does about it is the load's choice.
"""

import asyncio
import ssl
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from llmtier.core.errors import ConfigError
from llmtier.engine.load_connection import (
    HAS_KERNEL_STAMPS,
    Connection,
    Exchange,
    SocketConnection,
    SocketHub,
    StreamConnection,
    open_socket,
)

# Below the 5 s after which a vLLM of default settings closes an idle connection.
_KEEPALIVE_S = 4.0


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
        self._hub: SocketHub | None = None
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"Host: {parts.netloc.rpartition('@')[2]}\r\nUser-Agent: llmtier\r\nAccept: text/event-stream\r\n"
            f"Accept-Encoding: identity\r\nContent-Type: application/json\r\n{key}Content-Length: "
        ).encode("latin-1")

    async def __aenter__(self) -> Self:
        """Enter; connections open when they are needed, or by ``prepare``."""
        if self._ssl is None and HAS_KERNEL_STAMPS:
            self._hub = SocketHub(asyncio.get_running_loop())
            self._hub.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection."""
        for connection in list(self._open):
            connection.close()
        self._open.clear()
        self._idle.clear()
        if self._hub is not None:
            self._hub.close()
            self._hub = None
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

    async def _ask(self, connection: Connection, request: bytes, exchange: Exchange, *, ends_s: float) -> None:
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

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        connection: Connection
        if self._hub is not None:
            connection = SocketConnection(loop, self._hub, await open_socket(loop, self._host, self._port))
        else:
            _, connection = await loop.create_connection(
                lambda: StreamConnection(loop), self._host, self._port, ssl=self._ssl
            )
        self._open.add(connection)
        return connection

    def _take_idle(self) -> Connection | None:
        oldest_s = time.perf_counter() - _KEEPALIVE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since_s >= oldest_s:
                return connection
            self._drop(connection)
        return None

    def _give_back(self, connection: Connection) -> None:
        if connection.is_open and connection.is_reusable:
            connection.idle_since_s = time.perf_counter()
            self._idle.append(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.close()
