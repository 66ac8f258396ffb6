"""Measure one load point and keep it: cache reset, meters, load, summary, and the file that a resume finds.

Reads an engine behind a client, writes through ``store.measured_points``. What decides a point goes into its key; a
point found under its key is not measured again. Knows nothing of why a point is wanted.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llmtier.core.profile import LoadPoint
from llmtier.engine.load_client import LoadClient
from llmtier.engine.meter import DeviceMeter
from llmtier.engine.metrics_page import reset_prefix_cache
from llmtier.engine.metrics_watch import MetricsWatch
from llmtier.profile.conversation import Conversation
from llmtier.profile.load import LoadPlan, LoadProgress, LoadResult, run_load, run_talks
from llmtier.profile.sample import RequestSample
from llmtier.profile.shapes import ClosedLoop, LoadShape
from llmtier.profile.summarize import PointFacts, summarize
from llmtier.profile.workload import WorkItem
from llmtier.store.measured_points import MeasuredPoints, SampleRow, SavedPoint, point_key

logger = logging.getLogger(__name__)

METHOD_VERSION = 1
"""Raised when points of before can not stand beside points of now."""

METER_PERIOD_S = 1.0  # a sample holds Python's lock for a millisecond or two, which a stamp may wait for

ItemsFrom = Callable[[int], Iterator[WorkItem]]
"""Gives the requests of a workload from its ``n``-th on: no point repeats another's."""

TalksFrom = Callable[[int], Iterator[Conversation]]
"""Gives the conversations of a workload from the one that holds its ``n``-th request on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a load sends.

    Attributes:
        label: What it is, with everything that decides its requests: part of a point's key.
        items: Its requests.
        talks: Conversations in their place, where the load is a closed loop; ``None`` for single requests.
    """

    label: str
    items: ItemsFrom
    talks: TalksFrom | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSpec:
    """One load point before it is measured.

    Attributes:
        shape: When requests are sent.
        n_requests: Counted ones.
        warmup_requests: Before them.
        seed: Of the arrivals.
        offset: Requests of the workload that other points send before it.
    """

    shape: LoadShape
    n_requests: int
    warmup_requests: int
    seed: int
    offset: int = 0

    @property
    def n_sent(self) -> int:
        """Requests that it sends in all."""
        return self.n_requests + self.warmup_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPoint:
    """A load point that was measured, or found measured.

    Attributes:
        spec: What was asked for.
        key: Under which it is kept.
        samples: Every request.
        point: Their summary.
        facts: The engine's and the machine's side, as plain data.
        is_resumed: Whether it was found.
    """

    spec: PointSpec
    key: str
    samples: tuple[RequestSample, ...]
    point: LoadPoint
    facts: Mapping[str, Any]
    is_resumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """An engine under test.

    Attributes:
        client: Of the engine.
        tier: Its name.
        model_name: What the engine calls the model.
        api_key: Sent as a bearer token.
        pid: Root of the engine's processes; ``None`` behind a URL.
        gpu_indices: GPUs of the tier; empty for none.
        identity: Everything of the tier that decides a measurement: part of each point's key.
        points: Where finished points are kept; ``None`` keeps none.
        progress: Kept up to date while a load runs.
    """

    client: LoadClient
    tier: str
    model_name: str
    identity: Mapping[str, object]
    api_key: str | None = None
    pid: int | None = None
    gpu_indices: tuple[int, ...] = ()
    points: MeasuredPoints | None = None
    progress: LoadProgress = field(default_factory=LoadProgress)

    def key_of(self, spec: PointSpec, workload: Workload) -> str:
        """Return what a point is kept under."""
        document = {
            "method": METHOD_VERSION,
            "identity": dict(self.identity),
            "shape": {"kind": type(spec.shape).__name__, **asdict(spec.shape)},
            "n_requests": spec.n_requests,
            "warmup_requests": spec.warmup_requests,
            "seed": spec.seed,
            "offset": spec.offset,
            "workload": workload.label,
        }
        return point_key(document)


async def measure_point(bench: Bench, spec: PointSpec, workload: Workload) -> MeasuredPoint:
    """Return the point, from its file where it is there.

    Raises:
        EngineRequestError: The engine is down; earlier points are kept.
        DiskError: The point could not be kept.
    """
    key = bench.key_of(spec, workload)
    found = None if bench.points is None else bench.points.find(key)
    if found is not None:
        samples = tuple(
            RequestSample(row=saved.row, content_s=saved.content_s, is_warmup=saved.is_warmup)
            for saved in found.samples
        )
        return _conclude(spec, key, samples, found.facts, is_resumed=True)
    result, facts = await _measure(bench, spec, workload)
    measured = _conclude(spec, key, result.samples, facts, is_resumed=False)
    if bench.points is not None:
        rows = tuple(
            SampleRow(row=sample.row, content_s=sample.content_s, is_warmup=sample.is_warmup)
            for sample in result.samples
        )
        bench.points.save(key, SavedPoint(samples=rows, facts=facts))
    return measured


async def _measure(bench: Bench, spec: PointSpec, workload: Workload) -> tuple[LoadResult, dict[str, Any]]:
    plan = LoadPlan(
        tier=bench.tier,
        model_name=bench.model_name,
        shape=spec.shape,
        n_requests=spec.n_requests,
        warmup_requests=spec.warmup_requests,
        seed=spec.seed,
    )
    is_reset = await reset_prefix_cache(bench.client.base_url, bench.api_key)
    watch = MetricsWatch(bench.client.base_url, bench.api_key)
    meter = DeviceMeter(pid=bench.pid, gpu_indices=bench.gpu_indices, period_s=METER_PERIOD_S)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(watch)
        await stack.enter_async_context(meter)
        if workload.talks is not None and plan.concurrency is not None:
            result = await run_talks(bench.client, plan, workload.talks(spec.offset), progress=bench.progress)
        else:
            result = await run_load(bench.client, plan, workload.items(spec.offset), progress=bench.progress)
    use = meter.use
    n_tokens = sum(sample.row.n_output_tokens or 0 for sample in result.samples)
    facts: dict[str, Any] = {
        "prefix_cache_reset": is_reset,
        "suspended_s": result.suspended_s,
        "engine": None if watch.delta is None else asdict(watch.delta),
        "engine_unknown": watch.reason,
        "device": asdict(use),
        "joules_per_output_token": use.joules_per_output_token(n_tokens),
        "seed": spec.seed,
    }
    return result, facts


def _conclude(
    spec: PointSpec, key: str, samples: tuple[RequestSample, ...], facts: Mapping[str, Any], *, is_resumed: bool
) -> MeasuredPoint:
    asked = PointFacts(
        shape=spec.shape.label,
        concurrency=spec.shape.concurrency if isinstance(spec.shape, ClosedLoop) else None,
        asked_rps=spec.shape.rate_rps,
        seed=spec.seed,
        is_open=not isinstance(spec.shape, ClosedLoop),
        suspended_s=float(facts.get("suspended_s") or 0.0),
    )
    return MeasuredPoint(
        spec=spec, key=key, samples=samples, point=summarize(samples, asked), facts=facts, is_resumed=is_resumed
    )


def with_more_requests(spec: PointSpec, n_requests: int) -> PointSpec:
    """Return the point with another number of requests and a seed of its own: a repeat is a new draw."""
    return replace(spec, n_requests=n_requests, seed=spec.seed + 1)
