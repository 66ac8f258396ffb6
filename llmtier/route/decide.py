"""Choose the best tier that meets a request's need: Requirement x Offers -> Decision.

Pure. The best is the cheapest, or that of the highest utility. Every limit is written as the
condition that must hold, so an unknown value never passes one, and an unknown utility is never
the highest. Ties in utility go to the cheaper, ties in cost to the lower load, then to the name,
so that the order of the offers does not matter.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator

from llmtier.core.decision import Decision, Fallback, Miss, MissReason, Objective, Offer, Reason
from llmtier.core.requirement import Requirement
from llmtier.core.utility import UtilityWeights

_Rank = Callable[[Offer], tuple[float | str, ...]]
"""The offer of the lowest rank is the best."""


def decide(
    requirement: Requirement,
    offers: Iterable[Offer],
    *,
    fallback: Fallback = Fallback.MOST_ACCURATE,
    barred: Collection[str] = (),
    objective: Objective = Objective.CHEAPEST,
    weights: UtilityWeights | None = None,
) -> Decision:
    """Choose among ``offers``; tell every reason against each tier that could not be taken.

    Args:
        requirement: What the request needs.
        offers: One a tier.
        fallback: What happens when no tier meets the need.
        barred: Tiers that a rule of the user's forbids; the fallback takes one only when no other can be reached.
        objective: What is best among the tiers that meet the need.
        weights: Of the utility, where objective or fallback asks for it.

    Raises:
        ValueError: The utility is asked for without weights.
    """
    candidates = tuple(sorted(offers, key=lambda offer: offer.tier))
    misses = tuple(miss for offer in candidates for miss in find_misses(requirement, offer, barred))
    refused = {miss.tier for miss in misses}
    feasible = [offer for offer in candidates if offer.tier not in refused]
    if not feasible:
        return _fall_back(candidates, misses, fallback, weights)
    if objective is Objective.UTILITY:
        best, reason = min(feasible, key=_by_utility(weights)), Reason.HIGHEST_UTILITY
    else:
        best, reason = min(feasible, key=_by_cost), Reason.CHEAPEST_FEASIBLE
    return Decision(tier=best.tier, reason=reason, offers=candidates, misses=misses)


def pin(tier: str, offers: Iterable[Offer] = ()) -> Decision:
    """Return the decision for a request that names its tier."""
    return Decision(tier=tier, reason=Reason.PINNED, offers=tuple(offers))


def find_misses(requirement: Requirement, offer: Offer, barred: Collection[str] = ()) -> Iterator[Miss]:
    """Yield each limit that ``offer`` does not meet; to be barred by a rule counts as one."""
    if offer.tier in barred:
        yield Miss(tier=offer.tier, reason=MissReason.RULE)
    if not offer.is_healthy:
        yield Miss(tier=offer.tier, reason=MissReason.UNHEALTHY)
    if offer.unusable is not None:
        yield Miss(tier=offer.tier, reason=offer.unusable)
    if requirement.accuracy is not None and not _at_least(offer.accuracy, requirement.accuracy):
        yield Miss(tier=offer.tier, reason=MissReason.ACCURACY, offered=offer.accuracy, needed=requirement.accuracy)
    for reason, offered, limit in (
        (MissReason.TTFT, offer.ttft_s, requirement.ttft_s),
        (MissReason.TPOT, offer.tpot_s, requirement.tpot_s),
        (MissReason.E2EL, offer.e2el_s, requirement.e2el_s),
        (MissReason.COST, offer.usd, requirement.usd),
    ):
        if limit is not None and not _at_most(offered, limit):
            yield Miss(tier=offer.tier, reason=reason, offered=offered, needed=limit)
    if not _fits(offer.context_tokens, requirement.context_tokens):
        yield Miss(
            tier=offer.tier,
            reason=MissReason.CONTEXT,
            offered=offer.context_tokens,
            needed=requirement.context_tokens,
        )


def _fall_back(
    offers: tuple[Offer, ...], misses: tuple[Miss, ...], fallback: Fallback, weights: UtilityWeights | None
) -> Decision:
    hopeless = {miss.tier for miss in misses if miss.reason in {MissReason.UNHEALTHY, MissReason.CONTEXT}}
    barred = {miss.tier for miss in misses if miss.reason is MissReason.RULE}
    reachable = [offer for offer in offers if offer.tier not in hopeless]
    reachable = [offer for offer in reachable if offer.tier not in barred] or reachable
    if fallback is Fallback.REJECT or not reachable:
        return Decision(tier=None, reason=Reason.REJECTED, offers=offers, misses=misses)
    best = min(reachable, key=_find_rank(fallback, weights))
    return Decision(tier=best.tier, reason=Reason.FALLBACK, offers=offers, misses=misses)


def _find_rank(fallback: Fallback, weights: UtilityWeights | None) -> _Rank:
    if fallback is Fallback.UTILITY:
        return _by_utility(weights)
    return _by_accuracy if fallback is Fallback.MOST_ACCURATE else _by_speed


def _by_utility(weights: UtilityWeights | None) -> _Rank:
    if weights is None:
        raise ValueError("a utility needs weights")

    def rank(offer: Offer) -> tuple[float | str, ...]:
        value = weights.value(offer)
        return (math.inf if value is None else -value, *_by_cost(offer))

    return rank


def _by_cost(offer: Offer) -> tuple[float, int, str]:
    return (_or_worst(offer.usd), offer.n_in_flight, offer.tier)


def _by_accuracy(offer: Offer) -> tuple[float, float, str]:
    accuracy = -1.0 if offer.accuracy is None else offer.accuracy
    return (-accuracy, _or_worst(offer.usd), offer.tier)


def _by_speed(offer: Offer) -> tuple[float, float, str]:
    return (_or_worst(offer.e2el_s), _or_worst(offer.ttft_s), offer.tier)


def _or_worst(value: float | None) -> float:
    return math.inf if value is None else value


def _at_least(value: float | None, floor: float) -> bool:
    return value is not None and value >= floor


def _at_most(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit


def _fits(available: int | None, needed: int | None) -> bool:
    return available is None or needed is None or needed <= available
