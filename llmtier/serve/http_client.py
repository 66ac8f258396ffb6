"""Ask engines over HTTP/1.1: connections kept for reuse, one client per engine.

Adds no deadline but the connecting's; follows no redirect; decompresses nothing. Cancelling a request at any point
closes its connection at once, which is what makes an engine abort. How bytes are read: ``http_connection.py``.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from llmtier.core.errors import EngineRequestError
from llmtier.serve.http_answer import UpstreamAnswer, UpstreamBrokenError
from llmtier.serve.http_connection import UpstreamConnection

__all__ = [
    "UpstreamAnswer",
    "UpstreamBrokenError",
    "UpstreamClient",
    "UpstreamConnectError",
]  # one place to import from

_MAX_PATHS = 64  # remembered heads; a gateway asks for a handful of paths
_DEFAULT_PORTS = {"http": 80, "https": 443}


class UpstreamConnectError(EngineRequestError):
    """No connection to an engine: refused, unreachable, no such name, no TLS, or too slow."""


class UpstreamClient:
    """Sends requests to one engine; belongs to one event loop.

    Args:
        base_url: Such as ``http://127.0.0.1:8101``; its path, if any, goes before every request's.
        connect_s: Longest wait for a connection, name look-up and TLS included.
        idle_s: How long an idle connection may be reused: less than the 5 s after which vLLM closes it.
        max_idle: Idle connections kept; more are closed.
        clock: Monotonic seconds.
        tls: For ``https``; ``None`` for the system's trust store.

    Raises:
        ValueError: The URL cannot be meant.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_s: float = 5.0,
        idle_s: float = 4.0,
        max_idle: int = 1024,
        clock: Callable[[], float] = time.monotonic,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        url = urlsplit(base_url)
        if (
            url.scheme not in _DEFAULT_PORTS
            or not url.hostname
            or url.query
            or url.fragment
            or url.username is not None
        ):
            raise ValueError("a base URL is http(s)://host[:port][/prefix], without user, query or fragment")
        self._host = url.hostname if url.hostname.isascii() else url.hostname.encode("idna").decode()
        self._port = url.port or _DEFAULT_PORTS[url.scheme]
        self._tls = (tls or ssl.create_default_context()) if url.scheme == "https" else None
        self._prefix = url.path.rstrip("/")
        self._host_field = _host_field(self._host, None if self._port == _DEFAULT_PORTS[url.scheme] else self._port)
        self._connect_s = connect_s
        self._idle_s = idle_s
        self._max_idle = max_idle
        self._clock = clock
        self._heads: dict[tuple[str, str], bytes] = {}
        self._idle: deque[UpstreamConnection] = deque()
        self._open: set[UpstreamConnection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Event | None = None

    @property
    def n_open(self) -> int:
        """Connections that are open, idle ones included."""
        return len(self._open)

    @property
    def n_idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    async def send(self, path: str, body: bytes, *, headers: bytes = b"") -> UpstreamAnswer:
        """Post a JSON body; return when the head of the answer is there.

        Args:
            path: Below the base URL's, beginning with a slash.
            body: As the engine is to read it.
            headers: Further lines, each with its CRLF.

        Raises:
            UpstreamConnectError: No connection.
            UpstreamBrokenError: The connection ended before the head did, or it is no HTTP.
        """
        head = b"%b%d\r\n%b\r\n" % (self._head("POST", path), len(body), headers)
        return await self._exchange(head, body)

    async def get(self, path: str, *, headers: bytes = b"") -> UpstreamAnswer:
        """Get; as ``send``, without a body."""
        return await self._exchange(b"%b%b\r\n" % (self._head("GET", path), headers), b"")

    async def close(self) -> None:
        """Close every connection, those with unfinished answers too; the client takes no more requests."""
        if self._emptied is None:
            self._emptied = asyncio.Event()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in tuple(self._open):
            connection.fail("the client was closed")
        self._idle.clear()
        if self._open:
            await self._emptied.wait()

    def release(self, connection: UpstreamConnection) -> None:
        """Keep a connection for the next request."""
        if len(self._idle) >= self._max_idle:
            connection.close()
            return
        connection.idle_since_s = self._clock()
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that is gone."""
        self._open.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)
        if self._emptied is not None and not self._open:
            self._emptied.set()

    async def _exchange(self, head: bytes, body: bytes) -> UpstreamAnswer:
        connection = self._take_idle()
        if connection is not None:
            try:
                return await _await_head(connection.ask(head, body))
            except UpstreamBrokenError as error:
                if error.had_bytes or self._emptied is not None:
                    raise
        connection = await self._connect()  # an engine closes idle connections: once more, on a fresh one
        return await _await_head(connection.ask(head, body))

    def _take_idle(self) -> UpstreamConnection | None:
        """Return the connection that was used last, if it is young enough."""
        since_s = self._clock() - self._idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s > since_s and connection.is_open:
                return connection
            connection.close()
        return None

    async def _connect(self) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        connection = UpstreamConnection(self, clock=self._clock, loop=loop)
        try:
            if self._emptied is None:
                async with asyncio.timeout(self._connect_s):
                    await loop.create_connection(lambda: connection, self._host, self._port, ssl=self._tls)
        except OSError as exc:
            connection.close()
            said = "too slow" if isinstance(exc, TimeoutError) else str(exc) or type(exc).__name__
            raise UpstreamConnectError(f"{self._host_field}: no connection: {said}") from exc
        except BaseException:
            connection.close()
            raise
        if self._emptied is not None:
            connection.close()
            raise UpstreamConnectError(f"{self._host_field}: no connection: the client was closed")
        if not connection.is_open:
            connection.close()
            raise UpstreamBrokenError("the engine closed a new connection at once", had_bytes=False)
        self._open.add(connection)
        return connection

    def _sweep(self) -> None:
        """Close the connections that have been idle too long; come again when the next will be."""
        self._sweeping = None
        since_s = self._clock() - self._idle_s
        while self._idle and self._idle[0].idle_since_s <= since_s:
            self._idle.popleft().close()
        if self._idle:
            delay_s = self._idle[0].idle_since_s - since_s
            self._sweeping = asyncio.get_running_loop().call_later(delay_s, self._sweep)

    def _head(self, method: str, path: str) -> bytes:
        """Return the head of a request up to the body's length."""
        head = self._heads.get((method, path))
        if head is None:
            if len(self._heads) >= _MAX_PATHS:
                self._heads.clear()
            head = self._heads[method, path] = self._format_head(method, path)
        return head

    def _format_head(self, method: str, path: str) -> bytes:
        target = self._prefix + path
        if not target.startswith("/") or not target.isascii() or not target.isprintable() or " " in target:
            raise ValueError(f"{target!r} is no path of a URL: it begins with a slash and is escaped")
        head = f"{method} {target} HTTP/1.1\r\nhost: {self._host_field}\r\nuser-agent: llmtier\r\n"
        head += "accept-encoding: identity\r\n"
        if method == "POST":
            head += "content-type: application/json\r\ncontent-length: "
        return head.encode("ascii")


async def _await_head(answer: UpstreamAnswer) -> UpstreamAnswer:
    try:
        await answer.head
    except asyncio.CancelledError:
        answer.close()
        raise
    return answer


def _host_field(host: str, port: int | None) -> str:
    """Return the value of ``Host``: an IPv6 address in brackets and without its zone, no default port."""
    name = f"[{host.partition('%')[0]}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"
