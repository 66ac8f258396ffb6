"""Measure one tier: latency at each load point, then accuracy, then cost.

Reads an evaluation set and an engine behind a client; returns what
``store.profiles`` writes. Starts no engine.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtier.core.errors import EngineRequestError, InputFileError, PlanError
from llmtier.core.profile import LoadPoint, TierProfile
from llmtier.core.prompt import Outcome, Prompt
from llmtier.core.tier import EngineIdentity
from llmtier.evaluate.answers import check_reference
from llmtier.evaluate.ask import ChatClient, ask_all
from llmtier.profile.accuracy import ALL_DOMAINS, estimate_accuracy, to_items
from llmtier.profile.cost import cost_of
from llmtier.profile.load import ClosedLoop, LoadSettings, cycle_prompts
from llmtier.profile.summarize import summarize
from llmtier.store.profiles import AccuracyItem, RequestRow

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFacts:
    """What is known of a tier before anything is measured; see ``TierProfile`` for each."""

    tier: str
    checkpoint_digest: str | None
    engine: EngineIdentity
    hardware_fingerprint: str
    device: str
    co_tenants: tuple[str, ...] = ()
    context_tokens: int | None = None
    usd_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMeasurement:
    """A profile and the single requests and answers behind it."""

    profile: TierProfile
    requests: tuple[RequestRow, ...]
    items: tuple[AccuracyItem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointStarted:
    """A load point begins; ``n_requests`` leaves the warm-up out."""

    tier: str
    concurrency: int
    n_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PointDone:
    """A load point ended with these numbers."""

    tier: str
    point: LoadPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyProgress:
    """``n_done`` of ``n_total`` answers came; ``score_sum`` of them, failures as 0, so far."""

    tier: str
    n_done: int
    n_total: int
    score_sum: float


ProfileEvent = PointStarted | PointDone | AccuracyProgress
OnEvent = Callable[[ProfileEvent], None]
"""Called on the event loop, never while a load point is measured; it must be quick."""


async def profile_tier(
    client: ChatClient,
    facts: TierFacts,
    evaluation: Sequence[Prompt],
    settings: LoadSettings,
    *,
    seed: int,
    on_event: OnEvent | None = None,
) -> TierMeasurement:
    """Measure a tier with the prompts of ``evaluation``; those with a reference answer give the accuracy.

    Args:
        client: Of the engine that serves the tier.
        facts: Carried into the profile.
        evaluation: At least one prompt.
        settings: The load points; accuracy is asked at the highest concurrency.
        seed: Of the order of the prompts.
        on_event: Told of the progress.

    Raises:
        PlanError: A load point has fewer requests than it is to keep in flight.
        InputFileError: ``evaluation`` is empty or holds a reference answer that cannot be read.
        EngineRequestError: The engine is down, or answered nothing at any load point.
    """
    _check_load(settings)
    check_evaluation(evaluation)
    tell = on_event if on_event is not None else _ignore
    loop = ClosedLoop(client=client, tier=facts.tier, prompts=cycle_prompts(evaluation, seed=seed), settings=settings)
    points, rows = await _measure_points(loop, tell)
    items = await _measure_accuracy(client, facts.tier, evaluation, settings, tell)
    profile = _to_profile(facts, points, items)
    return TierMeasurement(profile=profile, requests=tuple(rows), items=tuple(items))


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


def _check_load(settings: LoadSettings) -> None:
    if settings.requests_per_point < settings.concurrency[-1]:
        raise PlanError(
            f"load: {settings.requests_per_point} requests per point can never be {settings.concurrency[-1]} in flight; "
            "raise requests_per_point to some times the highest concurrency"
        )


async def _measure_points(loop: ClosedLoop, tell: OnEvent) -> tuple[list[LoadPoint], list[RequestRow]]:
    points: list[LoadPoint] = []
    rows: list[RequestRow] = []
    for concurrency in loop.settings.concurrency:
        tell(PointStarted(tier=loop.tier, concurrency=concurrency, n_requests=loop.settings.requests_per_point))
        samples = await loop.measure(concurrency)
        points.append(summarize(samples))
        rows.extend(sample.row for sample in samples)
        tell(PointDone(tier=loop.tier, point=points[-1]))
    if not any(point.n_ok for point in points):
        raise EngineRequestError(f"tier {loop.tier}: all {len(rows)} requests failed, the last with: {rows[-1].status}")
    return points, rows


async def _measure_accuracy(
    client: ChatClient, tier: str, evaluation: Sequence[Prompt], settings: LoadSettings, tell: OnEvent
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
        concurrency=settings.concurrency[-1],
        max_tokens=settings.max_tokens,
        on_outcome=note,
    )
    return to_items(labelled, outcomes)


def _to_profile(facts: TierFacts, points: Sequence[LoadPoint], items: Sequence[AccuracyItem]) -> TierProfile:
    return TierProfile(
        tier=facts.tier,
        checkpoint_digest=facts.checkpoint_digest,
        engine=facts.engine,
        hardware_fingerprint=facts.hardware_fingerprint,
        device=facts.device,
        co_tenants=tuple(sorted(facts.co_tenants)),
        context_tokens=facts.context_tokens,
        points=tuple(points),
        accuracy=estimate_accuracy(items),
        cost=cost_of(facts.usd_per_hour, points),
    )


def _ignore(_event: ProfileEvent) -> None:
    """Tell nobody."""
