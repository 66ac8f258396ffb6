"""Stage 3: labelled prompts and profiles to a policy and its scorer.

Reads values that ``store`` has read and returns values for ``store`` to write. Splits by text,
fits the scorer and finds the gap on the one part, and judges on the other with ``route.decide``.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.core.decision import Fallback
from llmtier.core.errors import PlanError, UsageError
from llmtier.core.policy import Policy, ScorerRef
from llmtier.core.profile import TierProfile
from llmtier.core.prompt import LabelledPrompt
from llmtier.fit.compare import Comparison, compare
from llmtier.fit.judge import Rule, describe_tiers, route_rows, summarise
from llmtier.fit.rows import Rows, select_rows, split_rows
from llmtier.fit.search import Candidate, FitTable, find_cheapest
from llmtier.fit.topology import tier_sets
from llmtier.score.scorer import Scorer, fit_out_of_fold

logger = logging.getLogger(__name__)

DEFAULT_SCORER_FILE = "policy.scorer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPolicy:
    """What a fit returns.

    Attributes:
        policy: To be written and served.
        scorer: Its scorer; ``policy.scorer.sha256`` is the digest of ``scorer.to_bytes()``.
        comparisons: Single tiers, controls and the oracle on the judged prompts.
        n_left_out: Prompts without a score on every tier.
    """

    policy: Policy
    scorer: Scorer
    comparisons: tuple[Comparison, ...]
    n_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """What the search was asked, kept together on its way."""

    profiles: Mapping[str, TierProfile]
    usd: Mapping[str, float]
    reference: str
    max_loss: float
    confidence: float
    fallback: Fallback


def fit_policy(  # noqa: PLR0913  # the command's options are its parameters
    labelled: Sequence[LabelledPrompt],
    profiles: Mapping[str, TierProfile],
    *,
    max_accuracy_loss: float,
    seed: int,
    fallback: Fallback,
    inputs: Mapping[str, str],
    tiers: Sequence[str] | None = None,
    reference: str | None = None,
    scorer_kind: str = "learned",
    confidence: float = 0.95,
) -> FittedPolicy:
    """Fit scorer and gap, and judge them on prompts that neither saw.

    Args:
        labelled: Prompts with scores by tier, in any order.
        profiles: By tier name; those of other tiers are ignored.
        max_accuracy_loss: Highest mean of (reference score - routed score), in [0, 1].
        seed: Of split and folds.
        fallback: What the policy does when no tier meets a need.
        inputs: sha256 of what was read, by name; copied into the policy.
        tiers: Which may serve; ``None`` takes every tier that has a score.
        reference: Whose accuracy is kept; ``None`` takes the most accurate on the fit rows.
        scorer_kind: One of ``score.scorer.KINDS``.
        confidence: One-sided for the search, two-sided for the reported intervals.

    Raises:
        UsageError: For a loss or confidence out of range, an unknown scorer or reference.
        PlanError: When a tier has no usable profile or no cost.
        InputFileError: When the labels are absent or too few.
    """
    _check_range(max_accuracy_loss, confidence)
    usd = find_costs(tiers if tiers is not None else _scored_tiers(labelled), profiles)
    by_cost = tuple(sorted(usd, key=lambda tier: (usd[tier], tier)))
    rows, n_left_out = select_rows(labelled, by_cost, profiles)
    fit_rows, judge_rows = split_rows(rows, seed=seed)
    search = _Search(
        profiles={tier: profiles[tier] for tier in by_cost},
        usd=usd,
        reference=_find_reference(reference, fit_rows, usd),
        max_loss=max_accuracy_loss,
        confidence=confidence,
        fallback=fallback,
    )
    scorer, out_of_fold = fit_out_of_fold(scorer_kind, fit_rows.labelled, by_cost, seed=seed)
    candidate = _search(search, fit_rows, out_of_fold)
    policy, comparisons = _judge(search, candidate, scorer, judge_rows, n_fit=len(fit_rows), inputs=inputs)
    logger.info("policy fitted", extra={"tiers": candidate.tiers, "gap": candidate.gap, "left_out": n_left_out})
    return FittedPolicy(policy=policy, scorer=scorer, comparisons=comparisons, n_left_out=n_left_out)


def find_costs(tiers: Sequence[str], profiles: Mapping[str, TierProfile]) -> dict[str, float]:
    """Return each tier's cost of a request.

    Raises:
        PlanError: When a tier has no profile, no valid closed loop or no price.
    """
    usd: dict[str, float] = {}
    for tier in tiers:
        profile = profiles.get(tier)
        if profile is None or not profile.closed_points:
            raise PlanError(
                f"tier {tier} has outcomes but no measured profile with a valid closed loop; "
                f"run 'llmtier profile --tier {tier}'"
            )
        if profile.cost is None:
            raise PlanError(
                f"tier {tier} has no cost: either price.usd_per_hour is not set in llmtier.yaml, or requests failed at "
                f"every load point; mend it and run 'llmtier profile --tier {tier}' again"
            )
        usd[tier] = profile.cost.usd_per_request
    return usd


def describe_method(*, max_loss: float, confidence: float) -> str:
    """Return in one line how threshold and bounds were found."""
    return (
        "gap from out-of-fold P(correct) of the fit prompts: the cheapest whose mean paired loss plus a one-sided "
        f"{confidence:.0%} normal margin (one loss added) is at most {max_loss:g}; judged once on the other prompts; "
        "no guarantee yet: the margin is approximate and ignores that many gaps were tried"
    )


def _check_range(max_accuracy_loss: float, confidence: float) -> None:
    if not 0.0 <= max_accuracy_loss <= 1.0:
        raise UsageError(f"max accuracy loss must lie in [0, 1], got {max_accuracy_loss}; 0.01 is one point")
    if not 0.5 <= confidence < 1.0:
        raise UsageError(f"confidence must lie in [0.5, 1), got {confidence}; 0.95 is usual")


def _scored_tiers(labelled: Sequence[LabelledPrompt]) -> tuple[str, ...]:
    return tuple(sorted({tier for item in labelled for tier in item.scores}))


def _find_reference(reference: str | None, rows: Rows, usd: Mapping[str, float]) -> str:
    if reference is None:
        means = rows.scores.mean(axis=0).tolist()
        return max(zip(means, (usd[tier] for tier in rows.tiers), rows.tiers, strict=True))[2]
    if reference not in rows.tiers:
        raise UsageError(f"reference tier {reference} is not among the tiers to fit: {', '.join(rows.tiers)}")
    return reference


def _search(search: _Search, rows: Rows, out_of_fold: NDArray[np.float64]) -> Candidate:
    table = FitTable(
        tiers=rows.tiers,
        usd=rows.usd,
        probabilities=out_of_fold,
        scores=rows.scores,
        reference=search.reference,
    )
    sets = tier_sets(search.profiles, search.reference)
    return find_cheapest(table, sets, max_loss=search.max_loss, confidence=search.confidence)


def _judge(
    search: _Search, candidate: Candidate, scorer: Scorer, rows: Rows, *, n_fit: int, inputs: Mapping[str, str]
) -> tuple[Policy, tuple[Comparison, ...]]:
    rule = Rule(
        profiles={tier: search.profiles[tier] for tier in candidate.tiers},
        reference=search.reference,
        gap=candidate.gap,
        fallback=search.fallback,
    )
    probabilities = [scorer.probabilities(item.prompt) for item in rows.labelled]
    routed = route_rows(rule, rows, probabilities)
    policy = Policy(
        tiers=describe_tiers(rule, rows, routed, search.usd),
        reference=search.reference,
        scorer=ScorerRef(
            kind=scorer.kind, file=DEFAULT_SCORER_FILE, sha256=hashlib.sha256(scorer.to_bytes()).hexdigest()
        ),
        max_accuracy_gap=candidate.gap,
        max_accuracy_loss=search.max_loss,
        fallback=search.fallback,
        judgement=summarise(
            routed,
            n_fit=n_fit,
            confidence=search.confidence,
            method=describe_method(max_loss=search.max_loss, confidence=search.confidence),
        ),
        inputs=dict(inputs),
    )
    return policy, compare(rows, routed)
