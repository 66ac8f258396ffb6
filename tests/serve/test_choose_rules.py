"""Rules of the user's in a choice on live state."""

from dataclasses import replace

import pytest

from llmtier.core.decision import Fallback, MissReason, Reason
from llmtier.core.requirement import Requirement
from llmtier.core.rule import Condition, Rule
from llmtier.serve.choose import Question, TierState, choose, find_next_tier
from llmtier.serve.needs import Needs

EASY = {"small": 0.9, "middle": 0.92, "large": 0.95}
TIERS = ("small", "middle", "large")


def ask(rule=None, *, model="auto", probabilities=EASY, **limits):
    return Question(model=model, needs=Needs(requirement=Requirement(**limits)), probabilities=probabilities, rule=rule)


def least(tier):
    return Rule(name="hers", when=Condition(domain="x"), least_tier=tier)


def pin(tier):
    return Rule(name="hers", when=Condition(domain="x"), pin=tier)


@pytest.fixture
def states(make_profile):
    usd = {"small": 0.1, "middle": 0.5, "large": 1.0}
    accuracy = {"small": 0.6, "middle": 0.8, "large": 0.95}
    return {
        name: TierState(name=name, profile=make_profile(name, usd=usd[name], accuracy=accuracy[name])) for name in TIERS
    }


@pytest.fixture
def policy(make_policy):
    return make_policy(*TIERS)


def decide(question, states, *, policy=None, default_tier=None):
    return choose(question, states, policy=policy, default_tier=default_tier).decision


@pytest.mark.parametrize("tier", TIERS)
def test_the_cheapest_from_the_least_tier_on_serves(states, policy, tier):
    decision = decide(ask(least(tier)), states, policy=policy)
    barred = [miss.tier for miss in decision.misses if miss.reason is MissReason.RULE]

    assert (tier, Reason.CHEAPEST_FEASIBLE, "hers") == (decision.tier, decision.reason, decision.rule)
    assert sorted(TIERS[: TIERS.index(tier)]) == sorted(barred)


def test_a_rule_that_bars_nothing_leaves_the_decision_as_it_is(states, policy):
    with_rule, without = (decide(ask(rule), states, policy=policy) for rule in (least("small"), None))

    assert (with_rule.tier, with_rule.offers, with_rule.misses) == (without.tier, without.offers, without.misses)
    assert ("hers", None) == (with_rule.rule, without.rule)


def test_a_least_tier_that_misses_a_limit_still_comes_before_a_barred_one(states, policy):
    for fallback_policy in (policy, replace(policy, fallback=Fallback.FASTEST)):
        decision = decide(ask(least("large"), ttft_s=0.01), states, policy=fallback_policy)

        assert ("large", Reason.FALLBACK) == (decision.tier, decision.reason)


def test_a_barred_tier_answers_when_no_other_is_there(states, policy):
    states["large"] = TierState(name="large", profile=states["large"].profile, is_healthy=False)
    decision = decide(ask(least("large")), states, policy=policy)

    assert ("middle", Reason.FALLBACK) == (decision.tier, decision.reason)
    assert decide(ask(least("large")), states, policy=replace(policy, fallback=Fallback.REJECT)).tier is None


def test_a_failed_request_goes_to_a_barred_tier_last(states, make_policy, make_profile):
    states["huge"] = TierState(name="huge", profile=make_profile("huge", usd=2.0, accuracy=0.1))
    decision = decide(ask(least("large")), states, policy=make_policy(*TIERS, "huge"))

    assert "large" == decision.tier
    assert ["huge", "middle"] == [find_next_tier(decision, tried=tried) for tried in (["large"], ["large", "huge"])]


@pytest.mark.parametrize("default_tier", [None, "small"])
def test_a_pin_serves_as_if_named_and_may_fail_over(states, policy, default_tier):
    for given in (policy, None):
        decision = decide(ask(pin("middle"), ttft_s=0.01), states, policy=given, default_tier=default_tier)

        assert ("middle", Reason.RULE, "hers") == (decision.tier, decision.reason, decision.rule)
        assert MissReason.TTFT in {miss.reason for miss in decision.misses if miss.tier == "middle"}
        assert "large" == find_next_tier(decision, tried=["middle"])


def test_a_pin_may_go_beyond_the_policys_tiers_but_its_failover_may_not(states, make_policy):
    decision = decide(ask(pin("small")), states, policy=make_policy("middle", "large"))

    assert {"small", "middle", "large"} == {offer.tier for offer in decision.offers}
    assert "small" == decision.tier
    elsewhere = decide(ask(pin("large")), states, policy=make_policy("middle", "large"))
    assert {"middle", "large"} == {offer.tier for offer in elsewhere.offers}


def test_a_request_that_names_its_tier_is_left_alone(states, policy):
    decision = decide(ask(pin("large"), model="small"), states, policy=policy)

    assert ("small", Reason.PINNED, None) == (decision.tier, decision.reason, decision.rule)


@pytest.mark.parametrize(
    ("rule", "default_tier", "expected"),
    [
        (least("middle"), "small", ("middle", Reason.RULE)),
        (least("middle"), "large", ("large", Reason.PINNED)),
        (least("small"), "small", ("small", Reason.PINNED)),
        (least("middle"), None, ("middle", Reason.CHEAPEST_FEASIBLE)),
    ],
)
def test_without_a_policy_measured_cost_says_who_is_cheaper(states, rule, default_tier, expected):
    decision = decide(ask(rule), states, default_tier=default_tier)

    assert expected == (decision.tier, decision.reason)
    assert "hers" == decision.rule


def test_a_default_tier_of_unknown_cost_is_not_taken_for_dear_enough(states):
    states["small"] = TierState(name="small", profile=None)

    assert "middle" == decide(ask(least("middle")), states, default_tier="small").tier
