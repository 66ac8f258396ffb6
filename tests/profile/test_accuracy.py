"""Accuracy per domain with bounds; a failed request is a wrong answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.prompt import Outcome
from llmtier.profile.accuracy import estimate_accuracy, to_items
from llmtier.stats.intervals import mean_interval, wilson
from llmtier.store.profiles import AccuracyItem


def make_item(score=1.0, domain=None, error=None):
    return AccuracyItem(
        prompt_id="p",
        domain=domain,
        scorer="exact",
        expected="a",
        text=None if error else "a",
        score=score,
        error=error,
    )


def test_all_comes_first_then_domains_by_name():
    items = [make_item(1.0, "b"), make_item(0.0, "a"), make_item(1.0, "b"), make_item(0.0, None)]

    everything, a, b = estimate_accuracy(items)

    assert ("all", 4, 0.5) == (everything.domain, everything.n, everything.accuracy)
    assert ("a", 1, 0.0) == (a.domain, a.n, a.accuracy)
    assert ("b", 2, 1.0) == (b.domain, b.n, b.accuracy)


def test_right_or_wrong_scores_get_wilsons_interval():
    [estimate] = estimate_accuracy([make_item(1.0), make_item(1.0), make_item(0.0)])

    assert wilson(2, 3) == estimate.interval


def test_fractional_scores_get_a_t_interval():
    [estimate] = estimate_accuracy([make_item(1.0), make_item(0.5), make_item(0.0)])

    assert mean_interval([1.0, 0.5, 0.0]) == estimate.interval


def test_no_items_give_no_estimate():
    assert () == estimate_accuracy([])


def test_failed_requests_count_as_wrong(make_prompts):
    prompts = make_prompts(3, answers=["a", None, "b"], domain="d")
    outcomes = [
        Outcome(prompt_id="p0", tier="t", text="a", score=1.0),
        Outcome(prompt_id="p1", tier="t", text="a"),
        Outcome(prompt_id="p2", tier="t", error="cut"),
    ]

    items = to_items(prompts, outcomes)
    everything, _ = estimate_accuracy(items)

    assert [("p0", 1.0, "a", None), ("p2", 0.0, None, "cut")] == [
        (item.prompt_id, item.score, item.text, item.error) for item in items
    ]
    assert (2, 1, 0.5) == (everything.n, everything.n_failed, everything.accuracy)


@given(st.lists(st.builds(make_item, st.sampled_from([0.0, 1.0]), st.sampled_from(["a", "b", None])), min_size=1))
def test_estimates_lie_within_their_bounds_and_add_up(items):
    everything, *domains = estimate_accuracy(items)

    for estimate in (everything, *domains):
        assert estimate.interval.low <= estimate.accuracy <= estimate.interval.high
    assert everything.n == sum(domain.n for domain in domains) + sum(item.domain is None for item in items)
    assert sum(item.score for item in items) == pytest.approx(everything.accuracy * everything.n)
