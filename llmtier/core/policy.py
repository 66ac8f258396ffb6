"""What ``fit-thresholds`` learned and ``serve`` obeys."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from llmtier.core.decision import Fallback, Objective
from llmtier.core.interval import Interval
from llmtier.core.utility import UtilityWeights


class GoalKind(StrEnum):
    """What a policy was asked to reach; the rest is as cheap, or as accurate, as that allows."""

    MAX_ACCURACY_LOSS = "max_accuracy_loss"
    MIN_ACCURACY = "min_accuracy"
    BUDGET_USD_PER_1K = "budget_usd_per_1k"
    TARGET_SHARES = "target_shares"
    DEFAULT_THRESHOLDS = "default_thresholds"
    UTILITY = "utility"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What was asked for.

    Attributes:
        kind: Which of the goals.
        value: The loss or accuracy, in [0, 1], or dollars for 1,000 requests; ``None`` for the other kinds.
        shares: Tier name to share of the traffic, summing to 1, for ``TARGET_SHARES``; else empty.

    Raises:
        ValueError: The value is out of range, or shares do not sum to 1.
    """

    kind: GoalKind
    value: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind in {GoalKind.MAX_ACCURACY_LOSS, GoalKind.MIN_ACCURACY}:
            if self.value is None or not 0.0 <= self.value <= 1.0:
                raise ValueError(f"{self.kind.value} must lie in [0, 1], got {self.value}; 0.01 is one point")
        elif self.kind is GoalKind.BUDGET_USD_PER_1K:
            if self.value is None or not 0.0 <= self.value < math.inf:
                raise ValueError(f"budget_usd_per_1k must be >= 0, got {self.value}")
        elif self.kind is GoalKind.TARGET_SHARES:
            total = sum(self.shares.values())
            if not (abs(total - 1.0) <= 0.001 and all(share >= 0 for share in self.shares.values())):
                raise ValueError(f"target shares must be >= 0 and sum to 1, they sum to {total:g}")

    def describe(self) -> str:
        """Return it as a person would say it."""
        match self.kind:
            case GoalKind.MAX_ACCURACY_LOSS:
                return f"accuracy loss of at most {self.value:g}"
            case GoalKind.MIN_ACCURACY:
                return f"accuracy of at least {self.value:g}"
            case GoalKind.BUDGET_USD_PER_1K:
                return f"at most ${self.value:g} for 1,000 requests"
            case GoalKind.TARGET_SHARES:
                return "shares " + ", ".join(f"{tier} {share:.0%}" for tier, share in self.shares.items())
            case GoalKind.DEFAULT_THRESHOLDS:
                return "default thresholds"
            case GoalKind.UTILITY:
                return "highest utility"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What holds with a stated confidence, and of what.

    Attributes:
        statement: In one sentence.
        max_loss: Highest mean of (reference score - routed score) that holds; ``None`` where a floor is promised.
        min_accuracy: Lowest mean score that holds; ``None`` where a loss is promised.
        confidence: With which it holds over draws of the labels.
        n_labels: Prompts that certified it; ``n_units`` of them are independent.
        n_units: Groups of prompts that do not resemble each other.
        method: The test.
        population: What it speaks of.
    """

    statement: str
    max_loss: float | None
    min_accuracy: float | None
    confidence: float
    n_labels: int
    n_units: int
    method: str
    population: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRef:
    """A fitted scorer as a file beside the policy.

    Attributes:
        kind: One of ``score.scorer.KINDS``.
        file: File name, relative to the policy.
        sha256: Digest of that file.
        embedder: Digest of the embedder whose vectors it was fitted on; ``None`` when it reads none.
    """

    kind: str
    file: str
    sha256: str
    embedder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTier:
    """One rung of the policy, as it was when fitted.

    Attributes:
        name: The tier's name.
        checkpoint_digest: Of the checkpoint whose outcomes were used; ``None`` for a URL tier.
        usd_per_request: Cost used in the search.
        accuracy: Mean score on the judging split; ``None`` without labels.
        share: Share of the judging split that the policy sends here.
        profile_digest: Of the profile whose costs were used; ``None`` when costs were given by hand.
    """

    name: str
    checkpoint_digest: str | None
    usd_per_request: float
    accuracy: float | None
    share: float
    profile_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How the policy did on labelled prompts that chose nothing.

    Attributes:
        n_fit: Prompts that fitted scorer and threshold.
        n_judge: Prompts of the judging split.
        accuracy: Mean score of the routed answers.
        accuracy_interval: Bounds of ``accuracy``.
        loss: Mean of (reference score - routed score), in [-1, 1].
        loss_interval: Bounds of ``loss``.
        usd_per_request: Mean cost of the routed prompts.
        usd_interval: Bounds of it; ``None`` for fewer than two prompts.
        reference_usd_per_request: The same with everything on the reference tier.
        method: How threshold and bounds were found, in one line.
    """

    n_fit: int
    n_judge: int
    accuracy: float
    accuracy_interval: Interval
    loss: float
    loss_interval: Interval
    usd_per_request: float
    reference_usd_per_request: float
    method: str
    usd_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The routing rule's fitted part.

    A tier may serve a prompt while its P(correct) is at most ``max_accuracy_gap`` below the
    reference tier's; among those, ``route.decide`` takes the cheapest that meets the limits. With
    the objective ``utility`` there is no gap: it takes the highest utility of all that meet them.

    Attributes:
        tiers: By ascending cost; contains ``reference``.
        reference: The tier whose accuracy is to be kept.
        scorer: Which file predicts P(correct | prompt, tier).
        max_accuracy_gap: The threshold, in [0, 1]; ``None`` sends everything to the reference, as does 0 where it is
            alone in ``tiers``; 1, which bars nothing, where the objective is ``utility``.
        goal: What was asked for.
        guarantee: What holds with confidence; ``None`` means no guarantee.
        fallback: What happens when no tier meets the need.
        judgement: How it did on held-out labels; ``None`` when there were none.
        inputs: sha256 of the outcomes and profiles it was fitted on, by name.
        gap_by_domain: Gaps of domains that have their own; the others take ``max_accuracy_gap``.
        labels_needed: Labels in all that would probably allow a cheaper policy; ``None`` when unknown or not needed.
        warnings: What the fit found odd, one line each.
        objective: What is best among the tiers that meet the need.
        weights: Of the utility; ``None`` exactly where the objective is another.
    """

    tiers: tuple[PolicyTier, ...]
    reference: str
    scorer: ScorerRef
    max_accuracy_gap: float | None
    goal: Goal
    fallback: Fallback
    judgement: Judgement | None
    inputs: Mapping[str, str]
    guarantee: Guarantee | None = None
    gap_by_domain: Mapping[str, float] = field(default_factory=dict)
    labels_needed: int | None = None
    warnings: tuple[str, ...] = ()
    objective: Objective = Objective.CHEAPEST
    weights: UtilityWeights | None = None

    def __post_init__(self) -> None:
        names = [tier.name for tier in self.tiers]
        if self.reference not in names:
            raise ValueError(f"reference tier {self.reference} is not among the policy's tiers {names}")
        if len(set(names)) != len(names):
            raise ValueError(f"policy names a tier twice: {names}")
        if self.max_accuracy_gap is not None and not 0.0 <= self.max_accuracy_gap <= 1.0:
            raise ValueError(f"max_accuracy_gap must lie in [0, 1], got {self.max_accuracy_gap}")
        if any(not 0.0 <= gap <= 1.0 for gap in self.gap_by_domain.values()):
            raise ValueError(f"gaps must lie in [0, 1], got {dict(self.gap_by_domain)}")
        if (self.objective is Objective.UTILITY) != (self.weights is not None):
            raise ValueError(f"objective {self.objective.value}: weights belong to utility, which cannot do without")
        if self.fallback is Fallback.UTILITY and self.weights is None:
            raise ValueError("fallback utility needs the objective utility, whose weights it takes")

    def gap_of(self, domain: str | None) -> float | None:
        """Return the gap that holds for a request of ``domain``; ``None`` sends it to the reference."""
        return self.max_accuracy_gap if domain is None else self.gap_by_domain.get(domain, self.max_accuracy_gap)
