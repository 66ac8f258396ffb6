"""Load beyond what an engine can take: a closed loop that finds its capacity, and requests at random instants with a deadline.

Latency counts from the instant at which a request was to be sent, so that a client that comes late does not flatter.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

import numpy as np

from llmtier.engine.load_client import LoadClient
from llmtier.engine.load_connection import Exchange

PATH = "/v1/chat/completions"
SHEDDING = frozenset({429, 503})
_RETRY_AFTER = re.compile(rb"^retry-after:[ \t]*(\d+)", re.IGNORECASE | re.MULTILINE)
_REASON = re.compile(rb"^x-llmtier-dropped-reason:[ \t]*([a-z-]+)", re.IGNORECASE | re.MULTILINE)
RAMP_S = 1.0
"""Of an open load, until queues are as the load makes them; longer than a deadline."""

_ROUNDING_S = 0.01  # of the client's timer
_numbers = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to ask.

    Attributes:
        url: Without path.
        model: What requests name.
        states_deadline: Whether requests tell it their deadline.
    """

    url: str
    model: str
    states_deadline: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every request asks for.

    Attributes:
        max_tokens: Length of an answer.
        deadline_s: From when it was to be sent to the answer's end.
        patience_s: When the client leaves; longer, as those are who wait for a page.
    """

    max_tokens: int
    deadline_s: float
    patience_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one request.

    Attributes:
        ended_s: When it ended, since the load began.
        took_s: From when it was to be sent to its end.
        status: ``None`` when nothing came.
        failure: Why the answer is not whole; ``None`` when it is.
        has_retry_after: Whether it says when to ask again.
        reason: Why it was shed, as llmtier says.
    """

    ended_s: float
    took_s: float
    status: int | None
    failure: str | None
    has_retry_after: bool
    reason: str | None

    @property
    def is_answered(self) -> bool:
        """Whether it is an answer."""
        return self.status == 200 and self.failure is None


def write_body(target: Target, terms: Terms) -> bytes:
    """Return a request; no two are alike."""
    stated = f'"llmtier":{{"e2el_ms":{terms.deadline_s * 1000:.0f}}},' if target.states_deadline else ""
    message = f'{{"role":"user","content":"Question {next(_numbers)}: what is one and one?"}}'
    return f'{{{stated}"model":"{target.model}","max_tokens":{terms.max_tokens},"messages":[{message}]}}'.encode()


async def load_closed(target: Target, terms: Terms, *, n_connections: int, seconds: float) -> float:
    """Keep so many requests in flight; return the answers a second."""
    begun_s = time.perf_counter()
    ends_s = begun_s + seconds
    n_answered = 0

    async def work(client: LoadClient) -> None:
        nonlocal n_answered
        while time.perf_counter() < ends_s:
            seen = await _ask(client, target, terms, time.perf_counter(), begun_s)
            n_answered += seen.is_answered

    async with LoadClient(target.url, timeout_s=terms.patience_s) as client, asyncio.TaskGroup() as tasks:
        for _ in range(n_connections):
            tasks.create_task(work(client))
    return n_answered / (time.perf_counter() - begun_s)


async def load_open(
    target: Target, terms: Terms, *, rate_rps: float, seconds: float, rng: Random
) -> tuple[list[Seen], float]:
    """Send at random instants, whatever is under way; return what came, and by how much sending was late at p99."""
    found: list[Seen] = []
    late_s: list[float] = []

    async def one(client: LoadClient, at_s: float) -> None:
        late_s.append(time.perf_counter() - at_s)
        found.append(await _ask(client, target, terms, at_s, begun_s))

    begun_s = at_s = time.perf_counter() + 0.05
    ends_s = begun_s + seconds
    async with LoadClient(target.url, timeout_s=terms.patience_s) as client, asyncio.TaskGroup() as tasks:
        while (at_s := at_s + rng.expovariate(rate_rps)) < ends_s:
            await asyncio.sleep(max(at_s - time.perf_counter(), 0.0))
            tasks.create_task(one(client, at_s))
    return found, float(np.quantile(late_s, 0.99)) if late_s else 0.0


async def _ask(client: LoadClient, target: Target, terms: Terms, at_s: float, begun_s: float) -> Seen:
    exchange = await client.send(write_body(target, terms), path=PATH, scheduled_s=at_s)
    return _read(exchange, terms, at_s=at_s, begun_s=begun_s)


def _read(exchange: Exchange, terms: Terms, *, at_s: float, begun_s: float) -> Seen:
    failure = exchange.failure
    if failure is not None and exchange.done_s - exchange.sent_s >= terms.patience_s - _ROUNDING_S:
        failure = "client left"
    head = b"".join(exchange.pieces[:2]).partition(b"\r\n\r\n")[0]
    reason = _REASON.search(head)
    return Seen(
        ended_s=exchange.done_s - begun_s,
        took_s=exchange.done_s - at_s,
        status=exchange.status,
        failure=failure,
        has_retry_after=_RETRY_AFTER.search(head) is not None,
        reason=None if reason is None else reason[1].decode(),
    )


def summarise(found: Sequence[Seen], terms: Terms, *, seconds: float) -> dict[str, Any]:
    """Return goodput and what became of the others.

    Rates are of what ended while the load was steady: from a ramp after its begin to its end, so that neither the empty
    queue of the begin nor the answers after the end count.
    """
    steady = [seen for seen in found if seen.is_answered and RAMP_S <= seen.ended_s < seconds]
    steady_s = seconds - RAMP_S
    answered_s = [seen.took_s for seen in found if seen.is_answered]
    shed = [seen for seen in found if not seen.is_answered and seen.status in SHEDDING]
    failed = [seen for seen in found if not seen.is_answered and seen.status not in SHEDDING]
    n_in_time = sum(took_s <= terms.deadline_s for took_s in answered_s)
    n_good = sum(seen.took_s <= terms.deadline_s for seen in steady)
    return {
        "offered_rps": round(len(found) / seconds, 2),
        "goodput_rps": round(n_good / steady_s, 2),
        "answered_rps": round(len(steady) / steady_s, 2),
        "in_time_share_of_answered": round(n_in_time / len(answered_s), 4) if answered_s else None,
        "answered_p50_s": quantile(answered_s, 0.5),
        "answered_p95_s": quantile(answered_s, 0.95),
        "shed": dict(Counter(str(seen.status) for seen in shed)),
        "shed_reasons": dict(Counter(seen.reason or "unnamed" for seen in shed)),
        "shed_with_retry_after": round(sum(seen.has_retry_after for seen in shed) / len(shed), 4) if shed else None,
        "shed_p95_s": quantile([seen.took_s for seen in shed], 0.95),
        "failed": dict(Counter(seen.failure or f"status {seen.status}" for seen in failed)),
    }


def quantile(values_s: Sequence[float], share: float) -> float | None:
    """Return a quantile; ``None`` of nothing."""
    return round(float(np.quantile(values_s, share)), 4) if values_s else None
