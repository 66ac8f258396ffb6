"""Predict what a tier would do for a request at its present load: profile + load -> Offer.

Reads a ``TierProfile``; writes nothing. A fitted latency model gives the prediction, raised by the upper
quantile of what it left unexplained. Beyond what it was fitted on, it is a guess: there the measured points
have a say as well, and the slower of the two counts. Shorter and emptier than that is no guess worth a
surcharge, because the formula holds down to one token on an idle engine.

Without a model, latency is interpolated between closed loops on the concurrency axis, made non-decreasing
first, because a queue never gets faster by growing. Beyond the last point the slope of the last two points
goes on, and at least proportionally, which is what a saturated closed loop does (Little's law).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmtier.core.decision import MissReason, Offer
from llmtier.core.latency_model import DomainBox, LatencyModel, LoadState, Metric
from llmtier.core.profile import LoadPoint, TierProfile
from llmtier.core.timing import predict_e2el_s

UPPER_LEVEL = 0.95
"""A limit is met when this share of requests in the same place would meet it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Latency:
    ttft_s: float | None
    tpot_s: float | None
    e2el_s: float | None
    is_extrapolated: bool = False

    def as_tuple(self) -> tuple[float | None, float | None, float | None]:
        return (self.ttft_s, self.tpot_s, self.e2el_s)


_METRICS = (Metric.TTFT, Metric.TPOT, Metric.E2EL)
_NOTHING = _Latency(ttft_s=None, tpot_s=None, e2el_s=None)


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


def predict(  # noqa: PLR0913  # what is known of one request and one tier
    profile: TierProfile,
    *,
    accuracy: float | None,
    state: LoadState | None = None,
    input_tokens: float | None = None,
    output_tokens: float | None = None,
    level: float = UPPER_LEVEL,
    unusable: MissReason | None = None,
    is_healthy: bool = True,
) -> Offer:
    """Predict a tier's service for one more request at its present load.

    Args:
        profile: What was measured.
        accuracy: P(correct | prompt, tier); ``None`` when unknown.
        state: What is on the tier now, this request left out; ``None`` when it is idle.
        input_tokens: Length of the prompt; ``None`` takes the mean of late, else the one profiled.
        output_tokens: Expected length of the answer; likewise. It also prices the request.
        level: Of the latencies, such as 0.95; the points that stand in for a model are p95 whatever it says.
        unusable: Why the profile cannot be believed, such as a stale digest.
        is_healthy: Whether the engine answers.
    """
    load = LoadState() if state is None else state
    if profile.latency is None:
        latency = _interpolate_points(profile.closed_points, load, output_tokens)
    else:
        model = profile.latency
        n_in = _first_known(input_tokens, load.mean_input_tokens, model.mean_input_tokens)
        n_out = _first_known(output_tokens, load.mean_output_tokens, model.mean_output_tokens)
        latency = _ask_model(profile, model, load, n_in=n_in, n_out=n_out, level=level)
    return Offer(
        tier=profile.tier,
        accuracy=accuracy,
        usd=request_usd(profile, output_tokens),
        ttft_s=latency.ttft_s,
        tpot_s=latency.tpot_s,
        e2el_s=latency.e2el_s,
        n_in_flight=load.n_in_flight,
        context_tokens=profile.context_tokens,
        is_healthy=is_healthy,
        unusable=_find_obstacle(profile, load) if unusable is None else unusable,
        is_extrapolated=latency.is_extrapolated,
    )


def _find_obstacle(profile: TierProfile, load: LoadState) -> MissReason | None:
    if not profile.points and profile.latency is None:
        return MissReason.NO_PROFILE
    is_full = profile.max_in_flight is not None and load.n_in_flight >= profile.max_in_flight
    return MissReason.SATURATED if is_full else None


def _interpolate_points(points: Iterable[LoadPoint], load: LoadState, output_tokens: float | None) -> _Latency:
    """Return p95 latencies between the measured points, at the load after this request joins."""
    known = [(float(point.concurrency), point) for point in points if point.concurrency is not None]
    at = load.n_in_flight + 1.0
    ttft_s = interpolate([(x, point.ttft_p95_s) for x, point in known], at)
    tpot_s = interpolate([(x, point.tpot_p95_s) for x, point in known], at)
    if output_tokens is None:
        e2el_s = interpolate([(x, point.e2el_p95_s) for x, point in known], at)
    elif ttft_s is None or tpot_s is None:
        e2el_s = None
    else:
        e2el_s = predict_e2el_s(ttft_s=ttft_s, tpot_s=tpot_s, n_output_tokens=output_tokens)
    return _Latency(ttft_s=ttft_s, tpot_s=tpot_s, e2el_s=e2el_s)


def _ask_model(
    profile: TierProfile, model: LatencyModel, load: LoadState, *, n_in: float, n_out: float, level: float
) -> _Latency:
    """Return the model's latencies at ``level``; beyond its domain the slower of those and the points."""
    n_load = load.n_in_flight
    ttft_s = model.ttft_s(load, input_tokens=n_in)
    tpot_s = model.tpot_s(load, input_tokens=n_in, output_tokens=n_out)
    e2el_s = predict_e2el_s(ttft_s=ttft_s, tpot_s=tpot_s, n_output_tokens=n_out)
    residuals = [model.residual(metric, n_in_flight=n_load, level=level) for metric in _METRICS]
    is_beyond = _is_beyond(model.domain, n_in=n_in, n_out=n_out, n_load=n_load)
    needs_points = is_beyond or None in residuals
    measured = _interpolate_points(profile.closed_points, load, n_out) if needs_points else _NOTHING
    is_checked = is_beyond and bool(profile.closed_points)
    predicted = (ttft_s, tpot_s, e2el_s)
    uppers = [
        _raise(predicted_s, residual, measured_s, is_checked=is_checked)
        for predicted_s, residual, measured_s in zip(predicted, residuals, measured.as_tuple(), strict=True)
    ]
    is_inside = model.domain.holds(input_tokens=n_in, output_tokens=n_out, n_in_flight=n_load)
    return _Latency(ttft_s=uppers[0], tpot_s=uppers[1], e2el_s=uppers[2], is_extrapolated=not is_inside)


def _raise(predicted_s: float, residual: float | None, measured_s: float | None, *, is_checked: bool) -> float | None:
    """Return a prediction at its upper quantile; ``measured_s`` where there is no quantile to raise it by."""
    if residual is None:
        return measured_s
    upper_s = predicted_s * math.exp(residual)
    if not is_checked:
        return upper_s
    return None if measured_s is None else max(upper_s, measured_s)


def _is_beyond(domain: DomainBox, *, n_in: float, n_out: float, n_load: int) -> bool:
    return n_in > domain.input_tokens[1] or n_out > domain.output_tokens[1] or n_load > domain.n_in_flight[1]


def _first_known(*values: float | None) -> float:
    return next(value for value in values if value is not None)


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
