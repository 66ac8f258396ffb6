"""What an exchange of the load client says: token instants, counts, text, or why it failed.

Pure, and run when the load is over: reads the stamped pieces, undoes HTTP's framing and decodes the
events. A stream of the usual form, one ``data:`` line per event, is cut at its blank lines; any
other goes through the whole SSE parser.
"""

from dataclasses import dataclass, field

import httptools

from llmtier.core.errors import EngineRequestError
from llmtier.engine.load_connection import Exchange
from llmtier.engine.stream import Completion, StreamedAnswer
from llmtier.engine.wire import failure_text

_EVENT_END = b"\n\n"
_FIELD = b"data: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A decoded exchange.

    Attributes:
        completion: The answer so far as it came, with its instants; of a failed exchange what came before.
        failure: Why the exchange failed; ``None`` when it did not.
        error: The same as an error, with the HTTP status.
    """

    completion: Completion
    failure: str | None = None
    status: int | None = None

    @property
    def error(self) -> EngineRequestError | None:
        """The failure as an error that carries the HTTP status; ``None`` for an answer."""
        return None if self.failure is None else EngineRequestError(self.failure, status=self.status)


def decode_exchange(exchange: Exchange) -> Answer:
    """Return what the engine answered; never raises for what an engine sends."""
    parts, broken = _unframe(exchange)
    answer = StreamedAnswer()
    failure = exchange.failure if exchange.failure is not None else broken
    if exchange.status is not None and exchange.status != 200:
        failure = f"HTTP {exchange.status}: {failure_text(b''.join(part for part, _ in parts))}"
    else:
        answer, malformed = _read_events(parts)
        failure = malformed if malformed is not None else _judge(answer, exchange, failure)
    completion = answer.finish(
        scheduled_s=exchange.scheduled_s, sent_s=exchange.sent_s, done_s=max(exchange.done_s, exchange.sent_s)
    )
    return Answer(completion=completion, failure=failure, status=exchange.status)


@dataclass(slots=True)
class _Body:
    """Collects a response's body as (bytes, instant) while the parser is fed."""

    now_s: float = 0.0
    parts: list[tuple[bytes, float]] = field(default_factory=list)

    def on_body(self, body: bytes) -> None:
        """Keep a part."""
        self.parts.append((body, self.now_s))


def _unframe(exchange: Exchange) -> tuple[list[tuple[bytes, float]], str | None]:
    body = _Body()
    parser = httptools.HttpResponseParser(body)
    try:
        for piece, arrived_s in zip(exchange.pieces, exchange.arrived_s, strict=True):
            body.now_s = arrived_s
            parser.feed_data(piece)
    except httptools.HttpParserError as error:
        return body.parts, f"no HTTP response: {error}"
    return body.parts, None


def _read_events(parts: list[tuple[bytes, float]]) -> tuple[StreamedAnswer, str | None]:
    """Return the answer, and what was wrong with its events."""
    answer = StreamedAnswer()
    try:
        if _read_plain(parts, answer):
            return answer, None
        answer = StreamedAnswer()
        for part, arrived_s in parts:
            answer.take(part, arrived_s)
    except EngineRequestError as error:
        return answer, str(error)
    return answer, None


def _read_plain(parts: list[tuple[bytes, float]], answer: StreamedAnswer) -> bool:
    """Read a stream of one-line events; return whether it was one."""
    rest = b""
    for part, arrived_s in parts:
        events = (rest + part if rest else part).split(_EVENT_END)
        rest = events.pop()
        for event in events:
            if not event.startswith(_FIELD) or b"\n" in event or b"\r" in event:
                return False
            answer.take_document(event[6:], arrived_s)
    return not rest.strip()


def _judge(answer: StreamedAnswer, exchange: Exchange, failure: str | None) -> str | None:
    """Return why a stream that began well is no answer; a break after its last word harms nobody."""
    if answer.is_whole:
        return None
    if exchange.status is None:
        return failure or "no response"
    if failure is not None:
        return f"stream cut after {answer.n_chunks} chunks: {failure}"
    return f"stream cut: it ended after {answer.n_chunks} chunks without [DONE] or a finish_reason"
