"""The answer of an engine while it comes: kept until somebody asks for it, then handed on piece by piece.

A piece goes to its taker in the call that brings it: no queue, no task. Reads no socket: a connection
(``http_connection.py``) feeds it and obeys its ``pause``. Holds no deadline: callers do.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from llmtier.core.errors import EngineRequestError

MAX_BACKLOG_BYTES = 256 * 1024
"""Of a body that nobody has asked for yet; from here on the socket is not read. A single read may exceed it once."""


class UpstreamBrokenError(EngineRequestError):
    """An engine's answer did not come, was cut, or is no HTTP.

    Args:
        message: What happened.
        had_bytes: Whether any byte of the answer had come.
    """

    def __init__(self, message: str = "the engine's answer was cut", *, had_bytes: bool) -> None:
        self.had_bytes = had_bytes
        super().__init__(message)


class Source(Protocol):
    """Where an answer's bytes come from."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read again."""

    def close(self) -> None:
        """Close at once."""


class UpstreamAnswer:
    """The answer to one request; its head has come when a caller gets it.

    The body is taken once, by ``read_whole`` or by ``pipe``.

    Attributes:
        status: HTTP status.
        headers: Names in lower case, values as sent.
        content_type: The value of that header as sent, parameters included; empty when none was sent.
        retry_after: Likewise.
        last_byte_s: Clock at which bytes came last; at first, when the request was sent.
        has_bytes: Whether any byte has come.
        head: Done when the head is there.
    """

    __slots__ = (
        "_backlog",
        "_ended",
        "_failure",
        "_is_claimed",
        "_is_held",
        "_is_paused",
        "_loop",
        "_n_backlog_bytes",
        "_on_piece",
        "_room_bytes",
        "_source",
        "content_type",
        "has_bytes",
        "head",
        "headers",
        "last_byte_s",
        "retry_after",
        "status",
    )
    status: int
    headers: list[tuple[bytes, bytes]]

    def __init__(self, source: Source, loop: asyncio.AbstractEventLoop, now_s: float) -> None:
        self.content_type = self.retry_after = b""
        self.last_byte_s = now_s
        self.has_bytes = False
        self.head: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._source: Source | None = source
        self._on_piece: Callable[[bytes], None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._failure: UpstreamBrokenError | None = None
        self._backlog: list[bytes] = []
        self._n_backlog_bytes = 0
        self._room_bytes = MAX_BACKLOG_BYTES
        self._is_claimed = self._is_held = self._is_paused = False

    @property
    def is_stopped(self) -> bool:
        """Whether the socket is not to be read now: the caller wants it so, or the backlog is full."""
        return self._is_paused or self._is_held

    async def read_whole(self, *, limit_bytes: int) -> bytes:
        """Return the body.

        Raises:
            UpstreamBrokenError: It was cut, or is longer than ``limit_bytes``; the connection is closed.
        """
        self._claim()
        self._room_bytes = limit_bytes
        if self._n_backlog_bytes > limit_bytes:
            self._overflow()
        if self._source is not None:
            ended = self._ended = self._loop.create_future()
            self._release()
            try:
                await ended
            except asyncio.CancelledError:
                self.close()
                raise
        elif self._failure is not None:
            raise self._failure
        backlog, self._backlog = self._backlog, []
        return backlog[0] if len(backlog) == 1 else b"".join(backlog)

    def pipe(self, on_piece: Callable[[bytes], None]) -> "asyncio.Future[None]":
        """Hand every piece of the body to ``on_piece`` as it comes, first what has come already.

        ``on_piece`` must not raise: the connection is closed then. A future that is done early, such as by
        cancellation, ends the delivery and closes the connection with the next piece; ``close`` does so at once.

        Returns:
            Done at the end of the answer; its exception is ``UpstreamBrokenError`` when the answer was cut or closed.
        """
        self._claim()
        ended = self._ended = self._loop.create_future()
        self._on_piece = on_piece
        if self._backlog:
            backlog = b"".join(self._backlog)
            self._backlog.clear()
            on_piece(backlog)
        if self._source is None:
            self._on_piece = None  # as ``finish`` does
        if ended.done():
            return ended
        if self._source is not None:
            self._release()
        elif self._failure is not None:
            _set_failure(ended, self._failure)
        else:
            ended.set_result(None)
        return ended

    def pause(self) -> None:
        """Stop reading the socket; the engine is slowed once the kernel's buffers are full. ``last_byte_s`` stays."""
        if not self._is_paused:
            self._is_paused = True
            if self._source is not None:
                self._source.pause()

    def resume(self) -> None:
        """Read again."""
        if self._is_paused:
            self._is_paused = False
            if self._source is not None and not self._is_held:
                self._source.resume()

    def close(self) -> None:
        """Close the connection unless the answer has ended; whoever waits for the end gets ``UpstreamBrokenError``."""
        source = self._source
        if source is not None:
            source.close()
            self.fail("the answer was closed before its end")

    def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Take the head."""
        self.status = status
        self.headers = headers
        for name, value in headers:
            if name == b"content-type":
                self.content_type = value
            elif name == b"retry-after":
                self.retry_after = value
        if not self.head.done():
            self.head.set_result(None)

    def take(self, piece: bytes) -> None:
        """Hand a piece on, or keep it until somebody asks for it."""
        on_piece = self._on_piece
        if on_piece is None:
            self._backlog.append(piece)
            self._n_backlog_bytes += len(piece)
            if self._n_backlog_bytes > self._room_bytes:
                self._overflow()
        elif self._ended is None or self._ended.done():
            self.close()
        else:
            on_piece(piece)

    def finish(self) -> None:
        """Note that the answer has ended by itself."""
        self._source = self._on_piece = None  # a taker that holds the answer would else wait for the collector with it
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def fail(self, message: str) -> None:
        """Note that the answer will not end by itself; its connection is closed already."""
        self._source = self._on_piece = None
        self._failure = UpstreamBrokenError(message, had_bytes=self.has_bytes)
        if not self.head.done():
            _set_failure(self.head, self._failure)
        if self._ended is not None and not self._ended.done():
            _set_failure(self._ended, self._failure)

    def _claim(self) -> None:
        if self._is_claimed:
            raise RuntimeError("an answer is read once")
        self._is_claimed = True

    def _overflow(self) -> None:
        """Stop reading while nobody has asked for the body; give up when whoever asked wanted less."""
        source = self._source
        if self._is_claimed:
            if source is not None:
                source.close()
            self.fail(f"the engine's answer is longer than {self._room_bytes} bytes")
        elif not self._is_held and source is not None:
            self._is_held = True
            source.pause()

    def _release(self) -> None:
        """Read again after an overflow, unless the caller has paused."""
        if self._is_held:
            self._is_held = False
            if self._source is not None and not self._is_paused:
                self._source.resume()


def _set_failure(future: "asyncio.Future[None]", failure: UpstreamBrokenError) -> None:
    """Fail a future that perhaps nobody awaits, without a complaint about that."""
    future.set_exception(failure)
    future.exception()
