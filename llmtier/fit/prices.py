"""What a request costs on each tier: from profiles, at the rate that still meets the SLOs, or given by hand.

Reads profiles, and counts of re-asks; decides nothing. A row's own cost follows its output tokens where the outcomes tell
them; what its re-asks would cost comes on top.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmtier.core.decision import Miss, Offer
from llmtier.core.errors import PlanError, UsageError
from llmtier.core.profile import TierProfile
from llmtier.core.requirement import Requirement
from llmtier.fit.retries import Retries, TierRetries
from llmtier.route.decide import find_misses
from llmtier.route.predict import predict, request_usd

PRIOR_REQUESTS = 20.0
"""Weight of the pooled rate of re-asks in that of a tier: this many requests of it are believed as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """The tiers that may serve, and what they cost.

    Attributes:
        usd: Tier name to dollars of a request, by which the gateway decides.
        profiles: Tier name to profile; empty when costs were given by hand.
        retry_usd: Tier name to what the re-asks after a request cost; 0 where absent. The gateway knows nothing of
            it: it counts where tiers and thresholds are chosen and judged, and changes no order of tiers.
    """

    usd: Mapping[str, float]
    profiles: Mapping[str, TierProfile] = field(default_factory=dict)
    retry_usd: Mapping[str, float] = field(default_factory=dict)

    @property
    def by_cost(self) -> tuple[str, ...]:
        """The tiers, cheapest first."""
        return tuple(sorted(self.usd, key=lambda tier: (self.usd[tier], tier)))

    def usd_of(self, tier: str, output_tokens: int | None) -> float:
        """Return what one request costs with its re-asks, by its output tokens where those are known and priced."""
        return self._own_usd(tier, output_tokens) + self.retry_usd.get(tier, 0.0)

    def _own_usd(self, tier: str, output_tokens: int | None) -> float:
        profile = self.profiles.get(tier)
        mean = self.usd[tier]
        if profile is None or profile.cost is None or output_tokens is None or not profile.cost.usd_per_request:
            return mean
        own = request_usd(profile, output_tokens)
        return mean if own is None else own * mean / profile.cost.usd_per_request

    def offer(self, tier: str, *, accuracy: float | None) -> Offer:
        """Return what an unloaded tier would do."""
        profile = self.profiles.get(tier)
        if profile is None:
            return Offer(tier=tier, accuracy=accuracy, usd=self.usd[tier])
        return predict(profile, accuracy=accuracy)


def price_profiles(tiers: Sequence[str], profiles: Mapping[str, TierProfile]) -> Prices:
    """Return each tier's cost of a request, at its goodput capacity where that was searched for.

    Raises:
        PlanError: A tier has no profile, no valid closed loop or no price.
    """
    usd = {tier: _price(tier, profiles.get(tier)) for tier in tiers}
    return Prices(usd=usd, profiles={tier: profiles[tier] for tier in tiers})


def price_by_hand(tiers: Sequence[str], usd: Mapping[str, float]) -> Prices:
    """Return costs as the user gave them.

    Raises:
        UsageError: A tier has none, or one is negative or no number.
    """
    missing = [tier for tier in tiers if tier not in usd]
    if missing:
        raise UsageError(f"no cost of {', '.join(missing)}; give one of each tier: --costs small=1,large=10")
    for tier, value in usd.items():
        if not 0.0 <= value < math.inf:
            raise UsageError(f"cost of {tier} must be >= 0, got {value}")
    return Prices(usd={tier: usd[tier] for tier in tiers})


def find_slo_misses(prices: Prices, slo: Requirement) -> dict[str, tuple[Miss, ...]]:
    """Return, for each tier that cannot meet the limits even when idle, why."""
    found = {tier: tuple(find_misses(slo, prices.offer(tier, accuracy=None))) for tier in prices.usd if prices.profiles}
    return {tier: misses for tier, misses in found.items() if misses}


def only(prices: Prices, tiers: Sequence[str]) -> Prices:
    """Return the prices of some of the tiers."""
    kept = set(tiers)
    return Prices(
        usd={tier: value for tier, value in prices.usd.items() if tier in kept},
        profiles={tier: profile for tier, profile in prices.profiles.items() if tier in kept},
        retry_usd={tier: value for tier, value in prices.retry_usd.items() if tier in kept},
    )


def with_retries(prices: Prices, retries: Retries) -> Prices:
    """Return prices whose requests pay for the re-asks that follow them.

    A request on tier t costs usd_t + P_t c_t. P_t = (k_t + m P) / (n_t + m) is the posterior mean of a Beta
    prior worth m = ``PRIOR_REQUESTS`` requests at the pooled rate P = K / N, k_t of the n_t requests of t having been
    asked again (empirical Bayes: Efron & Morris 1975; Casella 1985), so that a tier seen ten times is not judged by one
    re-ask. c_t is the mean price of the tiers that served these re-asks, of all re-asks where t has none. A re-ask's own
    re-asks are charged to it, not to t. Re-asks on tiers without a price count in P, not in c.

    It is a cost to choose by: over a log that holds the re-asks as rows of their own, its sum has them twice.
    """
    known = {tier: retries.tiers[tier] for tier in prices.usd if tier in retries.tiers}
    n_served = sum(tier.n_served for tier in known.values())
    pooled_usd = _mean_usd(known.values(), prices)
    if n_served == 0 or pooled_usd is None:
        return prices
    pooled = sum(tier.n_retried for tier in known.values()) / n_served
    charges: dict[str, float] = {}
    for tier in prices.usd:
        seen = known.get(tier, TierRetries(n_served=0))
        rate = (seen.n_retried + PRIOR_REQUESTS * pooled) / (seen.n_served + PRIOR_REQUESTS)
        own_usd = _mean_usd([seen], prices)
        charges[tier] = rate * (pooled_usd if own_usd is None else own_usd)
    return replace(prices, retry_usd=charges)


def _mean_usd(tiers: Iterable[TierRetries], prices: Prices) -> float | None:
    """Return the mean price of the tiers that served the re-asks after these; ``None`` where none has a price."""
    priced = [(prices.usd[on], n) for tier in tiers for on, n in tier.asked_again_on.items() if on in prices.usd]
    n_priced = sum(n for _, n in priced)
    return sum(usd * n for usd, n in priced) / n_priced if n_priced else None


def _price(tier: str, profile: TierProfile | None) -> float:
    if profile is None or not profile.closed_points:
        raise PlanError(
            f"tier {tier} has outcomes but no measured profile with a valid closed loop; "
            f"run 'llmtier profile --tier {tier}', or give --costs"
        )
    if profile.cost is None:
        raise PlanError(
            f"tier {tier} has no cost: either price.usd_per_hour is not set in llmtier.yaml, or requests failed at "
            f"every load point; mend it and run 'llmtier profile --tier {tier}' again, or give --costs"
        )
    if profile.goodput_rps:
        return profile.cost.usd_per_hour / 3600.0 / profile.goodput_rps
    return profile.cost.usd_per_request
