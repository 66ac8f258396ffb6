"""``llmtier fit-thresholds``: fit the router on outcomes and profiles, and judge it on prompts that chose nothing.

Reads outcomes files and profiles; writes ``policy.json`` and the fitted scorer beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import ForceOption, JsonOption, SeedOption
from llmtier.core.decision import Fallback
from llmtier.core.errors import UsageError

if TYPE_CHECKING:
    from llmtier.core.policy import Policy
    from llmtier.fit.compare import Comparison


def fit_thresholds(
    outcomes: Annotated[list[Path], typer.Argument(help="Outcomes files of 'llmtier replay', Parquet or JSONL.")],
    profiles: Annotated[Path, typer.Option(help="Folder that 'llmtier profile' wrote.")] = Path("profiles"),
    out: Annotated[Path, typer.Option("--output", "-o", help="Policy file.")] = Path("policy.json"),
    max_accuracy_loss: Annotated[
        float, typer.Option(help="Mean score that may be lost against the reference.", min=0, max=1)
    ] = 0.01,
    reference: Annotated[
        str | None, typer.Option(help="Tier whose accuracy is to be kept; default: the most accurate.")
    ] = None,
    tiers: Annotated[str | None, typer.Option(help="Only these tiers, separated by commas.")] = None,
    scorer: Annotated[str, typer.Option(help="learned or entropy.")] = "learned",
    confidence: Annotated[float, typer.Option(help="Confidence of margin and intervals.", min=0.5, max=0.999)] = 0.95,
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
    from llmtier.cli.provenance import digest_inputs, make_provenance
    from llmtier.engine.hardware import detect_hardware
    from llmtier.fit.run import fit_policy
    from llmtier.store.outcomes import read_outcomes
    from llmtier.store.policies import write_policy
    from llmtier.store.profiles import read_profiles

    if out.exists() and not force:
        raise UsageError(f"{out} exists; choose another --output, or --force to overwrite it")
    labelled = read_outcomes(outcomes)
    here = detect_hardware()
    inputs = digest_inputs(*outcomes)
    fitted = fit_policy(
        labelled,
        read_profiles(profiles, hardware or here.slug),
        tiers=None if tiers is None else [name.strip() for name in tiers.split(",")],
        reference=reference,
        scorer_kind=scorer,
        max_accuracy_loss=max_accuracy_loss,
        confidence=confidence,
        seed=seed,
        fallback=fallback,
        inputs=inputs,
    )
    provenance = make_provenance(hardware=here, seed=seed, inputs=inputs)
    policy = write_policy(out, fitted.policy, fitted.scorer.to_bytes(), provenance=provenance)
    if is_json:
        output.print_json(as_document(policy, fitted.comparisons, out=out))
    else:
        show(policy, fitted.comparisons, out=out)
    if fitted.n_left_out:
        output.say(f"left out {fitted.n_left_out} prompts that lack a score on some tier")


def as_document(policy: "Policy", comparisons: "Sequence[Comparison]", *, out: Path) -> dict[str, object]:
    """Return the fit as one JSON-ready document."""
    from dataclasses import asdict

    return {
        "schema_version": 1,
        "policy": str(out),
        "reference": policy.reference,
        "max_accuracy_gap": policy.max_accuracy_gap,
        "tiers": [asdict(tier) for tier in policy.tiers],
        "judgement": asdict(policy.judgement),
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }


def show(policy: "Policy", comparisons: "Sequence[Comparison]", *, out: Path) -> None:
    """Print how the policy did beside single tiers, controls and the oracle."""
    judged = policy.judgement
    rows = [(c.name, output.percent(c.accuracy), output.dollars(1000 * c.usd_per_request)) for c in comparisons]
    title = f"On {judged.n_judge} prompts that chose nothing (fitted on {judged.n_fit})"
    output.print_table(title, ("served by", "accuracy", "$/1k requests"), rows)
    shares = ", ".join(f"{tier.name} {output.percent(tier.share)}" for tier in policy.tiers)
    loss, bounds = judged.loss, judged.loss_interval
    saved = 1 - judged.usd_per_request / judged.reference_usd_per_request if judged.reference_usd_per_request else None
    typer.echo(f"shares: {shares}")
    typer.echo(
        f"accuracy lost: {loss:.4f}, {bounds.confidence:.0%} interval {bounds.low:.4f} to {bounds.high:.4f}; asked: {policy.max_accuracy_loss:g}"
    )
    typer.echo(f"cost saved: {output.percent(saved)} against all on {policy.reference}")
    if len(policy.tiers) == 1:
        typer.echo(
            f"everything goes to {policy.reference}: no cheaper way kept the loss within {policy.max_accuracy_loss:g}"
        )
    typer.echo(f"method: {judged.method}")
    output.say(f"wrote {out}")
