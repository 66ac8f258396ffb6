"""Laws of the routing rule when the highest utility decides."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import Fallback, MissReason, Objective, Offer, Reason
from llmtier.core.requirement import Requirement
from llmtier.core.utility import UtilityWeights
from llmtier.route.decide import decide, find_misses

# Multiples of a power of two: sums and products are exact, so that equal utilities are equal numbers.
amounts = st.integers(0, 64).map(lambda number: number / 64)
whole = st.integers(0, 8).map(float)
weights = st.tuples(whole, whole, whole).filter(any)
offers = st.lists(
    st.builds(
        Offer,
        tier=st.sampled_from("abcdef"),
        accuracy=st.none() | amounts,
        usd=st.none() | amounts,
        ttft_s=st.none() | amounts,
        e2el_s=st.none() | amounts,
        n_in_flight=st.integers(0, 3),
        is_healthy=st.sampled_from([True, True, False]),
        unusable=st.none() | st.just(MissReason.NO_PROFILE),
    ),
    unique_by=lambda offer: offer.tier,
)
requirements = st.builds(Requirement, ttft_s=st.none() | amounts, accuracy=st.none() | amounts)
fallbacks = st.sampled_from(Fallback)


def make(parts, scale=1.0):
    accuracy, latency, cost = (scale * part for part in parts)
    return UtilityWeights(accuracy=accuracy, latency_per_s=latency, cost_per_usd_1k=cost)


def best(requirement, candidates, parts, *, fallback=Fallback.UTILITY, scale=1.0):
    return decide(requirement, candidates, fallback=fallback, objective=Objective.UTILITY, weights=make(parts, scale))


def known(value):
    return -math.inf if value is None else value


@given(requirements, offers, weights, fallbacks)
def test_no_tier_that_meets_the_need_is_worth_more(requirement, candidates, parts, fallback):
    decision = best(requirement, candidates, parts, fallback=fallback)
    values = {offer.tier: known(make(parts).value(offer)) for offer in candidates}
    feasible = [offer.tier for offer in candidates if not list(find_misses(requirement, offer))]

    assert (decision.reason is Reason.HIGHEST_UTILITY) == bool(feasible)
    if feasible:
        assert decision.tier in feasible
        assert values[decision.tier] == max(values[tier] for tier in feasible)


@given(requirements, offers, weights)
def test_the_fallback_takes_the_highest_utility_that_can_be_reached(requirement, candidates, parts):
    decision = best(dataclasses.replace(requirement, usd=0.0, tpot_s=0.0), candidates, parts)
    reachable = {offer.tier: known(make(parts).value(offer)) for offer in candidates if offer.is_healthy}

    if decision.reason is Reason.FALLBACK:
        assert reachable[decision.tier] == max(reachable.values())
    else:
        assert (decision.tier is None) == (not reachable)


@given(requirements, offers, weights, st.integers(1, 1000))
def test_scaling_the_weights_changes_nothing(requirement, candidates, parts, scale):
    assert best(requirement, candidates, parts) == best(requirement, candidates, parts, scale=float(scale))


@given(requirements, offers, whole.filter(bool))
def test_weight_on_cost_alone_is_the_cheapest(requirement, candidates, weight):
    by_utility = best(requirement, candidates, (0.0, 0.0, weight), fallback=Fallback.FASTEST)

    assert decide(requirement, candidates, fallback=Fallback.FASTEST).tier == by_utility.tier


@given(requirements, offers, weights, fallbacks, st.randoms(use_true_random=False))
def test_order_does_not_matter(requirement, candidates, parts, fallback, random):
    shuffled = random.sample(candidates, len(candidates))

    assert best(requirement, candidates, parts, fallback=fallback) == best(
        requirement, shuffled, parts, fallback=fallback
    )


@given(requirements, offers.filter(bool), weights, st.data())
def test_a_dominated_tier_changes_nothing(requirement, candidates, parts, data):
    """It is like one that is there, but no better in anything and dearer."""
    twin = data.draw(st.sampled_from(candidates))
    worse = dataclasses.replace(
        twin,
        tier="z",
        accuracy=None if twin.accuracy is None else twin.accuracy / 2,
        usd=None if twin.usd is None else twin.usd + 1,
        e2el_s=None if twin.e2el_s is None else twin.e2el_s + data.draw(amounts),
    )

    assert best(requirement, candidates, parts).tier == best(requirement, [*candidates, worse], parts).tier


@pytest.mark.parametrize(
    ("parts", "tier"),
    [((1.0, 0.0, 0.0), "deep"), ((1.0, 0.2, 0.0), "quick"), ((1.0, 0.0, 0.6), "cheap"), ((0.0, 1.0, 0.0), "quick")],
)
def test_what_weighs_more_wins(parts, tier):
    candidates = [
        Offer(tier="deep", accuracy=0.9, usd=0.001, e2el_s=4.0),
        Offer(tier="quick", accuracy=0.7, usd=0.001, e2el_s=1.0),
        Offer(tier="cheap", accuracy=0.5, usd=0.0001, e2el_s=4.0),
    ]

    assert tier == best(Requirement(), candidates, parts).tier


def test_ties_go_to_the_cheaper_then_to_the_lower_load():
    same = Offer(tier="b", accuracy=0.5, usd=2.0, n_in_flight=1)
    cheaper = dataclasses.replace(same, tier="c", usd=1.0, n_in_flight=9)
    idler = dataclasses.replace(same, tier="d", n_in_flight=0)

    assert "c" == best(Requirement(), [same, cheaper, idler], (1.0, 0.0, 0.0)).tier
    assert "d" == best(Requirement(), [same, idler], (1.0, 0.0, 0.0)).tier


def test_an_unknown_term_that_counts_never_wins():
    unknown = Offer(tier="a", accuracy=1.0, usd=0.0)
    poor = Offer(tier="b", accuracy=0.0, usd=1.0, e2el_s=100.0)

    assert make((1.0, 1.0, 0.0)).value(unknown) is None
    assert make((1.0, 0.0, 1.0)).value(dataclasses.replace(unknown, usd=None)) is None
    assert make((1.0, 0.0, 0.0)).value(dataclasses.replace(unknown, accuracy=None)) is None
    assert "b" == best(Requirement(), [unknown, poor], (1.0, 1.0, 1.0)).tier
    assert "a" == best(Requirement(), [unknown, poor], (1.0, 0.0, 1.0)).tier


def test_utility_is_in_units_of_accuracy_seconds_and_dollars_for_a_thousand():
    offer = Offer(tier="a", accuracy=0.8, usd=0.002, e2el_s=1.5)

    assert 0.8 - 0.05 * 1.5 - 0.02 * 2.0 == pytest.approx(make((1.0, 0.05, 0.02)).value(offer))


@pytest.mark.parametrize("parts", [(0.0, 0.0, 0.0), (-1.0, 0.0, 1.0), (1.0, math.nan, 0.0), (1.0, 0.0, math.inf)])
def test_weights_that_mean_nothing_are_refused(parts):
    with pytest.raises(ValueError, match="weights"):
        make(parts)


def test_a_utility_without_weights_is_refused():
    with pytest.raises(ValueError, match="weights"):
        decide(Requirement(), [Offer(tier="a", accuracy=1.0, usd=1.0)], objective=Objective.UTILITY)
