"""What a policy would do with a log: the gain of each prompt, who would serve it, and how that compares.

Reads prompts and a fitted policy; no label. Keeps counts and gains, no text.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from llmtier.core.errors import PlanError
from llmtier.core.policy import Policy
from llmtier.fit.judge import Rule
from llmtier.fit.prices import price_by_hand

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_FAR = 0.02  # a share that moved by less is of no interest, however sure
_SURE = 3.0  # standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One prompt: the reference's gain over the cheapest tier, and who would serve it."""

    score: float
    tier: str


@dataclass(slots=True, kw_only=True)
class Audit:
    """Gathers verdicts on a log.

    Raises:
        PlanError: The policy weighs latency.

    Attributes:
        policy: What decides.
        n_by_tier: Prompts that each tier would serve.
        scores: Every gain, in the order of the prompts.
    """

    policy: Policy
    n_by_tier: dict[str, int] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    _rule: Rule = field(init=False)

    def __post_init__(self) -> None:
        weights = self.policy.weights
        if weights is not None and weights.latency_per_s > 0:
            raise PlanError(
                "the policy weighs latency, which depends on profiles and load; an audit of a log knows neither"
            )
        tiers = [tier.name for tier in self.policy.tiers]
        usd = {tier.name: tier.usd_per_request for tier in self.policy.tiers}
        self._rule = Rule(
            prices=price_by_hand(tiers, usd),
            reference=self.policy.reference,
            gap=self.policy.max_accuracy_gap,
            fallback=self.policy.fallback,
            gap_by_domain=self.policy.gap_by_domain,
            objective=self.policy.objective,
            weights=self.policy.weights,
        )
        self.n_by_tier = dict.fromkeys(tiers, 0)

    def take(self, probabilities: Mapping[str, float], *, domain: str | None) -> Verdict:
        """Judge one prompt by the code that serves, on an unloaded system."""
        cheapest = self._rule.prices.by_cost[0]
        score = probabilities[self.policy.reference] - probabilities[cheapest]
        tier = self._rule.choose({name: probabilities[name] for name in self.n_by_tier}, domain=domain)
        self.n_by_tier[tier] += 1
        self.scores.append(score)
        return Verdict(score=score, tier=tier)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the prompts that each tier would serve; empty before the first."""
        n = len(self.scores)
        return {tier: count / n for tier, count in self.n_by_tier.items()} if n else {}

    @property
    def quantiles(self) -> dict[float, float]:
        """Quantiles of the gain by level; empty before the first prompt."""
        if not self.scores:
            return {}
        return dict(zip(LEVELS, np.quantile(self.scores, LEVELS).tolist(), strict=True))

    def warnings(self) -> Iterator[str]:
        """Yield what does not look like the traffic that the policy was fitted on."""
        n = len(self.scores)
        for tier in self.policy.tiers:
            share = self.shares.get(tier.name, 0.0)
            if share == 0.0 and tier.name != self.policy.reference:
                yield f"{tier.name} would serve none of the {n:,} prompts: the rule never takes it"
            spread = math.sqrt(max(tier.share * (1 - tier.share), 1e-9) / max(n, 1))
            if abs(share - tier.share) > max(_SURE * spread, _FAR):
                yield (
                    f"{tier.name} would serve {share:.1%}, {tier.share:.1%} when the policy was fitted: the traffic is "
                    "another one, so what was promised may not hold; replay it and fit again"
                )
        if n > 1 and min(self.scores) == max(self.scores):
            yield "every prompt has the same score: the scorer tells nothing apart here"
