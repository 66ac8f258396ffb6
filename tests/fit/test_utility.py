"""A fit by utility: the set of tiers worth most, routed as the rule serves, and what it loses bounded."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmtier.core.decision import Fallback, Objective
from llmtier.core.errors import PlanError, UsageError
from llmtier.core.policy import Goal, GoalKind
from llmtier.core.prompt import LabelledPrompt, Message, Prompt
from llmtier.core.utility import UtilityWeights
from llmtier.fit.judge import Rule
from llmtier.fit.prices import price_by_hand, price_profiles
from llmtier.fit.rows import make_rows
from llmtier.fit.search import FitTable, find_highest_utility, mean_utility
from llmtier.fit.settings import FitSettings
from llmtier.fit.utility import make_utilities

UTILITY = Goal(kind=GoalKind.UTILITY)
ROWS = st.integers(1, 20)


def weigh(accuracy=1.0, latency_per_s=0.0, cost_per_usd_1k=0.0):
    return UtilityWeights(accuracy=accuracy, latency_per_s=latency_per_s, cost_per_usd_1k=cost_per_usd_1k)


@pytest.fixture(scope="module")
def make_timed(make_profile):
    """Return a function that makes a profile whose idle E2EL is known."""

    def make(tier, usd, e2el_s, **options):
        profile = make_profile(tier, usd, **options)
        point = dataclasses.replace(profile.points[0], e2el_p50_s=e2el_s, e2el_p95_s=e2el_s)
        return dataclasses.replace(profile, points=(point,))

    return make


@pytest.fixture(scope="module")
def timed(make_timed):
    """``cheap`` takes 1 s and $0.001, ``dear`` 4 s and $0.010; each on a core of its own."""
    return {"cheap": make_timed("cheap", 0.001, 1.0), "dear": make_timed("dear", 0.010, 4.0, device="cpu:1")}


def shares_of(fitted):
    return {tier.name: tier.share for tier in fitted.policy.tiers}


@st.composite
def tables(draw, make_timed):
    """Return a table of up to four tiers, its prices and the weights."""
    n, names = draw(ROWS), "abcd"[: draw(st.integers(1, 4))]
    steps = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # few of them, so that ties are common
    profiles = {
        name: make_timed(name, draw(st.sampled_from([0.001, 0.002])), draw(st.sampled_from([0.5, 1.0, 3.0])))
        for name in names
    }
    prices = price_profiles(names, profiles)
    scores, probabilities = (draw(arrays(np.float64, (n, len(names)), elements=steps)) for _ in range(2))
    labelled = [
        LabelledPrompt(
            prompt=Prompt(id=str(row), messages=(Message(role="user", content=f"question {row}"),)),
            scores=dict(zip(prices.by_cost, scores[row].tolist(), strict=True)),
        )
        for row in range(n)
    ]
    rows = make_rows(labelled, prices.by_cost, prices)
    weights = draw(st.builds(weigh, steps, steps, steps.map(lambda step: step / 4 + 0.01)))
    reference = draw(st.sampled_from(rows.tiers))
    table = FitTable(
        tiers=rows.tiers, usd=rows.usd, probabilities=probabilities, scores=rows.scores, reference=reference,
        baseline=rows.scores_of(reference), weights=rows.weights,
        utilities=make_utilities(weights, rows, probabilities, prices),
    )  # fmt: skip
    return table, prices, weights


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_arrays_route_every_row_as_decide_does(make_timed, data):
    table, prices, weights = data.draw(tables(make_timed))
    rule = Rule(
        prices=prices, reference=table.reference, gap=1.0, fallback=Fallback.MOST_ACCURATE,
        objective=Objective.UTILITY, weights=weights,
    )  # fmt: skip
    rows = [dict(zip(table.tiers, row, strict=True)) for row in table.probabilities.tolist()]

    assert [rule.choose(row) for row in rows] == [table.tiers[column] for column in table.route(1.0)]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_other_set_is_worth_more_on_the_fit_rows(make_timed, data):
    table, _, weights = data.draw(tables(make_timed))
    sets = [(table.reference,), table.tiers, tuple({table.reference, table.tiers[0]})]
    found = table.only(find_highest_utility(table, sets).tiers)
    columns = found.route(1.0)
    places = (np.arange(len(columns)), columns)

    assert mean_utility(found) == max(mean_utility(table.only(tiers)) for tiers in sets)
    without_latency = weights.accuracy * found.scores[places] - weights.cost_per_usd_1k * 1000 * found.usd[places]
    assert mean_utility(found) <= without_latency.mean() + 1e-12


def test_each_prompt_goes_where_it_is_worth_most(fit, make_labelled, timed):
    """``dear`` adds 1 to the hard half and nothing to the easy; at 0.05 a dollar it costs 0.45 more."""
    fitted = fit(make_labelled(800), profiles=timed, goal=UTILITY, weights=weigh(cost_per_usd_1k=0.05))
    policy = fitted.policy

    assert 0.5 == pytest.approx(shares_of(fitted)["cheap"], abs=0.06)
    assert (Objective.UTILITY, 1.0) == (policy.objective, policy.max_accuracy_gap)
    assert weigh(cost_per_usd_1k=0.05) == policy.weights
    assert "highest utility" == policy.goal.describe()
    assert () == fitted.path


def test_latency_and_cost_pull_towards_the_cheap_and_quick_tier(fit, make_labelled, timed):
    rows = make_labelled(400)
    slow = fit(rows, profiles=timed, goal=UTILITY, reference="dear", weights=weigh(latency_per_s=0.5))
    dear = fit(rows, profiles=timed, goal=UTILITY, reference="dear", weights=weigh(cost_per_usd_1k=0.5))
    free = fit(rows, profiles=timed, goal=UTILITY, reference="dear", weights=weigh())

    assert 1.0 == shares_of(slow)["cheap"] == shares_of(dear)["cheap"]
    assert free.policy.judgement.accuracy > 0.95


def test_the_loss_is_bounded_at_the_rule_that_serves(fit, make_labelled, timed):
    fitted = fit(make_labelled(800, noise=0.1), profiles=timed, goal=UTILITY, weights=weigh(cost_per_usd_1k=0.06))
    policy, promised = fitted.policy, fitted.policy.guarantee

    assert 0.02 < policy.judgement.loss < promised.max_loss < 0.2
    assert f"at most {promised.max_loss:.4f} below dear's with 95% confidence" in promised.statement
    assert "of a rule fixed on other prompts" in promised.method
    assert (promised.method, policy.judgement.n_judge) == (policy.judgement.method, promised.n_labels)
    assert "as long as those profiled" not in promised.population


def test_a_weight_on_latency_says_that_lengths_matter(fit, make_labelled, timed):
    fitted = fit(make_labelled(300), profiles=timed, goal=UTILITY, weights=weigh(latency_per_s=0.05))

    assert "as long as those profiled" in fitted.policy.guarantee.population


def test_tiers_of_one_device_are_not_mixed(fit, make_timed, make_labelled):
    """``small`` would be best for all, but shares the reference's core."""
    profiles = {
        "cheap": make_timed("cheap", 0.001, 1.0),
        "small": make_timed("small", 0.001, 0.5, device="cpu:1"),
        "dear": make_timed("dear", 0.010, 4.0, device="cpu:1"),
    }
    rows = [dataclasses.replace(row, scores={**row.scores, "small": 1.0}) for row in make_labelled(400)]
    fitted = fit(rows, profiles=profiles, goal=UTILITY, reference="dear", weights=weigh(cost_per_usd_1k=0.05))

    assert {"cheap", "dear"} == set(shares_of(fitted))


def test_a_tier_that_is_worth_nothing_is_left_out(fit, make_labelled, timed):
    rows = [dataclasses.replace(row, scores={"cheap": 0.0, "dear": 1.0}) for row in make_labelled(200)]
    fitted = fit(rows, profiles=timed, goal=UTILITY, weights=weigh(cost_per_usd_1k=0.01))

    assert {"dear": 1.0} == shares_of(fitted)
    assert 0.0 == fitted.policy.judgement.loss


def test_a_latency_that_nothing_tells_is_refused(fit, make_labelled):
    """The usual profiles here know no E2EL, and costs by hand never do."""
    rows = make_labelled(60)

    with pytest.raises(PlanError, match=r"no profile tells those of cheap, dear: run 'llmtier profile'"):
        fit(rows, goal=UTILITY, weights=weigh(latency_per_s=0.1))
    assert fit(rows, goal=UTILITY, weights=weigh()).policy.weights == weigh()
    by_hand = price_by_hand(["cheap", "dear"], {"cheap": 1.0, "dear": 2.0})
    with pytest.raises(PlanError, match="costs tells no latency"):
        make_utilities(weigh(latency_per_s=0.1), make_rows(rows, by_hand.by_cost, by_hand), np.zeros((60, 2)), by_hand)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": UTILITY}, "needs --weights"),
        ({"goal": UTILITY, "weights": weigh(), "per_domain": True}, "--per-domain is for thresholds"),
        ({"weights": weigh()}, "belong to --objective utility"),
        ({"fallback": Fallback.UTILITY}, "belong to --objective utility"),
    ],
)
def test_what_does_not_belong_together_is_refused(options, message):
    loss = Goal(kind=GoalKind.MAX_ACCURACY_LOSS, value=0.1)

    with pytest.raises(UsageError, match=message):
        FitSettings(**{"goal": loss, "seed": 0, **options})
