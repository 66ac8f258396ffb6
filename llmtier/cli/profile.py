"""``llmtier profile``: measure each tier on this machine and write its profile.

Reads ``llmtier.yaml`` and an evaluation set; writes ``profiles/<hardware>/<tier>/``, each tier's folder as soon as it
is measured, so that an interruption loses at most the tier it fell into; ``--resume`` goes on after it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, SeedOption
from llmtier.core.errors import UsageError

if TYPE_CHECKING:
    from llmtier.core.hardware import Hardware
    from llmtier.core.profile import LoadPoint, TierProfile
    from llmtier.core.prompt import Prompt
    from llmtier.engine.tier import RunningTier
    from llmtier.profile.run import ProfileEvent, TierMeasurement
    from llmtier.store.config_model import Config, TierConfig


def profile(
    config: ConfigOption = DEFAULT_CONFIG,
    tier: Annotated[list[str] | None, typer.Option(help="Only this tier; may be given again.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Evaluation set; default: 'evaluation' of the configuration.")
    ] = None,
    together: Annotated[
        bool,
        typer.Option("--together", help="Load all these tiers at once, as co-tenants that will be served together."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip tiers whose present checkpoint is profiled already.")
    ] = False,
    seed: SeedOption = 0,
    is_json: JsonOption = False,
) -> None:
    """Measure latency, accuracy and cost of each tier.

    Example: llmtier profile -c llmtier.yaml --tier llama@awq
    """
    from llmtier.cli.engines import choose_tiers
    from llmtier.engine.hardware import detect_hardware
    from llmtier.profile.run import check_evaluation
    from llmtier.store.config import load_config
    from llmtier.store.prompts import read_prompts

    loaded = load_config(config)
    path = evaluation or loaded.evaluation
    if path is None:
        raise UsageError(f"no evaluation set; give --evaluation FILE or set 'evaluation' in {config}")
    prompts = read_prompts(path)
    check_evaluation(prompts, path=path)
    hardware = detect_hardware()
    tiers = choose_tiers(loaded, tier or [])
    tenants = {t.name: find_co_tenants(t, tiers) if together else () for t in tiers}
    is_done = {t.name: resume and is_profiled(t, tenants[t.name], loaded.profiles, hardware) for t in tiers}
    # Together means all of them under load at once: one that is not done makes all be measured again.
    wanted = [t for t in tiers if not is_done[t.name] or (together and not all(is_done.values()))]
    session = Session(config=loaded, hardware=hardware, prompts=prompts, evaluation=path, seed=seed)
    asyncio.run(measure_all(session, wanted, is_together=together))
    report(loaded.profiles, [t.name for t in tiers], hardware, is_json=is_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What all tiers of one run share."""

    config: "Config"
    hardware: "Hardware"
    prompts: "Sequence[Prompt]"
    evaluation: Path
    seed: int


def is_profiled(tier: "TierConfig", co_tenants: tuple[str, ...], root: Path, hardware: "Hardware") -> bool:
    """Tell whether the tier's present checkpoint has a profile of this machine beside these co-tenants."""
    from llmtier.core.errors import InputFileError
    from llmtier.store.checkpoints import open_checkpoint
    from llmtier.store.profiles import read_profile

    try:
        found = read_profile(root / hardware.slug / tier.name)
    except InputFileError:
        return False
    digest = None if tier.checkpoint_path is None else open_checkpoint(tier.checkpoint_path, tier.scheme).digest
    measured = (found.checkpoint_digest, found.hardware_fingerprint, found.co_tenants)
    is_same = measured == (digest, hardware.fingerprint, tuple(sorted(co_tenants)))
    if is_same:
        output.say(f"{tier.name}: profiled already")
    return is_same


async def measure_all(session: Session, tiers: "Sequence[TierConfig]", *, is_together: bool) -> None:
    """Measure every tier: together, or one after another with engines up in waves that share no device."""
    from llmtier.cli.engines import LOG_DIR, find_interpreters, make_waves
    from llmtier.engine.tier import running_tiers

    pythons = find_interpreters(tiers, session.hardware)
    for wave in [list(tiers)] if is_together and tiers else make_waves(tiers):
        output.say(f"starting {', '.join(tier.name for tier in wave)}")
        async with running_tiers(wave, pythons=pythons, log_dir=LOG_DIR) as running:
            if is_together:
                await measure_together(session, wave, running)
            else:
                for tier in wave:
                    await measure_one(session, tier, running[tier.name], co_tenants=())


async def measure_together(
    session: Session, wave: "Sequence[TierConfig]", running: "Mapping[str, RunningTier]"
) -> None:
    """Measure all tiers at once; one that is done stays under load until the last is done."""
    from llmtier.evaluate.workers import task_group

    n_left = len(wave)
    all_done = asyncio.Event()

    async def measure_and_stay(tier: "TierConfig") -> None:
        nonlocal n_left
        await measure_one(session, tier, running[tier.name], co_tenants=find_co_tenants(tier, wave))
        n_left -= 1
        if n_left == 0:
            all_done.set()
        await keep_busy(session, running[tier.name], until=all_done)

    async with task_group() as group:
        for tier in wave:
            group.create_task(measure_and_stay(tier))


async def keep_busy(session: Session, running: "RunningTier", *, until: asyncio.Event) -> None:
    """Load a tier at its highest concurrency until ``until`` is set, and forget the answers."""
    from llmtier.evaluate.ask import ask_all

    load = session.config.load
    prompts = session.prompts[: load.concurrency[-1]]
    async with running.connect() as client:
        while not until.is_set():
            await ask_all(
                client, prompts, tier=running.name, concurrency=load.concurrency[-1], max_tokens=load.max_tokens
            )


def find_co_tenants(tier: "TierConfig", others: "Sequence[TierConfig]") -> tuple[str, ...]:
    """Return the names of the other tiers on an overlapping device."""
    return tuple(o.name for o in others if o.name != tier.name and o.device.shares_with(tier.device))


async def measure_one(
    session: Session, tier: "TierConfig", running: "RunningTier", *, co_tenants: tuple[str, ...]
) -> None:
    """Measure a tier and write its profile."""
    from llmtier.profile.load import LoadSettings
    from llmtier.profile.run import TierFacts, profile_tier

    load = session.config.load
    settings = LoadSettings(
        concurrency=load.concurrency,
        requests_per_point=load.requests_per_point,
        warmup_requests=load.warmup_requests,
        max_tokens=load.max_tokens,
    )
    facts = TierFacts(
        tier=tier.name,
        checkpoint_digest=running.checkpoint_digest,
        engine=running.identity,
        hardware_fingerprint=session.hardware.fingerprint,
        device=tier.device.label,
        co_tenants=co_tenants,
        context_tokens=running.context_tokens,
        usd_per_hour=None if tier.price is None else tier.price.usd_per_hour,
    )
    async with running.connect() as client:
        measurement = await profile_tier(
            client, facts, session.prompts, settings, seed=session.seed, on_event=tell_progress
        )
    write(session, measurement)


def tell_progress(event: "ProfileEvent") -> None:
    """Say on standard error what has been measured."""
    from llmtier.profile.run import AccuracyProgress, PointDone

    if isinstance(event, PointDone):
        point = event.point
        output.say(
            f"  {event.tier}: {point.concurrency} in flight: {point.request_rps:.1f} requests/s, "
            f"TTFT p50 {output.milliseconds(point.ttft_p50_s)} ms, TPOT p50 {output.milliseconds(point.tpot_p50_s)} ms, "
            f"n {point.n_ok}, failed {point.n_failed}"
        )
    elif isinstance(event, AccuracyProgress) and event.n_done == event.n_total:
        output.say(f"  {event.tier}: accuracy {output.percent(event.score_sum / event.n_total)}, n {event.n_total}")


def write(session: Session, measurement: "TierMeasurement") -> None:
    """Write one tier's profile."""
    from llmtier.cli.provenance import digest_inputs, make_provenance
    from llmtier.store.profiles import write_profile

    provenance = make_provenance(
        hardware=session.hardware,
        seed=session.seed,
        engine=measurement.profile.engine,
        inputs=digest_inputs(session.evaluation),
    )
    folder = write_profile(
        session.config.profiles,
        session.hardware,
        measurement.profile,
        requests=measurement.requests,
        items=measurement.items,
        provenance=provenance,
    )
    output.say(f"  wrote {folder}")
    if measurement.profile.cost is None:
        output.say(
            f"  {measurement.profile.tier}: no cost: price.usd_per_hour is not set, or requests failed at every load point"
        )


def report(root: Path, names: Sequence[str], hardware: "Hardware", *, is_json: bool) -> None:
    """Print what the profiles say of the named tiers."""
    from llmtier.store.profiles import read_profiles

    profiles = read_profiles(root, hardware.slug)
    chosen = {name: profiles[name] for name in names if name in profiles}
    if is_json:
        output.print_json(
            {"schema_version": 1, "hardware": hardware.slug, "tiers": [as_row(p) for p in chosen.values()]}
        )
    else:
        show(chosen)


def as_row(found: "TierProfile") -> dict[str, object]:
    """Return one profile as a JSON-ready document."""
    from dataclasses import asdict

    return asdict(found)


def show(profiles: "Mapping[str, TierProfile]") -> None:
    """Print one table: a row per tier and load point."""
    columns = (
        "tier", "in flight", "req/s", "TTFT p50 ms", "p95 ms", "TPOT p50 ms", "E2EL p95 ms", "failed", "accuracy", "$/1k",
    )  # fmt: skip
    rows = [as_cells(found, point) for found in profiles.values() for point in found.points]
    output.print_table("Profiles", columns, rows)


def as_cells(found: "TierProfile", point: "LoadPoint") -> tuple[str, ...]:
    """Return one row of the table."""
    estimate = found.accuracy_of(None)
    return (
        found.tier,
        str(point.concurrency),
        f"{point.request_rps:.1f}",
        output.milliseconds(point.ttft_p50_s),
        output.milliseconds(point.ttft_p95_s),
        output.milliseconds(point.tpot_p50_s),
        output.milliseconds(point.e2el_p95_s),
        str(point.n_failed),
        output.percent(None if estimate is None else estimate.accuracy),
        output.dollars(None if found.cost is None else 1000 * found.cost.usd_per_request),
    )
