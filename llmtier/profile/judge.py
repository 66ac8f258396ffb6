"""Judge a latency model on loads that it has not seen: errors, coverage, and decisions about SLOs. Pure.

What a router needs is not a small error but a right answer to "will this meet the limit?": precision is the
share of right answers among the yeses, recall the share of the requests that met it among which it said yes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmtier.core.latency_model import LatencyModel, Metric
from llmtier.profile.latency_fit import Observation
from llmtier.stats.quantiles import quantile

GRID = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""Quantiles of the observed latencies that serve as SLOs."""

_TAIL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class SloJudgement:
    """How well "meets ``slo_s``" was told, by the median prediction and by the upper one.

    Attributes:
        level: Quantile of the observed latencies that ``slo_s`` is.
        precision: Of the median prediction; ``None`` when it never said yes; likewise ``upper_precision``.
        recall: ``None`` when no request met the limit; likewise ``upper_recall``.
    """

    level: float
    slo_s: float
    precision: float | None
    recall: float | None
    upper_precision: float | None
    upper_recall: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricJudgement:
    """One metric on the held-out requests.

    Attributes:
        mape: Mean of abs(predicted - observed) / observed of the median prediction.
        bias: Mean of (predicted - observed) / observed.
        p95_error_s: 95th percentile of the absolute error.
        coverage: Share of requests at or below their predicted 95 % quantile; ``None`` without residuals.
        slos: One judgement per level of ``GRID``.
    """

    n: int
    mape: float
    bias: float
    p95_error_s: float
    coverage: float | None
    slos: tuple[SloJudgement, ...]

    def at(self, level: float) -> SloJudgement:
        """Return the judgement of one level of ``GRID``."""
        return next(slo for slo in self.slos if slo.level == level)


def predict_quantile(model: LatencyModel, seen: Observation, metric: Metric, level: float) -> float:
    """Return the prediction with its residual quantile; without residuals the bare prediction."""
    residual = model.residual(metric, n_in_flight=seen.state.n_in_flight, level=level)
    return seen.predicted(model, metric) * math.exp(residual or 0.0)


def judge(model: LatencyModel, observations: Sequence[Observation], metric: Metric) -> MetricJudgement | None:
    """Judge one metric; ``None`` when no request has it."""
    known = [(seen, value) for seen in observations if (value := seen.observed(metric)) is not None and value > 0]
    if not known:
        return None
    observed = [value for _, value in known]
    medians = [predict_quantile(model, seen, metric, 0.5) for seen, _ in known]
    uppers = [predict_quantile(model, seen, metric, _TAIL) for seen, _ in known]
    errors = [(guess - value) / value for guess, value in zip(medians, observed, strict=True)]
    has_residuals = any(bucket.metric is metric for bucket in model.residuals)
    return MetricJudgement(
        n=len(known),
        mape=sum(map(abs, errors)) / len(errors),
        bias=sum(errors) / len(errors),
        p95_error_s=_require(quantile([abs(g - v) for g, v in zip(medians, observed, strict=True)], 0.95)),
        coverage=_share([v <= u for v, u in zip(observed, uppers, strict=True)]) if has_residuals else None,
        slos=tuple(_judge_slo(level, observed, medians, uppers) for level in GRID),
    )


def _judge_slo(
    level: float, observed: Sequence[float], medians: Sequence[float], uppers: Sequence[float]
) -> SloJudgement:
    slo_s = _require(quantile(observed, level))
    truth = [value <= slo_s for value in observed]
    precision, recall = _precision_recall(truth, [value <= slo_s for value in medians])
    upper_precision, upper_recall = _precision_recall(truth, [value <= slo_s for value in uppers])
    return SloJudgement(
        level=level,
        slo_s=slo_s,
        precision=precision,
        recall=recall,
        upper_precision=upper_precision,
        upper_recall=upper_recall,
    )


def _precision_recall(truth: Sequence[bool], told: Sequence[bool]) -> tuple[float | None, float | None]:
    right = [is_true for is_true, is_told in zip(truth, told, strict=True) if is_told]
    found = [is_told for is_true, is_told in zip(truth, told, strict=True) if is_true]
    return _share(right) if right else None, _share(found) if found else None


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _require(value: float | None) -> float:
    if value is None:
        raise ValueError("a quantile of no latencies was asked for")
    return value
