"""HTTP/1.1 requests out of bytes: strict, bounded, whole.

Holds the reader that makes requests of one connection's bytes over llhttp. Owns no socket and answers nothing: what
cannot be served becomes a refusal for the server to send. llhttp in its strict mode refuses what parsers disagree on
(bare CR or LF, folded lines, spaces before a colon, doubled or mixed framing, chunk sizes that are no plain hex
number); the checks here are those that it leaves to its user. Chunk extensions are ignored, as the RFC demands, and
trailer fields dropped: neither is forwarded to an engine.
Specification: RFC 9112, https://www.rfc-editor.org/rfc/rfc9112
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import httptools

from llmtier.serve.http_request import HttpRequest, ServerLimits
from llmtier.serve.refusal import RequestRefusedError

_SLICE_BYTES = 8_192  # so many bytes at most are parsed past the end of a request, so few requests wait parsed
_MAX_DIGITS = 19  # of 2**63 - 1; Python refuses to convert thousands of leading zeros
_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
_METHODS = {name.encode(): name for name in ("POST", "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")}
_WRONG_VERSION = frozenset({"Invalid HTTP version", "Pause on PRI/Upgrade", "Expected HTTP/2 Connection Preface"})

Header = tuple[bytes, bytes]


@dataclass(slots=True)
class BodyBudget:
    """Bytes of bodies that a server holds.

    Attributes:
        limit_bytes: How many it may hold.
        n_bytes: How many it holds.
    """

    limit_bytes: int
    n_bytes: int = 0


class Phase(StrEnum):
    """Where in a request the bytes of a connection stand."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"


_IDLE, _HEAD, _BODY = Phase.IDLE, Phase.HEAD, Phase.BODY


class RequestReader:
    """Makes requests of the bytes of one connection; its ``on_`` methods are llhttp's callbacks.

    Args:
        limits: What a request may be.
        budget: Shared by all readers of a server; whoever ends a request gives its body's bytes back.

    Attributes:
        requests: Complete, in order, not yet taken.
        fault: Why nothing can be read after those; ``None`` while it can.
        phase: Where the bytes stand.
        since_s: Clock when a head or a body began; meaningless while idle.
        wants_continue: Whether the client waits for ``100 Continue`` before it sends a body.
        is_ended: Whether the last request was the client's last, so that whatever follows is not read.
    """

    __slots__ = (
        "_budget",
        "_chunks",
        "_content_bytes",
        "_framing",
        "_headers",
        "_is_http10",
        "_is_open",
        "_limits",
        "_max_run_bytes",
        "_n_body_bytes",
        "_n_headers",
        "_n_run_bytes",
        "_n_slice_bytes",
        "_now_s",
        "_parser",
        "_pieces",
        "_received_s",
        "_target",
        "fault",
        "is_ended",
        "on_header",
        "phase",
        "requests",
        "since_s",
        "wants_continue",
    )

    def __init__(self, limits: ServerLimits, budget: BodyBudget) -> None:
        self._limits = limits
        self._budget = budget
        self._max_run_bytes = limits.head_bytes + _SLICE_BYTES
        self.requests: deque[HttpRequest] = deque()
        self.fault: RequestRefusedError | None = None
        self.phase = _IDLE
        self.since_s = self._now_s = self._received_s = 0.0
        self.wants_continue = False
        self.is_ended = False
        self._target = b""
        self._headers: list[Header] = []
        self._framing: list[Header] = []  # those of them that say how long the request is, and Host
        self._n_headers = 0
        self._pieces: list[bytes] = []
        self._chunks = bytearray()
        self._n_slice_bytes = self._n_body_bytes = 0
        self._n_run_bytes = 0  # without a byte of a body: heads, trailers and chunk extensions could go on and on
        self._is_open = True
        self._is_http10 = False
        self._content_bytes: int | None = None
        self.on_header = _taker(self._headers, self._framing)
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes, now_s: float) -> bytes:
        """Read ``data``; return what follows a request that became complete, unread.

        Up to 8 KiB behind a request may be read with it, so a few that follow can be complete, too.
        """
        self._now_s = now_s
        if len(data) <= _SLICE_BYTES:
            self._parse(data)
            return b""
        view = memoryview(data)
        start = 0
        while start < len(data) and self._is_open and not self.requests:
            end = self._slice_end(data, start)
            self._parse(view[start:end])
            start = end
        return data[start:]

    def expire(self, now_s: float) -> bool:
        """Make a fault of a head or body that takes too long; return whether it does."""
        limits = self._limits
        if self.phase is _HEAD and now_s - self.since_s > limits.head_s:
            message = f"the request's head did not arrive within {limits.head_s:g} s"
        elif self.phase is _BODY and now_s - self.since_s > limits.body_s:
            message = f"the request's body did not arrive within {limits.body_s:g} s"
        else:
            return False
        self._fail(RequestRefusedError(message, status=408, code="request_timeout"))
        return True

    def close(self) -> None:
        """Forget all that was read; nothing may be fed afterwards."""
        self._drop_rest()
        while self.requests:
            self._budget.n_bytes -= len(self.requests.popleft().body)
        self._is_open = False
        del self._parser  # it holds this reader's methods, which hold it

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.phase = _HEAD
        self.since_s = self._received_s = self._now_s
        self._content_bytes = None
        self._n_run_bytes = self._n_slice_bytes

    def on_url(self, piece: bytes) -> None:
        """Take a piece of the target."""
        self._target += piece

    def on_headers_complete(self) -> None:
        """Check what llhttp does not; begin the body."""
        if self._n_run_bytes > self._limits.head_bytes:
            self._check_head_size()
        if self._target[:1] != b"/" or b"#" in self._target:
            raise _refuse("the request's target must be a path, such as /v1/chat/completions")
        version = self._parser.get_http_version()
        self._is_http10 = version == "1.0"
        framing = self._framing
        fields = dict(framing)
        length = fields.get(b"content-length")
        if length is not None:
            self._content_bytes = self._checked_length(length)
        if version != "1.1" or len(framing) != 1 + (length is not None) or b"host" not in fields:
            self._check_framing(framing, version)
        self.phase = _BODY
        self.since_s = self._now_s
        self._n_run_bytes = 0
        self._n_headers = len(self._headers)

    def on_body(self, piece: bytes) -> None:
        """Take a piece of the body, within limits."""
        n_bytes = len(piece)
        self.wants_continue = False
        self._n_run_bytes = 0
        self._n_body_bytes += n_bytes
        self._budget.n_bytes += n_bytes
        if self._n_body_bytes > self._limits.body_bytes:
            raise self._too_large()
        if self._budget.n_bytes > self._budget.limit_bytes:
            message = "the gateway holds as many request bodies as it may; ask again"
            raise RequestRefusedError(message, status=503, code="overloaded", retry_after_s=1)
        if self._content_bytes is None:
            self._chunks += piece  # chunks may be of one byte each: a list of them would be many times their size
        else:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """End the request."""
        method = self._parser.get_method()
        path, _, query = self._target.decode("latin-1").partition("?")
        is_keep_alive = self._parser.should_keep_alive()
        request = HttpRequest(
            _METHODS.get(method) or method.decode("latin-1"),
            path,
            query,
            self._headers[: self._n_headers],  # what follows are a trailer's, and could pass for headers
            b"".join(self._pieces),
            self._received_s,
            self._now_s,
            self._is_http10,
            is_keep_alive,
        )
        if self._chunks:
            request.body = bytes(self._chunks)
            self._chunks = bytearray()
        self.requests.append(request)
        self.phase = _IDLE
        self.wants_continue = False
        self._target = b""  # all these are the request's now, and no idle connection is to keep them
        self._headers.clear()
        self._framing.clear()
        self._pieces = []
        self._n_body_bytes = 0
        if not is_keep_alive:
            self.is_ended = True
            self._is_open = False

    def _parse(self, data: bytes | memoryview) -> None:
        while self._is_open:
            self._n_slice_bytes = n_bytes = len(data)
            self._n_run_bytes += n_bytes
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.requests[-1].method == "CONNECT":
                    self.requests.pop()
                    self._fail(_refuse("the gateway is no proxy"))
                    return
                data = self._take_back_upgrade() + bytes(data[upgrade.args[0] :])
                continue
            except httptools.HttpParserError as error:
                self._fail_of(error)
                return
            if self._n_run_bytes > self._max_run_bytes and self.phase is not _IDLE:
                self._fail(self._head_too_large())
            return

    def _take_back_upgrade(self) -> bytes:
        """Return the head of a request that asks for another protocol without that wish, to be read anew.

        It stays HTTP/1.1 here. llhttp reads no body of such a request and would take it for the next one; JDK's client
        asks for h2c with its first request, body and all.
        """
        request = self.requests.pop()
        self._parser = httptools.HttpRequestParser(self)
        self.is_ended, self._is_open = False, True
        fields = b"".join([b"%b: %b\r\n" % field for field in request.headers if field[0] != b"upgrade"])
        target = f"{request.path}?{request.query}" if request.query else request.path
        line = f"{request.method} {target} HTTP/1.{0 if request.is_http10 else 1}\r\n"
        return line.encode("latin-1") + fields + b"\r\n"

    def _slice_end(self, data: bytes, start: int) -> int:
        """Return where to stop parsing: at the end of a head, or of a body whose length is known, else soon."""
        if self.phase is not _BODY:
            head_end = data.find(b"\r\n\r\n", start, start + _SLICE_BYTES)
            return start + _SLICE_BYTES if head_end < 0 else head_end + 4
        if self._content_bytes is None:
            return start + _SLICE_BYTES
        return start + max(1, self._content_bytes - self._n_body_bytes)

    def _check_head_size(self) -> None:
        n_bytes = len(self._target) + sum(len(name) + len(value) + 3 for name, value in self._headers)
        if n_bytes > self._limits.head_bytes:
            raise self._head_too_large()

    def _checked_length(self, value: bytes) -> int:
        if not value.isdigit() or len(value) > _MAX_DIGITS:
            raise _refuse("the request's length is not a plain number")
        n_bytes = int(value)
        if n_bytes > self._limits.body_bytes:
            raise self._too_large()
        return n_bytes

    def _check_framing(self, framing: list[Header], version: str) -> None:
        """Check what few requests have: another version, chunks, an expectation, anything twice."""
        if version not in {"1.0", "1.1"}:
            raise _refuse(f"HTTP/{version} is not spoken here; use HTTP/1.1", status=505, code="http_version")
        names = [name for name, _ in framing]
        if names.count(b"host") > 1 or (version == "1.1" and b"host" not in names):
            raise _refuse(f"the request has {names.count(b'host')} Host headers; HTTP/1.1 asks for one")
        if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
            raise _refuse("the request says more than once how long it is")
        for name, value in framing:
            if name == b"transfer-encoding":
                self._check_encoding(value)
            elif name == b"expect":
                self._check_expectation(value)

    def _check_encoding(self, value: bytes) -> None:
        if value.lower() != b"chunked":
            message = "the only transfer encoding known here is chunked"
            raise _refuse(message, status=501, code="transfer_encoding")
        if self._is_http10:
            raise _refuse("HTTP/1.0 knows no chunks; send a Content-Length")

    def _check_expectation(self, value: bytes) -> None:
        if value.lower() != b"100-continue":
            raise _refuse("the only expectation known here is 100-continue", status=417, code="expectation_failed")
        self.wants_continue = not self._is_http10

    def _fail_of(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, RequestRefusedError):
            self._fail(cause)
        elif isinstance(error, httptools.HttpParserCallbackError):
            raise error  # a bug of ours: the loop reports it and closes the connection
        elif str(error) in _WRONG_VERSION:
            self._fail(_refuse("this version of HTTP is not spoken here", status=505, code="http_version"))
        else:  # llhttp's words name the rule and quote nothing that was sent
            self._fail(_refuse(f"this is not an HTTP/1.1 request: {error}"))

    def _fail(self, fault: RequestRefusedError) -> None:
        if not self.is_ended:  # what follows a last request is of no concern
            self.fault = fault
        self._is_open = False
        self.phase = _IDLE
        self.wants_continue = False
        self._drop_rest()

    def _drop_rest(self) -> None:
        self._target = b""
        self._headers.clear()
        self._framing.clear()
        self._budget.n_bytes -= self._n_body_bytes
        self._n_body_bytes = 0
        self._pieces = []
        self._chunks = bytearray()

    def _too_large(self) -> RequestRefusedError:
        message = f"the request body is longer than {self._limits.body_bytes} bytes; send a shorter prompt"
        return RequestRefusedError(message, status=413, code="request_too_large")

    def _head_too_large(self) -> RequestRefusedError:
        message = f"the request's headers are longer than {self._limits.head_bytes} bytes"
        return RequestRefusedError(message, status=431, code="headers_too_large")


def _taker(headers: list[Header], framing: list[Header]) -> Callable[[bytes, bytes], None]:
    """Return the callback that takes a header, called so often that it looks up no attributes."""
    take, take_framing = headers.append, framing.append

    def on_header(name: bytes, value: bytes) -> None:
        name = name.lower()
        header = (name, value.strip())
        take(header)
        if name in _FRAMING:
            take_framing(header)

    return on_header


def _refuse(message: str, *, status: int = 400, code: str = "bad_request") -> RequestRefusedError:
    return RequestRefusedError(message, status=status, code=code)
