"""Bounds of quantiles: published numbers, exact coverage, and what autocorrelation costs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.stats.bounds import (
    early_stopping_bound,
    effective_n,
    min_samples,
    series_interval,
    series_quantile_bound,
    upper_quantile_bound,
)

value_lists = st.lists(st.floats(0, 1e6), min_size=1, max_size=400)


def autoregressive(rng, n, phi, n_series):
    """Return log-normal series, one a row, whose logarithms are AR(1) of unit variance."""
    noise = rng.standard_normal((n + 300, n_series))
    level = noise[0]
    rows = np.empty((n, n_series))
    for step in range(1, n + 300):
        level = phi * level + math.sqrt(1 - phi * phi) * noise[step]
        if step >= 300:
            rows[step - 300] = level
    return np.exp(0.7 * rows.T)


def sojourns(rng, n, load, n_series):
    """Return times in an M/M/1 queue of unit arrival rate, one series a row (Lindley's recursion)."""
    burn = 1500
    services = rng.exponential(load, (n + burn, n_series))
    gaps = rng.exponential(1.0, (n + burn, n_series))
    wait = np.zeros(n_series)
    rows = np.empty((n, n_series))
    for step in range(n + burn):
        if step >= burn:
            rows[step - burn] = wait + services[step]
        wait = np.maximum(wait + services[step] - gaps[step], 0.0)
    return rows.T


@pytest.mark.parametrize(
    ("q", "confidence", "n"), [(0.95, 0.95, 59), (0.99, 0.95, 299), (0.99, 0.99, 459), (0.5, 0.95, 5)]
)
def test_the_least_n_is_the_published_one(q, confidence, n):
    assert n == min_samples(q, confidence)
    assert upper_quantile_bound(range(n - 1), q, confidence) is None
    assert n - 1 == upper_quantile_bound(range(n), q, confidence)


def test_a_median_is_bounded_by_the_sign_test():
    assert 14 == upper_quantile_bound(range(20), 0.5, 0.95)  # P(Bin(20, 1/2) <= 14) = .979, <= 13 = .942


def test_the_bound_covers_as_often_as_it_says_and_hardly_more():
    rng = np.random.default_rng(5)
    covered = [-math.log(0.05) <= upper_quantile_bound(rng.exponential(size=500), 0.95) for _ in range(2000)]

    assert 0.945 < np.mean(covered) < 0.985  # exactly 0.9583 for the rank that n = 500 has


@pytest.mark.parametrize(("n", "t"), [(662, 1), (663, 1), (1000, 2), (5000, 33)])
def test_early_stopping_takes_the_rank_of_its_definition(n, t):
    def passes(n_over, n_all):  # the probability of so few over-latency requests, were the quantile missed
        return sum(math.comb(n_all, i) * 0.01**i * 0.99 ** (n_all - i) for i in range(n_over + 1)) <= 0.01

    assert n - t == early_stopping_bound(range(n), 0.99, 0.99)
    assert passes(t, n)
    assert not passes(t + 1, n)


def test_early_stopping_needs_662_for_p99():
    assert early_stopping_bound(range(661), 0.99, 0.99) is None
    assert 661 == early_stopping_bound(range(662), 0.99, 0.99)


def test_tolerance_makes_early_stopping_easier():
    assert early_stopping_bound(range(400), 0.99, 0.99) is None
    assert early_stopping_bound(range(400), 0.99, 0.99, tolerance=0.01) is not None


@settings(deadline=None)
@given(value_lists, st.floats(0.3, 0.99), st.floats(0.6, 0.99))
def test_bounds_are_values_at_or_above_the_point_and_ordered_by_care(values, q, confidence):
    plain = upper_quantile_bound(values, q, confidence)
    careful = early_stopping_bound(values, q, confidence)

    if plain is None:
        assert careful is None
    else:
        assert plain in values
        assert sum(value <= plain for value in values) >= q * len(values)
        assert careful is None or plain <= careful


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(60, 600))
def test_a_series_bound_is_never_below_that_of_independent_values(seed, n):
    values = np.random.default_rng(seed).exponential(size=n)
    bound = series_quantile_bound(values, 0.95)

    assert bound is None or upper_quantile_bound(values, 0.95) <= bound


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10.0))
def test_the_unit_does_not_matter(seed, scale):
    values = np.random.default_rng(seed).exponential(size=400)
    bound, scaled = series_quantile_bound(values, 0.8), series_quantile_bound(values * scale, 0.8)

    assert (bound is None) == (scaled is None)
    assert bound is None or scaled == pytest.approx(bound * scale)
    assert series_interval(values * scale, "mean").high == pytest.approx(series_interval(values, "mean").high * scale)


def test_repeated_values_are_worth_no_more_than_once():
    rng = np.random.default_rng(8)
    values = rng.exponential(size=300)

    assert 120 < effective_n(values, 0.95) <= 300
    assert 330 > effective_n(np.repeat(values, 10), 0.95)


@pytest.mark.parametrize(
    ("make", "knob", "truth"), [(autoregressive, 0.8, math.exp(0.7 * 1.6448536)), (sojourns, 0.5, math.log(20))]
)
def test_the_series_bound_covers_an_autocorrelated_quantile(make, knob, truth):
    rows = make(np.random.default_rng(11), 1500, knob, 400)
    bounds = [series_quantile_bound(row, 0.95) for row in rows]
    given_bounds = np.array([bound for bound in bounds if bound is not None])
    naive = np.array([upper_quantile_bound(row, 0.95) for row in rows])

    assert 0.75 < given_bounds.size / 400
    assert 0.95 <= (truth <= given_bounds).mean()
    assert 0.92 > (truth <= naive).mean()  # what it is for
    assert 1.6 * truth > np.median(given_bounds)


@pytest.mark.parametrize(
    ("make", "knob", "truths"),
    [
        (autoregressive, 0.8, {"mean": math.exp(0.245), 0.5: 1.0}),
        (sojourns, 0.5, {"mean": 1.0, 0.5: math.log(2)}),
    ],
)
def test_intervals_cover_an_autocorrelated_mean_and_median(make, knob, truths):
    rows = make(np.random.default_rng(12), 1500, knob, 500)
    for statistic, truth in truths.items():
        intervals = [series_interval(row, statistic) for row in rows]
        covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])

        assert 0.925 <= covered <= 0.975  # 500 runs: two standard errors are 0.02


def test_neighbours_that_share_their_fate_count_as_one():
    values = np.random.default_rng(13).exponential(size=600)

    assert series_quantile_bound(values, 0.95) < series_quantile_bound(values, 0.95, least_time=10.0)
    assert series_quantile_bound(values, 0.95, least_time=10.2) is None  # 58 are left


def test_equal_values_have_an_interval_of_no_width():
    assert [2.0, 2.0] == series_interval([2.0] * 50, "mean").as_list()


@pytest.mark.parametrize("statistic", ["mean", 0.5])
def test_one_value_has_no_interval(statistic):
    assert series_interval([1.0], statistic) is None


def test_too_few_values_bound_no_high_quantile():
    assert series_interval(np.arange(20.0), 0.99) is None
    assert series_quantile_bound(np.arange(58.0), 0.95) is None


@pytest.mark.parametrize("function", [upper_quantile_bound, early_stopping_bound])
def test_nan_has_no_quantile(function):
    with pytest.raises(ValueError, match="NaN"):
        function([1.0, math.nan], 0.5, 0.9)


@pytest.mark.parametrize(("q", "confidence"), [(0.0, 0.9), (1.0, 0.9), (0.5, 1.0), (math.nan, 0.9)])
def test_levels_lie_between_0_and_1(q, confidence):
    with pytest.raises(ValueError, match="must lie in"):
        upper_quantile_bound([1.0], q, confidence)
    with pytest.raises(ValueError, match="must lie in"):
        series_interval([1.0, 2.0], q, confidence)


def test_the_order_of_equal_values_means_nothing():
    values = np.random.default_rng(14).integers(0, 4, 800).astype(float)
    rounded = 0.1 + np.linspace(0, 1e-13, 800)

    assert 100 < effective_n(values, 0.95)  # ranks by place among equals would say 7
    assert 800 == effective_n(rounded, 0.95)
