"""What stands between a decision and a tier: the queue for its slots, its breaker, and the budget of second tries.

One per process. Holds the rules of who may go where after a failure; sends nothing.
"""

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

from llmtier.core.requirement import Requirement
from llmtier.serve.admission import Admission, Place
from llmtier.serve.admission_plan import (
    AdmissionHooks,
    AdmissionSettings,
    Fleet,
    TierLimit,
    find_deadline,
    limit_of,
    scale_limit,
)
from llmtier.serve.breaker import BreakerState, Failure, classify_status
from llmtier.serve.choose import find_next_tier
from llmtier.serve.metrics import BREAKER, DEMAND, ENGINE_BREAKER, QUEUE
from llmtier.serve.planner import Plan
from llmtier.serve.pool import TierPool
from llmtier.serve.record import Record
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.relay import UpstreamError, UpstreamFault
from llmtier.serve.retry import RetryBudget, parse_retry_after
from llmtier.serve.shed import Shed
from llmtier.serve.state import AppState
from llmtier.serve.trail import Trail

_FAILURES = {
    UpstreamFault.CONNECT: Failure.CONNECT,
    UpstreamFault.TIMEOUT: Failure.TIMEOUT,
    UpstreamFault.BROKEN: Failure.BROKEN,
    UpstreamFault.ANSWER: Failure.ANSWER,
}

_OPENNESS = {BreakerState.CLOSED: 0.0, BreakerState.HALF_OPEN: 1.0, BreakerState.OPEN: 2.0}


class Guard:
    """The guard of one gateway process.

    A profile's limit is that of one engine. A tier with several has one queue and one limit, as many times that as
    engines answer and are not left alone: looked at each second, and balance between them is the pool's business.

    Args:
        pool: The tiers.
        limits: Of one engine of each tier.
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
        fleet = Fleet(
            worker=pool.worker,
            n_workers=pool.board.shape.n_workers,
            others=pool.n_elsewhere,
        )
        self._each = dict(limits)
        self._limits = {name: limit for name, limit in limits.items() if pool.tiers[name].more_urls}
        self._n_fit = {name: max(pool.n_fit(name), 1) for name in self._limits}
        scaled = {name: scale_limit(limit, self._n_fit.get(name, 1)) for name, limit in limits.items()}
        self.admission = Admission(scaled, settings, clock=clock, fleet=fleet, hooks=hooks)
        self.budget = RetryBudget()

    def tick(self) -> None:
        """Fit limits to the engines that take requests now, and hand out what only time brings; once a second."""
        changed = {}
        for name, limit in self._limits.items():
            n_fit = max(self._pool.n_fit(name), 1)
            if n_fit != self._n_fit[name]:
                self._n_fit[name] = n_fit
                changed[name] = scale_limit(limit, n_fit)
        self.admission.update(changed)

    def limit_of(self, tier: str) -> int | None:
        """Return how many a tier takes at once, by all its engines; ``None`` without a limit."""
        return scale_limit(self._each[tier], self._n_fit.get(tier, 1)).max_in_flight

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

    def pick(self, plan: Plan, tier: str, trail: Trail) -> None:
        """Note in ``trail`` where a request goes: the chosen tier, or another while no breaker of that one lets it pass.

        With nobody else left it goes there all the same, unless the client named the tier itself.

        Args:
            plan: Who was offered, and whether the client named the tier.
            tier: The chosen one.
            trail: Of the request; tiers that are passed over are added.

        Raises:
            RequestRefusedError: 503; the tier was named, and its breaker is open.
        """
        first = tier
        while (site := self._pool.pick_site(tier, plan.affinity)) is None:
            trail.tiers.append(tier)
            following = find_next_tier(plan.decision, tried=trail.tiers)
            if following is not None:
                tier = following
                continue
            if not plan.is_named:
                tier, site = first, self._pool.any_site(first)
                break
            wait_s = max(math.ceil(self._find_pause(tier)), 1)
            message = f"tier {tier} has failed too often of late; ask again in {wait_s} s, or for another model"
            raise RequestRefusedError(message, status=503, code="tier_unavailable", retry_after_s=wait_s)
        trail.enter(tier, site)

    def pick_again(self, plan: Plan, trail: Trail, *, since_s: float) -> None:
        """Look once more for the best engine of the present tier, after a wait that began at ``since_s``."""
        if self._pool.sites[trail.site].replica is not None:
            self._pool.note_dismissed(trail.site, sent_s=since_s)
            trail.site = trail.sites[-1] = self._pool.pick_site(trail.tier, plan.affinity) or trail.site

    def pick_replica(self, plan: Plan, trail: Trail) -> bool:
        """Return whether another engine of the tier is to be asked after one failed, and note it in ``trail``.

        Once a request, and within the budget of second tries.
        """
        if trail.has_switched:
            return False
        site = self._pool.pick_site(trail.tier, plan.affinity, tried=trail.sites)
        if site is None:
            return False
        if not self.budget.take():
            self._pool.note_dismissed(site, sent_s=math.inf)
            return False
        trail.has_switched = True
        trail.switch(site)
        return True

    def _find_pause(self, tier: str) -> float:
        return min(self._pool.shut_for_s(site.name) for site in self._pool.tiers[tier].sites)

    def judge_failure(self, site: str, failure: UpstreamError) -> float | None:
        """Tell the site's breaker of a failure before the first byte; return the Retry-After that the engine gave."""
        wait_s = parse_retry_after(failure.retry_after, self._now()) if failure.retry_after else None
        kind = _FAILURES.get(failure.fault) or classify_status(failure.status or 500)
        if kind is None:
            self._pool.note_dismissed(site, sent_s=failure.sent_s)
        else:
            self._pool.note_failure(site, kind, sent_s=failure.sent_s, retry_after_s=wait_s)
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
    for site in pool.sites.values():
        if site.replica is not None:
            metrics.set_gauge(ENGINE_BREAKER, partial(_read_breaker, pool, site.name), site.tier, str(site.replica))
    return guard


def _find_demand(guard: Guard, pool: TierPool, name: str) -> float:
    """Return what the tier is asked for: what is there and what waits."""
    return pool.n_in_flight(name) + guard.admission.n_waiting(name)


def _find_openness(pool: TierPool, name: str) -> float:
    """Return the state of the breaker of the tier that lets most pass."""
    return min(_read_breaker(pool, site.name) for site in pool.tiers[name].sites)


def _read_breaker(pool: TierPool, site: str) -> float:
    return _OPENNESS[pool.breaker_state(site)]
