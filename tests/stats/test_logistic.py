"""The regression finds the optimum of its stated loss, and the calibration calibrates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.sparse import csr_array

from llmtier.stats.logistic import Platt, fit_logistic, platt, sigmoid


def draw(seed, n_rows=120, n_columns=6):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(n_rows, n_columns))
    targets = np.clip(sigmoid(design @ rng.normal(size=n_columns)) + rng.normal(scale=0.2, size=n_rows), 0, 1)
    return design, targets


def penalised_loss(parameters, design, targets, l2):
    logits = design @ parameters[:-1] + parameters[-1]
    return (np.logaddexp(0, logits) - targets * logits).sum() + 0.5 * l2 * (parameters[:-1] ** 2).sum()


@pytest.mark.parametrize("l2", [0.1, 2.0, 50.0])
@pytest.mark.parametrize("seed", range(4))
def test_fit_reaches_the_optimum_that_scipy_finds(seed, l2):
    design, targets = draw(seed)
    fit = fit_logistic(design, targets, l2=l2)
    best = minimize(penalised_loss, np.zeros(7), args=(design, targets, l2), tol=1e-10)

    assert best.fun == pytest.approx(
        penalised_loss(np.append(fit.weights, fit.intercept), design, targets, l2), rel=1e-6
    )


def test_sparse_and_dense_designs_give_the_same_fit():
    design, targets = draw(9)
    design[np.abs(design) < 1] = 0.0
    dense, sparse = fit_logistic(design, targets), fit_logistic(csr_array(design), targets)

    assert dense.weights == pytest.approx(sparse.weights)
    assert dense.intercept == pytest.approx(sparse.intercept)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_targets_of_one_kind_give_a_finite_fit(target):
    design, targets = draw(3)
    fit = fit_logistic(design, np.full_like(targets, target))

    assert np.isfinite(fit.weights).all()
    assert np.isfinite(fit.intercept)
    assert (fit.intercept > 3) == (target == 1.0)


def test_wrong_targets_are_refused():
    for wrong in (np.array([]), np.array([0.5, 1.5]), np.array([np.nan])):
        with pytest.raises(ValueError, match="targets"):
            fit_logistic(np.zeros((wrong.size, 1)), wrong)


@settings(deadline=None)
@given(st.floats(-700, 700))
def test_sigmoid_stays_in_range_and_is_symmetric(logit):
    up, down = sigmoid(np.array([logit, -logit]))

    assert 0 <= up <= 1
    assert 1 == pytest.approx(up + down)


def test_platt_undoes_overconfidence():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=4000)
    outcomes = (rng.random(4000) < sigmoid(truth)).astype(np.float64)
    found = platt(3 * truth + 1, outcomes)

    assert 1 / 3 == pytest.approx(found.slope, abs=0.04)
    assert -1 / 3 == pytest.approx(found.offset, abs=0.1)


def test_platt_never_turns_the_order_round():
    logits = np.linspace(-2, 2, 50)

    assert 0 <= platt(logits, (logits < 0).astype(np.float64)).slope < 0.05


@pytest.mark.parametrize("n_rows", [1, 20])
def test_platt_of_a_tier_that_was_always_right_is_not_certain(n_rows):
    found = platt(np.full(n_rows, 15.0), np.ones(n_rows))

    assert (n_rows + 1) / (n_rows + 2) == pytest.approx(found.apply(np.array([15.0]))[0], abs=0.02)


def test_plain_platt_is_the_sigmoid():
    assert 0.5 == Platt().apply(np.zeros(1))[0]
