"""What a replay found, as people and programs read it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.cli import output
from llmtier.core.errors import NegativeAnswerError

if TYPE_CHECKING:
    from llmtier.cli.replay_plan import Roles
    from llmtier.cli.replay_run import Findings, Said
    from llmtier.core.prompt import LabelledPrompt


def report(findings: "Findings", roles: "Roles", plan: dict[str, object], *, out: Path, is_json: bool) -> None:
    """Print each tier's weighted mean score over the rows it has one for, and what was left out.

    Raises:
        NegativeAnswerError: No answer got a score.
    """
    labelled = findings.labelled
    tiers = [tier.name for tier in roles.tiers]
    if is_json:
        output.print_json(
            {
                "schema_version": 1,
                "outcomes": str(out),
                "score_by": roles.method.value,
                "plan": plan,
                "tiers": [_tier_document(tier, labelled) for tier in tiers],
                "judge": _role_document(findings.verdicts),
                "rater": _role_document(findings.ratings),
                "missing": findings.n_missing,
            }
        )
    else:
        rows = [_tier_row(tier, labelled) for tier in tiers]
        columns = ("tier", "scored", "missing", "mean score", "mean confidence")
        output.print_table(f"Outcomes in {out}, scored by {roles.method.value}", columns, rows)
    _tell(findings)
    if not any(row.scores for row in labelled):
        raise NegativeAnswerError(f"no answer got a score; {out} holds none to fit on")


def weighted_mean(values: Mapping[str, float], labelled: "Sequence[LabelledPrompt]") -> float | None:
    """Return the mean of ``values`` (by prompt id), each row counting as often as its weight; ``None`` without any."""
    pairs = [(row.weight, values[row.prompt.id]) for row in labelled if row.prompt.id in values]
    return sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs) if pairs else None


def _tier_document(tier: str, labelled: "Sequence[LabelledPrompt]") -> dict[str, object]:
    scores = {row.prompt.id: row.scores[tier] for row in labelled if tier in row.scores}
    logprobs = {row.prompt.id: row.confidences[tier] for row in labelled if tier in row.confidences}
    return {
        "tier": tier,
        "n": len(scores),
        "missing": len(labelled) - len(scores),
        "mean_score": weighted_mean(scores, labelled),
        "mean_logprob": weighted_mean(logprobs, labelled),
    }


def _tier_row(tier: str, labelled: "Sequence[LabelledPrompt]") -> tuple[str, ...]:
    found = _tier_document(tier, labelled)
    score, logprob = found["mean_score"], found["mean_logprob"]
    return (
        tier,
        str(found["n"]),
        str(found["missing"]),
        output.percent(score if isinstance(score, float) else None),
        f"{logprob:.3f}" if isinstance(logprob, float) else "-",
    )


def _role_document(said: "Said | None") -> dict[str, int] | None:
    return None if said is None else {"n": len(said.numbers), "unreadable": said.n_unreadable}


def _tell(findings: "Findings") -> None:
    """Say on standard error what did not go into the outcomes."""
    for name, said in (("verdicts", findings.verdicts), ("ratings", findings.ratings)):
        if said is not None and said.first_unreadable is not None:
            output.say(
                f"{said.n_unreadable} of {len(said.numbers)} {name} are no number from 0 to 10 and were left out, "
                f"such as {said.first_unreadable[:60]!r}"
            )
    if findings.n_without_logprobs:
        output.say(f"{findings.n_without_logprobs} answers came without log probabilities")
