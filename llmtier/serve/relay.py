"""Send one request to one engine and carry its answer back, byte for byte.

Before the first byte a failure is raised, so that the caller may try another tier; after it, the client is told inside
the stream. Deadlines bound every wait; a slow reader slows the engine's connection instead of filling memory; a
cancelled relay closes that connection at once, which is what makes an engine abort. A piece of a stream goes from the
engine's socket to the client's in one call, without a switch of tasks. Chooses nothing.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from llmtier.core.errors import EngineRequestError
from llmtier.engine.wire import failure_text
from llmtier.serve.answer_check import Complaint
from llmtier.serve.http_client import UpstreamAnswer, UpstreamBrokenError, UpstreamClient, UpstreamConnectError
from llmtier.serve.http_server import Reply
from llmtier.serve.refusal import error_event
from llmtier.serve.sse_relay import SseRelay
from llmtier.serve.stream_check import StreamCheck

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Of an answer that is not streamed; 128 choices of 32,768 tokens are less."""

_MAX_TOLD_BYTES = 64 * 1024
_EVENTS = b"text/event-stream"
_DONE = b"data: [DONE]"
_MAX_HELD_BYTES = 64 * 1024
_BUSY = frozenset({408, 429})


class UpstreamFault(StrEnum):
    """What went wrong before the first byte."""

    CONNECT = "connect"
    TIMEOUT = "timeout"
    STATUS = "status"
    BROKEN = "broken"
    ANSWER = "answer"


class UpstreamError(EngineRequestError):
    """An engine did not begin to answer.

    Args:
        message: Which tier, and what happened.
        fault: What kind of failure.
        status: The engine's HTTP status; ``None`` when no status line arrived.
        retry_after: The engine's header; empty without one.

    Attributes:
        sent_s: Instant at which it was asked.
    """

    def __init__(
        self, message: str, *, fault: UpstreamFault, status: int | None = None, retry_after: bytes = b""
    ) -> None:
        self.fault = fault
        self.retry_after = retry_after
        self.sent_s = 0.0
        super().__init__(message, status=status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """The longest waits of one request.

    Attributes:
        connect_s: For a connection to an engine.
        first_byte_s: For the first byte of a stream, per engine.
        stall_s: Between two pieces of a stream.
        total_s: For the whole request, fail-over included.
    """

    connect_s: float = 5.0
    first_byte_s: float = 60.0
    stall_s: float = 30.0
    total_s: float = 120.0


@dataclass(slots=True, kw_only=True)
class Errand:
    """What is sent to one engine.

    Attributes:
        tier: The site, for messages: a tier, or one of its engines as ``tier#2``.
        client: Connections to the engine.
        path: The endpoint.
        headers: Lines that go along, each with its end.
        body: As the engine is to read it.
        is_stream: Whether SSE is expected.
        ends_s: Instant at which the whole request is over; likewise ``first_s``, at which its first byte is late.
        stall_s: Longest wait between two pieces of a stream.
        check: Returns what is wrong with a whole answer that claims success.
    """

    tier: str
    client: UpstreamClient
    path: str
    headers: bytes
    body: bytes
    is_stream: bool
    ends_s: float
    first_s: float
    stall_s: float
    check: Callable[[bytes], Complaint | None]


class Deadline:
    """Ends what the present task waits for at an instant; ``asyncio.timeout`` at a fifth of its cost.

    ``is_over`` tells a cancellation of its own from others, which it leaves alone.
    """

    __slots__ = ("_handle", "_is_fired", "_task")

    def __init__(self, delay_s: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline needs a task")
        self._task = task
        self._is_fired = False
        self._handle = task.get_loop().call_later(max(delay_s, 0.0), self._fire)

    def is_over(self) -> bool:
        """Return whether a cancellation that was just caught is its own; only then the task goes on."""
        return self._is_fired and self._task.uncancel() == 0

    def disarm(self) -> None:
        """Let the task be; must be called, whatever happened."""
        self._handle.cancel()

    def _fire(self) -> None:
        self._is_fired = True
        self._task.cancel()


async def open_answer(errand: Errand, *, clock: Callable[[], float]) -> tuple[UpstreamAnswer, bytes | None]:
    """Send the request; return the answer when its head is there, and the body unless that is an event stream.

    Raises:
        UpstreamError: No connection, no answer in time, a redirect or 5xx, or an answer that is cut, too long or empty.
    """
    ends_s = min(errand.ends_s, errand.first_s) if errand.is_stream else errand.ends_s
    deadline = Deadline(ends_s - clock())
    try:
        return await _exchange(errand)
    except asyncio.CancelledError:
        if deadline.is_over():
            message = f"tier {errand.tier}: no answer within its deadline"
            raise UpstreamError(message, fault=UpstreamFault.TIMEOUT) from None
        raise
    except UpstreamConnectError as exc:
        raise UpstreamError(f"tier {errand.tier}: no connection to its engine", fault=UpstreamFault.CONNECT) from exc
    except UpstreamBrokenError as exc:
        message = f"tier {errand.tier}: its engine dropped the connection"
        raise UpstreamError(message, fault=UpstreamFault.BROKEN) from exc
    finally:
        deadline.disarm()


async def _exchange(errand: Errand) -> tuple[UpstreamAnswer, bytes | None]:
    answer = await errand.client.send(errand.path, errand.body, headers=errand.headers)
    is_kept = False
    try:
        if answer.status >= 500 or 300 <= answer.status < 400 or answer.status in _BUSY:
            told = failure_text(await answer.read_whole(limit_bytes=_MAX_TOLD_BYTES))
            message = f"tier {errand.tier}: its engine answered {answer.status}: {told}"
            raise UpstreamError(
                message, fault=UpstreamFault.STATUS, status=answer.status, retry_after=answer.retry_after
            )
        is_kept = errand.is_stream and is_events(answer)
        if is_kept:
            return answer, None
        body = await answer.read_whole(limit_bytes=MAX_ANSWER_BYTES)
        if answer.status < 300:
            complaint = Complaint.EMPTY if not body else errand.check(body)
            if complaint is not None:
                message = f"tier {errand.tier}: its engine's answer is worthless: {complaint.value}"
                raise UpstreamError(message, fault=UpstreamFault.ANSWER)
        return answer, body
    finally:
        if not is_kept:
            answer.close()


def is_events(answer: UpstreamAnswer) -> bool:
    """Tell whether the answer is an event stream."""
    return answer.content_type[: len(_EVENTS)].lower() == _EVENTS


class StreamRelay:
    """Carries one event stream to the client.

    Args:
        errand: What was sent.
        answer: The engine's answer, whose head has come.
        reply: The client's, not yet started.
        events: The state of the stream's bytes.
        check: Whether they are an answer. What comes before the first that is of use, such as a role, is held back, so
            that an answer that is none reaches nobody.
        on_piece: Called with the instant of each piece.
        clock: Monotonic seconds.

    Attributes:
        errand: As passed in.
        leaves_open: Whether a stream that broke is left for the caller to carry on, or to ``tell``.
    """

    def __init__(  # noqa: PLR0913  # both ends, and the state between them
        self,
        errand: Errand,
        answer: UpstreamAnswer,
        reply: Reply,
        events: SseRelay,
        check: StreamCheck,
        *,
        on_piece: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self.leaves_open = False
        self.errand = errand
        self._answer = answer
        self._reply = reply
        self._events = events
        self._verdict = check
        self._fault = UpstreamFault.BROKEN
        self._held = b""
        self._on_piece = on_piece
        self._clock = clock
        self._stall_s = errand.stall_s
        self._newest_s: float | None = None
        self._why_broken: str | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] | None = None

    @property
    def is_late(self) -> bool:
        """Whether it was given up for its silence, or for its length."""
        return self._fault is UpstreamFault.TIMEOUT

    async def run(self) -> str | None:
        """Relay to the end; return why the stream broke after its first byte, ``None`` when it is complete.

        A broken stream ends with an error event and without ``[DONE]``, so that client libraries raise.

        Raises:
            UpstreamError: It broke before anything was sent to the client.
        """
        reply, answer = self._reply, self._answer
        reply.on_unwritable, reply.on_writable = answer.pause, self._go_on
        try:
            self._done = answer.pipe(self._take)
            self._arm(min(self.errand.first_s, self.errand.ends_s))
            await self._done
        except UpstreamBrokenError:
            if not self._events.is_done:
                said = self._why_broken or "the engine dropped the connection before the end of its answer"
                return self._end_broken(said)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            reply.on_unwritable = reply.on_writable = None
            answer.close()
        return self._end()

    def _go_on(self) -> None:
        """Read on for a client that has caught up: from now on it is the engine's silence that counts."""
        self._newest_s = self._clock()
        self._answer.resume()

    def _take(self, piece: bytes) -> None:
        whole = self._events.feed(piece)
        now_s = self._clock()
        if self._newest_s is None and self._timer is not None:  # from now on a stall is what is watched for
            self._timer.cancel()
            self._arm(min(now_s + self._stall_s, self.errand.ends_s))
        self._newest_s = now_s
        self._on_piece(now_s)
        if not whole:
            return
        check, reply = self._verdict, self._reply
        check.feed(whole)
        if reply.status is None:
            self._begin(whole)
        elif check.complaint is not None and check.is_worthless and self._events.is_done:
            reply.write(whole[: max(whole.rfind(_DONE), 0)])  # not that it is complete
        else:
            reply.write(whole)

    def _begin(self, whole: bytes) -> None:
        """Start the answer unless nothing has come as yet that is of use, or it is known to be none."""
        check = self._verdict
        self._held += whole
        if check.is_worthless or check.has_failed:
            self._fault, self._why_broken = UpstreamFault.ANSWER, self._say_worthless()
            self._answer.close()
        elif check.has_begun or len(self._held) > _MAX_HELD_BYTES or whole.startswith(b":"):  # a sign of life
            self._start()
            held, self._held = self._held, b""
            self._reply.write(held)

    def _start(self) -> None:
        answer = self._answer
        self._reply.start(answer.status, content_type=answer.content_type, headers=_STREAM_HEADERS)

    def _end(self) -> str | None:
        reply, events, check = self._reply, self._events, self._verdict
        rest = b"" if events.is_done else events.finish()  # what comes after the end is nobody's
        if rest:
            check.feed(rest)
        if reply.status is None and not self._held and not rest:
            raise _empty(self.errand)
        if not events.is_done:
            return self._end_broken("the engine ended its answer early")
        check.finish(None if events.usage is None else events.usage.completion_tokens)
        if check.is_worthless:
            self._fault, self.leaves_open = UpstreamFault.ANSWER, False
            return self._end_broken(self._say_worthless())
        if reply.status is None:
            self._start()
        reply.finish(self._held + rest)
        return "the engine sent an error event" if events.has_error else None

    def _say_worthless(self) -> str:
        complaint = self._verdict.complaint
        return f"the engine's answer is worthless: {'' if complaint is None else complaint.value}"

    def _end_broken(self, why: str) -> str:
        if self._reply.status is None:
            raise UpstreamError(f"tier {self.errand.tier}: {why}", fault=self._fault)
        if not self.leaves_open:
            self.tell(why)
        return why

    def tell(self, why: str) -> None:
        """Tell the client inside the stream that it broke; an event of which only a part came is left out."""
        opening = b"\n\n" if self._events.is_mid_event else b""  # ends the event of which the client has a part
        self._reply.finish(opening + error_event(why, code="upstream_interrupted"))

    def _arm(self, at_s: float) -> None:
        self._timer = self._loop.call_later(max(at_s - self._clock(), 0.0), self._check)

    def _check(self) -> None:
        """Give up on a stream that is late, else look again when it could be."""
        now_s = self._clock()
        if self._newest_s is None:
            limit_s, why = self.errand.first_s, "no answer within its deadline"
        elif self._reply.is_writable:
            limit_s, why = self._newest_s + self._stall_s, f"the engine sent nothing for {self._stall_s:g} s"
        else:  # a slow reader holds the engine back
            limit_s, why = now_s + self._stall_s, ""
        if self.errand.ends_s <= limit_s:
            limit_s, why = self.errand.ends_s, "the answer took longer than the gateway allows"
        if now_s < limit_s:
            self._arm(limit_s)
        elif self._done is not None and not self._done.done():
            self._why_broken, self._fault = why, UpstreamFault.TIMEOUT
            self._done.set_exception(UpstreamBrokenError(had_bytes=self._newest_s is not None))


_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


def _empty(errand: Errand) -> UpstreamError:
    return UpstreamError(f"tier {errand.tier}: its engine sent an empty answer", fault=UpstreamFault.BROKEN)
