"""What a fit is asked for, kept together on its way, and what it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmtier.core.decision import Fallback, Objective
from llmtier.core.errors import UsageError
from llmtier.core.policy import Goal, GoalKind, Policy
from llmtier.core.requirement import Requirement
from llmtier.core.utility import UtilityWeights
from llmtier.fit.compare import Comparison
from llmtier.score.scorer import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """What the command's options say.

    Attributes:
        goal: What the policy must reach.
        seed: Of split, folds and the order of the test.
        fallback: What the policy does when no tier meets a need.
        inputs: sha256 of what was read, by name; copied into the policy.
        reference: Whose accuracy is kept; ``None`` takes the most accurate on the fit rows.
        scorer_kind: One of ``score.scorer.KINDS``.
        confidence: Of the guarantee, and of the reported intervals.
        per_domain: Whether each domain gets a gap, and a promise, of its own.
        slo: Limits that a tier must meet at least when idle to be considered.
        embedder: Digest of the embedder whose vectors are given; ``None`` without one.
        profile_digests: Tier name to digest of its profile; copied into the policy.
        weights: Of the utility; ``None`` exactly where the goal is another.

    Raises:
        UsageError: The confidence is out of range, or weights and goal do not belong together.
    """

    goal: Goal
    seed: int
    fallback: Fallback = Fallback.MOST_ACCURATE
    inputs: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None
    scorer_kind: str = "learned"
    confidence: float = 0.95
    per_domain: bool = False
    slo: Requirement = field(default_factory=Requirement)
    embedder: str | None = None
    profile_digests: Mapping[str, str] = field(default_factory=dict)
    weights: UtilityWeights | None = None

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1.0:
            raise UsageError(f"confidence must lie in [0.5, 1), got {self.confidence}; 0.95 is usual")
        is_utility = self.objective is Objective.UTILITY
        if is_utility and self.weights is None:
            raise UsageError("--objective utility needs --weights, such as accuracy=1,latency_s=0.05,usd_per_1k=0.02")
        if not is_utility and (self.weights is not None or self.fallback is Fallback.UTILITY):
            raise UsageError("--weights and --fallback utility belong to --objective utility")
        if is_utility and self.per_domain:
            raise UsageError("--per-domain is for thresholds, and --objective utility has none")

    @property
    def objective(self) -> Objective:
        """What the policy takes among the tiers that meet a need."""
        return Objective.UTILITY if self.goal.kind is GoalKind.UTILITY else Objective.CHEAPEST


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStep:
    """One rule of the path on the prompts that certify: what a threshold costs and buys.

    Attributes:
        gap: The threshold.
        share_off_reference: Of the traffic that other tiers serve.
        usd_per_request: Mean cost.
        accuracy: Mean score; ``loss`` against the reference.
        is_certified: Whether it holds with confidence; ``None`` where it was not tested.
    """

    gap: float
    share_off_reference: float
    usd_per_request: float
    accuracy: float
    loss: float
    is_certified: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPolicy:
    """What a fit returns.

    Attributes:
        policy: To be written and served.
        scorer: Its scorer; ``policy.scorer.sha256`` is the digest of ``scorer.to_bytes()``.
        comparisons: Single tiers, controls and the oracle on the judged prompts; empty without labels.
        path: What each threshold would cost and buy; empty without labels.
        n_left_out: Prompts without a score on every tier.
    """

    policy: Policy
    scorer: Scorer
    comparisons: tuple[Comparison, ...] = ()
    path: tuple[PathStep, ...] = ()
    n_left_out: int = 0
