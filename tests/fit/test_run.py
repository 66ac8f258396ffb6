"""A fit finds what is there to find, says what it did, and refuses what it cannot use."""

import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, NegativeAnswerError, PlanError, UsageError
from llmtier.core.policy import Goal, GoalKind
from llmtier.core.prompt import LabelledPrompt, Message, Prompt
from llmtier.core.requirement import Requirement
from llmtier.fit.warn import lacking_labels


def savings(fitted):
    judged = fitted.policy.judgement
    return judged.reference_usd_per_request - judged.usd_per_request


def row_of(fitted, name):
    return next(row for row in fitted.comparisons if row.name == name)


def test_fit_finds_nearly_all_of_the_oracles_savings(fit, make_labelled):
    """Two kinds of prompt, a cheap tier perfect on the one and useless on the other."""
    fitted = fit(make_labelled(1500))
    judged = fitted.policy.judgement
    oracle = judged.reference_usd_per_request - row_of(fitted, "oracle").usd_per_request

    assert savings(fitted) >= 0.95 * oracle
    assert judged.loss <= 0.02
    assert judged.loss_interval.low <= judged.loss <= judged.loss_interval.high
    assert ("cheap", "dear") == tuple(tier.name for tier in fitted.policy.tiers)
    assert 0.02 == fitted.policy.guarantee.max_loss
    assert "at most 0.02 below the reference's with 95% confidence" in fitted.policy.guarantee.statement
    assert judged.n_judge == fitted.policy.guarantee.n_labels


def test_controls_at_equal_cost_are_beaten(fit, make_labelled):
    fitted = fit(make_labelled(1500, noise=0.05), max_accuracy_loss=0.05)
    policy = row_of(fitted, "policy")

    assert ["cheap", "dear", "policy", "random", "length", "oracle"] == [row.name for row in fitted.comparisons]
    assert policy.usd_per_request == pytest.approx(row_of(fitted, "random").usd_per_request)
    assert policy.usd_per_request == pytest.approx(row_of(fitted, "length").usd_per_request)
    assert policy.accuracy > row_of(fitted, "random").accuracy + 0.1
    assert policy.accuracy > row_of(fitted, "length").accuracy + 0.1
    assert row_of(fitted, "oracle").accuracy >= row_of(fitted, "dear").accuracy


@settings(deadline=None, max_examples=5)
@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_order_of_rows_does_not_matter(fit, make_labelled, random, seed):
    rows = make_labelled(150, noise=0.1)
    straight, shuffled = (
        fit(rows, seed=seed, max_accuracy_loss=0.2),
        fit(random.sample(rows, len(rows)), seed=seed, max_accuracy_loss=0.2),
    )

    assert straight.policy == shuffled.policy
    assert straight.scorer.to_bytes() == shuffled.scorer.to_bytes()


@settings(deadline=None, max_examples=8)
@given(st.integers(20, 80), st.floats(0, 0.5), st.sampled_from([0.02, 0.2, 1.0]))
def test_shares_sum_to_one_and_figures_are_in_range(fit, make_labelled, n, noise, max_loss):
    fitted = fit(make_labelled(n, noise=noise, dear_accuracy=0.9), max_accuracy_loss=max_loss, scorer_kind="length")
    policy = fitted.policy

    assert 1.0 == pytest.approx(sum(tier.share for tier in policy.tiers))
    assert policy.judgement.n_fit + policy.judgement.n_judge == n
    assert 0 <= policy.judgement.accuracy <= 1
    assert policy.judgement.usd_per_request <= policy.judgement.reference_usd_per_request


def test_reference_is_the_most_accurate_and_the_dearest_of_equals(fit, make_labelled):
    equal = [dataclasses.replace(row, scores={"cheap": 1.0, "dear": 1.0}) for row in make_labelled(100)]
    better = [dataclasses.replace(row, scores={"cheap": 1.0, "dear": 0.5}) for row in make_labelled(100)]

    assert "dear" == fit(equal).policy.reference
    assert "cheap" == fit(better).policy.reference
    assert "dear" == fit(better, reference="dear").policy.reference


def test_a_tier_better_and_cheaper_than_the_named_reference_serves_it_all(fit, make_labelled):
    rows = [dataclasses.replace(row, scores={"cheap": 1.0, "dear": 0.5}) for row in make_labelled(300)]
    fitted = fit(rows, reference="dear")

    assert [1.0, 0.0] == [tier.share for tier in fitted.policy.tiers]
    assert -0.5 == pytest.approx(fitted.policy.judgement.loss)


def test_nothing_feasible_leaves_everything_on_the_reference(fit, make_labelled):
    fitted = fit(make_labelled(60), max_accuracy_loss=0.001)
    policy = fitted.policy

    assert ("dear",) == tuple(tier.name for tier in policy.tiers)
    assert (0.0, 1.0) == (policy.max_accuracy_gap, policy.tiers[0].share)
    assert [0.0, 0.0] == policy.judgement.loss_interval.as_list()
    assert savings(fitted) == 0


def test_a_wide_loss_sends_everything_to_the_cheapest(fit, make_labelled):
    assert 1.0 == fit(make_labelled(300), max_accuracy_loss=1.0).policy.tiers[0].share


def test_one_tier_is_its_own_reference(fit, make_labelled):
    fitted = fit(make_labelled(60), tiers=["cheap"])

    assert "cheap" == fitted.policy.reference
    assert 0.0 == fitted.policy.judgement.loss


def test_twenty_rows_are_enough_to_run(fit, make_labelled):
    judged = fit(make_labelled(20)).policy.judgement

    assert 20 == judged.n_fit + judged.n_judge


def test_tiers_of_one_device_are_not_mixed(fit, make_profile, make_labelled):
    """``small`` shares the reference's core, so only ``cheap`` may join it, though ``small`` is better."""
    profiles = {
        "cheap": make_profile("cheap", 1.0),
        "small": make_profile("small", 1.5, device="cpu:1"),
        "dear": make_profile("dear", 10.0, device="cpu:1"),
    }
    rows = [dataclasses.replace(row, scores={**row.scores, "small": 1.0}) for row in make_labelled(600)]
    fitted = fit(rows, profiles=profiles, reference="dear")

    assert {"cheap", "dear"} == {tier.name for tier in fitted.policy.tiers}
    assert {"cheap", "small", "dear"} <= {row.name for row in fitted.comparisons}


def test_policy_names_its_scorer_and_what_it_was_made_of(fit, make_labelled):
    fitted = fit(make_labelled(40), scorer_kind="entropy")

    assert "entropy" == fitted.policy.scorer.kind == fitted.scorer.kind
    assert hashlib.sha256(fitted.scorer.to_bytes()).hexdigest() == fitted.policy.scorer.sha256
    assert {"outcomes": "0" * 64} == fitted.policy.inputs
    assert "digest-dear" == fitted.policy.tiers[-1].checkpoint_digest


def test_incomplete_rows_are_left_out_and_counted(fit, make_labelled):
    rows = make_labelled(60)
    rows[0] = dataclasses.replace(rows[0], scores={"dear": 1.0})
    fitted = fit(rows)

    assert 1 == fitted.n_left_out
    assert 59 == fitted.policy.judgement.n_fit + fitted.policy.judgement.n_judge


def test_unlabelled_rows_name_replay(fit, make_labelled):
    with pytest.raises(InputFileError, match="llmtier replay"):
        fit([dataclasses.replace(row, scores={}) for row in make_labelled(50)], tiers=["cheap", "dear"])


def test_one_row_says_how_many_are_needed(fit, make_labelled):
    with pytest.raises(InputFileError, match="at least 20 are needed"):
        fit(make_labelled(1))


def test_a_tier_without_profile_or_cost_is_named(fit, make_profile, make_labelled):
    rows, dear = make_labelled(40), make_profile("dear")

    with pytest.raises(PlanError, match=r"tier cheap has outcomes but no measured profile.*llmtier profile"):
        fit(rows, profiles={"dear": dear})
    with pytest.raises(PlanError, match="tier cheap has outcomes but no measured profile"):
        fit(rows, profiles={"dear": dear, "cheap": make_profile("cheap", has_points=False)})
    with pytest.raises(PlanError, match="tier cheap has no cost: either price"):
        fit(rows, profiles={"dear": dear, "cheap": dataclasses.replace(make_profile("cheap"), cost=None)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "gone"}, "reference tier gone"),
        ({"confidence": 1.0}, "confidence"),
        ({"scorer_kind": "magic"}, "scorer 'magic'"),
    ],
)
def test_wrong_settings_are_usage_errors(fit, make_labelled, options, message):
    with pytest.raises(UsageError, match=message):
        fit(make_labelled(40), **options)


def goal(kind, value=None, **shares):
    return Goal(kind=GoalKind(kind), value=value, shares=shares)


def test_a_floor_is_certified_or_what_is_reachable_is_said(fit, make_labelled):
    rows = make_labelled(1500, dear_accuracy=0.95)
    fitted = fit(rows, goal=goal("min_accuracy", 0.9))
    promised = fitted.policy.guarantee

    assert (0.9, None) == (promised.min_accuracy, promised.max_loss)
    assert fitted.policy.judgement.accuracy >= 0.9
    assert fitted.policy.judgement.usd_per_request < fitted.policy.judgement.reference_usd_per_request
    with pytest.raises(
        NegativeAnswerError, match=r"0.97 cannot be certified: dear scores 0.9\d+ on .* certifies 0.9\d+"
    ):
        fit(rows, goal=goal("min_accuracy", 0.97))


def test_a_budget_buys_the_most_accuracy_and_its_loss_is_bounded(fit, make_labelled):
    rows = make_labelled(1500)
    fitted = fit(rows, goal=goal("budget_usd_per_1k", 7000.0))
    judged = fitted.policy.judgement

    assert 5.5 == pytest.approx(judged.usd_per_request, abs=1.6)
    assert judged.loss <= fitted.policy.guarantee.max_loss < 0.1
    with pytest.raises(NegativeAnswerError, match=r"budget of \$900 .* everything on cheap costs \$1000"):
        fit(rows, goal=goal("budget_usd_per_1k", 900.0))


def test_shares_are_met_and_their_loss_is_bounded(fit, make_labelled):
    fitted = fit(make_labelled(1000), goal=goal("target_shares", cheap=0.3, dear=0.7))
    shares = {tier.name: tier.share for tier in fitted.policy.tiers}

    assert 0.3 == pytest.approx(shares["cheap"], abs=0.1)
    assert fitted.policy.judgement.loss <= fitted.policy.guarantee.max_loss
    with pytest.raises(UsageError, match="names gone; the tiers to fit are cheap, dear"):
        fit(make_labelled(60), goal=goal("target_shares", gone=1.0))


def test_each_domain_gets_a_threshold_of_its_own(fit, make_labelled):
    """``cheap`` is as good as ``dear`` in one domain, useless in the other; a third has too few prompts to say."""
    rows = []
    for number, row in enumerate(make_labelled(1200)):
        domain = "rare" if number % 100 == 0 else ("fine" if number % 2 else "bad")
        prompt = dataclasses.replace(row.prompt, domain=domain)
        rows.append(dataclasses.replace(row, prompt=prompt, scores={"cheap": float(domain != "bad"), "dear": 1.0}))
    policy = fit(rows, per_domain=True).policy

    assert {"fine"} <= set(policy.gap_by_domain) <= {"fine", "bad"}
    assert policy.max_accuracy_gap is None
    assert policy.gap_of("rare") is None
    assert "in each of 2 domains at once" in policy.guarantee.statement
    assert 0.495 == pytest.approx(policy.tiers[0].share, abs=0.05)


def test_tiers_that_miss_the_limits_when_idle_are_left_out(fit, make_labelled):
    slow = fit(make_labelled(60), slo=Requirement(ttft_s=0.2))

    assert "dear" == slow.policy.reference
    with pytest.raises(NegativeAnswerError, match="no tier meets the latency limits even when idle: cheap: ttft"):
        fit(make_labelled(60), slo=Requirement(ttft_s=0.01))


def test_too_few_labels_say_how_many_would_do(fit, make_labelled):
    fitted = fit(make_labelled(120), max_accuracy_loss=0.01)

    assert ("dear",) == tuple(tier.name for tier in fitted.policy.tiers)
    assert 240 < fitted.policy.labels_needed < 20_000
    assert "labelled prompts" in lacking_labels(fitted.policy)


def test_weights_make_rows_count_as_the_traffic_they_stand_for(fit, make_labelled):
    """Every hard prompt was drawn for ten: the mean accuracy of ``cheap`` falls accordingly."""
    rows = [dataclasses.replace(row, weight=1.0 + 9.0 * (row.scores["cheap"] == 0)) for row in make_labelled(800)]
    comparisons = fit(rows).comparisons

    assert 1 / 11 == pytest.approx(next(row.accuracy for row in comparisons if row.name == "cheap"), abs=0.03)


def test_identical_texts_with_different_scores_stay_on_one_side(fit):
    rows = [
        LabelledPrompt(
            prompt=Prompt(id=str(n), messages=(Message(role="user", content=f"question {chr(97 + n % 10)}"),)),
            scores={"cheap": float(n % 3 == 0), "dear": 1.0},
        )
        for n in range(60)
    ]
    judged = fit(rows).policy.judgement

    assert (30, 30) == (judged.n_fit, judged.n_judge)
