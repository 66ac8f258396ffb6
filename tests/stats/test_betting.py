"""The bets are valid at every null that was tried, monotone in the limit, and not idle."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmtier.stats.betting import Belief, least_units, mean_upper_bound, p_values

N_REPEATS = 2000
HIGHEST_RATE = 0.05 + 3 * math.sqrt(0.05 * 0.95 / N_REPEATS)


def is_rejected(p, confidence=0.95):
    return p <= (1 - confidence) * (1 + 1e-9)


@st.composite
def unit_samples(draw, max_units=60):
    n = draw(st.integers(1, max_units))
    masses = draw(arrays(np.float64, n, elements=st.floats(0.1, 5)))
    losses = draw(arrays(np.float64, n, elements=st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1))))
    return losses * masses, masses


beliefs = st.one_of(
    st.none(),
    st.builds(
        lambda variance, n_units: Belief(variance=np.array([variance]), n_units=n_units),
        st.floats(1e-6, 1),
        st.floats(1, 1e4),
    ),
)


def trinomial(rng, *, loss, win, n, size=N_REPEATS):
    return rng.choice([1.0, 0.0, -1.0], p=[loss, 1 - loss - win, win], size=(n, size))


def fractional(rng, *, mean, n, size=N_REPEATS):
    """Return losses that are spread over [-1, 1], most of them near 0."""
    noise = rng.beta(0.3, 0.3, (n, size)) * 2 - 1
    return np.where(rng.random((n, size)) < 0.2, noise * 0.8, 0.0) + mean


@pytest.mark.parametrize(
    ("loss", "win", "limit", "n"),
    [
        (0.01, 0.0, 0.01, 500),
        (0.02, 0.0, 0.02, 300),
        (0.0102, 0.0, 0.01, 1500),
        (0.03, 0.02, 0.01, 500),
        (0.11, 0.10, 0.01, 500),
        (0.0602, 0.05, 0.01, 1500),
        (0.02, 0.01, 0.01, 60),
        (0.3, 0.3, 0.0, 100),
    ],
)
def test_a_mean_at_or_just_past_the_limit_passes_no_more_often_than_promised(loss, win, limit, n):
    losses = trinomial(np.random.default_rng(1), loss=loss, win=win, n=n)

    assert is_rejected(p_values(losses, np.ones(n), limit=limit, confidence=0.95)).mean() <= HIGHEST_RATE


@pytest.mark.parametrize("variance", [1e-6, 0.02, 1.0])
def test_a_wrong_belief_costs_no_validity(variance):
    losses = trinomial(np.random.default_rng(2), loss=0.02, win=0.01, n=600)
    belief = Belief(variance=np.array([variance]), n_units=1e4)

    p = p_values(losses, np.ones(600), limit=0.01, confidence=0.95, belief=belief)

    assert is_rejected(p).mean() <= HIGHEST_RATE


def test_fractional_scores_are_valid_too():
    losses = fractional(np.random.default_rng(3), mean=0.01, n=800)

    assert is_rejected(p_values(losses, np.ones(800), limit=0.01, confidence=0.95)).mean() <= HIGHEST_RATE


def test_bets_that_are_revised_seldom_stay_valid():
    losses = trinomial(np.random.default_rng(4), loss=0.02, win=0.01, n=1000)

    p = p_values(losses, np.ones(1000), limit=0.01, confidence=0.95, max_steps=60)

    assert is_rejected(p).mean() <= HIGHEST_RATE


def test_what_is_plainly_better_than_the_limit_is_found_out():
    losses = trinomial(np.random.default_rng(5), loss=0.02, win=0.02, n=3000)

    rate = is_rejected(p_values(losses, np.ones(3000), limit=0.01, confidence=0.95)).mean()

    # The normal approximation, which is not exact, rejects .865 of these (z = 2.74 against 1.645).
    assert rate > 0.80


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02, 0.1])
def test_without_any_loss_it_takes_about_the_least_number_of_units(limit):
    least = least_units(limit, 0.95)
    enough = math.ceil(1.05 * least)

    assert not is_rejected(p_values(np.zeros((least - 1, 1)), np.ones(least - 1), limit=limit, confidence=0.95))[0]
    assert is_rejected(p_values(np.zeros((enough, 1)), np.ones(enough), limit=limit, confidence=0.95))[0]


def test_the_least_number_is_the_bets_cap_over_the_limit():
    assert 664 == least_units(0.005, 0.95)  # ln 20 / ln(1 + .9 x .005 / .995)


def test_losses_that_equal_the_limit_prove_nothing():
    assert 1.0 == p_values(np.full((5000, 1), 0.25), np.ones(5000), limit=0.25, confidence=0.95)[0]


def test_no_unit_proves_nothing():
    assert [1.0, 1.0] == p_values(np.empty((0, 2)), np.empty(0), limit=0.1, confidence=0.95).tolist()


@settings(deadline=None, max_examples=100)
@given(unit_samples(), st.floats(0, 0.99), beliefs)
def test_losses_at_or_above_the_limit_never_make_capital_grow(sample, limit, belief):
    losses, masses = sample
    above = np.maximum(losses, limit * masses)

    p = p_values(above[:, np.newaxis], masses, limit=limit, confidence=0.95, belief=belief)

    assert p[0] == pytest.approx(1.0, abs=1e-9)


@settings(deadline=None, max_examples=300)
@given(unit_samples(), st.lists(st.floats(-1, 1), min_size=2, max_size=20), beliefs, st.sampled_from([20_000, 9, 2]))
def test_what_is_rejected_at_a_limit_is_rejected_at_every_higher_one(sample, limits, belief, max_steps):
    losses, masses = sample
    ascending = np.sort(np.array(limits))
    columns = np.repeat(losses[:, np.newaxis], ascending.size, axis=1)

    p = p_values(columns, masses, limit=ascending, confidence=0.8, belief=belief, max_steps=max_steps)

    assert np.all(np.diff(is_rejected(p, 0.8).astype(int)) >= 0)


@settings(deadline=None, max_examples=50)
@given(unit_samples(), st.floats(0.01, 0.9), st.floats(0.01, 100))
def test_only_the_ratio_of_weights_counts(sample, limit, factor):
    losses, masses = sample
    column = losses[:, np.newaxis]

    def test(scale):
        belief = Belief(variance=np.array([0.1 * scale**2]), n_units=9.0)
        return p_values(column * scale, masses * scale, limit=limit, confidence=0.95, belief=belief)[0]

    assert test(1.0) == pytest.approx(test(factor), rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_columns_do_not_see_each_other(seed):
    losses = trinomial(np.random.default_rng(seed), loss=0.05, win=0.1, n=120, size=4)
    together = p_values(losses, np.ones(120), limit=0.05, confidence=0.95)
    alone = [p_values(losses[:, [column]], np.ones(120), limit=0.05, confidence=0.95)[0] for column in range(4)]

    assert together.tolist() == pytest.approx(alone)


@pytest.mark.parametrize("late", [1.0, -1.0])
def test_what_comes_later_does_not_take_back_a_rejection(late):
    early = np.full((50, 1), -1.0)
    losses = np.concatenate([early, np.full((50, 1), late)])

    assert is_rejected(p_values(losses, np.ones(100), limit=0.5, confidence=0.95))[0]


def test_upper_bound_is_where_rejection_begins():
    losses = trinomial(np.random.default_rng(7), loss=0.1, win=0.05, n=400, size=1)
    bound = mean_upper_bound(losses[:, 0], np.ones(400), confidence=0.95)

    assert losses.mean() < bound < losses.mean() + 0.06
    assert is_rejected(p_values(losses, np.ones(400), limit=bound, confidence=0.95))[0]
    assert not is_rejected(p_values(losses, np.ones(400), limit=bound - 2e-4, confidence=0.95))[0]


def test_upper_bound_covers_as_often_as_it_says():
    rng = np.random.default_rng(8)
    n_repeats = 1000
    losses = trinomial(rng, loss=0.2, win=0.1, n=40, size=n_repeats)
    is_missed = [mean_upper_bound(column, np.ones(40), confidence=0.9) < 0.1 for column in losses.T]

    assert np.mean(is_missed) <= 0.1 + 3 * math.sqrt(0.09 / n_repeats)


def test_upper_bound_without_units_is_one():
    assert 1.0 == mean_upper_bound(np.empty(0), np.empty(0), confidence=0.95)


def test_a_belief_holds_half_a_loss_more_than_was_seen():
    belief = Belief.from_losses(np.zeros((50, 3)), np.ones(50))

    assert [0.01] * 3 == belief.variance.tolist()
    assert 50 == belief.n_units


@pytest.mark.parametrize(
    ("losses", "masses", "options", "message"),
    [
        (np.zeros(3), np.ones(3), {}, "units x columns"),
        (np.zeros((3, 1)), np.ones(2), {}, "units x columns"),
        (np.full((3, 1), 1.1), np.ones(3), {}, "no loss may exceed"),
        (np.full((3, 1), np.nan), np.ones(3), {}, "no loss may exceed"),
        (np.zeros((3, 1)), np.zeros(3), {}, "must be positive"),
        (np.zeros((3, 1)), np.ones(3), {"limit": 1.5}, "limits in"),
        (np.zeros((3, 1)), np.ones(3), {"confidence": 1.0}, "confidence must lie"),
        (np.zeros((3, 1)), np.full(3, 2.0), {"bound": 1.0}, "at most 1"),
    ],
)
def test_input_out_of_range_is_refused(losses, masses, options, message):
    with pytest.raises(ValueError, match=message):
        p_values(losses, masses, **{"limit": 0.1, "confidence": 0.95, **options})
