"""The SLO search: a bracket that holds the truth, closed to the gap, whatever the curve's form and scale."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.profile.search import SearchEnd, SearchPlan


def run_search(plan, ratio_of):
    """Drive ``plan`` with a curve of latency over SLO; ``None`` from the curve means no steady state."""
    rates = []
    while (rate := plan.next_rate()) is not None:
        ratio = ratio_of(rate)
        plan.note(rate, meets=ratio is not None and ratio <= 1, margin=ratio)
        rates.append(rate)
    return rates, plan.result


def make_curve(form, capacity, steepness):
    """Return a monotone curve that crosses 1 at ``capacity``."""
    saturation = capacity * (1 + 1 / steepness)

    def queue(rate):  # 1 / (saturation - rate), and no steady state beyond
        return (saturation - capacity) / (saturation - rate) if rate < saturation else None

    forms = {
        "power": lambda rate: (rate / capacity) ** steepness,
        "queue": queue,
        "cliff": lambda rate: 0.2 if rate <= capacity else None,
        "step": lambda rate: 0.9 if rate <= capacity else 1.1,
    }
    return forms[form]


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(["power", "queue", "cliff", "step"]),
    st.floats(-3.0, 3.0),
    st.floats(-3.0, 3.0),
    st.floats(0.1, 30.0),
)
def test_the_bracket_holds_any_monotone_truth_and_closes(form, log_capacity, log_start, steepness):
    capacity, start = 10**log_capacity, 10**log_start
    plan = SearchPlan(start, min_rps=1e-5, max_probes=60)

    rates, result = run_search(plan, make_curve(form, capacity, steepness))

    assert SearchEnd.CLOSED is result.reason
    assert result.low_rps <= capacity * (1 + 1e-9)
    assert capacity <= result.high_rps * (1 + 1e-9)
    assert result.high_rps / result.low_rps < 1.05
    assert result.low_rps <= result.capacity_rps <= result.high_rps
    assert abs(math.log2(capacity / start)) + 12 >= len(set(rates))  # to the bracket, then into it
    assert 2 == min(rates.count(result.low_rps), rates.count(result.high_rps))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.5), st.integers(1, 30))
def test_noise_never_keeps_it_running(seed, noise, max_probes):
    rng = np.random.default_rng(seed)
    plan = SearchPlan(1.0, max_probes=max_probes)

    rates, result = run_search(plan, lambda rate: rate / 5.0 * math.exp(rng.normal(0, noise)))

    assert len(rates) <= max_probes
    assert result.reason is not None
    assert len(rates) == result.n_probes
    if result.low_rps is not None and result.high_rps is not None:
        assert result.low_rps < result.high_rps


def test_a_smooth_curve_is_found_within_a_percent_and_few_probes():
    rates, result = run_search(SearchPlan(1.0), lambda rate: rate / 11.3)

    assert 10 >= len(set(rates))
    assert len(set(rates)) + 2 == len(rates)  # each end once more
    assert 11.3 == pytest.approx(result.capacity_rps, rel=0.01)


def test_three_probes_halve_the_bracket_before_the_fit_is_asked():
    rates, _ = run_search(SearchPlan(4.0), make_curve("power", 5.0, 3.0))

    assert [4.0, 8.0, math.sqrt(32.0)] == pytest.approx(rates[:3])
    assert [math.sqrt(4.0 * rates[2]), math.sqrt(rates[3] * rates[2])] == pytest.approx(rates[3:5])


def test_moderate_noise_costs_less_than_five_percent_on_average():
    rng = np.random.default_rng(7)
    errors = []
    for _ in range(60):
        _, result = run_search(SearchPlan(1.0), lambda rate: (rate / 11.3) ** 4 * math.exp(rng.normal(0, 0.05)))
        errors.append(abs(result.capacity_rps / 11.3 - 1))

    assert 0.05 > np.mean(errors)


def test_an_end_that_was_luck_moves_when_it_is_measured_again():
    seen = set()

    def ratio_of(rate):
        if 0.9 < rate / 11.3 < 1.1 and rate not in seen:  # the first run near the truth flatters
            seen.add(rate)
            return 0.95
        return rate / 11.3

    _, once = run_search(SearchPlan(1.0, confirmations=1), ratio_of)
    seen.clear()
    _, result = run_search(SearchPlan(1.0, confirmations=3), ratio_of)

    assert once.low_rps > 11.3 * 1.05
    assert result.low_rps < 11.3 * 1.05


def test_every_rate_meets_up_to_the_highest_allowed():
    rates, result = run_search(SearchPlan(1.0, max_rps=5.0), lambda rate: 0.5)

    assert [1.0, 2.0, 4.0, 5.0] == rates
    assert (5.0, 5.0, None) == (result.capacity_rps, result.low_rps, result.high_rps)
    assert SearchEnd.ALL_MET is result.reason


def test_no_rate_meets_down_to_the_lowest_allowed():
    rates, result = run_search(SearchPlan(1.0, min_rps=0.3), lambda rate: None)

    assert [1.0, 0.5, 0.3] == rates
    assert (None, None, 0.3) == (result.capacity_rps, result.low_rps, result.high_rps)
    assert SearchEnd.NONE_MET is result.reason


def test_the_budget_ends_it_with_what_is_known():
    rates, result = run_search(SearchPlan(1.0, max_probes=3), make_curve("power", 11.3, 1.0))

    assert [1.0, 2.0, 4.0] == rates
    assert (4.0, 4.0, None) == (result.capacity_rps, result.low_rps, result.high_rps)
    assert SearchEnd.BUDGET is result.reason


def test_a_search_that_has_not_begun_knows_nothing():
    result = SearchPlan(0.25).result

    assert (None, None, None, None, 0) == (
        result.capacity_rps,
        result.low_rps,
        result.high_rps,
        result.reason,
        result.n_probes,
    )


@pytest.mark.parametrize("margin", [0.5, None])
def test_a_point_that_may_not_be_believed_does_not_meet_whatever_its_margin(margin):
    plan = SearchPlan(8.0)
    plan.note(8.0, meets=False, margin=margin)

    assert 4.0 == plan.next_rate()
    assert 8.0 == plan.result.high_rps


def test_one_lucky_pass_above_failures_does_not_move_the_bracket():
    plan = SearchPlan(1.0)
    for rate, ratio in [(1.0, 0.5), (2.0, 1.8), (3.0, 0.95), (4.0, 2.5)]:
        plan.note(rate, meets=ratio <= 1, margin=ratio)

    assert (1.0, 2.0) == (plan.result.low_rps, plan.result.high_rps)


@pytest.mark.parametrize(
    "options",
    [
        {"start_rps": 0.0},
        {"start_rps": 1.0, "min_rps": 2.0},
        {"start_rps": 3.0, "max_rps": 2.0},
        {"start_rps": 1.0, "max_gap": 0.0},
    ],
)
def test_a_search_needs_a_range(options):
    with pytest.raises(ValueError, match="a search needs"):
        SearchPlan(**options)


@pytest.mark.parametrize(("rate", "margin"), [(0.0, 1.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, None)])
def test_a_probe_needs_numbers(rate, margin):
    with pytest.raises(ValueError, match="a probe needs"):
        SearchPlan(1.0).note(rate, meets=False, margin=margin)
