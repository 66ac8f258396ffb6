"""Non-negative least squares: known coefficients come back, with honest uncertainty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.stats.nonnegative import fit_nonnegative

TRUTH = np.array([5e-3, 1e-4, 3e-8])  # a step, a sequence, a KV token: the scales of a real engine


def make_design(rng, n):
    return np.column_stack([np.ones(n), rng.uniform(1, 64, n), rng.uniform(1e3, 1e5, n)])


def test_exact_data_give_the_exact_coefficients():
    design = make_design(np.random.default_rng(0), 50)
    fit = fit_nonnegative(design, design @ TRUTH)

    assert TRUTH.tolist() == pytest.approx(fit.coefficients.tolist(), rel=1e-9)
    assert 0.0 == pytest.approx(fit.residual_s, abs=1e-12)
    assert 10 > fit.condition


def test_the_covariance_covers_the_truth():
    rng = np.random.default_rng(1)
    inside = np.zeros(3)
    for _ in range(400):
        design = make_design(rng, 60)
        fit = fit_nonnegative(design, design @ TRUTH + rng.normal(0, 2e-4, 60))
        inside += np.abs(fit.coefficients - TRUTH) < 1.96 * np.sqrt(np.diag(fit.covariance))

    assert (0.92 < inside / 400).all()
    assert (inside / 400 < 0.975).all()


def test_a_negative_coefficient_is_held_at_zero_and_has_no_variance():
    rng = np.random.default_rng(2)
    design = make_design(rng, 80)
    fit = fit_nonnegative(design, design @ np.array([5e-3, 1e-4, -2e-8]) + rng.normal(0, 1e-5, 80))

    assert 0.0 == fit.coefficients[2]
    assert [0.0, 0.0, 0.0] == fit.covariance[2].tolist()
    assert (np.diag(fit.covariance)[:2] > 0).all()


def test_weights_are_repetitions():
    rng = np.random.default_rng(3)
    design, counts = make_design(rng, 12), rng.integers(1, 5, 12)
    target = design @ TRUTH + rng.normal(0, 1e-4, 12)
    weighted = fit_nonnegative(design, target, counts.astype(float))
    repeated = fit_nonnegative(np.repeat(design, counts, axis=0), np.repeat(target, counts))

    assert repeated.coefficients.tolist() == pytest.approx(weighted.coefficients.tolist(), rel=1e-6)
    assert repeated.residual_s == pytest.approx(weighted.residual_s)


def test_a_row_without_weight_does_not_exist():
    design = make_design(np.random.default_rng(4), 20)
    target = design @ TRUTH
    target[0] = 99.0
    weights = np.ones(20)
    weights[0] = 0.0

    assert TRUTH.tolist() == pytest.approx(fit_nonnegative(design, target, weights).coefficients.tolist(), rel=1e-6)


def test_columns_that_can_not_be_told_apart_show_in_the_condition():
    n = np.arange(1.0, 11.0)
    fit = fit_nonnegative(np.column_stack([n, 2 * n]), 3 * n)

    assert 1e6 < fit.condition
    assert (n * 3).tolist() == pytest.approx((np.column_stack([n, 2 * n]) @ fit.coefficients).tolist())


def test_an_empty_column_gets_nothing():
    n = np.arange(1.0, 11.0)
    fit = fit_nonnegative(np.column_stack([n, 0 * n]), 3 * n)

    assert [3.0, 0.0] == pytest.approx(fit.coefficients.tolist())
    assert float("inf") == fit.condition


def test_as_many_coefficients_as_rows_have_no_covariance():
    fit = fit_nonnegative(np.eye(2), np.array([1.0, 2.0]))

    assert fit.covariance is None
    assert [1.0, 2.0] == pytest.approx(fit.coefficients.tolist())


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_no_other_nonnegative_coefficients_are_better(seed):
    rng = np.random.default_rng(seed)
    design, target = rng.normal(size=(15, 3)), rng.normal(size=15)
    fit = fit_nonnegative(design, target)
    best = np.square(target - design @ fit.coefficients).sum()

    assert (fit.coefficients >= 0).all()
    for _ in range(20):
        other = np.maximum(fit.coefficients + rng.normal(0, 0.3, 3), 0)
        assert best <= np.square(target - design @ other).sum() + 1e-9


@pytest.mark.parametrize(
    ("design", "target", "weights"),
    [
        (np.ones((0, 2)), np.ones(0), None),
        (np.ones((3, 2)), np.ones(2), None),
        (np.ones((2, 1)), np.array([1.0, np.inf]), None),
        (np.ones((2, 1)), np.ones(2), np.array([1.0, -1.0])),
        (np.ones((2, 1)), np.ones(2), np.zeros(2)),
    ],
)
def test_bad_input_is_refused(design, target, weights):
    with pytest.raises(ValueError, match="the fit needs"):
        fit_nonnegative(design, target, weights)
