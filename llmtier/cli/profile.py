"""``llmtier profile``: measure each tier on this machine and write its profile.

Reads ``llmtier.yaml`` and an evaluation set; writes ``profiles/<hardware>/<tier>/``. Each load point is kept as soon as
it is measured, so that an interruption loses at most the point it fell into; the same command goes on after it.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmtier.cli import output
from llmtier.cli import profile_options as options
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, SeedOption
from llmtier.core.errors import UsageError

if TYPE_CHECKING:
    from llmtier.cli.profile_session import Session
    from llmtier.core.hardware import Hardware
    from llmtier.core.requirement import Requirement
    from llmtier.profile.lengths import SyntheticLengths
    from llmtier.profile.selftest import SelfTest
    from llmtier.profile.settings import ProfileSettings
    from llmtier.profile.shapes import LoadShape
    from llmtier.profile.synthetic import SharedPrefix
    from llmtier.store.arrivals import Arrival
    from llmtier.store.config_model import Config, TierConfig

Result = TypeVar("Result")


def profile(
    config: ConfigOption = DEFAULT_CONFIG,
    tier: options.Tiers = None,
    evaluation: options.Evaluation = None,
    shape: options.Shapes = None,
    requests: options.Requests = None,
    input_tokens: options.InputTokens = None,
    output_tokens: options.OutputTokens = None,
    shared_prefixes: options.SharedPrefixes = None,
    turns: options.Turns = 1,
    precision: options.Precision = None,
    slo_ttft_ms: options.SloTtft = None,
    slo_tpot_ms: options.SloTpot = None,
    slo_e2el_ms: options.SloE2el = None,
    latency_model: options.LatencyModel = None,
    together: options.Together = False,
    resume: options.Resume = False,
    fresh: options.Fresh = False,
    self_test: options.SelfTestFirst = False,
    seed: SeedOption = 0,
    is_json: JsonOption = False,
) -> None:
    """Measure latency, accuracy and cost of each tier.

    Example: llmtier profile -c llmtier.yaml --tier llama@awq
    """
    from llmtier.cli.profile_table import report
    from llmtier.store.config import load_config

    loaded = load_config(config)
    settings = make_settings(
        loaded,
        shapes=shape or list(loaded.load.shapes),
        lengths=to_lengths(input_tokens, output_tokens),
        prefix=to_prefix(shared_prefixes),
        n_turns=turns,
        requests=requests,
        precision=precision,
        slo=to_slo(slo_ttft_ms, slo_tpot_ms, slo_e2el_ms),
        has_latency_model=loaded.load.latency_model if latency_model is None else latency_model,
        seed=seed,
    )
    path = evaluation or loaded.evaluation
    if path is None:
        raise UsageError(f"no evaluation set; give --evaluation FILE or set 'evaluation' in {config}")
    session = open_session(loaded, settings, path, is_fresh=fresh, is_tested=self_test)
    names = measure(session, tier or [], is_together=together, is_resumed=resume)
    report(loaded.profiles, names, session.hardware, is_json=is_json)


def open_session(
    config: "Config", settings: "ProfileSettings", path: Path, *, is_fresh: bool, is_tested: bool
) -> "Session":
    """Read the evaluation set and, where asked for, test the client.

    Raises:
        InputFileError: The set cannot be profiled with.
    """
    from llmtier.cli.profile_session import Session
    from llmtier.engine.hardware import detect_hardware
    from llmtier.profile.run import check_evaluation
    from llmtier.profile.settings import Evaluation
    from llmtier.store.digests import file_sha256, tree_sha256
    from llmtier.store.prompts import read_prompts

    prompts = read_prompts(path)
    check_evaluation(prompts, path=path)
    digest = tree_sha256(path, ["*"]) if path.is_dir() else file_sha256(path)
    return Session(
        config=config,
        hardware=detect_hardware(),
        evaluation=Evaluation(prompts=prompts, digest=digest),
        evaluation_path=path,
        settings=settings,
        self_test=run_loop(test_client()) if is_tested else None,
        is_fresh=is_fresh,
    )


def measure(session: "Session", names: Sequence[str], *, is_together: bool, is_resumed: bool) -> list[str]:
    """Measure the named tiers, those that are done left out where asked for; return the names of all of them."""
    from llmtier.cli.engines import choose_tiers
    from llmtier.cli.profile_session import find_co_tenants, measure_all

    config, hardware = session.config, session.hardware
    tiers = choose_tiers(config, names)
    tenants = {t.name: find_co_tenants(t, tiers) if is_together else () for t in tiers}
    is_done = {t.name: is_resumed and is_profiled(t, tenants[t.name], config.profiles, hardware) for t in tiers}
    # Together means all of them under load at once: one that is not done makes all be measured again.
    wanted = [t for t in tiers if not is_done[t.name] or (is_together and not all(is_done.values()))]
    run_loop(measure_all(session, wanted, is_together=is_together))
    return [t.name for t in tiers]


def run_loop(work: Coroutine[object, object, Result]) -> Result:
    """Run on uvloop where it is installed: its sockets cost less time while a load is measured."""
    try:
        import uvloop
    except ImportError:  # such as on Windows
        return asyncio.run(work)
    return uvloop.run(work)


async def test_client() -> "SelfTest":
    """Measure the client and say what it can resolve."""
    from llmtier.profile.selftest import run_self_test

    found = await run_self_test()
    output.say(
        f"client self-test: {found.chunks_per_s:.0f} chunks/s from {found.n_streams} streams at "
        f"{found.client_cpu_s_per_chunk * 1e6:.1f} us of processor time each, schedule delay p99 "
        f"{output.milliseconds(found.schedule_delay_p99_s)} ms at {found.rate_rps:g} requests/s, TTFT error p50 "
        f"{output.milliseconds(found.ttft_error_p50_s)} ms"
    )
    return found


def make_settings(
    config: "Config",
    *,
    shapes: Sequence[str],
    lengths: "SyntheticLengths | None",
    prefix: "SharedPrefix | None",
    n_turns: int,
    requests: int | None,
    precision: float | None,
    slo: "Requirement | None",
    has_latency_model: bool,
    seed: int,
) -> "ProfileSettings":
    """Put options over the configuration.

    Raises:
        UsageError: A shape or a length is none, or a load point can never have its concurrency in flight.
    """
    from llmtier.profile.settings import ProfileSettings
    from llmtier.profile.shapes import ClosedLoop

    load = config.load
    if lengths is None and (prefix is not None or n_turns > 1):
        raise UsageError("--shared-prefixes and --turns need --input-tokens and --output-tokens")
    arrivals: dict[str, tuple[Arrival, ...]] = {}
    found = [one for text in shapes for one in parse(text, arrivals)] or [
        ClosedLoop(concurrency=c) for c in load.concurrency
    ]
    n_requests = load.requests_per_point if requests is None else requests
    check_loops(found, n_requests)
    check_distinct(found)
    return ProfileSettings(
        shapes=tuple(found),
        requests_per_point=n_requests,
        warmup_requests=load.warmup_requests,
        max_tokens=load.max_tokens,
        max_input_tokens=load.max_input_tokens,
        concurrency=load.concurrency,
        seed=seed,
        precision=load.precision if precision is None else precision,
        budget_s=load.budget_s,
        lengths=lengths,
        prefix=prefix,
        n_turns=n_turns,
        arrivals=next(iter(arrivals.values()), ()),
        has_latency_model=has_latency_model,
        slo=slo,
    )


def parse(text: str, arrivals: "dict[str, tuple[Arrival, ...]]") -> "tuple[LoadShape, ...]":
    """Return the shapes that a text names; traces are read into ``arrivals``.

    Raises:
        UsageError: It names none, or a second trace.
    """
    from llmtier.profile.shape_text import parse_shapes
    from llmtier.store.arrivals import read_arrivals

    def load_trace(name: str) -> list[float]:
        arrivals[name] = read_arrivals(Path(name))
        if len(arrivals) > 1:
            raise UsageError(f"one trace per run: got {' and '.join(arrivals)}")
        return [row.arrival_s for row in arrivals[name]]

    try:
        return parse_shapes(text, load_trace=load_trace)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def check_loops(shapes: "Sequence[LoadShape]", n_requests: int) -> None:
    """Refuse a closed loop that would never have its requests in flight.

    Raises:
        PlanError: There are fewer requests than workers.
    """
    from llmtier.core.errors import PlanError
    from llmtier.profile.shapes import ClosedLoop

    most = max((shape.concurrency for shape in shapes if isinstance(shape, ClosedLoop)), default=0)
    if n_requests < most:
        raise PlanError(
            f"load: {n_requests} requests per point can never be {most} in flight; "
            "raise requests_per_point to some times the highest concurrency"
        )


def check_distinct(shapes: "Sequence[LoadShape]") -> None:
    """Refuse a shape that is asked for twice.

    Raises:
        UsageError: Names it.
    """
    labels = [shape.label for shape in shapes]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"load shape {label} is asked for twice; give each once")


def to_lengths(input_tokens: str | None, output_tokens: str | None) -> "SyntheticLengths | None":
    """Return the lengths of synthetic requests; ``None`` when prompts are sent.

    Raises:
        UsageError: One is missing or malformed.
    """
    from llmtier.profile.lengths import SyntheticLengths, parse_length

    if input_tokens is None and output_tokens is None:
        return None
    if input_tokens is None or output_tokens is None:
        raise UsageError("synthetic requests need both --input-tokens and --output-tokens")
    try:
        return SyntheticLengths(input=parse_length(input_tokens), output=parse_length(output_tokens))
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def to_prefix(text: str | None) -> "SharedPrefix | None":
    """Return what synthetic prompts share; ``None`` for nothing.

    Raises:
        UsageError: The text is not two whole numbers of at least 1.
    """
    from llmtier.profile.synthetic import SharedPrefix

    if text is None:
        return None
    try:
        n_prefixes, prefix_tokens = (int(part) for part in text.split(","))
        return SharedPrefix(n_prefixes=n_prefixes, prefix_tokens=prefix_tokens)
    except ValueError as exc:
        raise UsageError(f"--shared-prefixes {text!r}: expected two whole numbers such as 4,128") from exc


def to_slo(ttft_ms: float | None, tpot_ms: float | None, e2el_ms: float | None) -> "Requirement | None":
    """Return the limits to search for; ``None`` when there are none."""
    from llmtier.core.requirement import Requirement

    if ttft_ms is None and tpot_ms is None and e2el_ms is None:
        return None
    seconds = [None if value is None else value / 1000.0 for value in (ttft_ms, tpot_ms, e2el_ms)]
    return Requirement(ttft_s=seconds[0], tpot_s=seconds[1], e2el_s=seconds[2])


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
