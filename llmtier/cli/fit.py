"""``llmtier fit-thresholds``: fit the router on outcomes and prices, and say what it can promise.

Reads outcomes or a log, and profiles or costs; writes ``policy.json`` and the fitted scorer beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmtier.cli import fit_inputs as inputs
from llmtier.cli import fit_options as options
from llmtier.cli import output
from llmtier.cli.fit_retries import RetryReport, charge_retries
from llmtier.cli.options import ForceOption, JsonOption, SeedOption
from llmtier.core.decision import Fallback, Objective
from llmtier.core.errors import UsageError

if TYPE_CHECKING:
    from llmtier.core.profile import TierProfile
    from llmtier.engine.embedder import Embedder
    from llmtier.fit.prices import Prices
    from llmtier.fit.settings import FitSettings, FittedPolicy
    from llmtier.store.outcomes import OutcomeSet


def fit_thresholds(
    outcomes: options.OutcomesArgument,
    profiles: options.ProfilesOption = Path("profiles"),
    costs: options.CostsOption = None,
    out: options.OutOption = Path("policy.json"),
    max_accuracy_loss: options.MaxAccuracyLossOption = None,
    min_accuracy: options.MinAccuracyOption = None,
    budget_usd_per_1k: options.BudgetUsdPer1kOption = None,
    target_shares: options.TargetSharesOption = None,
    objective: options.ObjectiveOption = Objective.CHEAPEST,
    weights: options.WeightsOption = None,
    reference: options.ReferenceOption = None,
    tiers: options.TiersOption = None,
    scorer: options.ScorerOption = None,
    embedder: options.EmbedderOption = None,
    simple: options.SimpleOption = None,
    complex_: options.ComplexOption = None,
    confidence: options.ConfidenceOption = 0.95,
    per_domain: options.PerDomainOption = False,
    ttft_ms: options.TtftMsOption = None,
    e2el_ms: options.E2elMsOption = None,
    column: options.ColumnOption = None,
    max_rows: options.MaxRowsOption = inputs.MAX_ROWS,
    fallback: options.FallbackOption = Fallback.MOST_ACCURATE,
    hardware: options.HardwareOption = None,
    retries_from: options.RetriesFromOption = None,
    retry_window_s: options.RetryWindowOption = 300.0,
    force: ForceOption = False,
    seed: SeedOption = 0,
    is_json: JsonOption = False,
) -> None:
    """Fit the router.

    Example: llmtier fit-thresholds outcomes.parquet --max-accuracy-loss 0.01 -o policy.json
    """
    from llmtier.fit.settings import FitSettings

    inputs.refuse_overwrite(out, is_forced=force)
    named = None if tiers is None else [name.strip() for name in tiers.split(",")]
    labels = inputs.read_labels(outcomes, columns=column or [], max_rows=max_rows, seed=seed, tiers=named)
    asked = inputs.Goals(loss=max_accuracy_loss, floor=min_accuracy, budget=budget_usd_per_1k, shares=target_shares)
    goal = inputs.make_goal(asked, objective=objective, is_labelled=any(row.scores for row in labels.rows))
    found = _read_profiles(profiles, hardware, is_needed=costs is None)
    prices = inputs.find_prices(named, labels.rows, costs=costs, profiles=found.profiles)
    charged = charge_retries(prices, retries_from, window_s=retry_window_s)
    settings = FitSettings(
        goal=goal,
        seed=seed,
        fallback=fallback,
        inputs=_digest(outcomes if retries_from is None else [*outcomes, retries_from]),
        reference=reference,
        scorer_kind=scorer or "learned",
        confidence=confidence,
        per_domain=per_domain,
        slo=inputs.make_limits(ttft_ms=ttft_ms, e2el_ms=e2el_ms),
        profile_digests={tier: found.digests[tier] for tier in prices.profiles},
        weights=inputs.parse_weights(weights),
    )
    tools = _Tools(scorer=scorer, embedder=embedder, simple=simple, complex_=complex_)
    _show(_write(out, _fit(labels, charged.prices, settings, tools), settings), charged, out=out, is_json=is_json)


def _show(written: "FittedPolicy", charged: RetryReport, *, out: Path, is_json: bool) -> None:
    from llmtier.cli.fit_report import as_document, show

    if is_json:
        output.print_json(as_document(written, out=out) | {"retries": charged.as_document()})
        return
    show(written, out=out)
    for line in charged.lines():
        typer.echo(line)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tools:
    """The scorer that was named, and the files it needs beside the labels."""

    scorer: str | None
    embedder: Path | None
    simple: Path | None
    complex_: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    profiles: Mapping[str, "TierProfile"]
    digests: Mapping[str, str]


def _read_profiles(folder: Path, hardware: str | None, *, is_needed: bool) -> _Found:
    from llmtier.engine.hardware import detect_hardware
    from llmtier.store.profiles import digest_profiles, read_profiles

    if not is_needed:
        return _Found(profiles={}, digests={})
    slug = hardware or detect_hardware().slug
    return _Found(profiles=read_profiles(folder, slug), digests=digest_profiles(folder, slug))


def _fit(labels: "OutcomeSet", prices: "Prices", settings: "FitSettings", tools: _Tools) -> "FittedPolicy":
    """Load what the scorer needs, then fit with or without labels."""
    from dataclasses import replace

    from llmtier.fit.run import fit_policy
    from llmtier.fit.unlabelled import fit_unlabelled, tiers_of
    from llmtier.score.scorer import FittedScorer

    if (tools.simple is None) != (tools.complex_ is None):
        raise UsageError("--simple and --complex belong together: sentences for either end")
    loaded = _load_embedder(tools)
    signals = inputs.embed_prompts(loaded, labels.rows)
    settings = replace(settings, embedder=None if loaded is None else loaded.digest)
    if any(row.scores for row in labels.rows):
        if tools.simple is not None:
            raise UsageError("--simple and --complex are for logs without scores; these have scores: leave them out")
        return fit_policy(labels.rows, prices, settings, signals=signals)
    seeded: FittedScorer[Any] | None = None
    if loaded is not None and tools.simple is not None and tools.complex_ is not None:
        from llmtier.score.seed_scorer import fit_seed_scorer

        ends = [[loaded.embed(line) for line in inputs.read_sentences(path)] for path in (tools.simple, tools.complex_)]
        known = [[vector for vector in end if vector is not None] for end in ends]
        seeded = fit_seed_scorer(known[0], known[1], tiers_of(prices, settings))
    elif tools.scorer not in {None, "entropy"}:
        raise UsageError(
            f"--scorer {tools.scorer} needs scores, and the log has none; give --simple and --complex, or entropy"
        )
    prompts = [row.prompt for row in labels.rows]
    return fit_unlabelled(prompts, prices, settings, scorer=seeded, signals=[signals[prompt.id] for prompt in prompts])


def _load_embedder(tools: _Tools) -> "Embedder | None":
    """Return the embedder; ``None`` where none is named.

    Raises:
        UsageError: A scorer needs one.
    """
    if tools.embedder is None:
        if tools.simple is not None or tools.scorer in {"semantic", "learned+semantic"}:
            raise UsageError("a semantic scorer needs --embedder; 'llmtier embedder export MODEL -o DIR' makes one")
        return None
    from llmtier.engine.embedder import load_embedder

    return load_embedder(tools.embedder)


def _write(out: Path, fitted: "FittedPolicy", settings: "FitSettings") -> "FittedPolicy":
    """Write the policy; return it as written."""
    from dataclasses import replace

    from llmtier.cli.provenance import make_provenance
    from llmtier.engine.hardware import detect_hardware
    from llmtier.store.policies import write_policy

    provenance = make_provenance(hardware=detect_hardware(), seed=settings.seed, inputs=settings.inputs)
    return replace(fitted, policy=write_policy(out, fitted.policy, fitted.scorer.to_bytes(), provenance=provenance))


def _digest(paths: list[Path]) -> dict[str, str]:
    from llmtier.cli.provenance import digest_inputs

    return digest_inputs(*paths)
