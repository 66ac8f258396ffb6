"""Choose the best tier that meets a request's need: Requirement x Offers -> Decision.

Pure. The best is the cheapest, or that of the highest utility. Every limit is written as the
condition that must hold, so an unknown value never passes one, and an unknown utility is never
the highest. Ties in utility go to the cheaper, ties in cost to the lower load, then to the name,
so that the order of the offers does not matter.
"""

import math
from collections.abc import Callable, Collection, Iterable
from operator import attrgetter

from llmtier.core.decision import Decision, Fallback, Miss, MissReason, Objective, Offer, Reason
from llmtier.core.requirement import Requirement
from llmtier.core.utility import UtilityWeights

_Rank = Callable[[Offer], tuple[float | str, ...]]
"""The offer of the lowest rank is the best."""

_by_name = attrgetter("tier")


def decide(  # noqa: PLR0913  # every part of a policy that has a say
    requirement: Requirement,
    offers: Iterable[Offer],
    *,
    fallback: Fallback = Fallback.MOST_ACCURATE,
    barred: Collection[str] = (),
    objective: Objective = Objective.CHEAPEST,
    weights: UtilityWeights | None = None,
    need_accuracy: float | None = None,
) -> Decision:
    """Choose among ``offers``; tell every reason against each tier that could not be taken.

    Args:
        requirement: What the request needs.
        offers: One a tier.
        fallback: What happens when no tier meets the need.
        barred: Tiers that a rule of the user's forbids; the fallback takes one only when no other can be reached.
        objective: What is best among the tiers that meet the need.
        weights: Of the utility, where objective or fallback asks for it.
        need_accuracy: Stands in for that of ``requirement``; ``None`` leaves that in force.

    Raises:
        ValueError: The utility is asked for without weights.
    """
    candidates = tuple(sorted(offers, key=_by_name))
    misses: list[Miss] = []
    feasible: list[Offer] = []
    for offer in candidates:
        found = find_misses(requirement, offer, barred, need_accuracy)
        if found:
            misses += found
        else:
            feasible.append(offer)
    if not feasible:
        return _fall_back(candidates, tuple(misses), fallback, weights)
    if objective is Objective.UTILITY:
        best, reason = min(feasible, key=_by_utility(weights)), Reason.HIGHEST_UTILITY
    else:
        best, reason = min(feasible, key=_by_cost), Reason.CHEAPEST_FEASIBLE
    return Decision(best.tier, reason, candidates, tuple(misses))


def pin(tier: str, offers: Iterable[Offer] = ()) -> Decision:
    """Return the decision for a request that names its tier."""
    return Decision(tier=tier, reason=Reason.PINNED, offers=tuple(offers))


def find_misses(
    requirement: Requirement, offer: Offer, barred: Collection[str] = (), need_accuracy: float | None = None
) -> list[Miss]:
    """Return each limit that ``offer`` does not meet; to be barred by a rule counts as one.

    Args:
        requirement: The limits.
        offer: Of one tier.
        barred: Tiers that a rule forbids.
        need_accuracy: Stands in for that of ``requirement``; ``None`` leaves that in force.
    """
    if need_accuracy is None:
        need_accuracy = requirement.accuracy
    tier, accuracy = offer.tier, offer.accuracy
    misses: list[Miss] = []
    if barred and tier in barred:
        misses.append(Miss(tier, MissReason.RULE))
    if not offer.is_healthy:
        misses.append(Miss(tier, MissReason.UNHEALTHY))
    if offer.unusable is not None:
        misses.append(Miss(tier, offer.unusable))
    if need_accuracy is not None and not (accuracy is not None and accuracy >= need_accuracy):
        misses.append(Miss(tier, MissReason.ACCURACY, accuracy, need_accuracy))
    _add_limits(misses, requirement, offer)
    needed, fits = requirement.context_tokens, offer.context_tokens
    if needed is not None and fits is not None and not needed <= fits:
        misses.append(Miss(tier, MissReason.CONTEXT, fits, needed))
    return misses


def _add_limits(misses: list[Miss], requirement: Requirement, offer: Offer) -> None:
    """Add each limit of time or money that is not met; what is unknown meets none."""
    tier, limit, offered = offer.tier, requirement.ttft_s, offer.ttft_s
    if limit is not None and not (offered is not None and offered <= limit):
        misses.append(Miss(tier, MissReason.TTFT, offered, limit))
    limit, offered = requirement.tpot_s, offer.tpot_s
    if limit is not None and not (offered is not None and offered <= limit):
        misses.append(Miss(tier, MissReason.TPOT, offered, limit))
    limit, offered = requirement.e2el_s, offer.e2el_s
    if limit is not None and not (offered is not None and offered <= limit):
        misses.append(Miss(tier, MissReason.E2EL, offered, limit))
    limit, offered = requirement.usd, offer.usd
    if limit is not None and not (offered is not None and offered <= limit):
        misses.append(Miss(tier, MissReason.COST, offered, limit))


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
    return (math.inf if offer.usd is None else offer.usd, offer.n_in_flight, offer.tier)


def _by_accuracy(offer: Offer) -> tuple[float, float, str]:
    accuracy = -1.0 if offer.accuracy is None else offer.accuracy
    return (-accuracy, _or_worst(offer.usd), offer.tier)


def _by_speed(offer: Offer) -> tuple[float, float, str]:
    return (_or_worst(offer.e2el_s), _or_worst(offer.ttft_s), offer.tier)


def _or_worst(value: float | None) -> float:
    return math.inf if value is None else value
