"""The autocorrelation time of series whose own is known."""

import math

import numpy as np
import pytest

from llmtier.stats.series import correlation


def autoregressive(rng, n, phi):
    level, values = rng.standard_normal(), np.empty(n)
    for step in range(n):
        level = phi * level + math.sqrt(1 - phi * phi) * rng.standard_normal()
        values[step] = level
    return values


@pytest.mark.parametrize("phi", [-0.4, 0.0, 0.5, 0.9])
def test_an_autoregressive_series_has_the_time_of_its_formula(phi):
    rng = np.random.default_rng(1)
    times = [correlation(autoregressive(rng, 4000, phi)).time for _ in range(20)]

    assert (1 + phi) / (1 - phi) == pytest.approx(np.mean(times), rel=0.1)


def test_longer_correlation_leaves_less_freedom():
    rng = np.random.default_rng(2)

    assert (
        correlation(autoregressive(rng, 2000, 0.95)).freedom < correlation(autoregressive(rng, 2000, 0.0)).freedom / 4
    )


def test_equal_values_count_as_independent():
    assert (1.0, 9.0) == (correlation([3.3] * 10).time, correlation([3.3] * 10).freedom)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_a_series_needs_two_finite_values(values):
    with pytest.raises(ValueError, match="two finite values"):
        correlation(values)
