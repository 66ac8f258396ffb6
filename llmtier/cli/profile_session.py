"""What ``llmtier profile`` does between its options and its table: engines up, tiers measured, profiles written."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli import output

if TYPE_CHECKING:
    from llmtier.core.hardware import Hardware
    from llmtier.engine.tier import RunningTier
    from llmtier.profile.conclude import RawMeasurement, TierMeasurement
    from llmtier.profile.events import OnEvent
    from llmtier.profile.load import LoadProgress
    from llmtier.profile.point import Bench
    from llmtier.profile.selftest import SelfTest
    from llmtier.profile.settings import Evaluation, ProfileSettings, TierFacts
    from llmtier.profile.step_rows import BusyTimes
    from llmtier.store.config_model import Config, TierConfig
    from llmtier.store.measured_points import MeasuredPoints

POINTS_FOLDER = ".points"
"""Under the profiles' folder: finished points of tiers that are not finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What all tiers of one run share.

    Attributes:
        self_test: What the client can resolve; ``None`` when it was not tested.
        is_fresh: Whether points that an earlier run left are measured again.
    """

    config: "Config"
    hardware: "Hardware"
    evaluation: "Evaluation"
    evaluation_path: Path
    settings: "ProfileSettings"
    self_test: "SelfTest | None" = None
    is_fresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measured tier and where its points are kept."""

    raw: "RawMeasurement"
    points: "MeasuredPoints | None"


async def measure_all(session: Session, tiers: "Sequence[TierConfig]", *, is_together: bool) -> None:
    """Measure every tier: together, or one after another with engines up in waves that share no device."""
    from llmtier.cli.engines import LOG_DIR, find_interpreters, make_waves
    from llmtier.engine.tier import running_tiers

    pythons = find_interpreters(tiers, session.hardware)
    for wave in [list(tiers)] if is_together and tiers else make_waves(tiers):
        output.say(f"starting {', '.join(tier.name for tier in wave)}")
        async with running_tiers(wave, pythons=pythons, log_dir=LOG_DIR, is_resettable=True) as running:
            if is_together:
                await measure_together(session, wave, running)
            else:
                for tier in wave:
                    measured = await measure_one(session, tier, running[tier.name], co_tenants=())
                    conclude_and_write(session, measured, {})


async def measure_together(
    session: Session, wave: "Sequence[TierConfig]", running: "Mapping[str, RunningTier]"
) -> None:
    """Measure all tiers at once; one that is done stays under load until the last is done."""
    from dataclasses import replace

    from llmtier.evaluate.workers import task_group

    n_left = len(wave)
    all_done = asyncio.Event()
    measured: dict[str, Measured] = {}

    async def measure_and_stay(tier: "TierConfig") -> None:
        nonlocal n_left
        found = await measure_one(session, tier, running[tier.name], co_tenants=find_co_tenants(tier, wave))
        n_left -= 1
        if n_left == 0:
            all_done.set()
        begun_s = time.perf_counter()
        await keep_busy(session, running[tier.name], until=all_done)
        stayed = ((begun_s, time.perf_counter()),)
        measured[tier.name] = replace(found, raw=replace(found.raw, extra_busy=stayed))

    async with task_group() as group:
        for tier in wave:
            group.create_task(measure_and_stay(tier))
    busy = {name: found.raw.busy for name, found in measured.items()}
    for tier in wave:
        others = {name: busy[name] for name in measured[tier.name].raw.facts.co_tenants}
        conclude_and_write(session, measured[tier.name], others)


async def keep_busy(session: Session, running: "RunningTier", *, until: asyncio.Event) -> None:
    """Load a tier at its highest concurrency until ``until`` is set, and forget the answers."""
    from llmtier.evaluate.ask import ask_all

    settings = session.settings
    concurrency = max(settings.concurrency)
    prompts = session.evaluation.prompts[:concurrency]
    async with running.connect() as client:
        while not until.is_set():
            await ask_all(client, prompts, tier=running.name, concurrency=concurrency, max_tokens=settings.max_tokens)


def find_co_tenants(tier: "TierConfig", others: "Sequence[TierConfig]") -> tuple[str, ...]:
    """Return the names of the other tiers on an overlapping device."""
    return tuple(o.name for o in others if o.name != tier.name and o.device.shares_with(tier.device))


async def measure_one(
    session: Session, tier: "TierConfig", running: "RunningTier", *, co_tenants: tuple[str, ...]
) -> Measured:
    """Measure a tier; of one measured alone each finished point is kept, and found after an interruption."""
    from llmtier.cli.profile_view import LiveView, shown, tell
    from llmtier.engine.load_client import LoadClient
    from llmtier.engine.tier import REQUEST_TIMEOUT_S
    from llmtier.profile.load import LoadProgress
    from llmtier.profile.run import measure_tier

    progress = LoadProgress()
    facts = to_facts(session, tier, running, co_tenants)
    # Side by side nobody may skip a point that the others are measured beside.
    points = None if co_tenants else open_points(session)
    view = LiveView(progress)
    on_event: OnEvent = tell if co_tenants else view
    load_client = LoadClient(running.base_url, api_key=running.api_key, timeout_s=REQUEST_TIMEOUT_S)
    async with running.connect() as client, load_client:
        bench = to_bench(tier, running, facts, load_client, points, progress)
        if co_tenants:
            raw = await measure_tier(bench, client, facts, session.evaluation, session.settings, on_event=on_event)
        else:
            async with shown(view):
                raw = await measure_tier(bench, client, facts, session.evaluation, session.settings, on_event=on_event)
    return Measured(raw=raw, points=points)


def open_points(session: Session) -> "MeasuredPoints":
    """Return the points that are kept for a resume; a fresh run throws older ones away."""
    from llmtier.store.measured_points import MeasuredPoints

    points = MeasuredPoints(session.config.profiles / POINTS_FOLDER)
    if session.is_fresh:
        points.discard(points.keys())
    return points


def to_facts(session: Session, tier: "TierConfig", running: "RunningTier", co_tenants: tuple[str, ...]) -> "TierFacts":
    """Gather what is known of a tier."""
    from llmtier.profile.settings import TierFacts

    batched = tier.engine.args.get("max_num_batched_tokens", tier.engine.args.get("max-num-batched-tokens"))
    return TierFacts(
        tier=tier.name,
        checkpoint_digest=running.checkpoint_digest,
        engine=running.identity,
        hardware_fingerprint=session.hardware.fingerprint,
        device=tier.device.label,
        co_tenants=co_tenants,
        context_tokens=running.context_tokens,
        usd_per_hour=None if tier.price is None else tier.price.usd_per_hour,
        max_batched_tokens=batched if isinstance(batched, int) else None,
    )


def to_bench(
    tier: "TierConfig",
    running: "RunningTier",
    facts: "TierFacts",
    client: "object",
    points: "MeasuredPoints | None",
    progress: "LoadProgress",
) -> "Bench":
    """Describe the engine for the measurement."""
    from typing import cast

    from llmtier.core.device import DeviceKind
    from llmtier.engine.load_client import LoadClient
    from llmtier.profile.point import Bench

    identity = {key: value for key, value in asdict(facts).items() if key != "usd_per_hour"}
    is_gpu = tier.device.kind is DeviceKind.GPU
    return Bench(
        client=cast("LoadClient", client),
        tier=tier.name,
        model_name=running.model_name,
        identity=identity
        | {"url": next(iter(tier.engine.addresses), None), "mock": tier.engine.mock},  # our port is none
        api_key=running.api_key,
        pid=running.pid,
        gpu_indices=(tier.device.indices or ()) if is_gpu else (),
        points=points,
        progress=progress,
    )


def conclude_and_write(session: Session, measured: Measured, others: "Mapping[str, BusyTimes]") -> None:
    """Write one tier's profile, then let its kept points go."""
    from llmtier.profile.conclude import conclude

    found = conclude(measured.raw, others)
    folder = write(session, found)
    output.say(f"  wrote {folder}")
    report_model(found)
    if found.profile.cost is None:
        output.say(
            f"  {found.profile.tier}: no cost: price.usd_per_hour is not set, "
            "or no closed loop is valid and without a failed request"
        )
    if measured.points is not None:
        measured.points.discard([point.key for point in measured.raw.points])


def report_model(found: "TierMeasurement") -> None:
    """Say how good the latency model is on the points it has not seen, or why there is none."""
    name = found.profile.tier
    if found.no_model is not None:
        output.say(f"  {name}: no latency model: {found.no_model}")
    for metric, judged in found.judgement.items():
        coverage = output.percent(judged.coverage)
        output.say(
            f"  {name}: latency model, {metric.removesuffix('_s')} on {judged.n} held-out requests: "
            f"mean error {output.percent(judged.mape)}, 95 % bound holds for {coverage}"
        )


def write(session: Session, found: "TierMeasurement") -> Path:
    """Write one tier's profile; return its folder."""
    from llmtier.cli.provenance import digest_inputs, make_provenance
    from llmtier.profile.conclude import judgement_document
    from llmtier.profile.selftest import self_test_document
    from llmtier.store.profiles import LoadRecord, write_profile

    provenance = make_provenance(
        hardware=session.hardware,
        seed=session.settings.seed,
        engine=found.profile.engine,
        inputs=digest_inputs(session.evaluation_path),
    )
    settings = settings_document(session.settings) | {
        "judgement": judgement_document(found.judgement),
        "no_latency_model": found.no_model,
    }
    record = LoadRecord(
        settings=settings,
        seeds=found.seeds,
        self_test=None if session.self_test is None else self_test_document(session.self_test),
        engine_side=found.engine_side,
        co_tenant_shares={} if found.busy_share is None else {found.profile.tier: found.busy_share},
    )
    return write_profile(
        session.config.profiles,
        session.hardware,
        found.profile,
        requests=found.requests,
        items=found.items,
        provenance=provenance,
        load=record,
    )


def settings_document(settings: "ProfileSettings") -> dict[str, object]:
    """Return the settings as plain data for a manifest."""
    return {
        "shapes": [shape.label for shape in settings.shapes],
        "requests_per_point": settings.requests_per_point,
        "warmup_requests": settings.warmup_requests,
        "max_tokens": settings.max_tokens,
        "max_input_tokens": settings.max_input_tokens,
        "precision": settings.precision,
        "budget_s": settings.budget_s,
        "input_tokens": None if settings.lengths is None else settings.lengths.input.label,
        "output_tokens": None if settings.lengths is None else settings.lengths.output.label,
        "shared_prefixes": None if settings.prefix is None else asdict(settings.prefix),
        "turns": settings.n_turns,
        "slo": None if settings.slo is None else asdict(settings.slo),
    }
