"""``llmtier replay``: ask every tier the prompts of a log and write their outcomes.

Reads a log and ``llmtier.yaml``; writes an outcomes file. A journal beside it keeps every answer as it comes, so an
interrupted replay goes on where it stopped; the journal belongs to this log and these tiers and is removed at the end.
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption, ForceOption, JsonOption
from llmtier.core.errors import InputFileError, UsageError

if TYPE_CHECKING:
    from llmtier.core.prompt import LabelledPrompt, Outcome, Prompt
    from llmtier.engine.tier import RunningTier
    from llmtier.store.config_model import Config, TierConfig


def replay(
    log: Annotated[Path, typer.Argument(help="Prompts with reference answers, JSONL or Parquet.")],
    config: ConfigOption = DEFAULT_CONFIG,
    out: Annotated[Path, typer.Option("--output", "-o", help="Outcomes file, a .parquet.")] = Path("outcomes.parquet"),
    tier: Annotated[list[str] | None, typer.Option(help="Only this tier; may be given again.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests in flight per tier.", min=1)] = 16,
    force: ForceOption = False,
    is_json: JsonOption = False,
) -> None:
    """Ask every tier the prompts of a log.

    Example: llmtier replay traffic.jsonl -o outcomes.parquet
    """
    from llmtier.cli.engines import choose_tiers
    from llmtier.store.config import load_config
    from llmtier.store.prompts import read_prompts

    if out.suffix != ".parquet":
        raise UsageError(f"{out}: outcomes are written as Parquet; let the name end in .parquet")
    if out.exists() and not force:
        raise UsageError(f"{out} exists; choose another --output, or --force to overwrite it")
    loaded = load_config(config)
    tiers = choose_tiers(loaded, tier or [])
    prompts = read_prompts(log)
    check_labelled(prompts, log)
    labelled = replay_to_file(loaded, tiers, prompts, log=log, out=out, concurrency=concurrency)
    report(labelled, [tier.name for tier in tiers], out=out, is_json=is_json)


def check_labelled(prompts: "Sequence[Prompt]", log: Path) -> None:
    """Refuse a log without one reference answer, and reference answers that cannot be compared.

    Raises:
        InputFileError: Nothing could be scored.
    """
    from llmtier.evaluate.answers import check_reference

    if not any(prompt.answer is not None for prompt in prompts):
        raise InputFileError(
            "no row has an 'answer' to score against; add 'answer' and 'scorer' to the rows "
            "(a gateway's traffic log holds prompts, not what would have been right)",
            path=log,
        )
    for prompt in prompts:
        check_reference(prompt, path=log)


def replay_to_file(
    config: "Config",
    tiers: "Sequence[TierConfig]",
    prompts: "Sequence[Prompt]",
    *,
    log: Path,
    out: Path,
    concurrency: int,
) -> "list[LabelledPrompt]":
    """Ask what the journal does not hold yet, then write the outcomes and drop the journal."""
    from llmtier.cli.provenance import digest_inputs, make_provenance
    from llmtier.engine.hardware import detect_hardware
    from llmtier.evaluate.replay import answered_pairs, merge_outcomes
    from llmtier.store.outcomes import discard_outcomes_parts, read_outcomes_parts, write_outcomes

    hardware = detect_hardware()
    journal = journal_for(out, log, tiers, max_tokens=config.load.max_tokens)
    earlier = read_outcomes_parts(journal)
    if earlier:
        output.say(f"going on after {len(earlier)} answers of an interrupted replay")
    outcomes = asyncio.run(ask_tiers(config, tiers, prompts, earlier=earlier, journal=journal, concurrency=concurrency))
    labelled = merge_outcomes(prompts, outcomes)
    write_outcomes(out, labelled, provenance=make_provenance(hardware=hardware, inputs=digest_inputs(log)))
    n_missing = len(prompts) * len(tiers) - len(answered_pairs(outcomes))
    if n_missing:
        output.say(f"{n_missing} answers are missing; run the same again with --force to ask only for those")
    else:
        discard_outcomes_parts(journal)
    return labelled


def journal_for(out: Path, log: Path, tiers: "Sequence[TierConfig]", *, max_tokens: int) -> Path:
    """Return the path whose journal belongs to this log, these tiers and this answer length, and to no others."""
    from llmtier.cli.provenance import digest_inputs
    from llmtier.store.digests import checkpoint_digest

    identity = [json.dumps([log.name, digest_inputs(log), max_tokens], sort_keys=True)]
    for tier in tiers:
        folder = tier.checkpoint_path
        digest = tier.model if folder is None else checkpoint_digest(folder)
        identity.append(json.dumps([tier.name, digest, tier.engine.model_dump(mode="json")], sort_keys=True))
    return out.with_name(f"{out.name}.{hashlib.sha256(''.join(identity).encode()).hexdigest()[:12]}")


async def ask_tiers(
    config: "Config",
    tiers: "Sequence[TierConfig]",
    prompts: "Sequence[Prompt]",
    *,
    earlier: "Sequence[Outcome]",
    journal: Path,
    concurrency: int,
) -> "list[Outcome]":
    """Bring up tiers in waves that share no device, ask each what is missing; return all outcomes."""
    from llmtier.cli.engines import LOG_DIR, find_interpreters, make_waves
    from llmtier.engine.hardware import detect_hardware
    from llmtier.engine.tier import running_tiers
    from llmtier.evaluate.replay import answered_pairs

    outcomes = list(earlier)
    done = answered_pairs(earlier)
    waiting = [tier for tier in tiers if any((prompt.id, tier.name) not in done for prompt in prompts)]
    pythons = find_interpreters(waiting, detect_hardware())
    for wave in make_waves(waiting):
        names = ", ".join(tier.name for tier in wave)
        output.say(f"starting {names}")
        async with running_tiers(wave, pythons=pythons, log_dir=LOG_DIR) as running:
            n_missing = sum((prompt.id, tier.name) not in done for tier in wave for prompt in prompts)
            with output.progress(f"asking {names}", n_missing) as line:
                outcomes += await ask_wave(
                    running, prompts, done=done, journal=journal, line=line, concurrency=concurrency,
                    max_tokens=config.load.max_tokens,
                )  # fmt: skip
    return outcomes


async def ask_wave(
    running: "dict[str, RunningTier]",
    prompts: "Sequence[Prompt]",
    *,
    done: frozenset[tuple[str, str]],
    journal: Path,
    line: output.ProgressLine,
    concurrency: int,
    max_tokens: int,
) -> "list[Outcome]":
    """Ask every running tier what is missing, journalling each answer."""
    from contextlib import AsyncExitStack

    from llmtier.evaluate.replay import replay_prompts
    from llmtier.store.outcomes import append_outcomes_part

    pending: list[Outcome] = []

    def keep(outcome: "Outcome") -> None:
        pending.append(outcome)
        line.advance()
        if len(pending) >= JOURNAL_EVERY:
            append_outcomes_part(journal, pending)
            pending.clear()

    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(tier.connect()) for name, tier in running.items()}
        try:
            return await replay_prompts(
                clients, prompts, concurrency=concurrency, max_tokens=max_tokens, done=done, on_outcome=keep
            )
        finally:
            append_outcomes_part(journal, pending)


JOURNAL_EVERY = 64
"""Answers between two writes of the journal: what a kill can lose."""


def report(labelled: "Sequence[LabelledPrompt]", tiers: Sequence[str], *, out: Path, is_json: bool) -> None:
    """Print each tier's mean score over the rows it answered."""
    scores = {tier: [row.scores[tier] for row in labelled if tier in row.scores] for tier in tiers}
    means = {tier: sum(known) / len(known) if known else None for tier, known in scores.items()}
    n = len(labelled)
    if is_json:
        tables = [
            {"tier": t, "n": len(scores[t]), "missing": n - len(scores[t]), "mean_score": means[t]} for t in tiers
        ]
        output.print_json({"schema_version": 1, "outcomes": str(out), "tiers": tables})
        return
    rows = [(t, str(len(scores[t])), str(n - len(scores[t])), output.percent(means[t])) for t in tiers]
    output.print_table(f"Outcomes in {out}", ("tier", "answered", "missing", "mean score"), rows)
