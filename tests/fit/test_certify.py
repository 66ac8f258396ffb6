"""The promise holds on populations whose true losses are known, and is not empty.

Each population is finite and drawn from with replacement, so that what a rule truly loses is known. Limits are put
just below what one of the candidates truly loses, where a wrong test would certify it too often.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.fit.certify import Promise, certify, certify_domains, count_passed
from llmtier.fit.path import Evidence, make_gaps, walk

N_REPEATS = 1000
HIGHEST_RATE = 0.05 + 3 * math.sqrt(0.05 * 0.95 / N_REPEATS)


def make_evidence(probabilities, scores, weights=None, groups=None):
    n = len(scores)
    return Evidence(
        probabilities=np.asarray(probabilities, dtype=np.float64),
        scores=np.asarray(scores, dtype=np.float64),
        weights=np.ones(n) if weights is None else weights,
        groups=np.arange(n) if groups is None else groups,
    )


def take(evidence, places, *, weights=None, groups=None):
    return make_evidence(evidence.probabilities[places], evidence.scores[places], weights, groups)


def make_population(rng, *, n=6000, n_levels=8, low=0.55, high=0.9, dear=0.85, values=None):
    """Return two tiers; the cheap one falls from ``high`` to ``low`` over ``n_levels`` kinds of prompts."""
    truth = np.linspace(high, low, n_levels)[rng.integers(0, n_levels, n)]
    probabilities = np.column_stack([truth, np.full(n, dear)])
    scores = (rng.random((n, 2)) < probabilities).astype(float)
    return make_evidence(probabilities, scores if values is None else values(rng, scores))


def make_three_tiers(rng, n=6000):
    truth = np.linspace(0.9, 0.4, 6)[rng.integers(0, 6, n)]
    probabilities = np.column_stack([truth, truth * 0.5 + 0.42, np.full(n, 0.88)])
    return make_evidence(probabilities, (rng.random((n, 3)) < probabilities).astype(float))


def true_losses(population, fit, reference_column=1, weights=None):
    gaps = make_gaps(fit.probabilities, reference_column)
    return gaps, np.average(walk(population, reference_column, gaps).losses, axis=0, weights=weights)


def just_below(losses, *, factor):
    """Return a limit that the first candidate beyond a loss of .01 breaks by ``factor``."""
    return float(losses[np.argmax(losses > 0.01)]) / factor


def violation_rate(draws, fit, promise, truth, reference_column=1):
    """Return how often the certified gap truly loses more than promised, and how often any is certified."""
    gaps, losses = truth
    loss_of = dict(zip(gaps, losses.tolist(), strict=True))
    found = [
        certify(fit, draw, promise, reference_column=reference_column, seed=seed, has_forecast=False).gap
        for seed, draw in enumerate(draws)
    ]
    is_violated = [gap is not None and loss_of[gap] > promise.epsilon for gap in found]
    return np.mean(is_violated), np.mean([gap is not None for gap in found])


def round_to_fifths(rng, scores):
    return np.clip(scores * 0.8 + np.round(rng.random(scores.shape) * 5) / 25, 0, 1)


def mostly_equal(rng, scores):
    """Let both tiers answer nine of ten prompts alike."""
    is_alike = rng.random(len(scores)) < 0.9
    return np.where(is_alike[:, np.newaxis], scores[:, [1]], scores)


@pytest.mark.parametrize(
    ("values", "factor"),
    [(None, 1.0 + 1e-9), (None, 1.02), (round_to_fifths, 1.02), (mostly_equal, 1.02)],
    ids=["signed, exact", "signed", "fractional", "ties"],
)
def test_the_promise_holds_with_two_tiers(values, factor):
    rng = np.random.default_rng(11)
    population = make_population(rng, values=values)
    fit = take(population, rng.integers(0, len(population), 400))
    truth = true_losses(population, fit)
    epsilon = just_below(truth[1], factor=factor)
    draws = [take(population, rng.integers(0, len(population), 150)) for _ in range(N_REPEATS)]

    rate, _ = violation_rate(draws, fit, Promise(epsilon=epsilon, confidence=0.95), truth)

    assert rate <= HIGHEST_RATE


def test_the_promise_holds_with_three_tiers_and_is_not_empty():
    rng = np.random.default_rng(12)
    population = make_three_tiers(rng)
    fit = take(population, rng.integers(0, len(population), 400))
    truth = true_losses(population, fit, reference_column=2)
    epsilon = just_below(truth[1], factor=1.02)
    draws = [take(population, rng.integers(0, len(population), 200)) for _ in range(N_REPEATS)]

    rate, certified = violation_rate(draws, fit, Promise(epsilon=epsilon, confidence=0.95), truth, reference_column=2)

    assert rate <= HIGHEST_RATE
    assert certified > 0.2


def test_a_single_candidate_exactly_past_the_limit_is_rarely_certified():
    rng = np.random.default_rng(13)
    scores = np.zeros((10_000, 2))
    scores[:, 1] = np.arange(10_000) < 204  # the reference alone is right on 2.04 %
    population = make_evidence(np.tile([0.5, 0.8], (10_000, 1)), scores)
    fit = take(population, rng.integers(0, 10_000, 500))
    draws = [take(population, rng.integers(0, 10_000, 250)) for _ in range(N_REPEATS)]

    rate, _ = violation_rate(draws, fit, Promise(epsilon=0.02, confidence=0.95), true_losses(population, fit))

    assert rate <= HIGHEST_RATE


def draw_repeats(rng, population, repeats, n_prompts, *, are_known):
    """Return rows of ``n_prompts`` prompts, each as often as it is asked."""
    prompts = rng.integers(0, len(population), n_prompts)
    places = np.repeat(prompts, repeats[prompts])
    groups = np.repeat(np.arange(n_prompts), repeats[prompts])
    return take(population, places, groups=groups if are_known else None)


def test_prompts_that_are_asked_again_and_again_count_once():
    rng = np.random.default_rng(14)
    population = make_population(rng, n_levels=3)
    repeats = np.where(rng.random(len(population)) < 0.2, 10, 1)
    fit = take(population, rng.integers(0, len(population), 400))
    truth = true_losses(population, fit, weights=repeats)
    promise = Promise(epsilon=just_below(truth[1], factor=1.02), confidence=0.95)

    def rate_of(n_repeats, *, are_known):
        draws = (draw_repeats(rng, population, repeats, 80, are_known=are_known) for _ in range(n_repeats))
        return violation_rate(draws, fit, promise, truth)[0]

    assert rate_of(N_REPEATS, are_known=True) <= HIGHEST_RATE
    assert rate_of(300, are_known=False) > 2 * HIGHEST_RATE  # what the units are for


def test_weights_make_a_lopsided_sample_speak_of_the_traffic():
    rng = np.random.default_rng(15)
    population = make_population(rng, n_levels=3)
    loss = population.scores[:, 1] - population.scores[:, 0]
    odds = np.where(loss > 0, 0.4, 1.0)  # a plan that asks less where the cheap tier fails
    fit = take(population, rng.integers(0, len(population), 400))
    truth = true_losses(population, fit)
    promise = Promise(epsilon=just_below(truth[1], factor=1.02), confidence=0.95)
    places = [rng.choice(len(population), 150, p=odds / odds.sum()) for _ in range(N_REPEATS)]

    honest, _ = violation_rate([take(population, rows, weights=1 / odds[rows]) for rows in places], fit, promise, truth)
    naive, _ = violation_rate([take(population, rows) for rows in places[:300]], fit, promise, truth)

    assert honest <= HIGHEST_RATE
    assert naive > 2 * HIGHEST_RATE


def test_a_joint_promise_holds_in_all_domains_at_once():
    rng = np.random.default_rng(16)
    population = make_population(rng, n_levels=2)
    names = np.array(["law", "code"])[rng.integers(0, 2, len(population))]
    fit_rows = rng.integers(0, len(population), 400)
    fit, fit_names = take(population, fit_rows), names[fit_rows]
    truth = {
        name: dict(zip(*true_losses(population.where(names == name), fit.where(fit_names == name)), strict=True))
        for name in ("law", "code")
    }
    promise = Promise(epsilon=min(max(losses.values()) for losses in truth.values()) / 1.02, confidence=0.9)

    def is_violated(seed):
        rows = rng.integers(0, len(population), 240)
        found = certify_domains(
            fit, take(population, rows), promise, domains=(fit_names, names[rows]), reference_column=1, seed=seed
        )
        assert set(found) == {"law", "code"}
        return any(
            certified.gap is not None and truth[name][certified.gap] > promise.epsilon
            for name, certified in found.items()
        )

    assert np.mean([is_violated(seed) for seed in range(N_REPEATS)]) <= 0.1 + 3 * math.sqrt(0.09 / N_REPEATS)


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(17)
    population = make_population(rng, low=0.75, high=0.92)
    return take(population, rng.integers(0, len(population), 600)), take(
        population, rng.integers(0, len(population), 2500)
    )


def run(world, epsilon=0.02, **options):
    settings = {"reference_column": 1, "seed": 0, "has_forecast": False, **options}
    return certify(*world, Promise(epsilon=epsilon, confidence=0.95), **settings)


def test_what_is_certified_can_be_read_off(world):
    found = run(world)
    n_passed = found.gaps.index(found.gap) + 1

    assert 2500 == found.n_units == found.n_labels
    assert all(p <= 0.05 + 1e-9 for p in found.p_values[:n_passed])
    assert n_passed == len(found.gaps) or found.p_values[n_passed] > 0.05
    assert found.share == found.shares[n_passed - 1] > 0.2
    assert len(found.gaps) == len(found.p_values) == len(found.shares) == len(found.losses)


def test_nothing_is_certified_without_enough_labels(world):
    fit, calibration = world
    found = run((fit, take(calibration, np.arange(20))))

    assert found.gap is None
    assert 0.0 == found.share


def test_nothing_is_certified_without_labels(world):
    found = run((world[0], take(world[1], np.arange(0))))

    assert found.gap is None
    assert {1.0} == set(found.p_values)
    assert 0 == found.n_units


def test_nothing_is_certified_where_no_tier_is_cheaper(world):
    found = run(world, reference_column=0)

    assert found.gap is None
    assert () == found.gaps == found.p_values


def test_the_result_repeats_with_its_seed(world):
    assert run(world, seed=5) == run(world, seed=5)
    assert run(world, seed=5).p_values != run(world, seed=6).p_values


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.lists(st.floats(0, 0.2), min_size=2, max_size=2, unique=True))
def test_a_looser_limit_never_certifies_less(seed, limits):
    rng = np.random.default_rng(seed)
    population = make_population(rng, n=300)
    halves = take(population, np.arange(100)), take(population, np.arange(100, 300))
    strict, loose = (run(halves, epsilon=limit).gap for limit in sorted(limits))

    assert strict is None or (loose is not None and strict <= loose)


@pytest.mark.parametrize(
    ("p", "n_passed"), [([0.01, 0.05, 0.2, 0.01], 2), ([0.2, 0.01], 0), ([0.01, 0.05], 2), ([], 0)]
)
def test_the_walk_ends_at_the_first_that_is_not_rejected(p, n_passed):
    assert n_passed == count_passed(np.array(p), 0.95)


def test_delta_is_split_over_the_domains_that_are_large_enough():
    rng = np.random.default_rng(18)
    population = make_population(rng, n=1500, low=0.8, high=0.9)
    names = np.array(["large"] * 700 + ["middling"] * 700 + ["small"] * 100)
    options = {"domains": (names, names), "reference_column": 1, "seed": 0}
    found = certify_domains(population, population, Promise(epsilon=0.02, confidence=0.95), **options)

    assert {"large", "middling"} == set(found)
    assert [0.975, 0.975] == pytest.approx([one.confidence for one in found.values()])
    assert [700, 700] == [one.n_units for one in found.values()]
    assert {} == certify_domains(population, population, Promise(epsilon=0.001, confidence=0.95), **options)
    assert {} == certify_domains(population, population, Promise(epsilon=0.0, confidence=0.95), **options)


def test_a_domain_that_the_fit_split_has_not_goes_to_the_reference(world):
    fit, calibration = world
    domains = (["known"] * len(fit), ["known"] * 1250 + ["new"] * 1250)
    promise = Promise(epsilon=0.02, confidence=0.95)
    found = certify_domains(fit, calibration, promise, domains=domains, reference_column=1, seed=0)

    assert {"known"} == set(found)
    assert 1250 == found["known"].n_units


def test_the_forecast_is_what_half_of_the_refits_need():
    rng = np.random.default_rng(19)
    population = make_population(rng, n=20_000, n_levels=12, low=0.5, high=0.86)
    fit = take(population, rng.integers(0, len(population), 3000))
    needed = run((fit, take(population, np.arange(100))), has_forecast=True).labels_needed
    shares = [run((fit, take(population, rng.integers(0, len(population), needed)))).share >= 0.05 for _ in range(60)]

    assert 0.2 < np.mean(shares) < 0.8


def test_no_number_of_labels_is_forecast_where_the_cheap_tier_is_too_bad():
    rng = np.random.default_rng(20)
    population = make_population(rng, n=2000, low=0.1, high=0.2)

    assert run((population, population), epsilon=0.001, has_forecast=True).labels_needed is None
    assert run((population, population), epsilon=0.0, has_forecast=True).labels_needed is None


def test_the_forecast_counts_rows_where_prompts_are_asked_twice():
    rng = np.random.default_rng(21)
    population = make_population(rng, n=2000, low=0.7, high=0.9)
    twice = take(population, np.repeat(np.arange(2000), 2), groups=np.repeat(np.arange(2000), 2))
    once, again = (run((fit, population), has_forecast=True).labels_needed for fit in (population, twice))

    assert 2.0 == pytest.approx(again / once, rel=0.15)


@pytest.mark.parametrize(("epsilon", "confidence"), [(-0.1, 0.9), (1.0, 0.9), (math.nan, 0.9), (0.1, 1.0), (0.1, 0.0)])
def test_a_promise_out_of_range_is_refused(epsilon, confidence):
    with pytest.raises(ValueError, match="epsilon must lie"):
        Promise(epsilon=epsilon, confidence=confidence)
