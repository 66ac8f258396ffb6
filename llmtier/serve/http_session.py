"""One client's connection to the server: requests read, served one after the other, timed.

Reads requests whole (``http_reader``) and hands each, with its reply (``http_reply``), to the handler in a task of its
own, one at a time and in order. Faults are answered once, OpenAI-shaped, and end the connection.

A client that closes, or only half closes, its side while its request is under way has left: on the wire the two look
alike until something is written, and a generation that nobody reads must not run on. The handler's task is cancelled.
What a client sends ahead is read only when its turn comes; of one that has sent more than 64 KiB ahead, nothing more is
read meanwhile, and so its leaving is noticed only at the next write.
"""

import asyncio
import logging
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from typing import Any, cast

from typing_extensions import override

from llmtier.serve.http_reader import BodyBudget, Phase, RequestReader
from llmtier.serve.http_reply import Heads, Reply, ReplyChannel
from llmtier.serve.http_request import HttpRequest, ServerLimits
from llmtier.serve.refusal import RequestRefusedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module that is not there

logger = logging.getLogger(__name__)

Handler = Callable[[HttpRequest, Reply], Coroutine[Any, Any, None]]

_AHEAD_BYTES = 65_536
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_IDLE = Phase.IDLE
_SIOCOUTQ = 0x5411  # linux/sockios.h
_COUNT = struct.Struct("i")

if sys.version_info >= (3, 12):

    def _start_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.Task(work, loop=loop, eager_start=True)
else:

    def _start_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return loop.create_task(work)


class Shared:
    """What the connections of one server share.

    Args:
        handler: Called with each request and its reply.
        limits: What clients are granted.
        clock: Seconds that only grow.

    Attributes:
        heads: Beginnings of answers.
        budget: Bodies held.
        connections: All of them, idle ones included.
        loop: The server's; set when it starts.
        is_empty: Set when the last connection has ended.
        n_open: Requests whose handlers run.
        refused: Requests that never reached the handler, by the status of their refusal.
    """

    loop: asyncio.AbstractEventLoop

    __slots__ = (
        "budget",
        "clock",
        "connections",
        "handler",
        "heads",
        "is_empty",
        "limits",
        "loop",
        "n_open",
        "refused",
    )

    def __init__(self, handler: Handler, limits: ServerLimits, clock: Callable[[], float]) -> None:
        self.handler = handler
        self.limits = limits
        self.clock = clock
        self.heads = Heads()
        self.budget = BodyBudget(limit_bytes=limits.buffered_bytes)
        self.connections: set[Session] = set()
        self.is_empty = asyncio.Event()
        self.n_open = 0
        self.refused: dict[int, int] = {}


class Session(ReplyChannel):
    """One client's connection: reads requests, serves them one after the other."""

    __slots__ = (
        "_ahead",
        "_closing_since_s",
        "_idle_since_s",
        "_is_cancelled",
        "_is_lost",
        "_reader",
        "_request",
        "_shared",
        "_stalled_since_s",
        "_task",
        "_unread_bytes",
    )

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.heads)
        self._shared = shared
        self._reader = RequestReader(shared.limits, shared.budget)
        self._request: HttpRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._ahead = b""
        self._is_cancelled = False
        self._is_lost = False
        self._idle_since_s = shared.clock()
        self._closing_since_s: float | None = None
        self._stalled_since_s = 0.0
        self._unread_bytes = 0

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        shared = self._shared
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=shared.limits.drain_high_bytes)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            # asyncio does so only where the listener names TCP; without it a first token may wait 40 ms for an ACK.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        n_open = len(shared.connections)
        shared.connections.add(self)
        if n_open >= shared.limits.n_connections + shared.limits.n_connections // 8:
            self.transport.abort()  # even refusals cost a file descriptor for a while
        elif n_open >= shared.limits.n_connections:
            message = f"the gateway has {shared.limits.n_connections} connections open, as many as it may; ask again"
            self._refuse(RequestRefusedError(message, status=503, code="overloaded", retry_after_s=1))

    @override
    def data_received(self, data: bytes) -> None:
        if self.reply is not None or self._ahead or self._reader.requests:  # its turn comes after what came before
            self._keep(data)
        elif self._closing_since_s is None:
            self._receive(data)

    @override
    def eof_received(self) -> None:
        self._leave()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        shared = self._shared
        self._is_lost = True
        self._leave()
        self.wake()
        self._reader.close()
        self._ahead = b""
        shared.connections.discard(self)
        if not shared.connections:
            shared.is_empty.set()

    @override
    def resume_writing(self) -> None:
        self._unread_bytes = 0  # a new start for the sweep: some was taken
        super().resume_writing()
        if self._reader.requests:
            self._serve_next()

    def check(self, now_s: float) -> None:
        """End the connection if its client, or its silence, takes too long."""
        limits = self._shared.limits
        if self._is_stalled(now_s, limits.stall_s):
            self._leave()
            self.transport.abort()
        elif self._closing_since_s is not None:
            if now_s - self._closing_since_s > limits.linger_s and not self._unread_bytes:
                self.transport.abort()
        elif self.reply is not None or self._reader.requests:
            return
        elif self._reader.phase is not _IDLE:
            if self._reader.expire(now_s):
                self._serve_next()
        elif now_s - self._idle_since_s > limits.keepalive_s:
            self._close()

    def close_if_idle(self) -> None:
        """Close unless something of a request is here."""
        if self.reply is None and not self._reader.requests and self._reader.phase is _IDLE and not self._ahead:
            self._close()

    def cancel(self) -> bool:
        """Cancel the handler under way; return whether there was one, not yet cancelled."""
        task, reply, request = self._task, self.reply, self._request
        if task is None or reply is None or request is None or self._is_cancelled:
            return False
        self._is_cancelled = True
        task.cancel()
        task.add_done_callback(lambda _: self._end(request, reply))  # a task that never began runs no clean-up
        return True

    def _receive(self, data: bytes) -> None:
        rest = self._reader.feed(data, self._shared.clock())
        if rest:
            self._keep(rest)
        self._serve_next()

    def _keep(self, data: bytes) -> None:
        if self._reader.is_ended or self._reader.fault is not None:
            return
        self._ahead += data
        if len(self._ahead) > _AHEAD_BYTES:
            self.transport.pause_reading()

    def _serve_next(self) -> None:
        """Begin what is next in order: a request, a refusal, or reading on."""
        reader = self._reader
        if self.reply is not None or self._closing_since_s is not None or self._is_lost:
            return
        if reader.requests:
            if self.is_writable:  # else answers would pile up for a client that only sends
                self._begin(reader.requests.popleft())
        elif reader.fault is not None:
            self._refuse(reader.fault)
        elif self._ahead:
            data, self._ahead = self._ahead, b""
            self.transport.resume_reading()
            self._receive(data)
        elif reader.wants_continue:
            reader.wants_continue = False
            self.transport.write(_CONTINUE)

    def _begin(self, request: HttpRequest) -> None:
        shared = self._shared
        reply = Reply(self, request)
        self.reply = reply
        self._request = request
        shared.n_open += 1
        task = _start_task(shared.loop, self._serve(request, reply))
        if self.reply is reply:  # a task that starts eagerly may have ended
            self._task = task

    async def _serve(self, request: HttpRequest, reply: Reply) -> None:
        try:
            await self._shared.handler(request, reply)
        except RequestRefusedError as refusal:
            reply.refuse(refusal)
        except asyncio.CancelledError:
            if not reply.is_client_gone:
                reply.refuse(RequestRefusedError("the gateway is shutting down", status=503, code="shutting_down"))
            raise
        except Exception:  # a bug must not cost the connection's other requests, nor go unseen
            logger.exception("request failed", extra={"path": request.path})
            reply.refuse(_internal_error())
        finally:
            self._end(request, reply)

    def _end(self, request: HttpRequest, reply: Reply) -> None:
        """Finish the exchange after its handler; safe to call twice."""
        if self.reply is not reply:
            return
        shared, reader = self._shared, self._reader
        self.reply = self._request = self._task = None
        self._is_cancelled = False
        shared.n_open -= 1
        shared.budget.n_bytes -= len(request.body)
        if not reply.is_finished:
            self._end_unfinished(reply, request)
        if self._is_lost:
            return
        if not reply.is_keep_alive or self.heads.is_leaving:
            self._close()
            return
        self._idle_since_s = reader.since_s = shared.clock()
        if reader.requests or self._ahead or reader.fault is not None or reader.wants_continue:
            shared.loop.call_soon(self._serve_next)  # not at once: a row of requests would be a deep recursion

    def _end_unfinished(self, reply: Reply, request: HttpRequest) -> None:
        """End an answer that the handler left open."""
        if reply.status is None and not reply.is_client_gone:
            logger.error("request was not answered", extra={"path": request.path})
            reply.refuse(_internal_error())
        reply.cut()

    def _refuse(self, fault: RequestRefusedError) -> None:
        """Answer what could not be read; close our side only, so that a client that still sends can read why."""
        shared = self._shared
        shared.refused[fault.status] = shared.refused.get(fault.status, 0) + 1
        Reply(self, None).refuse(fault)
        self._closing_since_s = shared.clock()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def _close(self) -> None:
        """Close once everything written has left."""
        if self._closing_since_s is None:
            self._closing_since_s = self._shared.clock()
            self.transport.close()

    def _leave(self) -> None:
        """Note that the client has left, and cancel what is done for it."""
        reply = self.reply
        if reply is not None and not reply.is_finished and not reply.is_client_gone:
            reply.lose()
            self.wake()
            self.cancel()

    def _is_stalled(self, now_s: float, limit_s: float) -> bool:
        """Return whether the client has taken none of what is written for it for ``limit_s``."""
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes:  # the system's own buffer is full then, and may be megabytes
            unread_bytes += _n_unacknowledged_bytes(self.transport)
        if not unread_bytes or unread_bytes < self._unread_bytes or not self._unread_bytes:
            self._stalled_since_s = now_s
        self._unread_bytes = unread_bytes
        return unread_bytes > 0 and now_s - self._stalled_since_s > limit_s


def _n_unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return how much the system holds that the client's has not confirmed; 0 where that cannot be known."""
    if fcntl is None:
        return 0
    try:
        (n_bytes,) = _COUNT.unpack(fcntl.ioctl(transport.get_extra_info("socket").fileno(), _SIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return int(n_bytes)


def _internal_error() -> RequestRefusedError:
    return RequestRefusedError("the gateway failed; its log has the reason", status=500, code="internal_error")
