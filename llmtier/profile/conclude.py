"""Turn what was measured of a tier into its profile: points, latency model, cost. Pure.

Measuring and concluding are apart, because tiers that are measured together can only be fitted when all of
them are done.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llmtier.core.errors import InputFileError
from llmtier.core.latency_model import LatencyModel, Metric
from llmtier.core.profile import TierProfile
from llmtier.profile.accuracy import estimate_accuracy
from llmtier.profile.capacity import Capacity
from llmtier.profile.cost import cost_of
from llmtier.profile.judge import MetricJudgement, judge
from llmtier.profile.latency_fit import Load, fit_latency, observe
from llmtier.profile.point import MeasuredPoint
from llmtier.profile.settings import TierFacts
from llmtier.profile.step_rows import BusyTimes, busy_times
from llmtier.store.profiles import AccuracyItem, RequestRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMeasurement:
    """Everything that was measured of a tier, before it is concluded.

    Attributes:
        reported: The points of the settings' shapes, and those of the search.
        fitted: The closed loops that the latency model is fitted on; likewise ``calibration`` and ``held_out``.
        capacity: What the search found; ``None`` when nothing was searched for.
        items: The scored answers.
        extra_busy: Time under load that is in no point, on the samples' clock.
    """

    facts: TierFacts
    reported: tuple[MeasuredPoint, ...]
    fitted: tuple[MeasuredPoint, ...]
    calibration: tuple[MeasuredPoint, ...]
    held_out: tuple[MeasuredPoint, ...]
    capacity: Capacity | None
    items: tuple[AccuracyItem, ...]
    extra_busy: tuple[tuple[float, float], ...] = ()

    @property
    def points(self) -> tuple[MeasuredPoint, ...]:
        """Every point that was measured."""
        searched = () if self.capacity is None else self.capacity.points
        return (*self.reported, *self.fitted, *self.calibration, *self.held_out, *searched)

    @property
    def busy(self) -> BusyTimes:
        """When the tier had requests in flight."""
        spans = [(sample.row.sent_s, sample.row.done_s) for point in self.points for sample in point.samples]
        return busy_times([*spans, *self.extra_busy])


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMeasurement:
    """A profile and what stands behind it.

    Attributes:
        engine_side: Facts of each of the profile's points, in their order.
        seeds: Of every point that was measured.
        judgement: Of the latency model on held-out points, by metric; empty without a model.
        no_model: Why there is no latency model; ``None`` when there is one, or none was asked for.
        busy_share: Share of the device's busy time that was this tier's; ``None`` for a tier measured alone.
    """

    profile: TierProfile
    requests: tuple[RequestRow, ...]
    items: tuple[AccuracyItem, ...]
    engine_side: tuple[Mapping[str, Any], ...] = ()
    seeds: tuple[int, ...] = ()
    judgement: Mapping[str, MetricJudgement] = field(default_factory=dict)
    no_model: str | None = None
    busy_share: float | None = None


def conclude(raw: RawMeasurement, others: Mapping[str, BusyTimes] | None = None) -> TierMeasurement:
    """Return the profile that measurements lead to.

    Args:
        raw: Of one tier.
        others: When the other tiers on its device were busy; empty for a tier measured alone.
    """
    tenants = others or {}
    model, no_model = _fit(raw, tenants)
    share = _busy_share(raw, tenants)
    points = tuple(measured.point for measured in _in_order(raw))
    price = None if raw.facts.usd_per_hour is None else raw.facts.usd_per_hour * (1.0 if share is None else share)
    profile = TierProfile(
        tier=raw.facts.tier,
        checkpoint_digest=raw.facts.checkpoint_digest,
        engine=raw.facts.engine,
        hardware_fingerprint=raw.facts.hardware_fingerprint,
        device=raw.facts.device,
        co_tenants=tuple(sorted(raw.facts.co_tenants)),
        context_tokens=raw.facts.context_tokens,
        points=points,
        accuracy=estimate_accuracy(raw.items),
        cost=cost_of(price, points),
        latency=model,
        goodput_rps=None if raw.capacity is None else raw.capacity.rate_rps,
        max_in_flight=None if raw.capacity is None else raw.capacity.max_in_flight,
    )
    return TierMeasurement(
        profile=profile,
        requests=tuple(sample.row for measured in _in_order(raw) for sample in measured.samples),
        items=raw.items,
        engine_side=tuple(dict(measured.facts) for measured in _in_order(raw)),
        seeds=tuple(sorted({measured.spec.seed for measured in raw.points})),
        judgement={} if model is None else _judge(model, raw.held_out, tenants),
        no_model=no_model,
        busy_share=share,
    )


def _in_order(raw: RawMeasurement) -> list[MeasuredPoint]:
    """Return the points that a profile holds: closed loops by concurrency, then the others, each shape once."""
    searched = () if raw.capacity is None else raw.capacity.points
    by_shape: dict[str, MeasuredPoint] = {}
    for measured in (*raw.reported, *raw.held_out, *searched):
        by_shape.setdefault(measured.point.shape, measured)
    closed = [found for found in by_shape.values() if found.point.concurrency is not None]
    others = [found for found in by_shape.values() if found.point.concurrency is None]
    return [*sorted(closed, key=lambda found: found.point.concurrency or 0), *others]


def _fit(raw: RawMeasurement, tenants: Mapping[str, BusyTimes]) -> tuple[LatencyModel | None, str | None]:
    """Return the model, or why there is none."""
    if not raw.fitted:
        return None, None
    try:
        model = fit_latency(
            [_load(measured, tenants) for measured in (*raw.fitted, *raw.reported)],
            [_load(measured, tenants) for measured in raw.calibration],
            max_batched_tokens=raw.facts.max_batched_tokens,
        )
    except InputFileError as error:
        return None, str(error)
    return model, None


def _load(measured: MeasuredPoint, tenants: Mapping[str, BusyTimes]) -> Load:
    return Load(samples=measured.samples, co_tenants=tenants)


def _judge(
    model: LatencyModel, held_out: Sequence[MeasuredPoint], tenants: Mapping[str, BusyTimes]
) -> dict[str, MetricJudgement]:
    seen = [one for measured in held_out for one in observe(_load(measured, tenants))]
    judged = {metric.value: judge(model, seen, metric) for metric in Metric}
    return {name: found for name, found in judged.items() if found is not None}


def _busy_share(raw: RawMeasurement, tenants: Mapping[str, BusyTimes]) -> float | None:
    if not tenants:
        return None
    own_s = raw.busy.total_s
    all_s = own_s + sum(times.total_s for times in tenants.values())
    return own_s / all_s if all_s > 0 and math.isfinite(all_s) else None


def judgement_document(judgement: Mapping[str, MetricJudgement]) -> dict[str, Any]:
    """Return judgements as plain data for a manifest."""
    return {name: asdict(found) for name, found in judgement.items()}
