"""What ``fit-thresholds`` learned and ``serve`` obeys."""

from collections.abc import Mapping
from dataclasses import dataclass

from llmtier.core.decision import Fallback
from llmtier.core.interval import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRef:
    """A fitted scorer as a file beside the policy.

    Attributes:
        kind: ``entropy`` or ``learned``.
        file: File name, relative to the policy.
        sha256: Digest of that file.
    """

    kind: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTier:
    """One rung of the policy, as it was when fitted.

    Attributes:
        name: The tier's name.
        checkpoint_digest: Of the checkpoint whose outcomes were used; ``None`` for a URL tier.
        usd_per_request: Cost used in the search.
        accuracy: Mean score on the judging split.
        share: Share of the judging split that the policy sends here.
    """

    name: str
    checkpoint_digest: str | None
    usd_per_request: float
    accuracy: float
    share: float


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The routing rule's fitted part.

    A tier may serve a prompt while its P(correct) is at most ``max_accuracy_gap`` below the
    reference tier's; among those, ``route.decide`` takes the cheapest that meets the limits.

    Attributes:
        tiers: By ascending cost; contains ``reference``.
        reference: The tier whose accuracy is to be kept.
        scorer: Which file predicts P(correct | prompt, tier).
        max_accuracy_gap: The threshold, in [0, 1]; 0 with the reference alone in ``tiers`` is "all on the reference".
        max_accuracy_loss: The mean loss that was asked for.
        fallback: What happens when no tier meets the need.
        judgement: How it did on held-out labels.
        inputs: sha256 of the outcomes and profiles it was fitted on, by name.
    """

    tiers: tuple[PolicyTier, ...]
    reference: str
    scorer: ScorerRef
    max_accuracy_gap: float
    max_accuracy_loss: float
    fallback: Fallback
    judgement: Judgement
    inputs: Mapping[str, str]

    def __post_init__(self) -> None:
        names = [tier.name for tier in self.tiers]
        if self.reference not in names:
            raise ValueError(f"reference tier {self.reference} is not among the policy's tiers {names}")
        if len(set(names)) != len(names):
            raise ValueError(f"policy names a tier twice: {names}")
        if not 0.0 <= self.max_accuracy_gap <= 1.0:
            raise ValueError(f"max_accuracy_gap must lie in [0, 1], got {self.max_accuracy_gap}")
