"""Laws of the isotonic fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.stats.isotonic import isotonic

points = st.lists(st.tuples(st.integers(0, 8), st.floats(-10, 10), st.floats(0.1, 5)), min_size=1, max_size=25)


def test_violators_are_pooled_by_weight():
    assert [1.0, 3.25, 3.25, 6.0] == isotonic([1, 2, 3, 4], [1, 4, 3, 6], [1, 1, 3, 1]).tolist()


def test_order_of_the_points_is_kept():
    assert [6.0, 1.0, 3.5, 3.5] == isotonic([4, 1, 3, 2], [6, 1, 3, 4]).tolist()


def test_nothing_gives_nothing():
    assert [] == isotonic([], []).tolist()


@settings(deadline=None)
@given(points)
def test_the_fit_never_falls_and_is_one_value_per_place(rows):
    x, y, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    fitted = isotonic(x, y, weights)

    by_place = {}
    for place, value in zip(x, fitted, strict=True):
        assert by_place.setdefault(place, value) == value
    values = [by_place[place] for place in sorted(by_place)]
    assert values == sorted(values)
    assert np.dot(weights, y) == pytest.approx(np.dot(weights, fitted), abs=1e-6)


@settings(deadline=None)
@given(points, st.integers(0, 10_000))
def test_no_other_rising_curve_is_closer(rows, seed):
    x, y, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    levels = np.sort(np.random.default_rng(seed).uniform(-10, 10, 9))
    other = levels[x.astype(int)]

    assert np.dot(weights, (y - isotonic(x, y, weights)) ** 2) <= np.dot(weights, (y - other) ** 2) + 1e-6


@pytest.mark.parametrize(
    ("x", "y", "weights"),
    [([1, 2], [1], None), ([1, 2], [1, 2], [1, 0]), ([1, 2], [1, np.nan], None), ([[1, 2]], [[1, 2]], None)],
)
def test_bad_points_are_refused(x, y, weights):
    with pytest.raises(ValueError, match="isotonic needs"):
        isotonic(x, y, weights)
