"""HTTP/1.1 answers into bytes: one reply per request, written straight to its connection.

Holds the reply as handlers see it, the heads of answers (with one date line for all of them), and the writing half of
a connection. Every write is synchronous; waiting for a slow client is the handler's choice. Reads nothing.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus

from typing_extensions import override

from llmtier.serve.http_request import HttpRequest
from llmtier.serve.refusal import RequestRefusedError

Fields = Iterable[tuple[bytes, bytes]]

JSON = b"application/json"

_JOIN_BYTES = 65_536  # above, a second entry in the write queue costs less than a copy
_OURS = frozenset({b"connection", b"content-length", b"content-type", b"date", b"transfer-encoding"})
_BODILESS = frozenset({204, 304})
_N_STARTS = 64  # distinct beginnings of answers that are kept until the next second
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


class Heads:
    """Beginnings of answers; one for all connections of a server.

    Attributes:
        is_leaving: Whether each answer is to be its connection's last.
    """

    __slots__ = ("_date", "_starts", "is_leaving")

    def __init__(self) -> None:
        self.is_leaving = False
        self._starts: dict[tuple[int, bytes], bytes] = {}
        self._date = b""
        self.refresh()

    def refresh(self) -> None:
        """Read the date anew; to be called once a second."""
        self._date = format_datetime(datetime.now(UTC), usegmt=True).encode()
        self._starts.clear()

    def start(self, status: int, content_type: bytes) -> bytes:
        """Return the status line, the date and the content type.

        Raises:
            ValueError: The content type has a line break.
        """
        start = self._starts.get((status, content_type))
        if start is None:
            line = b"HTTP/1.1 %d %b\r\n" % (status, _phrase(status))
            start = line + _lines([(b"date", self._date), (b"content-type", content_type)])
            if len(self._starts) < _N_STARTS:
                self._starts[status, content_type] = start
        return start


class ReplyChannel(asyncio.Protocol):
    """The writing half of a connection.

    Attributes:
        heads: The server's.
        transport: Where bytes go; set when the connection is made.
        is_writable: Whether the client keeps up with what is written.
        reply: The one under way; ``None`` between requests.
    """

    __slots__ = ("_waiters", "heads", "is_writable", "reply", "transport")

    transport: asyncio.Transport

    def __init__(self, heads: Heads) -> None:
        self.heads = heads
        self.is_writable = True
        self.reply: Reply | None = None
        self._waiters: list[asyncio.Future[None]] = []

    @override
    def pause_writing(self) -> None:
        self.is_writable = False
        if self.reply is not None and self.reply.on_unwritable is not None:
            self.reply.on_unwritable()

    @override
    def resume_writing(self) -> None:
        self.is_writable = True
        self.wake()
        if self.reply is not None and self.reply.on_writable is not None:
            self.reply.on_writable()

    def wake(self) -> None:
        """Let all that wait for the client look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until the client has read some, or has left."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class Reply:
    """The one answer of one request.

    Args:
        channel: The connection it goes to.
        request: What it answers; ``None`` where none could be read, and the connection ends with the answer.

    Attributes:
        status: HTTP status; ``None`` until the answer has started.
        headers: Sent with whatever answer it becomes, so set before it starts; names in lower case.
        is_client_gone: Whether the client left before the answer's end; all writes are then ignored.
        is_finished: Whether nothing more can be written.
        is_keep_alive: Whether the connection outlives it, known once it has started.
        on_writable: Called when a client that had fallen behind has caught up.
        on_unwritable: Called when the client falls behind.
    """

    __slots__ = (
        "_channel",
        "_has_body",
        "_is_chunked",
        "_request",
        "headers",
        "is_client_gone",
        "is_finished",
        "is_keep_alive",
        "on_unwritable",
        "on_writable",
        "status",
    )

    def __init__(self, channel: ReplyChannel, request: HttpRequest | None) -> None:
        self._channel = channel
        self._request = request
        self._has_body = request is None or request.method != "HEAD"
        self._is_chunked = False
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.is_client_gone = False
        self.is_finished = False
        self.is_keep_alive = request is not None and request.is_keep_alive
        self.on_writable: Callable[[], None] | None = None
        self.on_unwritable: Callable[[], None] | None = None

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up with what is written."""
        return self._channel.is_writable

    def start(self, status: int, *, content_type: bytes, headers: Fields = ()) -> None:
        """Begin an answer of unknown length: chunks, or for HTTP/1.0 bytes until the connection's end.

        Raises:
            ValueError: A header has a line break, or is one that the connection writes itself.
        """
        self._is_chunked = self._request is None or not self._request.is_http10
        self.is_keep_alive = self.is_keep_alive and self._is_chunked
        framing = b"transfer-encoding: chunked\r\n\r\n" if self._is_chunked else b"\r\n"
        head = self._head(status, content_type, headers) + framing
        if not self.is_client_gone:
            self._channel.transport.write(head)

    def write(self, body: bytes) -> None:
        """Write a piece; an empty one is nothing, and after the client has left so is any."""
        if self.status is None or self.is_finished:
            raise RuntimeError("an answer is written between its start and its finish")
        if not body or not self._has_body or self.is_client_gone:
            return
        transport = self._channel.transport
        if not self._is_chunked:
            transport.write(body)
        elif len(body) < _JOIN_BYTES:
            transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        else:
            transport.writelines([b"%x\r\n" % len(body), body, b"\r\n"])

    def finish(self, body: bytes = b"") -> None:
        """Write the last piece and the end."""
        is_ended_by_chunk = self._is_chunked and self._has_body and not self.is_client_gone
        if is_ended_by_chunk and body and not self.is_finished and len(body) < _JOIN_BYTES:
            self._channel.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            self.write(body)
            if is_ended_by_chunk:
                self._channel.transport.write(b"0\r\n\r\n")
        self.is_finished = True

    def send_whole(self, status: int, body: bytes, *, content_type: bytes = JSON, headers: Fields = ()) -> None:
        """Send a complete answer.

        Raises:
            ValueError: A header has a line break, or is one that the connection writes itself.
        """
        head = self._head(status, content_type, headers)
        if status in _BODILESS:
            self._has_body, body = False, b""
            self._write_end(head + b"\r\n")
        elif self._has_body and len(body) < _JOIN_BYTES:
            self.is_finished = True
            if not self.is_client_gone:
                self._channel.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        else:
            self._write_end(b"%bcontent-length: %d\r\n\r\n" % (head, len(body)), body)

    def refuse(self, refusal: RequestRefusedError) -> None:
        """Send an error of the gateway's own, unless an answer is under way."""
        if self.status is not None:
            return
        retry = () if refusal.retry_after_s is None else ((b"retry-after", b"%d" % refusal.retry_after_s),)
        self.send_whole(refusal.status, refusal.body, headers=retry)

    async def drain(self) -> None:
        """Wait until the client keeps up.

        Raises:
            ConnectionResetError: It left before the answer's end.
        """
        while not self._channel.is_writable and not self.is_client_gone:
            await self._channel.wait()
        if self.is_client_gone:
            raise ConnectionResetError("the client left before the end of its answer")

    def cut(self) -> None:
        """End the connection so that the client sees an incomplete answer.

        What was written still arrives where the missing last chunk tells; else RST is all that can tell.
        """
        if self.is_finished or self.is_client_gone:
            return
        self.is_finished, self.is_keep_alive = True, False
        transport = self._channel.transport
        if self._is_chunked:
            transport.close()
            return
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def lose(self) -> None:
        """Note that the client has left; for the connection to call."""
        self.is_client_gone = True

    def _head(self, status: int, content_type: bytes, headers: Fields) -> bytes:
        if self.status is not None:
            raise RuntimeError("an answer starts once")
        start = self._channel.heads.start(status, content_type)
        fields = _lines([*self.headers.items(), *headers], refused=_OURS) if self.headers or headers else b""
        self.is_keep_alive = self.is_keep_alive and not self._channel.heads.is_leaving
        self.status = status
        if not self.is_keep_alive:
            return start + fields + b"connection: close\r\n"
        if self._request is not None and self._request.is_http10:
            return start + fields + b"connection: keep-alive\r\n"
        return start + fields

    def _write_end(self, *pieces: bytes) -> None:
        """Write the head and, where the answer has one, the body; nothing may follow."""
        self.is_finished = True
        if not self.is_client_gone:
            for piece in pieces if self._has_body else pieces[:1]:
                self._channel.transport.write(piece)


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:  # an upstream may answer with a number of its own
        return b"Unknown"


def _lines(fields: list[tuple[bytes, bytes]], *, refused: frozenset[bytes] = frozenset()) -> bytes:
    """Return header lines; a break inside one would let whoever chose it write headers and bodies of their own."""
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    if not (lines.count(b"\n") == lines.count(b"\r") == len(fields)) or b"\0" in lines:
        name = next(name for name, value in fields if any(byte in name + value for byte in b"\r\n\0"))
        raise ValueError(f"the header {name!r} has a line break or NUL in it")
    for name, _ in fields:
        if name in refused:
            raise ValueError(f"the header {name!r} is the connection's own; leave it out")
    return lines
