"""What a request's answer is worth: accuracy less latency less cost, each at a price that the user sets.

Holds the weights and the formula that the rule and the fit share. Chooses nothing.
"""

import math
from dataclasses import dataclass

from llmtier.core.decision import Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilityWeights:
    """How much each thing counts; a request's utility is in units of ``accuracy``.

    Attributes:
        accuracy: Of P(correct).
        latency_per_s: Of each second of end-to-end latency.
        cost_per_usd_1k: Of each dollar that 1,000 such requests cost.

    Raises:
        ValueError: One is negative, infinite or NaN, or all are 0.
    """

    accuracy: float = 0.0
    latency_per_s: float = 0.0
    cost_per_usd_1k: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.accuracy, self.latency_per_s, self.cost_per_usd_1k)
        if not all(0.0 <= weight < math.inf for weight in weights):
            raise ValueError(f"weights must be finite and >= 0, got {self.describe()}")
        if not any(weights):
            raise ValueError("all weights are 0; at least one must be above")

    def value(self, offer: Offer) -> float | None:
        """Return the utility of an offer; ``None`` when a term that counts is unknown."""
        burden = self.burden(e2el_s=offer.e2el_s, usd=offer.usd)
        if burden is None:
            return None
        if not self.accuracy:
            return -burden
        return None if offer.accuracy is None else self.accuracy * offer.accuracy - burden

    def burden(self, *, e2el_s: float | None, usd: float | None) -> float | None:
        """Return what latency and cost take away; ``None`` when one that counts is unknown."""
        total = 0.0
        if self.latency_per_s:
            if e2el_s is None:
                return None
            total += self.latency_per_s * e2el_s
        if self.cost_per_usd_1k:
            if usd is None:
                return None
            total += self.cost_per_usd_1k * 1000 * usd
        return total

    def describe(self) -> str:
        """Return the formula as a person would write it."""
        terms = f"{self.accuracy:g} x P(correct) - {self.latency_per_s:g} x E2EL in s"
        return f"{terms} - {self.cost_per_usd_1k:g} x $ for 1,000 requests"
