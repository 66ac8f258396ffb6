"""Measure one tier: its load points, what its latency model needs, the rate that meets the SLOs, its accuracy.

Reads an engine behind clients and a source of requests; ``conclude`` makes a profile of what comes back. Starts no
engine and writes only through ``point``, which keeps each finished point.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from llmtier.core.errors import EngineRequestError, InputFileError
from llmtier.core.prompt import Outcome, Prompt
from llmtier.evaluate.answers import check_reference
from llmtier.evaluate.ask import ChatClient, ask_all
from llmtier.profile.accuracy import ALL_DOMAINS, to_items
from llmtier.profile.capacity import Capacity, find_capacity
from llmtier.profile.conclude import RawMeasurement
from llmtier.profile.conversation import SyntheticTalks
from llmtier.profile.design import choose_regimes, fit_specs, poisson_specs
from llmtier.profile.events import AccuracyProgress, OnEvent, PointDone, PointStarted, ProfileEvent
from llmtier.profile.lengths import SyntheticLengths
from llmtier.profile.point import Bench, MeasuredPoint, PointSpec, Workload, measure_point, with_more_requests
from llmtier.profile.precision import requests_for
from llmtier.profile.probe import EngineManners, probe_engine
from llmtier.profile.settings import Evaluation, ProfileSettings, TierFacts
from llmtier.profile.shapes import LoadShape, Trace
from llmtier.profile.synthetic import SharedPrefix, SyntheticSource, TraceSource
from llmtier.profile.workload import PromptSource
from llmtier.store.arrivals import Arrival
from llmtier.store.profiles import AccuracyItem

logger = logging.getLogger(__name__)

_MAX_REPEATS = 3
_Item = TypeVar("_Item")


async def measure_tier(
    bench: Bench,
    client: ChatClient,
    facts: TierFacts,
    evaluation: Evaluation,
    settings: ProfileSettings,
    *,
    on_event: OnEvent | None = None,
) -> RawMeasurement:
    """Measure a tier; finished points are kept on the way and found again.

    Args:
        bench: The engine under load.
        client: The same engine, for answers that are scored.
        facts: Carried into the profile.
        evaluation: What is sent, and scored.
        settings: How much.
        on_event: Told of the progress.

    Raises:
        InputFileError: ``evaluation`` is empty or holds a reference answer that cannot be read.
        EngineRequestError: The engine is down, or answered nothing at any load point.
    """
    check_evaluation(evaluation.prompts)
    manners = None
    if settings.needs_manners:
        manners = await probe_engine(bench.client, bench.model_name, seed=settings.seed)
    run = _TierRun(bench, facts, evaluation, settings, manners, on_event or _ignore)
    reported = await run.measure_shapes()
    fitted, calibration, held_out = (
        await run.measure_for_model(reported) if settings.has_latency_model else ((), (), ())
    )
    capacity = await run.search(reported) if settings.slo is not None else None
    items = await _measure_accuracy(client, facts.tier, evaluation.prompts, settings, run.tell)
    return RawMeasurement(
        facts=facts,
        reported=reported,
        fitted=fitted,
        calibration=calibration,
        held_out=held_out,
        capacity=capacity,
        items=tuple(items),
    )


def check_evaluation(evaluation: Sequence[Prompt], *, path: Path | None = None) -> None:
    """Refuse an evaluation set that cannot be profiled with; ``path`` goes into the message.

    Raises:
        InputFileError: It is empty, a reference answer cannot be read, or a domain is named ``all``.
    """
    if not evaluation:
        raise InputFileError("the evaluation set is empty; a profile needs at least one prompt", path=path)
    for prompt in evaluation:
        check_reference(prompt, path=path)
        if prompt.domain == ALL_DOMAINS:
            raise InputFileError(
                f"prompt {prompt.id}: the domain 'all' means every prompt; name it otherwise", path=path
            )
    if all(prompt.answer is None for prompt in evaluation):
        logger.warning("no prompt of the evaluation set has an answer: the profile will hold no accuracy")


class _TierRun:
    """Goes through the points of one tier."""

    def __init__(
        self,
        bench: Bench,
        facts: TierFacts,
        evaluation: Evaluation,
        settings: ProfileSettings,
        manners: EngineManners | None,
        tell: OnEvent,
    ) -> None:
        self.tell = tell
        self._bench = bench
        self._facts = facts
        self._evaluation = evaluation
        self._settings = settings
        self._manners = manners
        self._offsets: dict[str, int] = {}
        self._n_left = 0

    async def measure_shapes(self) -> tuple[MeasuredPoint, ...]:
        """Measure every shape that is to be reported."""
        settings = self._settings
        self._n_left = len(settings.shapes)
        measured = []
        for shape in settings.shapes:
            spec = PointSpec(
                shape=shape,
                n_requests=self._n_requests(shape),
                warmup_requests=0 if isinstance(shape, Trace) else settings.warmup_requests,
                seed=settings.seed,
            )
            workload = self._trace() if isinstance(shape, Trace) and settings.arrivals else self._traffic()
            measured.append(await self._measure_precisely(spec, workload))
        if not any(found.point.n_ok for found in measured):
            last = measured[-1].samples[-1].row.status
            raise EngineRequestError(f"tier {self._facts.tier}: every request failed, the last with: {last}")
        return tuple(measured)

    async def measure_for_model(
        self, reported: Sequence[MeasuredPoint]
    ) -> tuple[tuple[MeasuredPoint, ...], tuple[MeasuredPoint, ...], tuple[MeasuredPoint, ...]]:
        """Measure what the latency model is fitted, calibrated and judged on."""
        settings = self._settings
        regimes = choose_regimes(
            max_input_tokens=settings.max_input_tokens,
            max_output_tokens=max(2 * settings.max_tokens, 32),
            context_tokens=self._facts.context_tokens,
        )
        loops = fit_specs(settings.concurrency, n_requests=settings.requests_per_point, seed=settings.seed)
        rates = self._rates(reported)
        self._n_left = 2 * len(loops) + 2 * len(rates)
        fitted = [
            await self._measure(spec, self._synthetic(lengths), "fit")
            for lengths in (regimes.short, regimes.long)
            for spec in loops
        ]
        calibration = [await self._measure(spec, self._traffic(), "calibration") for spec in rates]
        unseen = [replace(spec, seed=spec.seed + 1000) for spec in rates]
        held_out = [await self._measure(spec, self._traffic(), "held out") for spec in unseen]
        return tuple(fitted), tuple(calibration), tuple(held_out)

    async def search(self, reported: Sequence[MeasuredPoint]) -> Capacity:
        """Search the highest rate that meets the SLOs."""
        slo = self._settings.slo
        if slo is None:
            raise ValueError("a search needs limits")

        async def measure(spec: PointSpec) -> MeasuredPoint:
            return await self._measure(spec, self._traffic(), "search")

        return await find_capacity(
            measure,
            slo,
            start_rps=_throughput(reported) / 2,
            n_requests=self._settings.requests_per_point,
            warmup_requests=self._settings.warmup_requests,
            seed=self._settings.seed + 2000,
        )

    def _rates(self, reported: Sequence[MeasuredPoint]) -> list[PointSpec]:
        capacity_rps = _throughput(reported)
        if capacity_rps <= 0:
            return []
        return poisson_specs(
            capacity_rps,
            n_requests=self._settings.requests_per_point,
            warmup_requests=self._settings.warmup_requests,
            seed=self._settings.seed + 100,
        )

    async def _measure_precisely(self, spec: PointSpec, workload: Workload) -> MeasuredPoint:
        """Repeat a point with more requests until its mean is known well enough, or the budget ends."""
        measured = await self._measure(spec, workload, "report")
        precision = self._settings.precision
        if precision is None or isinstance(spec.shape, Trace):
            return measured
        for _ in range(_MAX_REPEATS):
            wanted = requests_for(measured.samples, precision=precision, budget_s=self._settings.budget_s)
            if wanted is None:
                break
            self._n_left += 1
            measured = await self._measure(with_more_requests(measured.spec, wanted), workload, "report")
        return measured

    async def _measure(self, spec: PointSpec, workload: Workload, purpose: str) -> MeasuredPoint:
        # A trace's lengths belong to its arrivals: it always begins at its first row.
        offset = 0 if isinstance(spec.shape, Trace) else self._offsets.get(workload.label, 0)
        self._offsets[workload.label] = offset + spec.n_sent
        self._n_left = max(self._n_left - 1, 0)
        begun = PointStarted(
            tier=self._facts.tier,
            shape=spec.shape.label,
            purpose=purpose,
            n_requests=spec.n_requests,
            n_left=self._n_left,
        )
        self.tell(begun)
        measured = await measure_point(self._bench, replace(spec, offset=offset), workload)
        done = PointDone(tier=self._facts.tier, purpose=purpose, point=measured.point, is_resumed=measured.is_resumed)
        self.tell(done)
        return measured

    def _n_requests(self, shape: LoadShape) -> int:
        wanted = self._settings.requests_per_point
        return min(wanted, len(shape.recorded_s)) if isinstance(shape, Trace) else wanted

    def _traffic(self) -> Workload:
        """Return what users send: the asked lengths where given, else the prompts."""
        settings = self._settings
        if settings.n_turns > 1 and settings.lengths is not None:
            return self._talks(settings.lengths)
        if settings.lengths is not None:
            return self._synthetic(settings.lengths, settings.prefix)
        source = PromptSource(prompts=self._evaluation.prompts, max_tokens=settings.max_tokens, seed=settings.seed)
        label = f"prompts {self._evaluation.digest} max_tokens {settings.max_tokens} seed {settings.seed}"
        return Workload(label=label, items=lambda offset: _skip(iter(source), offset))

    def _synthetic(self, lengths: SyntheticLengths, prefix: SharedPrefix | None = None) -> Workload:
        manners = self._known_manners()
        source = SyntheticSource(
            lengths=lengths, budget=manners.budget, seed=self._settings.seed, style=manners.style, prefix=prefix
        )
        shared = "" if prefix is None else f" prefixes {prefix.n_prefixes} of {prefix.prefix_tokens}"
        label = f"synthetic {lengths.input.label} {lengths.output.label} seed {self._settings.seed}{shared}"
        return Workload(label=label, items=lambda offset: _skip(iter(source), offset))

    def _talks(self, lengths: SyntheticLengths) -> Workload:
        manners, settings = self._known_manners(), self._settings
        source = SyntheticTalks(
            n_turns=settings.n_turns, lengths=lengths, budget=manners.budget, seed=settings.seed, style=manners.style
        )
        label = f"talks {settings.n_turns} {lengths.input.label} {lengths.output.label} seed {settings.seed}"
        single = self._synthetic(lengths)
        return replace(single, label=label, talks=lambda offset: _skip(iter(source), offset // settings.n_turns))

    def _trace(self) -> Workload:
        manners = self._known_manners()
        arrivals = self._settings.arrivals
        source = TraceSource(arrivals=arrivals, budget=manners.budget, seed=self._settings.seed, style=manners.style)
        label = f"trace {hash_arrivals(arrivals)} seed {self._settings.seed}"
        return Workload(label=label, items=lambda offset: _skip(iter(source), offset))

    def _known_manners(self) -> EngineManners:
        if self._manners is None:
            raise ValueError("synthetic requests need a probed engine")
        return self._manners


def hash_arrivals(arrivals: Sequence[Arrival]) -> str:
    """Return a digest of a trace's rows."""
    rows = "\n".join(f"{row.arrival_s!r} {row.input_tokens} {row.output_tokens}" for row in arrivals)
    return hashlib.sha256(rows.encode()).hexdigest()


def _skip(items: Iterator[_Item], n: int) -> Iterator[_Item]:
    return itertools.islice(items, n, None)


def _throughput(points: Sequence[MeasuredPoint]) -> float:
    """Return the most requests per second that any point answered."""
    return max((found.point.request_rps for found in points if found.point.n_ok), default=0.0)


async def _measure_accuracy(
    client: ChatClient, tier: str, evaluation: Sequence[Prompt], settings: ProfileSettings, tell: OnEvent
) -> list[AccuracyItem]:
    labelled = [prompt for prompt in evaluation if prompt.answer is not None]
    n_done, score_sum = 0, 0.0

    def note(outcome: Outcome) -> None:
        nonlocal n_done, score_sum
        n_done += 1
        score_sum += outcome.score or 0.0
        tell(AccuracyProgress(tier=tier, n_done=n_done, n_total=len(labelled), score_sum=score_sum))

    outcomes = await ask_all(
        client,
        labelled,
        tier=tier,
        concurrency=max(settings.concurrency),
        max_tokens=settings.max_tokens,
        on_outcome=note,
    )
    return to_items(labelled, outcomes)


def _ignore(_event: ProfileEvent) -> None:
    """Tell nobody."""
