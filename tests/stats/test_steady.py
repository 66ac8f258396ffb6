"""MSER-5: where warm-up ends, and when there is no steady state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.stats.steady import mser5_start


def test_a_step_is_cut_where_it_ends():
    rng = np.random.default_rng(1)
    series = np.concatenate([rng.normal(5.0, 0.1, 60), rng.normal(1.0, 0.1, 240)])

    assert 60 == mser5_start(series)


def test_a_decay_is_cut_where_noise_hides_it():
    rng = np.random.default_rng(2)
    series = 1.0 + 4.0 * np.exp(-np.arange(400) / 20) + rng.normal(0, 0.2, 400)

    assert 35 <= mser5_start(series) <= 80


def test_steady_noise_is_hardly_cut():
    rng = np.random.default_rng(3)
    cuts = [mser5_start(rng.normal(1.0, 0.3, 400)) for _ in range(200)]

    assert 4 >= sum(cut is None for cut in cuts)
    assert 40 > np.median([cut for cut in cuts if cut is not None])


@pytest.mark.parametrize("slope", [0.02, -0.02])
def test_a_trend_to_the_end_has_no_steady_state(slope):
    rng = np.random.default_rng(4)

    assert mser5_start(slope * np.arange(300) + rng.normal(0, 0.3, 300)) is None


def test_equal_values_are_steady():
    assert 0 == mser5_start([2.5] * 23)


@pytest.mark.parametrize("n", [0, 1, 19])
def test_too_few_values_can_not_be_judged(n):
    assert mser5_start([1.0] * n) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_must_be_finite(value):
    with pytest.raises(ValueError, match="finite"):
        mser5_start([1.0] * 30 + [value])


def by_definition(values):
    """MSER-5 as White writes it, term by term."""
    means = [np.mean(values[5 * i : 5 * i + 5]) for i in range(len(values) // 5)]
    return [np.sum((means[d:] - np.mean(means[d:])) ** 2) / (len(means) - d) ** 2 for d in range(len(means) // 2 + 1)]


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 100.0), min_size=20, max_size=80))
def test_the_cut_minimises_the_marginal_error(values):
    start = mser5_start(values)
    errors = by_definition(values)

    chosen = len(errors) - 1 if start is None else start // 5
    assert errors[chosen] <= min(errors) + 1e-9 * (1 + max(errors))


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_unit_and_origin_do_not_matter(seed, scale, shift):
    values = np.random.default_rng(seed).normal(3.0, 1.0, 100)

    assert mser5_start(values) == mser5_start(values * scale + shift)
