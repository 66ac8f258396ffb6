"""Find the highest arrival rate that still meets the SLOs, by measuring where ``search`` wants it measured.

A point meets a limit when its 95th percentile does; an invalid point, such as one whose queue grows, meets nothing. The
requests in flight at the found rate are the knee: beyond them an engine makes requests wait without serving more of them.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from llmtier.core.profile import LoadPoint
from llmtier.core.requirement import Requirement
from llmtier.profile.ledger_view import rebuild_states
from llmtier.profile.point import MeasuredPoint, PointSpec
from llmtier.profile.search import SearchPlan
from llmtier.profile.shapes import PoissonRate

logger = logging.getLogger(__name__)

_KNEE_SHARE = 0.95

MeasureSpec = Callable[[PointSpec], Awaitable[MeasuredPoint]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a search found.

    Attributes:
        rate_rps: Highest rate that was measured to meet the limits; ``None`` when none did.
        upper_rps: Lowest rate above it that did not; ``None`` when none was met.
        estimate_rps: Where the fitted worst ratio of latency to limit crosses 1, between the two.
        max_in_flight: Requests in flight at an arrival at ``rate_rps``, the 95th percentile.
        reason: Why the search ended.
        points: What was measured, in order.
    """

    rate_rps: float | None
    upper_rps: float | None
    estimate_rps: float | None
    max_in_flight: int | None
    reason: str
    points: tuple[MeasuredPoint, ...]


async def find_capacity(
    measure: MeasureSpec, slo: Requirement, *, start_rps: float, n_requests: int, warmup_requests: int, seed: int
) -> Capacity:
    """Search from ``start_rps`` on; each rate gets arrivals of its own.

    Raises:
        ValueError: ``slo`` limits no latency.
    """
    if slo.ttft_s is None and slo.tpot_s is None and slo.e2el_s is None:
        raise ValueError("a search needs a limit on TTFT, TPOT or E2EL")
    plan = SearchPlan(start_rps=start_rps)
    measured: list[MeasuredPoint] = []
    while (rate_rps := plan.next_rate()) is not None:
        spec = PointSpec(
            shape=PoissonRate(rate_rps=rate_rps),
            n_requests=n_requests,
            warmup_requests=warmup_requests,
            seed=seed + len(measured),
        )
        found = await measure(spec)
        measured.append(found)
        margin = worst_ratio(found.point, slo)
        meets = margin is not None and margin <= 1.0 and not found.point.invalid
        plan.note(rate_rps, meets=meets, margin=margin)
    result = plan.result
    return Capacity(
        rate_rps=result.low_rps,
        upper_rps=result.high_rps,
        max_in_flight=_knee(measured, result.low_rps),
        reason="unknown" if result.reason is None else result.reason.value,
        estimate_rps=result.capacity_rps,
        points=tuple(measured),
    )


def worst_ratio(point: LoadPoint, slo: Requirement) -> float | None:
    """Return the largest of 95th percentile over limit; ``None`` when one of them is unknown."""
    pairs = ((point.ttft_p95_s, slo.ttft_s), (point.tpot_p95_s, slo.tpot_s), (point.e2el_p95_s, slo.e2el_s))
    ratios = [None if value is None else value / limit for value, limit in pairs if limit is not None]
    known = [ratio for ratio in ratios if ratio is not None]
    return max(known) if known and len(known) == len(ratios) else None


def _knee(measured: Sequence[MeasuredPoint], rate_rps: float | None) -> int | None:
    at_rate = [found for found in measured if rate_rps is not None and found.spec.shape.rate_rps == rate_rps]
    if not at_rate:
        return None
    counts = sorted(state.n_in_flight + 1 for state in rebuild_states(at_rate[-1].samples))
    return counts[min(math.ceil(_KNEE_SHARE * len(counts)), len(counts)) - 1]
