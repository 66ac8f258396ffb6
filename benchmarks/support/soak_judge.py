"""How a request of the soak ended: right, refused, told of an error, left, cut by a kill, or badly. Pure.

Reads what a client saw; knows what the answer had to be, and nothing of the engines.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from support.soak_answers import CHAT, EMBEDDINGS, MALFORMED, RESPONSES
from support.soak_ask import ROUTED, Ask
from support.soak_text import numbers_in

KILL_WINDOW_S, SLOW_KILL_WINDOW_S = 0.5, 6.0
"""Within so long after a worker was killed a cut connection is its doing: the time until a client looks.

A slow reader first takes what the sockets hold, some megabytes.
"""

REFUSALS = frozenset({429, 502, 503, 504})
_ENDS = frozenset({"response.completed", "response.failed", "response.incomplete"})


class Outcome(StrEnum):
    """The ends of a request; the last three must not occur."""

    COMPLETE = "complete"
    REFUSED = "refused"
    TOLD = "told"
    LEFT = "left"
    CUT_BY_KILL = "cut_by_kill"
    LOST = "lost"
    DUPLICATED = "duplicated"
    UNEXPLAINED = "unexplained"


BAD = frozenset({Outcome.LOST, Outcome.DUPLICATED, Outcome.UNEXPLAINED})


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a request ended, and why that is so in few words."""

    outcome: Outcome
    why: str = ""


@dataclass(slots=True, kw_only=True)
class Seen:
    """What a client saw of one request.

    Attributes:
        ask: What was asked.
        sent_s: Monotonic instant; likewise ``ended_s``.
        status: ``None`` when no head came.
        retry_after: The header.
        body: What came of it.
        cut: Why the connection broke; ``None`` when the answer's framing was whole.
        has_left: Whether the client left before the end.
        is_late: Whether it gave up waiting.
    """

    ask: Ask
    sent_s: float
    ended_s: float = 0.0
    status: int | None = None
    retry_after: str | None = None
    body: bytes = b""
    cut: str | None = None
    has_left: bool = False
    is_late: bool = False


def judge(seen: Seen, kills_s: Sequence[float]) -> Verdict:
    """Return how it ended; ``kills_s`` are the instants at which workers were killed."""
    if seen.has_left:
        return _judge_left(seen)
    verdict = _judge(seen)
    is_cut = seen.cut is not None and verdict.outcome in BAD
    window_s = SLOW_KILL_WINDOW_S if seen.ask.is_slow else KILL_WINDOW_S
    if is_cut and any(
        kill_s <= seen.ended_s <= kill_s + window_s and seen.sent_s <= kill_s + KILL_WINDOW_S for kill_s in kills_s
    ):
        return Verdict(Outcome.CUT_BY_KILL, verdict.why)
    return verdict


def _judge(seen: Seen) -> Verdict:
    if seen.is_late:
        return Verdict(Outcome.LOST, "no end")
    if seen.status is None:
        return Verdict(Outcome.LOST, f"no answer: {seen.cut}")
    if seen.status != 200:
        return _judge_refusal(seen)
    if seen.ask.is_stream:
        return judge_stream(seen)
    if seen.cut is not None:
        return Verdict(Outcome.LOST, f"cut: {seen.cut}")
    return judge_whole(seen)


def _judge_left(seen: Seen) -> Verdict:
    """Say of an answer that was left what can be said: its pieces so far are in order."""
    if seen.ask.is_stream and seen.status == 200:
        events, _ = read_events(seen.body[: seen.body.rfind(b"\n\n") + 2])
        numbers, n_foreign = numbers_in(_join(events, seen.ask.path), seen.ask.tale)
        if n_foreign or numbers != list(range(len(numbers))):
            return _judge_numbers(numbers, n_foreign)
    return Verdict(Outcome.LEFT)


def _judge_refusal(seen: Seen) -> Verdict:
    why = f"status {seen.status}"
    if seen.status not in REFUSALS:
        return Verdict(Outcome.UNEXPLAINED, why)
    if seen.cut is not None:
        return Verdict(Outcome.LOST, f"{why}, cut")
    try:
        error = json.loads(seen.body)["error"]
        is_shaped = isinstance(error["message"], str) and isinstance(error["type"], str) and "code" in error
    except (ValueError, LookupError, TypeError):
        is_shaped = False
    if not is_shaped:
        return Verdict(Outcome.UNEXPLAINED, f"{why} without an error")
    return Verdict(Outcome.REFUSED, f"{why} {error['code']}, {'any tier' if seen.ask.model == ROUTED else 'one tier'}")


def judge_whole(seen: Seen) -> Verdict:
    """Judge an answer that is not streamed and came whole."""
    ask = seen.ask
    try:
        document = json.loads(seen.body, parse_constant=_refuse_constant)
        if ask.path == EMBEDDINGS:
            is_right = document["data"][0]["embedding"] == ask.tale.vector
            return Verdict(Outcome.COMPLETE) if is_right else Verdict(Outcome.LOST, "another's vector")
        text = _read_text(document, ask.path)
    except (ValueError, LookupError, TypeError) as error:
        return Verdict(Outcome.LOST, f"unreadable answer: {type(error).__name__}")
    return Verdict(Outcome.COMPLETE) if text == ask.tale.text else _judge_text(text, seen)


def judge_stream(seen: Seen) -> Verdict:
    """Judge an answer in events."""
    ask = seen.ask
    try:
        events, is_done = read_events(seen.body)
        text = _join(events, ask.path)
    except (ValueError, LookupError, TypeError) as error:
        return Verdict(Outcome.LOST, f"unreadable event: {type(error).__name__}")
    if any("error" in event or event.get("type") in {"error", "response.failed"} for event in events):
        is_part = ask.tale.text.startswith(text) or not text.strip("!")  # "!" is what an engine sends that repeats one
        return Verdict(Outcome.TOLD, _name_error(events)) if is_part else _judge_text(text, seen)
    if seen.cut is not None or not is_done:
        return Verdict(Outcome.LOST, "cut without an error event" if seen.cut else "ended without [DONE] or an error")
    if text != ask.tale.text:
        return _judge_text(text, seen)
    return _judge_usage(events, ask)


def read_events(body: bytes) -> tuple[list[dict[str, Any]], bool]:
    """Return the documents of all events, and whether the stream says that it is complete.

    Raises:
        ValueError: Bytes that are no event, but for the engine's own malformed line.
    """
    found: list[dict[str, Any]] = []
    is_done = False
    for block in body.replace(MALFORMED, b"").split(b"\n\n"):
        for line in block.split(b"\n"):
            if is_done and line:
                raise ValueError("an event after the end")
            if line == b"data: [DONE]":
                is_done = True
            elif line.startswith(b"data: "):
                found.append(json.loads(line[6:], parse_constant=_refuse_constant))
            elif line and not line.startswith((b"event: ", b": ", b":")):
                raise ValueError("no event")
    return found, is_done or any(event.get("type") in _ENDS for event in found)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _join(events: Sequence[dict[str, Any]], path: str) -> str:
    if path == RESPONSES:
        return "".join(event["delta"] for event in events if event.get("type") == "response.output_text.delta")
    choices = [event["choices"][0] for event in events if event.get("choices")]
    if path == CHAT:
        return "".join(choice["delta"].get("content") or "" for choice in choices)
    return "".join(choice["text"] for choice in choices)


def _read_text(document: dict[str, Any], path: str) -> str:
    if path == RESPONSES:
        return str(document["output"][0]["content"][0]["text"])
    choice = document["choices"][0]
    return str(choice["message"]["content"] if path == CHAT else choice["text"])


def _judge_text(text: str, seen: Seen) -> Verdict:
    return _judge_numbers(*numbers_in(text, seen.ask.tale))


def _judge_numbers(numbers: Sequence[int], n_foreign: int) -> Verdict:
    """Say what is wrong with pieces that are not those that were expected."""
    if n_foreign:
        return Verdict(Outcome.LOST, "another's pieces")
    if len(set(numbers)) < len(numbers):
        return Verdict(Outcome.DUPLICATED, "pieces twice")
    is_ordered = list(numbers) == list(range(len(numbers)))
    return Verdict(Outcome.LOST, "pieces missing at the end" if is_ordered else "pieces missing or out of order")


def _judge_usage(events: Sequence[dict[str, Any]], ask: Ask) -> Verdict:
    if ask.path == RESPONSES:
        return Verdict(Outcome.COMPLETE)
    usages = [event["usage"] for event in events if event.get("usage")]
    if not ask.wants_usage:
        return Verdict(Outcome.UNEXPLAINED, "usage not asked for") if usages else Verdict(Outcome.COMPLETE)
    counts = [usage["completion_tokens"] for usage in usages]
    return Verdict(Outcome.COMPLETE) if counts else Verdict(Outcome.LOST, "usage missing")


def _name_error(events: Sequence[dict[str, Any]]) -> str:
    for event in events:
        error = event.get("error")
        if isinstance(error, dict):
            return f"event {error.get('code')}"
    return "event"
