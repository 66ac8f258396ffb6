"""A drawn sample stands for the whole log: weights add up, means are unbiased, and the same seed draws the same."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.prompt import Message, Prompt
from llmtier.evaluate.plan import FLOOR, Stratum, allocate, plan_sample

DOMAINS = st.sampled_from(["law", "code", "chat", None])
LOGS = st.lists(st.tuples(DOMAINS, st.integers(0, 200), st.sampled_from(["big", "small", ""])), min_size=1, max_size=80)


def make_log(rows):
    prompts = [
        Prompt(id=f"p{index}", messages=(Message(role="user", content="x" * length),), domain=domain)
        for index, (domain, length, _) in enumerate(rows)
    ]
    return prompts, {f"p{index}": tier for index, (_, _, tier) in enumerate(rows) if tier}


@given(LOGS, st.integers(1, 100), st.integers(0, 5))
def test_weights_add_up_to_the_log_and_the_budget_is_kept(rows, n, seed):
    prompts, served_by = make_log(rows)
    plan = plan_sample(prompts, n=n, seed=seed, served_by=served_by)

    assert min(n, len(prompts)) == len(plan.prompts) == sum(share.n_drawn for share in plan.shares)
    assert pytest.approx(len(prompts)) == sum(plan.weights.values())
    assert {prompt.id for prompt in plan.prompts} == plan.weights.keys()
    assert all(1 <= share.n_drawn <= share.n_total for share in plan.shares)
    assert all(weight >= 1.0 for weight in plan.weights.values())
    assert len(prompts) == sum(share.n_total for share in plan.shares)


@given(LOGS, st.integers(1, 100), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_draw_depends_on_seed_and_ids_and_not_on_the_order_of_the_log(rows, n, seed, rng):
    prompts, served_by = make_log(rows)
    plan = plan_sample(prompts, n=n, seed=seed, served_by=served_by)
    other = plan_sample(rng.sample(prompts, len(prompts)), n=n, seed=seed, served_by=served_by)

    assert plan.weights == other.weights
    assert plan.digest == plan_sample(prompts, n=n, seed=seed, served_by=served_by).digest
    assert [prompt for prompt in prompts if prompt.id in plan.weights] == list(plan.prompts)


def test_another_seed_draws_others():
    prompts, _ = make_log([("chat", 5, "")] * 200)
    one, two = (plan_sample(prompts, n=20, seed=seed) for seed in (0, 1))

    assert one.digest != two.digest
    assert len(one.weights.keys() & two.weights.keys()) < 10  # 2 expected


def test_a_larger_budget_keeps_the_prompts_of_a_smaller_one():
    rows = [(["law", "code", "chat"][index % 3 if index % 10 else 0], index % 50, "") for index in range(300)]
    prompts, _ = make_log(rows)
    drawn = [set(plan_sample(prompts, n=n, seed=3).weights) for n in (60, 90, 200, 300)]

    assert all(less <= more for less, more in itertools.pairwise(drawn))


def test_rare_groups_are_drawn_more_often_than_in_proportion():
    prompts, _ = make_log([("rare" if index < 4 else "common", 5, "") for index in range(1000)])
    plan = plan_sample(prompts, n=50, seed=0)
    rare = [share for share in plan.shares if share.stratum.domain == "rare"]

    assert FLOOR == sum(share.n_drawn for share in rare)  # in proportion it would be none


@pytest.mark.parametrize(
    ("n", "seen"),
    [(100, {"domain", "length", "tier"}), (40, {"domain", "length"}), (12, {"domain"}), (5, set())],
)
def test_groups_get_coarser_when_the_budget_is_small(n, seen):
    rows = [(domain, length, tier) for domain in "abc" for length in (1, 50, 100) for tier in "xy" for _ in range(8)]
    prompts, served_by = make_log(rows)
    plan = plan_sample(prompts, n=n, seed=0, served_by=served_by)
    stratum = plan.shares[0].stratum

    assert seen == {name for name in ("domain", "length", "tier") if getattr(stratum, name) is not None}
    assert n == len(plan.prompts)


def test_weighted_means_are_unbiased_where_plain_ones_are_not():
    """Horvitz-Thompson over 400 seeded draws; the rare domain, drawn too often, is all wrong."""
    rng = np.random.default_rng(0)
    rows = [("rare" if index < 12 else "common", int(rng.integers(1, 100)), "") for index in range(240)]
    prompts, _ = make_log(rows)
    score = {prompt.id: float(prompt.domain == "common" and rng.random() < 0.8) for prompt in prompts}
    truth = sum(score.values()) / len(prompts)
    weighted, plain = [], []
    for seed in range(400):
        plan = plan_sample(prompts, n=24, seed=seed)
        weighted.append(sum(score[key] * weight for key, weight in plan.weights.items()) / len(prompts))
        plain.append(sum(score[key] for key in plan.weights) / len(plan.weights))
    error = np.std(weighted) / np.sqrt(len(weighted))

    assert abs(np.mean(weighted) - truth) < 3 * error
    assert abs(np.mean(plain) - truth) > 10 * error


def test_every_prompt_of_a_group_has_the_same_chance():
    prompts, _ = make_log([("a", 5, "")] * 20)
    counts = dict.fromkeys((prompt.id for prompt in prompts), 0)
    for seed in range(1000):
        for key in plan_sample(prompts, n=5, seed=seed).weights:
            counts[key] += 1
    spread = sum((count - 250) ** 2 for count in counts.values()) / 250

    assert spread < 36.2  # chi-square of 19 degrees at 0.01; fixed seeds, so it passes always or never


SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8)


@given(SIZES, st.data())
def test_no_group_loses_by_a_larger_budget(sizes, data):
    strata = {Stratum(domain=str(index)): size for index, size in enumerate(sizes)}
    least = sum(min(size, FLOOR) for size in sizes)
    n = data.draw(st.integers(least, sum(sizes)))
    less, more = allocate(strata, n=n), allocate(strata, n=n + 1)

    assert n == sum(less.values())
    assert all(min(size, FLOOR) <= less[key] <= size for key, size in strata.items())
    assert all(less[key] <= more[key] for key in strata)


def test_without_a_budget_all_are_asked_once():
    prompts, _ = make_log([("a", 5, ""), ("b", 6, ""), ("b", 70, "")])
    plan = plan_sample(prompts, n=None, seed=0)

    assert (tuple(prompts), {1.0}) == (plan.prompts, set(plan.weights.values()))


def test_a_sample_of_nobody_is_refused():
    with pytest.raises(ValueError, match="at least one prompt, got 0"):
        plan_sample(make_log([("a", 5, "")])[0], n=0, seed=0)


def test_floors_that_cannot_be_paid_are_refused():
    with pytest.raises(ValueError, match="3 prompts are fewer than the floors of 2 groups"):
        allocate({Stratum(domain="a"): 10, Stratum(domain="b"): 10}, n=3)
