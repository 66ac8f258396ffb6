"""Judge a rule on prompts that chose nothing: route each by ``route.decide``, compare with the reference.

Reads a scorer, profiles and labelled rows; returns where each prompt goes and what it cost and
scored. Searches nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.core.decision import Fallback
from llmtier.core.interval import Interval
from llmtier.core.policy import Judgement, PolicyTier
from llmtier.core.profile import TierProfile
from llmtier.core.requirement import Requirement
from llmtier.fit.rows import Rows
from llmtier.route.decide import decide
from llmtier.route.predict import accuracy_need, predict
from llmtier.stats.intervals import paired_interval, wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What decides: the part of a policy that a search finds, with the profiles it is replayed on.

    Attributes:
        profiles: Of the policy's tiers, by name, ascending by cost.
        reference: One of them.
        gap: ``Policy.max_accuracy_gap``.
        fallback: As the policy will say.
    """

    profiles: Mapping[str, TierProfile]
    reference: str
    gap: float
    fallback: Fallback

    def choose(self, probabilities: Mapping[str, float]) -> str:
        """Return the tier of one prompt on an unloaded system, by the code that serves."""
        need = accuracy_need(probabilities, reference=self.reference, max_gap=self.gap)
        offers = [predict(profile, accuracy=probabilities[tier]) for tier, profile in self.profiles.items()]
        chosen = decide(Requirement(accuracy=need), offers, fallback=self.fallback).tier
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
    """

    reference: str
    tiers: tuple[str, ...]
    scores: NDArray[np.float64]
    reference_scores: NDArray[np.float64]
    usd: NDArray[np.float64]
    reference_usd: NDArray[np.float64]

    def share(self, tier: str) -> float:
        """Return the share of rows that went to ``tier``."""
        return self.tiers.count(tier) / len(self.tiers)


def route_rows(rule: Rule, rows: Rows, probabilities: Sequence[Mapping[str, float]]) -> Routed:
    """Route every row."""
    tiers = tuple(rule.choose(row) for row in probabilities)
    places = (np.arange(len(rows)), np.array([rows.tiers.index(tier) for tier in tiers], dtype=np.intp))
    return Routed(
        reference=rule.reference,
        tiers=tiers,
        scores=rows.scores[places],
        usd=rows.usd[places],
        reference_scores=rows.scores_of(rule.reference),
        reference_usd=rows.usd_of(rule.reference),
    )


def summarise(routed: Routed, *, n_fit: int, confidence: float, method: str) -> Judgement:
    """Return accuracy, loss and cost with bounds."""
    losses = routed.reference_scores - routed.scores
    n = len(routed.tiers)
    # Where nothing left the reference the loss is zero by construction, not by luck.
    nothing_moved = Interval(low=0.0, high=0.0, confidence=confidence)
    return Judgement(
        n_fit=n_fit,
        n_judge=n,
        accuracy=float(routed.scores.mean()),
        accuracy_interval=wilson(float(routed.scores.sum()), n, confidence=confidence),
        loss=float(losses.mean()),
        loss_interval=(
            nothing_moved if routed.share(routed.reference) == 1.0 else paired_interval(losses, confidence=confidence)
        ),
        usd_per_request=float(routed.usd.mean()),
        reference_usd_per_request=float(routed.reference_usd.mean()),
        method=method,
    )


def describe_tiers(rule: Rule, rows: Rows, routed: Routed, usd: Mapping[str, float]) -> tuple[PolicyTier, ...]:
    """Return the policy's tiers with their accuracy and share on the judged rows."""
    return tuple(
        PolicyTier(
            name=tier,
            checkpoint_digest=profile.checkpoint_digest,
            usd_per_request=usd[tier],
            accuracy=float(rows.scores_of(tier).mean()),
            share=routed.share(tier),
        )
        for tier, profile in rule.profiles.items()
    )
