"""Choosing on live state: policy, pin, defaults, and where a failed request goes."""

import json
from dataclasses import replace

import pytest

from llmtier.core.decision import Fallback, MissReason, Objective, Reason
from llmtier.core.latency_model import LoadState
from llmtier.core.requirement import Requirement
from llmtier.core.utility import UtilityWeights
from llmtier.route.predict import Predictor
from llmtier.serve.choose import Question, TierState, choose, find_next_tier, make_offer
from llmtier.serve.correction import Correction
from llmtier.serve.ledger import PromptSize
from llmtier.serve.lengths import OutputLengths
from llmtier.serve.needs import Needs
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.wire import Endpoint, decode_request

EASY = {"small": 0.9, "large": 0.95}
HARD = {"small": 0.2, "large": 0.95}


def ask(model="auto", *, probabilities=None, max_tokens=None, size=None, **limits):
    needs = Needs(requirement=Requirement(**limits))
    return Question(model=model, needs=needs, probabilities=probabilities or {}, max_tokens=max_tokens, size=size)


@pytest.fixture
def states(make_profile):
    return {
        "small": TierState(name="small", profile=make_profile("small", usd=0.1, accuracy=0.6, ttft_s=0.05)),
        "large": TierState(name="large", profile=make_profile("large", usd=1.0, accuracy=0.95, ttft_s=0.5)),
    }


def choose_tier(question, states, *, policy=None, default_tier=None):
    return choose(question, states, policy=policy, default_tier=default_tier).decision.tier


@pytest.mark.parametrize(("probabilities", "tier"), [(EASY, "small"), (HARD, "large")])
def test_policy_takes_the_cheapest_that_is_near_the_reference(states, make_policy, probabilities, tier):
    assert tier == choose_tier(ask(probabilities=probabilities), states, policy=make_policy("small", "large"))


def test_a_higher_floor_than_the_policys_holds(states, make_policy):
    choice = choose(
        ask(probabilities=EASY, accuracy=0.92), states, policy=make_policy("small", "large"), default_tier=None
    )

    assert ("large", 0.92) == (choice.decision.tier, choice.requirement.accuracy)


def test_a_prompt_without_text_is_judged_by_mean_accuracy(states, make_policy):
    assert "large" == choose_tier(ask(), states, policy=make_policy("small", "large", max_gap=0.1))
    assert "small" == choose_tier(ask(), states, policy=make_policy("small", "large", max_gap=0.4))


def test_policy_ignores_tiers_that_it_was_not_fitted_on(states, make_policy, make_profile):
    states["tiny"] = TierState(name="tiny", profile=make_profile("tiny", usd=0.001, accuracy=1.0))

    assert "small" == choose_tier(ask(probabilities=EASY), states, policy=make_policy("small", "large"))


def test_reject_fallback_rejects(states, make_policy):
    policy = make_policy("small", "large", fallback=Fallback.REJECT)

    decision = choose(ask(probabilities=EASY, ttft_s=0.001), states, policy=policy, default_tier=None).decision

    assert (None, Reason.REJECTED) == (decision.tier, decision.reason)
    assert {"small", "large"} == {miss.tier for miss in decision.misses}


def test_a_tier_name_pins_and_keeps_the_misses(states):
    decision = choose(ask("large", ttft_s=0.1), states, policy=None, default_tier="small").decision

    assert ("large", Reason.PINNED) == (decision.tier, decision.reason)
    assert [MissReason.TTFT] == [miss.reason for miss in decision.misses]


def test_without_policy_the_default_tier_serves(states):
    assert "large" == choose_tier(ask(), states, default_tier="large")


def test_without_policy_and_default_the_cheapest_that_meets_the_need_serves(states):
    assert "small" == choose_tier(ask("llmtier"), states)
    assert "large" == choose_tier(ask(accuracy=0.9), states)


def test_nothing_to_route_by_is_refused():
    states = {"small": TierState(name="small", profile=None)}

    with pytest.raises(RequestRefusedError, match="needs a policy, a profile or"):
        choose_tier(ask(), states)


@pytest.mark.parametrize("model", ["gpt-4o", ""])
def test_unknown_model_lists_the_names(states, model):
    with pytest.raises(RequestRefusedError, match="auto, small, large") as caught:
        choose_tier(ask(model), states)

    assert (404, "model_not_found") == (caught.value.status, caught.value.code)


def test_stale_or_missing_profiles_never_serve_auto(states, make_policy, make_profile):
    states["small"] = TierState(name="small", profile=make_profile("small", usd=0.1), unusable=MissReason.STALE_PROFILE)

    assert "large" == choose_tier(ask(probabilities=EASY), states, policy=make_policy("small", "large"))


def test_load_raises_the_prediction(make_profile):
    profile = make_profile("small", ttft_s=0.1)
    idle = make_offer(ask(), TierState(name="small", profile=profile))
    busy = make_offer(ask(), TierState(name="small", profile=profile, load=LoadState(n_decoding=9)))

    assert idle.ttft_s is not None
    assert busy.ttft_s == pytest.approx(10 * idle.ttft_s)


def test_a_short_answer_is_predicted_short(make_profile):
    state = TierState(name="small", profile=make_profile("small", ttft_s=0.1, tpot_s=0.01))

    assert make_offer(ask(max_tokens=1), state).e2el_s == pytest.approx(0.1)
    assert make_offer(ask(max_tokens=500), state).e2el_s == pytest.approx(0.2)  # the mean of 11 tokens holds


@pytest.fixture
def modelled(make_profile, make_model):
    """Return a maker of the state of a tier with a latency model for answers of 20 tokens."""

    def make(**load):
        profile = replace(make_profile("small", usd=0.1), latency=make_model(mean_output_tokens=20.0))
        return TierState(name="small", profile=profile, load=LoadState(**load))

    return make


def test_an_answer_is_expected_as_long_as_of_late_unless_it_is_capped(modelled):
    def e2el_s(max_tokens=None, **load):
        return make_offer(ask(max_tokens=max_tokens), modelled(**load)).e2el_s

    assert e2el_s() == e2el_s(max_tokens=20) == e2el_s(max_tokens=500)
    assert e2el_s(max_tokens=19) < e2el_s()
    assert e2el_s(mean_output_tokens=40.0) == e2el_s(max_tokens=40, mean_output_tokens=40.0) > e2el_s()
    assert e2el_s(max_tokens=25, mean_output_tokens=40.0) < e2el_s(mean_output_tokens=40.0)


def test_a_prompt_is_measured_by_the_tiers_own_ratio(modelled):
    state = modelled()
    texts = [PromptSize(n_characters=400), PromptSize(n_characters=4000), PromptSize(n_tokens=100)]
    by_four, longer, exact = (make_offer(ask(size=size), state).ttft_s for size in texts)

    assert exact == by_four < longer
    assert longer == make_offer(ask(size=texts[0]), replace(state, tokens_per_character=2.5)).ttft_s


def test_saturated_tiers_are_passed_over_and_still_fallen_back_to(states):
    def fill(name):
        state = states[name]
        states[name] = replace(
            state, profile=replace(state.profile, max_in_flight=2), load=LoadState(n_decoding=1, n_prefilling=1)
        )

    fill("small")
    assert "large" == choose_tier(ask(), states)

    fill("large")
    decision = choose(ask(), states, policy=None, default_tier=None).decision
    assert ("large", Reason.FALLBACK) == (decision.tier, decision.reason)
    assert {MissReason.SATURATED} == {miss.reason for miss in decision.misses}
    assert "small" == find_next_tier(decision, tried=["large"])


def test_failed_requests_go_to_the_most_accurate_feasible_tier(states, make_profile):
    states["middle"] = TierState(name="middle", profile=make_profile("middle", usd=0.5, accuracy=0.8))
    decision = choose(ask(), states, policy=None, default_tier=None).decision

    assert "small" == decision.tier
    assert "large" == find_next_tier(decision, tried=["small"])
    assert find_next_tier(decision, tried=["small", "middle", "large"]) is None


def test_failed_requests_avoid_dead_tiers_and_prefer_those_without_a_miss(states, make_profile):
    states["slow"] = TierState(name="slow", profile=make_profile("slow", usd=0.5, accuracy=1.0, ttft_s=9.0))
    states["dead"] = TierState(name="dead", profile=make_profile("dead", usd=0.5, accuracy=1.0), is_healthy=False)
    decision = choose(ask(ttft_s=1.0), states, policy=None, default_tier=None).decision

    assert "large" == find_next_tier(decision, tried=["small"])
    assert "slow" == find_next_tier(decision, tried=["small", "large"])
    assert find_next_tier(decision, tried=["small", "large", "slow"]) is None


def test_a_pinned_request_goes_nowhere_else(states):
    pinned = choose(ask("small"), states, policy=None, default_tier=None).decision
    by_default = choose(ask("auto"), states, policy=None, default_tier="small").decision

    assert find_next_tier(pinned, tried=["small"]) is None
    assert "large" == find_next_tier(by_default, tried=["small"])


@pytest.fixture
def by_utility(make_policy):
    """Return a maker of policies that weigh accuracy 1, each second and each dollar for 1,000 requests as given."""

    def make(*, latency_per_s=0.0, cost_per_usd_1k=0.0, **options):
        weights = UtilityWeights(accuracy=1.0, latency_per_s=latency_per_s, cost_per_usd_1k=cost_per_usd_1k)
        policy = make_policy("small", "large", max_gap=1.0)
        return replace(policy, objective=Objective.UTILITY, weights=weights, **options)

    return make


def test_utility_weighs_accuracy_against_cost_and_latency(states, by_utility):
    """``large`` adds 0.75 to a hard prompt, 0.05 to an easy one; it costs $900 more for 1,000 and is slower."""
    cost = by_utility(cost_per_usd_1k=0.0003)

    assert "large" == choose_tier(ask(probabilities=HARD), states, policy=cost)
    assert "small" == choose_tier(ask(probabilities=EASY), states, policy=cost)
    assert "large" == choose_tier(ask(probabilities=EASY), states, policy=by_utility())
    assert "small" == choose_tier(ask(probabilities=HARD), states, policy=by_utility(latency_per_s=5.0))


def test_utility_knows_no_gap_and_keeps_the_requests_own_limits(states, by_utility):
    policy = by_utility(cost_per_usd_1k=0.01)  # the cheap one is always worth more
    free = choose(ask(probabilities=HARD), states, policy=policy, default_tier=None)
    floor = choose(ask(probabilities=HARD, accuracy=0.5), states, policy=policy, default_tier=None)

    assert ("small", None) == (free.decision.tier, free.requirement.accuracy)
    assert ("large", 0.5) == (floor.decision.tier, floor.requirement.accuracy)
    assert Reason.HIGHEST_UTILITY is free.decision.reason
    assert [MissReason.ACCURACY] == [miss.reason for miss in floor.decision.misses]


def test_load_moves_a_request_whose_latency_counts(states, by_utility):
    """One in flight is 0.55 s on ``large``; nine more make the same answer wait for ten times that."""
    policy = by_utility(latency_per_s=0.2)
    states["large"] = replace(states["large"], load=LoadState(n_decoding=9))

    assert "small" == choose_tier(ask(probabilities=HARD), states, policy=policy)


def test_the_utility_fallback_takes_the_highest_that_can_be_reached(states, by_utility):
    policy = by_utility(cost_per_usd_1k=0.01, fallback=Fallback.UTILITY)
    decision = choose(ask(probabilities=HARD, ttft_s=0.001), states, policy=policy, default_tier=None).decision

    assert ("small", Reason.FALLBACK) == (decision.tier, decision.reason)


@pytest.mark.parametrize("reason", [MissReason.KV, MissReason.PREEMPTIONS, MissReason.QUEUE])
def test_an_engine_that_signs_overload_is_passed_over_and_still_fallen_back_to(states, make_policy, reason):
    policy = make_policy("small", "large", fallback=Fallback.FASTEST)
    states["small"] = replace(states["small"], unusable=reason)
    decision = choose(ask(probabilities=EASY), states, policy=policy, default_tier=None).decision
    assert ("large", [reason]) == (decision.tier, [miss.reason for miss in decision.misses])

    states["large"] = replace(states["large"], unusable=reason)
    decision = choose(ask(probabilities=EASY), states, policy=policy, default_tier=None).decision
    assert ("small", Reason.FALLBACK) == (decision.tier, decision.reason)
    assert Reason.FALLBACK is choose(ask(), states, policy=None, default_tier=None).decision.reason


def test_a_tier_that_turned_slow_is_left_until_it_is_fast_again(states, make_policy):
    policy, question = make_policy("small", "large"), ask(probabilities=EASY, ttft_s=0.08)
    correction = states["small"].correction = Correction()
    states["large"] = replace(states["large"], profile=replace(states["large"].profile, points=()))
    offer = make_offer(question, states["small"])
    assert MissReason.TTFT not in reasons_of("small", question, states, policy)

    for _ in range(20):  # twice as slow as profiled
        correction.learn(offer, now_s=0.0, ttft_s=2 * offer.typical_ttft_s)
    assert MissReason.TTFT in reasons_of("small", question, states, policy)
    assert pytest.approx(2 * offer.ttft_s) == make_offer(question, states["small"]).ttft_s
    assert offer.typical_ttft_s == make_offer(question, states["small"]).typical_ttft_s

    correction.forget(1e6)
    assert MissReason.TTFT not in reasons_of("small", question, states, policy)


def reasons_of(tier, question, states, policy):
    decision = choose(question, states, policy=policy, default_tier=None).decision
    return {miss.reason for miss in decision.misses if miss.tier == tier}


def test_a_limit_on_the_whole_time_counts_with_a_long_answer_and_a_price_with_a_mean_one(modelled):
    state = modelled()
    usual = make_offer(ask(), state)
    state.lengths = OutputLengths()
    assert usual == make_offer(ask(), state)  # nothing has come yet

    for n_tokens in [20] * 15 + [200] * 5:
        state.lengths.add(n_tokens, None)
    long = make_offer(ask(), state)
    assert (usual.ttft_s, usual.tpot_s, usual.usd) == (long.ttft_s, long.tpot_s, long.usd)
    assert Predictor(state.profile).offer(state.load, None, None, None, 200.0).e2el_s == long.e2el_s > usual.e2el_s
    assert make_offer(ask(max_tokens=20), state).e2el_s == usual.e2el_s  # no answer is longer than it may be


def test_a_predictor_of_another_profile_is_never_asked(modelled, make_profile):
    state = modelled()
    expected = make_offer(ask(), state)
    state.predictor = Predictor(make_profile("other"))

    assert expected == make_offer(ask(), state)
    assert state.profile is state.predictor.profile
    kept = state.predictor
    make_offer(ask(), state)
    assert kept is state.predictor


def test_tiers_of_different_length_are_told_apart_by_what_must_fit(states, make_policy):
    states["small"] = replace(states["small"], profile=replace(states["small"].profile, context_tokens=2048))
    states["large"] = replace(states["large"], profile=replace(states["large"].profile, context_tokens=8192))
    policy = make_policy("small", "large")

    assert "small" == choose_tier(ask(probabilities=EASY, context_tokens=2048), states, policy=policy)
    assert "large" == choose_tier(ask(probabilities=EASY, context_tokens=2049), states, policy=policy)
    refused = choose(ask(probabilities=EASY, context_tokens=8193), states, policy=policy, default_tier=None).decision
    assert refused.tier is None
    assert [MissReason.CONTEXT] * 2 == [miss.reason for miss in refused.misses]


def test_the_system_prompt_counts_towards_what_must_fit():
    def needed(*messages):
        body = json.dumps({"model": "auto", "messages": messages, "max_tokens": 7}).encode()
        return decode_request(Endpoint.CHAT, body).context_tokens

    system, user = {"role": "system", "content": "word " * 400}, {"role": "user", "content": "Hello"}

    assert needed(system, user) > 100 + needed(user) >= 107


def test_a_choice_keeps_the_limits_and_the_need(states, make_policy):
    question = ask(probabilities=EASY, ttft_s=9.0)
    choice = choose(question, states, policy=make_policy("small", "large", max_gap=0.05), default_tier=None)

    assert question.needs.requirement is choice.limits
    assert pytest.approx(0.9) == choice.need_accuracy
    assert replace(choice.limits, accuracy=choice.need_accuracy) == choice.requirement


def test_without_a_gap_nothing_is_believed_of_the_cheaper_tiers(states, make_policy):
    choice = choose(
        ask(probabilities=EASY), states, policy=make_policy("small", "large", max_gap=None), default_tier=None
    )

    assert "large" == choice.decision.tier
    assert {"small": None, "large": 0.95} == {offer.tier: offer.accuracy for offer in choice.decision.offers}
