"""Gaps move equal steps of the traffic, for any number of tiers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmtier.fit.path import Evidence, make_gaps, walk

unit = st.floats(0, 1)


def make_evidence(probabilities, scores=None, weights=None):
    n = len(probabilities)
    return Evidence(
        probabilities=np.asarray(probabilities, dtype=np.float64),
        scores=np.zeros_like(probabilities, dtype=np.float64)
        if scores is None
        else np.asarray(scores, dtype=np.float64),
        weights=np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64),
        groups=np.arange(n),
    )


def about(*arguments, **options):
    """Return the gaps, which are rounded up to six digits."""
    return pytest.approx(make_gaps(*arguments, **options), abs=2e-6)


@st.composite
def predictions(draw):
    n, n_tiers = draw(st.integers(1, 80)), draw(st.integers(2, 4))
    cells = arrays(np.float64, (n, n_tiers), elements=st.one_of(unit, st.sampled_from([0.2, 0.5, 0.8])))
    return draw(cells), draw(st.integers(1, n_tiers - 1)), draw(arrays(np.float64, n, elements=st.floats(0.5, 4)))


def test_each_step_moves_two_percent_more():
    below = np.random.default_rng(0).permutation(np.arange(1, 1001)) / 2000
    probabilities = np.column_stack([0.9 - below, np.full(1000, 0.9)])
    gaps = make_gaps(probabilities, 1)

    assert [0.01 * step for step in range(1, 51)] == pytest.approx(gaps, abs=2e-6)
    assert [0.02 * step for step in range(1, 51)] == pytest.approx(walk(make_evidence(probabilities), 1, gaps).shares)


def test_no_path_where_the_reference_is_the_cheapest():
    assert () == make_gaps(np.array([[0.9, 0.95], [0.3, 0.4]]), 0)


def test_a_tier_behind_the_reference_is_not_on_the_path():
    assert [0.4] == about(np.array([[0.5, 0.9, 0.99]]), 1)


def test_equal_predictions_make_one_step():
    assert [0.3] == about(np.tile([0.5, 0.8], (100, 1)), 1)


def test_where_the_cheap_tier_is_no_worse_the_first_gap_is_zero():
    assert [0.0, 0.3] == about(np.array([[0.9, 0.8], [0.5, 0.8]]), 1)


def test_the_nearest_of_several_tiers_decides_when_a_prompt_leaves():
    probabilities = np.array([[0.1, 0.6, 0.9], [0.85, 0.2, 0.9]])

    assert [0.05, 0.3] == about(probabilities, 2)


def test_weights_say_how_much_of_the_traffic_a_step_is():
    probabilities = np.array([[0.8, 0.9], [0.7, 0.9], [0.6, 0.9]])

    assert [0.1, 0.3] == about(probabilities, 1, weights=np.array([2.0, 1e-3, 1.0]), n_steps=2)


@given(predictions(), st.integers(1, 60))
def test_every_step_is_reached_and_the_path_only_grows(drawn, n_steps):
    probabilities, reference, weights = drawn
    gaps = make_gaps(probabilities, reference, weights=weights, n_steps=n_steps)
    shares = walk(make_evidence(probabilities, weights=weights), reference, gaps).shares

    assert 1 <= len(gaps) <= n_steps
    assert all(0 <= gap <= 1 for gap in gaps)
    assert list(gaps) == sorted(set(gaps))
    assert np.all(np.diff(shares) >= 0)
    assert shares[0] >= 1 / n_steps - 1e-6
    assert shares[-1] == pytest.approx(1.0)


def test_losses_are_signed_and_predicted_alike():
    probabilities = [[0.5, 0.9], [0.6, 0.7], [0.2, 0.9]]
    evidence = make_evidence(probabilities, scores=[[0.0, 1.0], [1.0, 0.25], [0.0, 1.0]], weights=[1.0, 1.0, 2.0])
    found = walk(evidence, 1, (0.1, 0.4))

    assert [[0.0, 1.0], [-0.75, -0.75], [0.0, 0.0]] == found.losses.tolist()
    assert [0.25, 0.5] == found.shares.tolist()
    assert [0.025, 0.125] == pytest.approx(found.predicted)


def test_a_walk_without_rows_or_gaps_is_empty():
    evidence = make_evidence(np.empty((0, 2)))

    assert (0, 1) == walk(evidence, 1, (0.5,)).losses.shape
    assert [0.0] == walk(evidence, 1, (0.5,)).shares.tolist()
    assert (2, 0) == walk(make_evidence(np.full((2, 2), 0.5)), 1, ()).losses.shape


def test_keeping_rows_numbers_their_units_anew():
    evidence = Evidence(
        probabilities=np.zeros((4, 2)),
        scores=np.zeros((4, 2)),
        weights=np.arange(1.0, 5.0),
        groups=np.array([0, 1, 2, 2]),
    )
    kept = evidence.where(np.array([False, True, True, True]))

    assert [2.0, 3.0, 4.0] == kept.weights.tolist()
    assert [0, 1, 1] == kept.groups.tolist()
