"""``llmtier fit-thresholds``: fit the router on outcomes and prices, and say what it can promise.

Reads outcomes or a log, and profiles or costs; writes ``policy.json`` and the fitted scorer beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtier.cli import fit_inputs as inputs
from llmtier.cli import output
from llmtier.cli.options import ForceOption, JsonOption, SeedOption
from llmtier.core.decision import Fallback
from llmtier.core.errors import UsageError
from llmtier.core.requirement import Requirement

if TYPE_CHECKING:
    from llmtier.core.profile import TierProfile
    from llmtier.engine.embedder import Embedder
    from llmtier.fit.prices import Prices
    from llmtier.fit.settings import FitSettings, FittedPolicy
    from llmtier.store.outcomes import OutcomeSet


def fit_thresholds(
    outcomes: Annotated[
        list[Path], typer.Argument(help="Outcomes of 'llmtier replay', or a log: Parquet, JSONL, CSV.")
    ],
    profiles: Annotated[Path, typer.Option(help="Folder that 'llmtier profile' wrote.")] = Path("profiles"),
    costs: Annotated[
        str | None, typer.Option(help="Dollars of a request on each tier in place of profiles: small=1,large=10.")
    ] = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="Policy file.")] = Path("policy.json"),
    max_accuracy_loss: Annotated[
        float | None, typer.Option(help="Mean score that may be lost against the reference; default 0.01.")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Mean score to keep up.")] = None,
    budget_usd_per_1k: Annotated[float | None, typer.Option(help="Dollars that 1,000 requests may cost.")] = None,
    target_shares: Annotated[
        str | None, typer.Option(help="Share of the traffic for each tier: small=0.7,large=0.3; promises nothing.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Tier whose accuracy is to be kept; default: the most accurate.")
    ] = None,
    tiers: Annotated[str | None, typer.Option(help="Only these tiers, separated by commas.")] = None,
    scorer: Annotated[
        str | None, typer.Option(help="learned, learned+semantic, semantic, entropy, self_assess or hybrid.")
    ] = None,
    embedder: Annotated[
        Path | None, typer.Option(help="Folder of 'llmtier embedder export', for the semantic scorers.")
    ] = None,
    simple: Annotated[
        Path | None, typer.Option(help="Text file of simple requests, one a line: a semantic scorer without labels.")
    ] = None,
    complex_: Annotated[Path | None, typer.Option("--complex", help="Text file of complex requests, likewise.")] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the guarantee and of intervals.")] = 0.95,
    per_domain: Annotated[
        bool, typer.Option("--per-domain", help="A threshold and a promise for each domain.")
    ] = False,
    ttft_ms: Annotated[
        float | None, typer.Option(help="Leave out tiers slower than this to the first token.", min=0)
    ] = None,
    e2el_ms: Annotated[
        float | None, typer.Option(help="Leave out tiers slower than this to the last token.", min=0)
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="ours=theirs, such as prompt=question or score:small=small_ok.")
    ] = None,
    max_rows: Annotated[
        int, typer.Option(help="Rows kept of larger files, a seeded sample.", min=20)
    ] = inputs.MAX_ROWS,
    fallback: Annotated[
        Fallback, typer.Option(help="Where a request goes that no tier can meet.")
    ] = Fallback.MOST_ACCURATE,
    hardware: Annotated[
        str | None, typer.Option(help="Hardware folder of the profiles; default: this machine's.")
    ] = None,
    force: ForceOption = False,
    seed: SeedOption = 0,
    is_json: JsonOption = False,
) -> None:
    """Fit the router.

    Example: llmtier fit-thresholds outcomes.parquet --max-accuracy-loss 0.01 -o policy.json
    """
    from llmtier.cli.fit_report import as_document, show
    from llmtier.fit.settings import FitSettings

    if out.exists() and not force:
        raise UsageError(f"{out} exists; choose another --output, or --force to overwrite it")
    named = None if tiers is None else [name.strip() for name in tiers.split(",")]
    labels = inputs.read_labels(outcomes, columns=column or [], max_rows=max_rows, seed=seed, tiers=named)
    goal = inputs.make_goal(
        max_accuracy_loss=max_accuracy_loss,
        min_accuracy=min_accuracy,
        budget=budget_usd_per_1k,
        shares=target_shares,
        is_labelled=any(row.scores for row in labels.rows),
    )
    found = _read_profiles(profiles, hardware, is_needed=costs is None)
    names = inputs.choose_tiers(named, labels.rows, costs=costs, profiles=sorted(found.profiles))
    prices = inputs.find_prices(names, costs=costs, profiles=found.profiles)
    settings = FitSettings(
        goal=goal,
        seed=seed,
        fallback=fallback,
        inputs=_digest(outcomes),
        reference=reference,
        scorer_kind=scorer or "learned",
        confidence=confidence,
        per_domain=per_domain,
        slo=Requirement(ttft_s=_seconds(ttft_ms), e2el_s=_seconds(e2el_ms)),
        profile_digests={tier: found.digests[tier] for tier in prices.profiles},
    )
    fitted = _fit(
        labels, prices, settings, scorer=scorer, tools=_Tools(embedder=embedder, simple=simple, complex_=complex_)
    )
    written = _write(out, fitted, settings)
    if is_json:
        output.print_json(as_document(written, out=out))
    else:
        show(written, out=out)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tools:
    """Files that a scorer needs beside the labels."""

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


def _fit(
    labels: "OutcomeSet", prices: "Prices", settings: "FitSettings", *, scorer: str | None, tools: _Tools
) -> "FittedPolicy":
    """Load what the scorer needs, then fit with or without labels."""
    from dataclasses import replace

    from llmtier.fit.run import fit_policy
    from llmtier.fit.unlabelled import fit_unlabelled, tiers_of
    from llmtier.score.scorer import FittedScorer

    if (tools.simple is None) != (tools.complex_ is None):
        raise UsageError("--simple and --complex belong together: sentences for either end")
    loaded = _load_embedder(tools, scorer)
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
    elif scorer not in {None, "entropy"}:
        raise UsageError(
            f"--scorer {scorer} needs scores, and the log has none; give --simple and --complex, or entropy"
        )
    prompts = [row.prompt for row in labels.rows]
    return fit_unlabelled(prompts, prices, settings, scorer=seeded, signals=[signals[prompt.id] for prompt in prompts])


def _load_embedder(tools: _Tools, scorer: str | None) -> "Embedder | None":
    """Return the embedder; ``None`` where none is named.

    Raises:
        UsageError: A scorer needs one.
    """
    if tools.embedder is None:
        if tools.simple is not None or scorer in {"semantic", "learned+semantic"}:
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


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
