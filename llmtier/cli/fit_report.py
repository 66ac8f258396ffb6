"""How a fitted policy is shown: as one JSON document, or as tables and sentences on a terminal."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmtier.cli import output

if TYPE_CHECKING:
    from llmtier.core.policy import Judgement, Policy
    from llmtier.fit.settings import FittedPolicy

_MAX_STEPS_SHOWN = 12


def as_document(fitted: "FittedPolicy", *, out: Path) -> dict[str, object]:
    """Return the fit as one JSON-ready document."""
    policy = fitted.policy
    return {
        "schema_version": 1,
        "policy": str(out),
        "goal": asdict(policy.goal),
        "objective": policy.objective.value,
        "weights": None if policy.weights is None else asdict(policy.weights),
        "guarantee": None if policy.guarantee is None else asdict(policy.guarantee),
        "reference": policy.reference,
        "max_accuracy_gap": policy.max_accuracy_gap,
        "gap_by_domain": dict(policy.gap_by_domain),
        "tiers": [asdict(tier) for tier in policy.tiers],
        "judgement": None if policy.judgement is None else asdict(policy.judgement),
        "comparisons": [asdict(comparison) for comparison in fitted.comparisons],
        "path": [asdict(step) for step in fitted.path],
        "labels_needed": policy.labels_needed,
        "warnings": list(policy.warnings),
        "n_left_out": fitted.n_left_out,
    }


def show(fitted: "FittedPolicy", *, out: Path) -> None:
    """Print how the policy did beside single tiers, controls and the oracle, and what it promises."""
    policy = fitted.policy
    if policy.judgement is not None:
        rows = [
            (c.name, output.percent(c.accuracy), output.dollars(1000 * c.usd_per_request)) for c in fitted.comparisons
        ]
        judged = policy.judgement
        title = f"On {judged.n_judge} prompts that chose nothing (fitted on {judged.n_fit})"
        output.print_table(title, ("served by", "accuracy", "$/1k requests"), rows)
        show_path(fitted)
    for line in summary(policy):
        typer.echo(line)
    for warning in policy.warnings:
        output.say(f"warning: {warning}")
    if fitted.n_left_out:
        output.say(f"left out {fitted.n_left_out} prompts that lack a score on some tier")
    output.say(f"wrote {out}")


def show_path(fitted: "FittedPolicy") -> None:
    """Print what each threshold costs and buys, thinned to a screenful."""
    steps = fitted.path
    if len(steps) < 2:
        return
    stride = -(-len(steps) // _MAX_STEPS_SHOWN)
    chosen = fitted.policy.max_accuracy_gap
    kept = [step for index, step in enumerate(steps) if index % stride == 0 or step.gap == chosen]
    words = {True: "yes", False: "no", None: ""}
    rows = [
        (
            ("> " if step.gap == chosen else "") + f"{step.gap:.4f}",
            output.percent(step.share_off_reference),
            output.percent(step.accuracy),
            f"{step.loss:+.4f}",
            output.dollars(1000 * step.usd_per_request),
            words[step.is_certified],
        )
        for step in kept
    ]
    columns = ("gap", "off the reference", "accuracy", "loss", "$/1k requests", "certified")
    output.print_table("What each threshold costs and buys", columns, rows)


def summary(policy: "Policy") -> Iterator[str]:
    """Yield the sentences of the report."""
    from llmtier.fit.warn import lacking_labels

    yield "shares: " + ", ".join(f"{tier.name} {output.percent(tier.share)}" for tier in policy.tiers)
    if policy.judgement is not None:
        yield from _figures(policy, policy.judgement)
    if policy.guarantee is not None:
        yield f"guarantee: {policy.guarantee.statement}"
        yield f"it speaks of {policy.guarantee.population}"
    else:
        yield "no guarantee"
    if policy.weights is not None:
        yield f"each prompt goes where this is highest: {policy.weights.describe()}"
    if len(policy.tiers) == 1:
        why = "no cheaper way is certain enough of" if policy.weights is None else "no other tier helps towards"
        yield f"everything goes to {policy.reference}: {why}: {policy.goal.describe()}"
    lacking = lacking_labels(policy)
    if lacking is not None:
        yield lacking


def _figures(policy: "Policy", judged: "Judgement") -> Iterator[str]:
    bounds = judged.loss_interval
    yield (
        f"accuracy lost: {judged.loss:.4f}, {bounds.confidence:.0%} interval {bounds.low:.4f} to {bounds.high:.4f}; "
        f"asked: {policy.goal.describe()}"
    )
    dear = judged.reference_usd_per_request
    saved = 1 - judged.usd_per_request / dear if dear else None
    spread = ""
    if judged.usd_interval is not None:
        low, high = judged.usd_interval
        spread = f", {output.dollars(1000 * low)} to {output.dollars(1000 * high)}"
    yield (
        f"cost: {output.dollars(1000 * judged.usd_per_request)} for 1,000 requests{spread}; "
        f"saved: {output.percent(saved)} against all on {policy.reference}"
    )
    yield f"method: {judged.method}"
