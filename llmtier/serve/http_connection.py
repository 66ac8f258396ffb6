"""One connection to an engine: writes requests, reads HTTP/1.1 with llhttp, feeds one answer after the other.

A piece of an answer goes from ``data_received`` to its taker in the same call, with no copy beyond the removal of the
chunk framing. Opens nothing and keeps no pool: ``http_client.py`` does.
Sources: RFC 9112 sections 6 and 7 (framing), 9.3 (reuse).
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import httptools
from typing_extensions import override

from llmtier.serve.http_answer import UpstreamAnswer

MAX_HEAD_BYTES = 64 * 1024
"""Of a head; likewise the longest run of bytes without one of a body: interim answers, chunk extensions, trailers."""

_JOINED_BYTES = 64 * 1024  # a copy of less costs less than a second buffer
_LARGE_BYTES = 1 << 20  # from here on a body is written in pieces, and others get their turn
_PIECE_BYTES = 256 * 1024
_SWITCHING_PROTOCOLS = 101
_TOO_MUCH_HEAD = f"the engine sent more than {MAX_HEAD_BYTES} bytes of headers"


class Pool(Protocol):
    """Whoever lends connections."""

    def release(self, connection: "UpstreamConnection") -> None:
        """Take back a connection whose answer has ended; it may serve another."""

    def forget(self, connection: "UpstreamConnection") -> None:
        """Drop a connection that is gone."""


class UpstreamConnection(asyncio.Protocol):
    """A connection that serves one request after the other.

    Args:
        pool: Told when it is free and when it is gone.
        clock: Monotonic seconds.

    Attributes:
        idle_since_s: When its latest answer ended.
        on_body: Called by llhttp with each piece of a body.
    """

    __slots__ = (
        "_answer",
        "_clock",
        "_has_head",
        "_headers",
        "_is_complete",
        "_is_reusable",
        "_is_writable",
        "_loop",
        "_n_quiet_bytes",
        "_parser",
        "_pieces",
        "_pool",
        "_transport",
        "_unsent",
        "idle_since_s",
        "on_body",
    )

    def __init__(self, pool: Pool, *, clock: Callable[[], float], loop: asyncio.AbstractEventLoop) -> None:
        self.idle_since_s = 0.0
        self._pool = pool
        self._clock = clock
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._answer: UpstreamAnswer | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._unsent: memoryview | None = None
        self._is_writable = True
        self._is_reusable = self._is_complete = self._has_head = False
        self._n_quiet_bytes = 0
        self.on_body = self._pieces.append  # llhttp calls the list itself: no frame of ours for each piece
        self._parser = httptools.HttpResponseParser(self)

    @property
    def is_open(self) -> bool:
        """Whether the socket still takes a request."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, head: bytes, body: bytes) -> UpstreamAnswer:
        """Send a request over an idle open connection; the answer's ``head`` is to be awaited."""
        transport = self._transport
        if transport is None:
            raise RuntimeError("ask needs an open connection")
        answer = self._answer = UpstreamAnswer(self, self._loop, self._clock())
        self._is_complete = self._has_head = False
        self._n_quiet_bytes = 0
        if len(body) < _JOINED_BYTES:
            transport.write(head + body)
        elif len(body) < _LARGE_BYTES:
            transport.writelines((head, body))
        else:
            transport.write(head)
            self._unsent = memoryview(body)
            self._write_more()
        return answer

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close the socket at once; the answer on it is not told."""
        transport, self._transport, self._answer = self._transport, None, None
        self._unsent = None
        if transport is not None:
            transport.abort()

    def fail(self, message: str) -> None:
        """Close the socket at once and fail the answer on it, if any."""
        answer = self._answer
        self.close()
        if answer is not None:
            answer.fail(message)

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    @override
    def data_received(self, data: bytes) -> None:
        """Parse, hand the body's bytes on in one piece, and end the answer if it has ended."""
        answer = self._answer
        if answer is None:
            self.close()  # nobody asked
            return
        answer.last_byte_s = self._clock()
        answer.has_bytes = True
        self._n_quiet_bytes += len(data)
        fault: str | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            fault = f"the engine's answer is no HTTP: {error.__context__ or error}"
        pieces = self._pieces
        if pieces:
            piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            self._n_quiet_bytes = 0
            answer.take(piece)  # and perhaps the taker closes
        elif self._n_quiet_bytes > MAX_HEAD_BYTES and not self._is_complete:
            fault = _TOO_MUCH_HEAD
        if self._is_complete:
            self._finish(answer, is_clean=fault is None)
        elif fault is not None:
            self.fail(fault)

    @override
    def eof_received(self) -> None:
        """End with the input: nothing else can come."""
        self._end_input(None)
        self.close()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """End what is under way."""
        self._end_input(exc)
        self._transport = None
        self._pool.forget(self)

    @override
    def pause_writing(self) -> None:
        """Write no more of a large body."""
        self._is_writable = False

    @override
    def resume_writing(self) -> None:
        """Write on."""
        self._is_writable = True
        self._write_more()

    def on_message_begin(self) -> None:
        """Refuse bytes after the end of an answer."""
        if self._is_complete:
            raise ValueError("bytes after the end of the answer")
        self._headers.clear()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer goes where nobody looks."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Hand the head over, unless it is an interim one."""
        status = self._parser.get_status_code()
        answer = self._answer
        if status == _SWITCHING_PROTOCOLS:
            raise ValueError("it switches to a protocol that nobody asked for")
        if status < 200 or answer is None:
            return
        headers, self._headers = self._headers, []
        if self._n_quiet_bytes > MAX_HEAD_BYTES and _count_bytes(headers) > MAX_HEAD_BYTES:
            raise ValueError(_TOO_MUCH_HEAD)
        self._has_head = True
        answer.begin(status, headers)

    def on_message_complete(self) -> None:
        """Note the end, unless of an interim answer."""
        if self._has_head:
            self._is_complete = True
            self._is_reusable = self._parser.should_keep_alive()

    def _finish(self, answer: UpstreamAnswer, *, is_clean: bool) -> None:
        """End the answer; give the connection back if it can serve another."""
        if is_clean and self._is_reusable and self._unsent is None and self._transport is not None:
            self._answer = None
            if answer.is_stopped:
                self.resume()
            self._pool.release(self)
        else:
            self.close()
        answer.finish()

    def _end_input(self, exc: Exception | None) -> None:
        answer = self._answer
        if answer is None:
            return
        if exc is None and self._has_head and _ends_at_eof(answer):
            self.close()
            answer.finish()
        else:
            said = "" if exc is None else f": {exc}"
            self.fail(f"the engine closed the connection before the end of its answer{said}")

    def _write_more(self) -> None:
        """Write pieces of a large body until the transport has enough."""
        while self._unsent is not None and self._is_writable and self._transport is not None:
            piece, rest = self._unsent[:_PIECE_BYTES], self._unsent[_PIECE_BYTES:]
            self._unsent = rest if len(rest) else None
            self._transport.write(piece)


def _count_bytes(headers: list[tuple[bytes, bytes]]) -> int:
    """Return the bytes of header lines, each with its colon, space and end."""
    return sum(len(name) + len(value) + 4 for name, value in headers)


def _ends_at_eof(answer: UpstreamAnswer) -> bool:
    """Tell whether only the end of the connection ends the body (RFC 9112 section 6.3)."""
    coding = length = None
    for name, value in answer.headers:
        if name == b"transfer-encoding":
            coding = value
        elif name == b"content-length":
            length = value
    if coding is not None:
        return coding.rpartition(b",")[2].strip().lower() != b"chunked"
    return length is None
