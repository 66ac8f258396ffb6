"""``llmtier audit``: what a policy would do with a log of any length, without asking an engine.

Reads prompts and a policy with its scorer; writes one row a prompt and prints shares and warnings.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import fit_inputs as inputs
from llmtier.cli import output
from llmtier.cli.options import ForceOption, JsonOption
from llmtier.core.errors import PlanError

if TYPE_CHECKING:
    from llmtier.core.policy import Policy
    from llmtier.core.prompt import Prompt
    from llmtier.engine.embedder import Embedder
    from llmtier.fit.audit import Audit
    from llmtier.score.scorer import Scorer
    from llmtier.score.signals import Signals
    from llmtier.store.scored import ScoredWriter

POLICY = Path("policy.json")


def audit(
    log: Annotated[Path, typer.Argument(help="Prompts: a log, or a folder of traffic logs; Parquet, JSONL or CSV.")],
    policy: Annotated[Path, typer.Option(help="Policy file.")] = POLICY,
    out: Annotated[Path | None, typer.Option("--output", "-o", help="Scored prompts, a .parquet.")] = None,
    embedder: Annotated[Path | None, typer.Option(help="The embedder that the policy was fitted with.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="ours=theirs, such as prompt=question.")] = None,
    force: ForceOption = False,
    is_json: JsonOption = False,
) -> None:
    """Say what a policy would do with a log.

    Example: llmtier audit traffic/ --policy policy.json -o scored.parquet
    """
    from llmtier.fit.audit import Audit
    from llmtier.score.scorer import load_scorer
    from llmtier.store.policies import read_policy, read_scorer_state
    from llmtier.store.prompts import stream_prompts
    from llmtier.store.scored import ScoredWriter

    if out is not None:
        inputs.refuse_overwrite(out, is_forced=force)
    found = read_policy(policy)
    scorer = load_scorer(found.scorer.kind, read_scorer_state(policy, found))
    seen = Audit(policy=found)
    judge = _Judge(seen, scorer, embedder=embedder)
    prompts = stream_prompts(log, columns=inputs.parse_columns(column or []))
    if out is None:
        _consume(prompts, judge, None)
    else:
        with ScoredWriter(out, [tier.name for tier in found.tiers]) as writer:
            _consume(prompts, judge, writer)
    if is_json:
        output.print_json(as_document(seen, out=out))
    else:
        show(seen, out=out)


class _Judge:
    """Scores prompts and routes them."""

    def __init__(self, seen: "Audit", scorer: "Scorer", *, embedder: Path | None) -> None:
        from llmtier.score.signals import Signal

        self.seen = seen
        self.scorer = scorer
        self.embed = _load(seen.policy, embedder) if Signal.EMBEDDING in scorer.reads else None

    def signals_of(self, prompt: "Prompt") -> "Signals":
        from llmtier.score.signals import NO_SIGNALS, Signals
        from llmtier.score.text import scored_text

        return NO_SIGNALS if self.embed is None else Signals(embedding=self.embed.embed(scored_text(prompt)))


def _load(policy: "Policy", folder: Path | None) -> "Embedder":
    """Load the embedder that the policy's scorer was fitted with.

    Raises:
        PlanError: None is named, or it is another one.
    """
    from llmtier.engine.embedder import load_embedder

    if folder is None:
        raise PlanError(f"the policy's scorer {policy.scorer.kind} reads embeddings: name its embedder with --embedder")
    found = load_embedder(folder)
    if found.digest != policy.scorer.embedder:
        raise PlanError(f"{folder} is not the embedder that the policy was fitted with")
    return found


def _consume(prompts: "Iterator[Prompt]", judge: _Judge, writer: "ScoredWriter | None") -> None:
    from llmtier.store.scored import ScoredPrompt

    names = list(judge.seen.n_by_tier)
    for prompt in prompts:
        probabilities = judge.scorer.probabilities(prompt, judge.signals_of(prompt))
        verdict = judge.seen.take(probabilities, domain=prompt.domain)
        if writer is not None:
            own = {name: probabilities[name] for name in names}
            writer.append(
                ScoredPrompt(prompt=prompt.last_user_text, score=verdict.score, tier=verdict.tier, probabilities=own)
            )


def as_document(seen: "Audit", *, out: Path | None) -> dict[str, object]:
    """Return the audit as one JSON-ready document."""
    return {
        "schema_version": 1,
        "scored": None if out is None else str(out),
        "n": len(seen.scores),
        "shares": seen.shares,
        "shares_when_fitted": {tier.name: tier.share for tier in seen.policy.tiers},
        "score_quantiles": {f"{level:g}": value for level, value in seen.quantiles.items()},
        "max_accuracy_gap": seen.policy.max_accuracy_gap,
        "warnings": list(seen.warnings()),
    }


def describe_rule(policy: "Policy") -> str:
    """Return what decides, in one line."""
    if policy.weights is not None:
        return f"rule: highest utility, {policy.weights.describe()}"
    gap = policy.max_accuracy_gap
    return "threshold: " + ("none, all on the reference" if gap is None else f"{gap:.4f}")


def show(seen: "Audit", *, out: Path | None) -> None:
    """Print who would serve how much, how the gains lie, and warnings."""
    rows = [
        (
            tier.name,
            f"{seen.n_by_tier[tier.name]:,}",
            output.percent(seen.shares.get(tier.name)),
            output.percent(tier.share),
        )
        for tier in seen.policy.tiers
    ]
    output.print_table(f"{len(seen.scores):,} prompts", ("tier", "prompts", "share", "when fitted"), rows)
    placed = ", ".join(f"p{100 * level:g} {value:+.3f}" for level, value in seen.quantiles.items())
    typer.echo(f"gain of {seen.policy.reference} over the cheapest tier: {placed}")
    typer.echo(describe_rule(seen.policy))
    for warning in seen.warnings():
        output.say(f"warning: {warning}")
    if out is not None:
        output.say(f"wrote {out}")
