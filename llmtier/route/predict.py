"""Predict what a tier would do for a request at its present load: profile + load -> Offer.

Reads a ``TierProfile``; writes nothing. Latency is interpolated between measured load points
on the concurrency axis, made non-decreasing first, because a queue never gets faster by
growing. Beyond the last point the slope of the last two points goes on, and at least
proportionally, which is what a saturated closed loop does (Little's law).
"""

from collections.abc import Iterable, Mapping

from llmtier.core.decision import MissReason, Offer
from llmtier.core.profile import TierProfile
from llmtier.core.timing import predict_e2el_s


def interpolate(knots: Iterable[tuple[float, float | None]], at: float) -> float | None:
    """Return the value at ``at`` of the non-decreasing curve through ``knots`` (x ascending).

    A knot without a value means that point was measured and failed; it makes everything
    at or beyond it unknown. Below the first knot its value holds. ``None`` when unknown.
    """
    previous: tuple[float, float] | None = None
    slope = 0.0
    for x, raw in knots:
        if raw is None:
            return previous[1] if previous is not None and at <= previous[0] else None
        y = raw if previous is None else max(raw, previous[1])
        if at <= x:
            if previous is None:
                return y
            x0, y0 = previous
            return y0 + (y - y0) * (at - x0) / (x - x0)
        slope = y / x if previous is None else max((y - previous[1]) / (x - previous[0]), y / x)
        previous = (x, y)
    return None if previous is None else previous[1] + slope * (at - previous[0])


def predict(
    profile: TierProfile,
    *,
    accuracy: float | None,
    n_in_flight: int = 0,
    output_tokens: float | None = None,
    unusable: MissReason | None = None,
    is_healthy: bool = True,
) -> Offer:
    """Predict a tier's service for one more request while ``n_in_flight`` are being served.

    Args:
        profile: What was measured.
        accuracy: P(correct | prompt, tier); ``None`` when unknown.
        n_in_flight: Requests now on the tier.
        output_tokens: Expected length of the answer; ``None`` takes the lengths that were profiled.
        unusable: Why the profile cannot be believed, such as a stale digest.
        is_healthy: Whether the engine answers.
    """
    at = float(n_in_flight + 1)
    points = profile.points
    ttft_s = interpolate([(point.concurrency, point.ttft_p95_s) for point in points], at)
    tpot_s = interpolate([(point.concurrency, point.tpot_p95_s) for point in points], at)
    if output_tokens is None:
        e2el_s = interpolate([(point.concurrency, point.e2el_p95_s) for point in points], at)
    elif ttft_s is None or tpot_s is None:
        e2el_s = None
    else:
        e2el_s = predict_e2el_s(ttft_s=ttft_s, tpot_s=tpot_s, n_output_tokens=output_tokens)
    return Offer(
        tier=profile.tier,
        accuracy=accuracy,
        usd=request_usd(profile, output_tokens),
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2el_s=e2el_s,
        n_in_flight=n_in_flight,
        context_tokens=profile.context_tokens,
        is_healthy=is_healthy,
        unusable=unusable if unusable is not None or points else MissReason.NO_PROFILE,
    )


def request_usd(profile: TierProfile, output_tokens: float | None = None) -> float | None:
    """Return the cost of a request: by its output tokens where known, else the profile's mean."""
    if profile.cost is None:
        return None
    if output_tokens is None or profile.cost.usd_per_output_token is None:
        return profile.cost.usd_per_request
    return profile.cost.usd_per_output_token * output_tokens


def accuracy_need(
    probabilities: Mapping[str, float], *, reference: str, max_gap: float, floor: float | None = None
) -> float | None:
    """Return the lowest P(correct) a tier needs for this prompt.

    It is the reference tier's own probability less the policy's gap, or the request's floor
    when that is higher. ``None`` when neither is known.
    """
    needs = [] if floor is None else [floor]
    if reference in probabilities:
        needs.append(max(probabilities[reference] - max_gap, 0.0))
    return max(needs, default=None)
