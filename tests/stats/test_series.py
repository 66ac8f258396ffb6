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
    times = [correlation(autoregressive(rng, 3000, phi)).time for _ in range(60)]

    assert 0.9 <= np.median(times) * (1 - phi) / (1 + phi) <= 1.45  # rather too long than too short


def test_noise_does_not_hide_a_slow_swing():
    rng = np.random.default_rng(2)
    times = [correlation(0.3 * autoregressive(rng, 4000, 0.98) + rng.standard_normal(4000)).time for _ in range(40)]

    assert 0.8 <= np.median(times) / ((0.09 * 99 + 1) / 1.09) <= 1.6  # 99 is the swing's own


def test_longer_correlation_leaves_less_freedom():
    rng = np.random.default_rng(3)
    short, long = (
        np.mean([correlation(autoregressive(rng, 1500, phi)).freedom for _ in range(30)]) for phi in (0, 0.99)
    )

    assert long < short / 2


def test_skewness_has_the_sign_of_the_tail():
    values = np.random.default_rng(4).exponential(size=200) ** 2

    assert correlation(values).skewness > 0 > correlation(-values).skewness


def test_equal_values_count_as_independent():
    assert (1.0, 9.0) == (correlation([3.3] * 10).time, correlation([3.3] * 10).freedom)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_a_series_needs_two_finite_values(values):
    with pytest.raises(ValueError, match="two finite values"):
        correlation(values)
