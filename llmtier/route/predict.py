"""Predict what a tier would do for a request at its present load: profile + load -> Offer.

Reads a ``TierProfile``; writes nothing. A fitted latency model gives the prediction, raised by the upper
quantile of what it left unexplained. Beyond what it was fitted on, it is a guess: there the measured points
have a say as well, and the slower of the two counts. Shorter and emptier than that is no guess worth a
surcharge, because the formula holds down to one token on an idle engine.

Without a model, latency is interpolated between closed loops on the concurrency axis, made non-decreasing
first, because a queue never gets faster by growing. Beyond the last point the slope of the last two points
goes on, and at least proportionally, which is what a saturated closed loop does (Little's law).

A ``Predictor`` is made once a tier and asked at every request; ``predict`` makes one for a single question.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping

from llmtier.core.decision import MissReason, Offer
from llmtier.core.latency_model import LatencyModel, LoadState, Metric
from llmtier.core.profile import LoadPoint, TierProfile
from llmtier.core.timing import predict_e2el_s
from llmtier.route.formula import Formula

UPPER_LEVEL = 0.95
"""A limit is met when this share of requests in the same place would meet it."""

_MEDIAN = 0.5
_Knots = tuple[tuple[float, float | None], ...]
_Factors = tuple[float | None, float | None, float | None, float, float]
"""What a prediction is raised by: TTFT, TPOT and E2EL to the upper quantile, then TTFT and TPOT to the median."""

_Latencies = tuple[float | None, float | None, float | None, bool, float | None, float | None]
"""Upper TTFT, TPOT and E2EL, whether they are a guess, then median TTFT and TPOT before any correction."""


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


class Predictor:
    """One tier's profile made ready for asking.

    Args:
        profile: What was measured.
        level: Of the latencies, such as 0.95; the points that stand in for a model are p95 whatever it says.
    """

    __slots__ = (
        "_accuracies", "_context_tokens", "_latency", "_max_in_flight", "_mean_output", "_tier", "_unprofiled",
        "_usd_each", "_usd_per_token", "profile",
    )  # fmt: skip

    def __init__(self, profile: TierProfile, *, level: float = UPPER_LEVEL) -> None:
        model, cost = profile.latency, profile.cost
        self.profile = profile
        self._tier = profile.tier
        self._context_tokens = profile.context_tokens
        self._max_in_flight = math.inf if profile.max_in_flight is None else profile.max_in_flight
        self._unprofiled = MissReason.NO_PROFILE if not profile.points and model is None else None
        self._usd_each = None if cost is None else cost.usd_per_request
        self._usd_per_token = None if cost is None else cost.usd_per_output_token
        self._accuracies = {estimate.domain: estimate.accuracy for estimate in profile.accuracy}
        self._mean_output = _mean_output(profile)
        points = _Points(profile.closed_points)
        self._latency: _Model | _Points = points if model is None else _Model(model, points, level)

    def mean_accuracy(self, domain: str | None) -> float | None:
        """Return what ``TierProfile.accuracy_of`` holds."""
        found = self._accuracies.get(domain or "all")
        return self._accuracies.get("all") if found is None else found

    def expect_output(self, load: LoadState) -> float:
        """Return the length of answers that predictions take where the request sets none."""
        if load.mean_output_tokens is None or self.profile.latency is None:
            return self._mean_output
        return load.mean_output_tokens

    def offer(  # noqa: PLR0913, PLR0917  # what is known of one request; by position, as keywords cost a microsecond
        self,
        load: LoadState,
        accuracy: float | None,
        input_tokens: float | None = None,
        output_tokens: float | None = None,
        long_tokens: float | None = None,
        unusable: MissReason | None = None,
        is_healthy: bool = True,
        ttft_ratio: float = 1.0,
        tpot_ratio: float = 1.0,
    ) -> Offer:
        """Predict the tier's service for one more request.

        Args:
            load: What is on the tier now, that request left out.
            accuracy: P(correct | prompt, tier); ``None`` when unknown.
            input_tokens: Length of the prompt; ``None`` takes the mean of late, else the one profiled.
            output_tokens: Expected length of the answer; likewise. It also prices the request.
            long_tokens: A length that few answers exceed, for the end-to-end latency; ``None`` takes the expected one.
            unusable: Why the tier is no candidate, such as a stale digest.
            is_healthy: Whether the engine answers.
            ttft_ratio: What predictions of TTFT are multiplied by, as learned online.
            tpot_ratio: Likewise of TPOT; E2EL follows from both.
        """
        n = load.n_decoding + load.n_prefilling
        found = self._latency.ask(load, n, input_tokens, output_tokens, long_tokens, ttft_ratio, tpot_ratio)
        ttft_s, tpot_s, e2el_s, is_guess, typical_ttft_s, typical_tpot_s = found
        usd = self._usd_each
        if output_tokens is not None and self._usd_per_token is not None:
            usd = self._usd_per_token * output_tokens
        if unusable is None:
            unusable = self._unprofiled or (MissReason.SATURATED if n >= self._max_in_flight else None)
        return Offer(
            self._tier, accuracy, usd, ttft_s, tpot_s, e2el_s, n, self._context_tokens, is_healthy, unusable, is_guess,
            typical_ttft_s, typical_tpot_s,
        )  # fmt: skip


class _Model:
    """A latency model with what it left unexplained, and the points that have a say where it is a guess."""

    __slots__ = ("_box", "_edges", "_factors", "_formula", "_points")

    def __init__(self, model: LatencyModel, points: "_Points", level: float) -> None:
        box = model.domain
        self._formula = Formula(model)
        self._points = points
        self._edges, self._factors = _fold_residuals(model, level)
        self._box = (*box.input_tokens, *box.output_tokens, *box.n_in_flight)

    def ask(  # noqa: PLR0913, PLR0917
        self,
        load: LoadState,
        n: int,
        n_in: float | None,
        n_out: float | None,
        long: float | None,
        ttft_ratio: float,
        tpot_ratio: float,
    ) -> _Latencies:
        """Return the model's latencies; beyond its domain the slower of those and the points."""
        formula = self._formula
        if n_in is None:
            n_in = formula.mean_input_tokens if load.mean_input_tokens is None else load.mean_input_tokens
        if n_out is None:
            n_out = formula.mean_output_tokens if load.mean_output_tokens is None else load.mean_output_tokens
        if long is None:
            long = n_out
        ttft_s, tpot_s = formula.ttft_s(load, n_in), formula.tpot_s(load, n_in, n_out)
        up_ttft, up_tpot, up_e2el, mid_ttft, mid_tpot = self._factors[bisect_left(self._edges, n)]
        least_in, most_in, least_out, most_out, least_n, most_n = self._box
        is_beyond = n_in > most_in or n_out > most_out or n > most_n
        is_guess = is_beyond or n_in < least_in or n_out < least_out or n < least_n
        slow_s, gap_s = ttft_s * ttft_ratio, tpot_s * tpot_ratio
        whole_s = slow_s + gap_s * (long - 1.0) if long > 1.0 else slow_s
        middle = (is_guess, ttft_s * mid_ttft, tpot_s * mid_tpot)
        if up_ttft is None or up_tpot is None or up_e2el is None or (is_beyond and self._points.are_any):
            measured = self._points.measure(n, long, ttft_ratio, tpot_ratio)
            is_checked = is_beyond and self._points.are_any
            return (
                _raise(slow_s, up_ttft, measured[0], is_checked=is_checked),
                _raise(gap_s, up_tpot, measured[1], is_checked=is_checked),
                _raise(whole_s, up_e2el, measured[2], is_checked=is_checked),
                *middle,
            )
        return (slow_s * up_ttft, gap_s * up_tpot, whole_s * up_e2el, *middle)


class _Points:
    """Closed loops that may be believed, as curves over concurrency; each is at the load after the request joins."""

    __slots__ = ("_e2el", "_tpot", "_tpot_median", "_ttft", "_ttft_median", "are_any")

    def __init__(self, points: Iterable[LoadPoint]) -> None:
        known = [(float(point.concurrency), point) for point in points if point.concurrency is not None]
        self.are_any = bool(known)
        self._ttft: _Knots = tuple((x, point.ttft_p95_s) for x, point in known)
        self._tpot: _Knots = tuple((x, point.tpot_p95_s) for x, point in known)
        self._e2el: _Knots = tuple((x, point.e2el_p95_s) for x, point in known)
        self._ttft_median: _Knots = tuple((x, point.ttft_p50_s) for x, point in known)
        self._tpot_median: _Knots = tuple((x, point.tpot_p50_s) for x, point in known)

    def ask(  # noqa: PLR0913, PLR0917
        self,
        load: LoadState,  # noqa: ARG002
        n: int,
        n_in: float | None,  # noqa: ARG002
        n_out: float | None,
        long: float | None,
        ttft_ratio: float,
        tpot_ratio: float,
    ) -> _Latencies:
        """Return what lies between the measured points."""
        ttft_s, tpot_s, e2el_s = self.measure(n, n_out if long is None else long, ttft_ratio, tpot_ratio)
        typical_ttft_s, typical_tpot_s = self._medians(n)
        return ttft_s, tpot_s, e2el_s, False, typical_ttft_s, typical_tpot_s

    def measure(
        self, n: int, output_tokens: float | None, ttft_ratio: float, tpot_ratio: float
    ) -> tuple[float | None, float | None, float | None]:
        """Return p95 of TTFT, TPOT and E2EL, corrected; E2EL by the greater ratio where it is the measured one."""
        at = n + 1.0
        ttft_s = _scale(interpolate(self._ttft, at), ttft_ratio)
        tpot_s = _scale(interpolate(self._tpot, at), tpot_ratio)
        if output_tokens is None:
            return ttft_s, tpot_s, _scale(interpolate(self._e2el, at), max(ttft_ratio, tpot_ratio))
        if ttft_s is None or tpot_s is None:
            return ttft_s, tpot_s, None
        return ttft_s, tpot_s, predict_e2el_s(ttft_s=ttft_s, tpot_s=tpot_s, n_output_tokens=output_tokens)

    def _medians(self, n: int) -> tuple[float | None, float | None]:
        """Return the medians of TTFT and TPOT, uncorrected."""
        return interpolate(self._ttft_median, n + 1.0), interpolate(self._tpot_median, n + 1.0)


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
    """Predict a tier's service for one more request, as ``Predictor.offer`` does.

    Args:
        profile: What was measured.
        accuracy: As there, likewise the others.
        state: What is on the tier now; ``None`` when it is idle.
        input_tokens: Length of the prompt.
        output_tokens: Expected length of the answer.
        level: Of the latencies.
        unusable: Why the tier is no candidate.
        is_healthy: Whether the engine answers.
    """
    load = LoadState() if state is None else state
    return Predictor(profile, level=level).offer(
        load, accuracy, input_tokens, output_tokens, unusable=unusable, is_healthy=is_healthy
    )


def _fold_residuals(model: LatencyModel, level: float) -> tuple[tuple[int, ...], tuple[_Factors, ...]]:
    """Return the edges between which no residual changes, ascending, and the factors up to each and beyond the last."""
    edges = sorted({bucket.max_in_flight for bucket in model.residuals if bucket.max_in_flight is not None})
    places = [*edges, edges[-1] + 1 if edges else 0]
    return tuple(edges), tuple(_find_factors(model, n, level) for n in places)


def _find_factors(model: LatencyModel, n_in_flight: int, level: float) -> _Factors:
    uppers = [model.residual(metric, n_in_flight=n_in_flight, level=level) for metric in Metric]
    ttft, tpot, e2el = (None if residual is None else math.exp(residual) for residual in uppers)
    medians = [model.residual(metric, n_in_flight=n_in_flight, level=_MEDIAN) for metric in (Metric.TTFT, Metric.TPOT)]
    return ttft, tpot, e2el, math.exp(medians[0] or 0.0), math.exp(medians[1] or 0.0)


def _raise(predicted_s: float, factor: float | None, measured_s: float | None, *, is_checked: bool) -> float | None:
    """Return a prediction at its upper quantile; ``measured_s`` where there is no quantile to raise it by."""
    if factor is None:
        return measured_s
    upper_s = predicted_s * factor
    if not is_checked:
        return upper_s
    return None if measured_s is None else max(upper_s, measured_s)


def _mean_output(profile: TierProfile) -> float:
    """Return the length of answer behind the profile's latencies; of points the least, as each has its own."""
    if profile.latency is not None:
        return profile.latency.mean_output_tokens
    return min((x for point in profile.points if (x := point.mean_output_tokens) is not None), default=0.0)


def _scale(value_s: float | None, ratio: float) -> float | None:
    return None if value_s is None else value_s * ratio


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
    own = probabilities.get(reference)
    if own is None:
        return floor
    need = own - max_gap if own > max_gap else 0.0
    return need if floor is None or need > floor else floor
