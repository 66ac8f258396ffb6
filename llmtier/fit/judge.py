"""Judge a rule on prompts that chose nothing: route each by ``route.decide``, compare with the reference.

Reads a scorer, prices and labelled rows; returns where each prompt goes and what it cost and
scored. Searches nothing. Means are weighted by the prompts that each row stands for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from llmtier.core.decision import Fallback, Objective
from llmtier.core.interval import Interval
from llmtier.core.policy import Judgement, PolicyTier
from llmtier.core.requirement import Requirement
from llmtier.core.utility import UtilityWeights
from llmtier.fit.prices import Prices
from llmtier.fit.rows import Rows, equal_weights
from llmtier.route.decide import decide
from llmtier.route.predict import accuracy_need
from llmtier.stats.intervals import paired_interval, wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What decides: the part of a policy that a search finds, with the prices it is replayed on.

    Attributes:
        prices: Of the policy's tiers.
        reference: One of them.
        gap: ``Policy.max_accuracy_gap``.
        fallback: As the policy will say.
        gap_by_domain: As the policy will say.
        objective: As the policy will say; with ``utility`` no gap holds.
        weights: As the policy will say.
    """

    prices: Prices
    reference: str
    gap: float | None
    fallback: Fallback
    gap_by_domain: Mapping[str, float] = field(default_factory=dict)
    objective: Objective = Objective.CHEAPEST
    weights: UtilityWeights | None = None

    def choose(self, probabilities: Mapping[str, float], *, domain: str | None = None) -> str:
        """Return the tier of one prompt on an unloaded system, by the code that serves."""
        known, need = probabilities, None
        if self.objective is Objective.CHEAPEST:
            gap = self.gap if domain is None else self.gap_by_domain.get(domain, self.gap)
            known = probabilities if gap is not None else {self.reference: probabilities[self.reference]}
            need = accuracy_need(known, reference=self.reference, max_gap=gap or 0.0)
        chosen = decide(
            Requirement(accuracy=need),
            [self.prices.offer(tier, accuracy=known.get(tier)) for tier in self.prices.by_cost],
            fallback=self.fallback,
            objective=self.objective,
            weights=self.weights,
        ).tier
        return self.reference if chosen is None else chosen  # the reference always meets its own need


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Where each judged prompt went.

    Attributes:
        reference: Name of the reference tier.
        tiers: Name of the tier of each row.
        scores: What the row scored there, shape (n,).
        reference_scores: What it would have scored on the reference, shape (n,).
        usd: What it cost there, shape (n,); likewise ``reference_usd``.
        weights: How many prompts of the traffic each row stands for, shape (n,).
    """

    reference: str
    tiers: tuple[str, ...]
    scores: NDArray[np.float64]
    reference_scores: NDArray[np.float64]
    usd: NDArray[np.float64]
    reference_usd: NDArray[np.float64]
    weights: NDArray[np.float64]

    def share(self, tier: str) -> float:
        """Return the share of the traffic that went to ``tier``."""
        return self.mean(np.array([name == tier for name in self.tiers], dtype=np.float64))

    def mean(self, values: NDArray[np.float64]) -> float:
        """Return the mean over the traffic that the rows stand for."""
        return float(np.einsum("i,i->", values, self.weights) / self.weights.sum())

    @property
    def n_effective(self) -> float:
        """How many rows of equal weight would say as much (Kish 1965)."""
        return float(self.weights.sum() ** 2 / np.square(self.weights).sum())


def route_rows(rule: Rule, rows: Rows, probabilities: Sequence[Mapping[str, float]]) -> Routed:
    """Route every row."""
    domains = [item.prompt.domain for item in rows.labelled]
    tiers = tuple(rule.choose(row, domain=domain) for row, domain in zip(probabilities, domains, strict=True))
    places = (np.arange(len(rows)), np.array([rows.tiers.index(tier) for tier in tiers], dtype=np.intp))
    return Routed(
        reference=rule.reference,
        tiers=tiers,
        scores=rows.scores[places],
        usd=rows.usd[places],
        reference_scores=rows.scores_of(rule.reference),
        reference_usd=rows.usd_of(rule.reference),
        weights=rows.weights,
    )


def summarise(routed: Routed, *, n_fit: int, confidence: float, method: str) -> Judgement:
    """Return accuracy, loss and cost with bounds."""
    losses = routed.reference_scores - routed.scores
    accuracy, loss = routed.mean(routed.scores), routed.mean(losses)
    n_effective = max(round(routed.n_effective), 1)
    # Where nothing left the reference the loss is zero by construction, not by luck.
    nothing_moved = Interval(low=0.0, high=0.0, confidence=confidence)
    return Judgement(
        n_fit=n_fit,
        n_judge=len(routed.tiers),
        accuracy=accuracy,
        accuracy_interval=wilson(accuracy * n_effective, n_effective, confidence=confidence),
        loss=loss,
        loss_interval=(
            nothing_moved
            if routed.share(routed.reference) == 1.0
            else paired_interval(equal_weights(losses, routed.weights), confidence=confidence)
        ),
        usd_per_request=routed.mean(routed.usd),
        usd_interval=_usd_interval(routed, confidence=confidence),
        reference_usd_per_request=routed.mean(routed.reference_usd),
        method=method,
    )


def _usd_interval(routed: Routed, *, confidence: float) -> tuple[float, float] | None:
    """Return Student's t interval of the mean cost, of a ratio where rows are weighted (Cochran 1977, 6.3)."""
    n = len(routed.tiers)
    if n < 2:
        return None
    from scipy.special import stdtrit  # scipy.stats would take a second to import

    mean = routed.mean(routed.usd)
    residuals = (routed.usd - mean) * routed.weights * n / routed.weights.sum()
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(residuals.std(ddof=1)) / math.sqrt(n)
    return (max(mean - half, 0.0), mean + half)


def describe_tiers(
    rule: Rule, rows: Rows, routed: Routed, profile_digests: Mapping[str, str]
) -> tuple[PolicyTier, ...]:
    """Return the policy's tiers, cheapest first, with their accuracy and share on the judged rows."""
    prices = rule.prices
    return tuple(
        PolicyTier(
            name=tier,
            checkpoint_digest=prices.profiles[tier].checkpoint_digest if tier in prices.profiles else None,
            usd_per_request=prices.usd[tier],
            accuracy=routed.mean(rows.scores_of(tier)),
            share=routed.share(tier),
            profile_digest=profile_digests.get(tier),
        )
        for tier in prices.by_cost
    )
