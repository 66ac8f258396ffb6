"""What stands between a decision and a tier: the queue for its slots, its breaker, and the budget of second tries.

One per process. Holds the rules of who may go where after a failure; sends nothing.
"""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

from llmtier.core.decision import Decision
from llmtier.core.requirement import Requirement
from llmtier.serve.admission import Admission, Place
from llmtier.serve.admission_plan import (
    AdmissionHooks,
    AdmissionSettings,
    Fleet,
    TierLimit,
    find_deadline,
    limit_of,
)
from llmtier.serve.breaker import BreakerState, Failure, classify_status
from llmtier.serve.choose import find_next_tier
from llmtier.serve.metrics import BREAKER, DEMAND, QUEUE
from llmtier.serve.pool import TierPool
from llmtier.serve.record import Record
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.relay import UpstreamError, UpstreamFault
from llmtier.serve.retry import RetryBudget, parse_retry_after
from llmtier.serve.shed import Shed
from llmtier.serve.state import AppState

_FAILURES = {
    UpstreamFault.CONNECT: Failure.CONNECT,
    UpstreamFault.TIMEOUT: Failure.TIMEOUT,
    UpstreamFault.BROKEN: Failure.BROKEN,
    UpstreamFault.ANSWER: Failure.ANSWER,
}

_OPENNESS = {BreakerState.CLOSED: 0.0, BreakerState.HALF_OPEN: 1.0, BreakerState.OPEN: 2.0}


class Guard:
    """The guard of one gateway process.

    Args:
        pool: The tiers.
        limits: Of each tier.
        settings: The bounds of waiting.
        clock: Monotonic seconds.
        now: For dates in Retry-After.
        hooks: Who is told of waiting and shedding.
    """

    def __init__(
        self,
        pool: TierPool,
        limits: Mapping[str, TierLimit],
        settings: AdmissionSettings,
        *,
        clock: Callable[[], float],
        now: Callable[[], datetime],
        hooks: AdmissionHooks,
    ) -> None:
        self._pool = pool
        self._now = now
        board, worker = pool.board, pool.worker
        fleet = Fleet(
            worker=worker,
            n_workers=board.shape.n_workers,
            others=lambda tier: sum((board.others(worker, tier) or (0.0, 0.0))[:2]),
        )
        self._limits = {name: limit.max_in_flight for name, limit in limits.items()}
        self.admission = Admission(limits, settings, clock=clock, fleet=fleet, hooks=hooks)
        self.budget = RetryBudget()

    def limit_of(self, tier: str) -> int | None:
        """Return how many a tier takes at once; ``None`` without a limit."""
        return self._limits[tier]

    def enter(self, tier: str, record: Record, limits: Requirement) -> Place | Shed:
        """Ask for a slot of a tier; a place may have to wait for its turn."""
        slo_class = None if record.needs is None else record.needs.slo_class
        deadline = None
        if limits.ttft_s is not None or limits.e2el_s is not None:
            deadline = find_deadline(limits, record.offer, received_s=record.received_s)
        return self.admission.enter(
            tier,
            priority=self.admission.settings.priority_of(slo_class),
            key=record.key_sha256,
            deadline_s=None if deadline is None else deadline.at_s,
            predicted_s=None if deadline is None else deadline.predicted_s,
        )

    def pick(self, decision: Decision, tier: str, tried: list[str], *, is_named: bool) -> str:
        """Return where a request goes: the chosen tier, or another while that one's breaker is open.

        With nobody else left it goes there all the same, unless the client named the tier itself.

        Args:
            decision: Who was offered.
            tier: The chosen one.
            tried: Those that were asked or passed over; passed-over ones are added.
            is_named: Whether the client named the tier.

        Raises:
            RequestRefusedError: 503; the tier was named, and its breaker is open.
        """
        first = tier
        while not self._pool.may_try(tier):
            tried.append(tier)
            following = find_next_tier(decision, tried=tried)
            if following is not None:
                tier = following
                continue
            if not is_named:
                return first
            wait_s = max(math.ceil(self._pool.shut_for_s(tier)), 1)
            message = f"tier {tier} has failed too often of late; ask again in {wait_s} s, or for another model"
            raise RequestRefusedError(message, status=503, code="tier_unavailable", retry_after_s=wait_s)
        return tier

    def judge_failure(self, tier: str, failure: UpstreamError) -> float | None:
        """Tell the tier's breaker of a failure before the first byte; return the Retry-After that the engine gave."""
        wait_s = parse_retry_after(failure.retry_after, self._now()) if failure.retry_after else None
        kind = _FAILURES.get(failure.fault) or classify_status(failure.status or 500)
        if kind is None:
            self._pool.note_dismissed(tier, sent_s=failure.sent_s)
        else:
            self._pool.note_failure(tier, kind, sent_s=failure.sent_s, retry_after_s=wait_s)
        return wait_s


def refuse_failed(failure: UpstreamError, *, wait_s: float | None) -> RequestRefusedError:
    """Return what the client is told when no engine answered: 504 for a late one, 429 for a busy one, else 502."""
    status, code = 502, "upstream_error"
    if failure.fault is UpstreamFault.TIMEOUT:
        status, code = 504, "upstream_timeout"
    elif failure.status == 429:
        status, code = 429, "upstream_busy"
    elif failure.status == 503 and wait_s is not None:
        status = 503
    retry_after_s = None if wait_s is None else math.ceil(wait_s)
    return RequestRefusedError(str(failure), status=status, code=code, retry_after_s=retry_after_s)


def make_guard(state: AppState) -> Guard:
    """Return the guard of a gateway, its waiting and shedding counted."""
    metrics, pool = state.metrics, state.pool
    limits = {name: limit_of(tier.profile, configured=tier.max_in_flight) for name, tier in pool.tiers.items()}
    hooks = AdmissionHooks(on_shed=lambda tier, _, reason: metrics.count_shed(tier, reason.value))
    guard = Guard(pool, limits, state.admission, clock=state.clock, now=state.now, hooks=hooks)
    for name in pool.tiers:
        metrics.set_gauge(QUEUE, partial(guard.admission.n_waiting, name), name)
        metrics.set_gauge(DEMAND, partial(_find_demand, guard, pool, name), name)
        metrics.set_gauge(BREAKER, partial(_find_openness, pool, name), name)
    return guard


def _find_demand(guard: Guard, pool: TierPool, name: str) -> float:
    """Return what the tier is asked for: what is there and what waits."""
    return pool.n_in_flight(name) + guard.admission.n_waiting(name)


def _find_openness(pool: TierPool, name: str) -> float:
    return _OPENNESS[pool.breaker_state(name)]
