"""Repeats: never fewer requests, never beyond the budget, none when the mean is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.profile.precision import relative_half_width, requests_for
from tests.profile.simulated_load import make_sample


def point(n, *, spread=0.3, seed=0, gap_s=0.1, **more):
    """Return ``n`` requests, ``gap_s`` apart, whose E2EL is lognormal with this spread about 1 s."""
    e2el_s = np.random.default_rng(seed).lognormal(0, spread, n) if spread else np.ones(n)
    return [
        make_sample(number * gap_s, [number * gap_s + value / 2, number * gap_s + value], **more)
        for number, value in enumerate(e2el_s.tolist())
    ]


def test_half_width_is_that_of_the_mean_of_independent_values():
    samples = point(400, spread=0.3)
    values = [sample.timing.e2el_s for sample in samples]

    expected = 1.966 * np.std(values) / math.sqrt(400) / np.mean(values)

    assert pytest.approx(expected, rel=0.35) == relative_half_width(samples)


def test_equal_answers_are_known_at_once():
    assert pytest.approx(0.0, abs=1e-9) == relative_half_width(point(50, spread=0.0))
    assert requests_for(point(50, spread=0.0), precision=0.01, budget_s=1e9) is None


def test_a_series_that_wanders_is_known_less_well_than_its_shuffled_values():
    n = 300
    waves = np.exp(0.3 * np.sin(np.arange(n) / 20))
    shuffled = np.random.default_rng(0).permutation(waves)
    wandering, mixed = (
        [make_sample(0.1 * i, [0.1 * i + value]) for i, value in enumerate(values.tolist())]
        for values in (waves, shuffled)
    )

    assert relative_half_width(wandering) > 2 * relative_half_width(mixed)


def test_warmup_failures_and_order_count_nothing():
    samples = point(100)
    noise = [
        make_sample(500.0, [900.0], is_warmup=True),
        make_sample(501.0, [901.0], status="timeout"),
        make_sample(502.0, [], done_s=999.0, status="HTTP 500"),
    ]

    assert relative_half_width(samples) == relative_half_width([*noise, *samples[::-1]])


@pytest.mark.parametrize("samples", [[], point(1), [make_sample(0.0, [], done_s=1.0, status="x")] * 5])
def test_nothing_to_know_from(samples):
    assert relative_half_width(samples) is None


def test_one_request_asks_for_no_repeat():
    """There is nothing to size it from."""
    assert requests_for(point(1), precision=0.05, budget_s=100.0) is None


def test_a_good_point_asks_for_no_repeat():
    assert requests_for(point(400, spread=0.1), precision=0.05, budget_s=1e9) is None


def test_a_repeat_of_the_wanted_size_is_precise_enough():
    first = point(60, spread=0.5)

    wanted = requests_for(first, precision=0.05, budget_s=1e9)

    assert wanted > 2 * 60
    assert relative_half_width(point(wanted, spread=0.5, seed=9)) < 0.05 * 1.3


def test_twice_the_precision_takes_four_times_the_requests():
    first = point(60, spread=0.5)

    loose, tight = (requests_for(first, precision=share, budget_s=1e9) for share in (0.04, 0.02))

    assert pytest.approx(4 * loose, rel=0.01) == tight


def test_a_budget_that_cuts_the_repeat_short_still_allows_one_that_doubles():
    first = point(60, spread=0.5)  # 6 s
    wanted = requests_for(first, precision=0.01, budget_s=1e9)

    assert 120 <= requests_for(first, precision=0.01, budget_s=15.0) < wanted
    assert requests_for(first, precision=0.01, budget_s=8.0) is None
    assert requests_for(first, precision=0.01, budget_s=0.0) is None


few = settings(max_examples=60)


@few
@given(st.integers(0, 80), st.floats(0.0, 2.0), st.floats(0.001, 0.99), st.floats(0.0, 1000.0), st.integers(0, 9))
def test_a_repeat_is_larger_and_fits_the_budget(n, spread, precision, budget_s, seed):
    samples = point(n, spread=spread, seed=seed)

    wanted = requests_for(samples, precision=precision, budget_s=budget_s)

    if wanted is not None:
        span_s = max(sample.row.done_s for sample in samples) - samples[0].row.scheduled_s
        assert wanted > n
        assert wanted * span_s / n <= budget_s * (1 + 1e-9)


@few
@given(st.integers(2, 80), st.floats(0.1, 2.0), st.floats(1.0, 1000.0), st.floats(1.0, 1000.0))
def test_a_larger_budget_never_allows_fewer(n, spread, one, other):
    low, high = sorted((one, other))
    counts = [requests_for(point(n, spread=spread), precision=0.01, budget_s=budget_s) or 0 for budget_s in (low, high)]

    assert counts[0] <= counts[1]


@few
@given(st.integers(2, 80), st.floats(0.1, 2.0), st.floats(0.001, 0.9), st.floats(0.001, 0.9))
def test_a_finer_precision_never_asks_for_fewer(n, spread, one, other):
    fine, coarse = sorted((one, other))
    counts = [requests_for(point(n, spread=spread), precision=share, budget_s=1e9) or 0 for share in (fine, coarse)]

    assert counts[0] >= counts[1]
