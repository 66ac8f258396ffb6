"""Laws and known truths of the intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.stats.intervals import mean_interval, paired_interval, upper_mean_bound, wilson

unit_lists = st.lists(st.floats(0, 1), min_size=1, max_size=40)
difference_lists = st.lists(st.floats(-1, 1), min_size=2, max_size=40)


def test_wilson_agrees_with_the_published_example():
    interval = wilson(8, 10)

    assert [0.4902, 0.9433] == pytest.approx(interval.as_list(), abs=1e-4)


@settings(deadline=None)
@given(st.integers(0, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_holds_its_mean_and_stays_in_range(counts, confidence):
    successes, n = counts
    interval = wilson(successes, n, confidence=confidence)

    assert 0 <= interval.low <= interval.high <= 1
    assert n == 0 or interval.low <= successes / n <= interval.high


@settings(deadline=None)
@given(unit_lists)
def test_intervals_widen_with_confidence(values):
    narrow, wide = mean_interval(values, confidence=0.8), mean_interval(values, confidence=0.99)

    assert wide.low <= narrow.low + 1e-12
    assert narrow.high <= wide.high + 1e-12


def test_mean_interval_is_students():
    half = 4.302653 * 0.2 / math.sqrt(3)  # t of 2 degrees of freedom at .975

    assert [0.0, 0.4 + half] == pytest.approx(mean_interval([0.2, 0.4, 0.6]).as_list(), abs=1e-5)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_values_give_the_whole_range(values):
    assert [0.0, 1.0] == mean_interval(values).as_list()
    assert [-1.0, 1.0] == paired_interval(values).as_list()


@settings(deadline=None)
@given(difference_lists)
def test_paired_interval_turns_with_the_sign(differences):
    interval = paired_interval(differences)
    mirrored = paired_interval([-value for value in differences])

    assert interval.low == pytest.approx(-mirrored.high)
    assert -1 <= interval.low <= interval.high <= 1


def test_no_difference_seen_is_no_proof_of_none():
    few, many = paired_interval([0.0] * 20), paired_interval([0.0] * 2000)

    assert few.high > 0.05
    assert many.high < 0.002


def test_paired_interval_covers_the_true_difference():
    """2,000 samples of 200 pairs at a true difference of .03; stated 95 %."""
    rng = np.random.default_rng(5)
    samples = rng.choice([1.0, 0.0, -1.0], size=(2000, 200), p=[0.08, 0.87, 0.05])
    covered = [interval.low <= 0.03 <= interval.high for interval in map(paired_interval, samples)]

    assert 0.935 <= np.mean(covered) <= 0.975


def test_upper_bound_is_exceeded_about_as_often_as_stated():
    """2,000 samples of 300 rare losses at a true mean of .01; stated 5 %."""
    rng = np.random.default_rng(6)
    samples = (rng.random((2000, 300)) < 0.01).astype(np.float64)
    exceeded = [upper_mean_bound(sample) < 0.01 for sample in samples]

    assert np.mean(exceeded) <= 0.06


@settings(deadline=None)
@given(difference_lists, st.floats(0.5, 0.99))
def test_upper_bound_is_never_below_the_mean(values, confidence):
    assert upper_mean_bound(values, confidence=confidence) >= float(np.mean(values)) - 1e-12


def test_values_out_of_range_are_refused():
    for wrong in ([1.5], [math.nan]):
        with pytest.raises(ValueError, match="must lie in"):
            mean_interval(wrong)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)
