"""Connections of the load client: one request at a time on each, every piece of the answer stamped and kept.

Plain HTTP on Linux goes over bare sockets whose kernel says when bytes came, however late this process reads them. So
reading may wait a moment for more sockets to become ready, and one wake-up reads them all: the cost of a chunk falls,
its stamp stays. TLS, and other systems, use the event loop's transports and stamps taken when the bytes are handed over.
Sources: socket(7), SO_TIMESTAMPNS; the kernel's documentation, networking/timestamping.
"""

import asyncio
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import httptools
from typing_extensions import override

HAS_KERNEL_STAMPS = sys.platform == "linux"

_MAX_RESPONSE_BYTES = 256 * 1024 * 1024
_READ_BYTES = 64 * 1024
_SO_TIMESTAMPNS = 35  # Linux; the socket module has no name for it
_TIMESPEC = struct.Struct("qq")
_ANCILLARY_BYTES = 64
_GATHER_S = 0.0004  # what one step's chunks of some dozen streams take to come; sends may be late by as much
_GATHER_FROM = 8  # open exchanges; of fewer, each wake-up costs little


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


class Connection:
    """One connection; serves one exchange at a time. A subclass moves the bytes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.idle_since_s = 0.0
        self.is_reusable = True
        self._loop = loop
        self._parser: httptools.HttpResponseParser | None = None
        self._exchange: Exchange | None = None
        self._ended: asyncio.Future[None] | None = None
        self._n_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether the socket still takes a request."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the socket at once; an exchange on it ends."""
        raise NotImplementedError

    def ask(self, request: bytes, exchange: Exchange) -> "asyncio.Future[None]":
        """Send a request; the future is done when the exchange has ended."""
        ended = self._loop.create_future()
        self._exchange, self._ended = exchange, ended
        self._parser = httptools.HttpResponseParser(self)
        self._n_bytes = 0
        self.is_reusable = False
        exchange.sent_s = time.perf_counter()
        self._write(request)
        return ended

    def fail(self, reason: str) -> None:
        """End the exchange for ``reason`` and close."""
        self._end(reason)
        self.close()

    def on_headers_complete(self) -> None:
        """Keep the status."""
        if self._exchange is not None and self._parser is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        """End the exchange; the connection may serve another."""
        self.is_reusable = self._parser is not None and bool(self._parser.should_keep_alive())
        self._end(None)

    def _write(self, data: bytes) -> None:
        raise NotImplementedError

    def _take(self, data: bytes, arrived_s: float) -> None:
        """Keep what came and when."""
        exchange = self._exchange
        if exchange is None or self._parser is None:
            self.close()  # nobody asked
            return
        exchange.arrived_s.append(max(arrived_s, exchange.sent_s))
        exchange.pieces.append(data)
        self._n_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(f"no HTTP response: {error}")
            return
        if self._n_bytes > _MAX_RESPONSE_BYTES:
            self.fail(f"the response is longer than {_MAX_RESPONSE_BYTES} bytes")

    def _lose(self, error: Exception | None) -> None:
        """End the exchange with the connection."""
        said = f": {error}" if error is not None else ""
        self._end(f"the connection closed before the end of the response{said}")

    def _end(self, failure: str | None) -> None:
        exchange, ended = self._exchange, self._ended
        self._exchange = self._ended = None
        if exchange is None:
            return
        exchange.done_s = exchange.arrived_s[-1] if failure is None else time.perf_counter()
        exchange.failure = failure
        if ended is not None and not ended.done():
            ended.set_result(None)


class StreamConnection(Connection, asyncio.Protocol):
    """A connection over a transport of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._transport: asyncio.Transport | None = None

    @property
    @override
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @override
    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    @override
    def data_received(self, data: bytes) -> None:
        """Stamp and keep what came."""
        self._take(data, time.perf_counter())

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange."""
        self._transport = None
        self._lose(exc)

    @override
    def _write(self, data: bytes) -> None:
        if self._transport is None:
            raise RuntimeError("ask needs an open connection")
        self._transport.write(data)


class SocketConnection(Connection):
    """A connection over a socket of a hub, stamped by the kernel."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hub: "SocketHub", peer: socket.socket) -> None:
        super().__init__(loop)
        self._hub = hub
        self._socket: socket.socket | None = peer
        self._unsent = b""
        with suppress(OSError):
            peer.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        hub.add(peer, self._on_ready)

    @property
    @override
    def is_open(self) -> bool:
        return self._socket is not None

    @override
    def close(self) -> None:
        self._shut(None)

    def _on_ready(self, mask: int, clock_s: float, offset_s: float) -> None:
        """Read what is there; ``offset_s`` brings the kernel's stamps onto ``time.perf_counter``."""
        peer = self._socket
        if peer is None:
            return
        try:
            if mask & select.EPOLLOUT:
                self._flush(peer)
            if mask & ~select.EPOLLOUT:
                data, ancillary, _, _ = peer.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
                if data:
                    self._take(data, _arrival_s(ancillary, clock_s, offset_s))
                else:
                    self._shut(None)
        except BlockingIOError:
            return
        except OSError as error:
            self._shut(error)

    @override
    def _write(self, data: bytes) -> None:
        if self._socket is None:
            raise RuntimeError("ask needs an open connection")
        self._hub.n_open += 1
        self._unsent = data
        try:
            self._flush(self._socket)
        except BlockingIOError:
            self._hub.watch_writes(self._socket, is_wanted=True)
        except OSError as error:
            self._loop.call_soon(self._shut, error)  # the caller waits for the future first

    @override
    def _end(self, failure: str | None) -> None:
        self._hub.n_open -= self._exchange is not None
        super()._end(failure)

    def _flush(self, peer: socket.socket) -> None:
        n_sent = peer.send(self._unsent) if self._unsent else 0
        self._unsent = self._unsent[n_sent:]
        self._hub.watch_writes(peer, is_wanted=bool(self._unsent))

    def _shut(self, error: Exception | None) -> None:
        peer, self._socket = self._socket, None
        if peer is not None:
            self._hub.remove(peer)
            peer.close()
        self._lose(error)


def _arrival_s(ancillary: list[tuple[int, int, bytes]], clock_s: float, offset_s: float) -> float:
    """Return the kernel's stamp on our clock; our own reading where there is none, or somebody has set the clock."""
    if not ancillary:
        return clock_s
    seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
    arrived_s = float(seconds) + offset_s + nanoseconds * 1e-9
    return arrived_s if clock_s - 1.0 < arrived_s <= clock_s else clock_s


OnReady = Callable[[int, float, float], None]
"""Told of a socket's events, of the instant at which they were seen, and of the offset of the kernel's stamps."""


@dataclass(slots=True)
class SocketHub:
    """One epoll for many sockets, itself watched by the event loop; Linux only.

    Attributes:
        n_open: Exchanges that wait for bytes.
    """

    _loop: asyncio.AbstractEventLoop
    n_open: int = 0
    _epoll: select.epoll = field(default_factory=select.epoll)
    _ready: dict[int, OnReady] = field(default_factory=dict)
    _writing: set[int] = field(default_factory=set)

    def open(self) -> None:
        """Begin to watch."""
        self._loop.add_reader(self._epoll.fileno(), self._drain)

    def close(self) -> None:
        """Stop watching; the sockets must have been removed."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def add(self, peer: socket.socket, on_ready: OnReady) -> None:
        """Watch a socket for bytes."""
        self._ready[peer.fileno()] = on_ready
        self._epoll.register(peer.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def remove(self, peer: socket.socket) -> None:
        """Forget a socket that is still open."""
        self._writing.discard(peer.fileno())
        if self._ready.pop(peer.fileno(), None) is not None:
            self._epoll.unregister(peer.fileno())

    def watch_writes(self, peer: socket.socket, *, is_wanted: bool) -> None:
        """Say whether the socket waits for room to write."""
        descriptor = peer.fileno()
        if is_wanted == (descriptor in self._writing):
            return
        (self._writing.add if is_wanted else self._writing.discard)(descriptor)
        writes = select.EPOLLOUT if is_wanted else 0
        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLRDHUP | writes)

    def _drain(self) -> None:
        """Read what is ready, after a moment in which more becomes so."""
        if self.n_open >= _GATHER_FROM:
            time.sleep(_GATHER_S)  # the whole loop waits: nothing else is as urgent, and the stamps are the kernel's
        events = self._epoll.poll(0)
        wall_s, clock_s = time.time_ns(), time.perf_counter()
        offset_s = clock_s - wall_s * 1e-9
        for descriptor, mask in events:
            on_ready = self._ready.get(descriptor)
            if on_ready is not None:
                on_ready(mask, clock_s, offset_s)


async def open_socket(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """Return a connected socket that does not block.

    Raises:
        OSError: None of the host's addresses answers.
    """
    refusal = OSError(f"{host}: no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        peer = socket.socket(family, kind, protocol)
        peer.setblocking(False)
        try:
            await loop.sock_connect(peer, address)
        except OSError as error:
            peer.close()
            refusal = error
        except BaseException:
            peer.close()
            raise
        else:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return peer
    raise refusal
