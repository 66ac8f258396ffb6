"""Laws of the routing rule."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import Fallback, MissReason, Offer, Reason
from llmtier.core.requirement import Requirement
from llmtier.route.decide import decide, find_misses, pin

maybe = lambda values: st.none() | values  # noqa: E731  # reads as the strategies around it
unit = st.floats(0, 1)
seconds = st.floats(0, 10)
offers = st.lists(
    st.builds(
        Offer,
        tier=st.sampled_from("abcdef"),
        accuracy=maybe(unit),
        usd=maybe(seconds),
        ttft_s=maybe(seconds),
        tpot_s=maybe(seconds),
        e2el_s=maybe(seconds),
        n_in_flight=st.integers(0, 3),
        context_tokens=maybe(st.integers(0, 100)),
        is_healthy=st.booleans(),
        unusable=maybe(st.just(MissReason.NO_PROFILE)),
    ),
    unique_by=lambda offer: offer.tier,
)
requirements = st.builds(
    Requirement,
    ttft_s=maybe(seconds),
    tpot_s=maybe(seconds),
    e2el_s=maybe(seconds),
    accuracy=maybe(unit),
    context_tokens=maybe(st.integers(0, 100)),
    usd=maybe(seconds),
)


@given(requirements, offers)
def test_decide_never_breaks_a_limit(requirement, candidates):
    decision = decide(requirement, candidates)
    chosen = [offer for offer in candidates if offer.tier == decision.tier]

    if decision.reason is Reason.CHEAPEST_FEASIBLE:
        assert [] == list(find_misses(requirement, chosen[0]))
        assert all(
            (chosen[0].usd if chosen[0].usd is not None else float("inf"))
            <= (offer.usd if offer.usd is not None else float("inf"))
            for offer in candidates
            if not list(find_misses(requirement, offer))
        )


@given(requirements, offers, st.randoms(use_true_random=False))
def test_decide_is_order_free(requirement, candidates, random):
    shuffled = list(candidates)
    random.shuffle(shuffled)

    assert decide(requirement, candidates) == decide(requirement, shuffled)


@given(requirements, offers)
def test_relaxing_the_limits_never_raises_cost(requirement, candidates):
    strict = decide(requirement, candidates, fallback=Fallback.REJECT)
    relaxed = decide(dataclasses.replace(requirement, ttft_s=None, accuracy=None), candidates, fallback=Fallback.REJECT)
    usd = {offer.tier: offer.usd if offer.usd is not None else float("inf") for offer in candidates}

    if strict.tier is not None:
        assert relaxed.tier is not None
        assert usd[relaxed.tier] <= usd[strict.tier]


@given(requirements, offers)
def test_adding_a_tier_never_raises_cost(requirement, candidates):
    extra = Offer(tier="z", accuracy=1.0, usd=1.0, ttft_s=0.0, tpot_s=0.0, e2el_s=0.0)
    before = decide(requirement, candidates, fallback=Fallback.REJECT)
    after = decide(requirement, [*candidates, extra], fallback=Fallback.REJECT)
    usd = {offer.tier: offer.usd if offer.usd is not None else float("inf") for offer in [*candidates, extra]}

    if before.tier is not None:
        assert after.tier is not None
        assert usd[after.tier] <= usd[before.tier]


@given(requirements, offers)
def test_a_refusal_explains_every_tier(requirement, candidates):
    decision = decide(requirement, candidates, fallback=Fallback.REJECT)

    if decision.tier is None:
        assert {offer.tier for offer in candidates} == {miss.tier for miss in decision.misses}
        assert Reason.REJECTED is decision.reason


def test_unknown_latency_never_passes_a_limit():
    decision = decide(Requirement(ttft_s=9.0), [Offer(tier="a", accuracy=1.0, usd=1.0)], fallback=Fallback.REJECT)

    assert decision.tier is None
    assert MissReason.TTFT is decision.misses[0].reason


@pytest.mark.parametrize(("fallback", "tier"), [(Fallback.MOST_ACCURATE, "slow"), (Fallback.FASTEST, "fast")])
def test_fallback_takes_the_configured_tier(fallback, tier):
    candidates = [
        Offer(tier="slow", accuracy=0.9, usd=2.0, ttft_s=2.0, e2el_s=4.0),
        Offer(tier="fast", accuracy=0.5, usd=1.0, ttft_s=1.0, e2el_s=2.0),
        Offer(tier="dead", accuracy=1.0, usd=0.1, ttft_s=0.1, e2el_s=0.1, is_healthy=False),
    ]
    decision = decide(Requirement(ttft_s=0.01), candidates, fallback=fallback)

    assert (tier, Reason.FALLBACK) == (decision.tier, decision.reason)


def test_equal_cost_goes_to_the_lower_load():
    candidates = [Offer(tier="a", accuracy=1, usd=1.0, n_in_flight=2), Offer(tier="b", accuracy=1, usd=1.0)]

    assert "b" == decide(Requirement(), candidates).tier


def test_pin_takes_the_named_tier():
    assert ("a", Reason.PINNED) == (pin("a").tier, pin("a").reason)
