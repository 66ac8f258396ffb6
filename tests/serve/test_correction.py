"""Online correction: it finds a known slowdown, heeds no outlier, keeps its bounds and forgets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import Offer
from llmtier.core.latency_model import Metric
from llmtier.serve.correction import LEAST, MAX_AGE_S, MOST, Correction
from llmtier.serve.recent import FEWEST, WINDOW

OFFER = Offer(tier="t", accuracy=None, usd=None, typical_ttft_s=0.2, typical_tpot_s=0.01)


def learn(correction, k_ttft, k_tpot, *, n=FEWEST, now_s=0.0, offer=OFFER, n_tokens=11):
    """Let ``n`` streams take so many times as long as was predicted of them."""
    for _ in range(n):
        ttft_s = k_ttft * offer.typical_ttft_s
        e2el_s = ttft_s + k_tpot * offer.typical_tpot_s * (n_tokens - 1)
        correction.learn(offer, now_s=now_s, ttft_s=ttft_s, e2el_s=e2el_s, n_output_tokens=n_tokens)


def ratios(correction):
    return correction.ttft_ratio, correction.tpot_ratio


@given(st.floats(LEAST, MOST), st.floats(LEAST, MOST))
def test_a_steady_slowdown_is_found_and_kept(k_ttft, k_tpot):
    """Predictions stay as they were before correction, so the factor does not chase itself."""
    correction = Correction()
    learn(correction, k_ttft, k_tpot, n=3 * WINDOW)

    assert (pytest.approx(k_ttft), pytest.approx(k_tpot)) == ratios(correction)


def test_it_starts_at_one_and_waits_for_enough():
    correction = Correction()
    learn(correction, 1.5, 1.5, n=FEWEST - 1)
    assert (1.0, 1.0) == ratios(correction)
    assert {} == correction.drift_ratios()

    learn(correction, 1.5, 1.5, n=1)
    assert (pytest.approx(1.5), pytest.approx(1.5)) == ratios(correction)


@given(st.lists(st.floats(0.9, 1.1), min_size=FEWEST + 1, max_size=WINDOW - 1), st.floats(1e-6, 1e6))
def test_one_outlier_moves_it_no_further_than_to_a_neighbour(usual, outlier):
    correction = Correction()
    for k in usual:
        learn(correction, k, k, n=1)
    learn(correction, outlier, outlier, n=1)

    low, high = min(usual) - 1e-9, max(usual) + 1e-9
    assert low <= correction.ttft_ratio <= high
    assert low <= correction.tpot_ratio <= high


@given(st.floats(0.01, 100))
def test_it_is_clamped_and_the_drift_is_not(k):
    correction = Correction()
    learn(correction, k, k)

    assert (pytest.approx(min(max(k, LEAST), MOST)),) * 2 == ratios(correction)
    assert {Metric.TTFT: pytest.approx(k), Metric.TPOT: pytest.approx(k)} == correction.drift_ratios()


def test_the_two_are_learned_apart():
    correction = Correction()
    learn(correction, 1.8, 0.7)

    assert (pytest.approx(1.8), pytest.approx(0.7)) == ratios(correction)


def test_a_new_state_of_things_takes_over_after_half_a_window():
    correction = Correction()
    learn(correction, 1.0, 1.0, n=WINDOW)
    learn(correction, 1.6, 1.6, n=WINDOW // 2 + 1)

    assert (pytest.approx(1.6), pytest.approx(1.6)) == ratios(correction)


def test_what_is_old_is_forgotten_so_that_a_slow_tier_is_tried_again():
    correction = Correction()
    learn(correction, 2.0, 2.0, n=WINDOW, now_s=10.0)
    correction.forget(10.0 + MAX_AGE_S)
    assert (2.0, 2.0) == ratios(correction)

    correction.forget(10.1 + MAX_AGE_S)
    assert (1.0, 1.0) == ratios(correction)


def test_a_new_observation_drops_the_old_ones_as_well():
    correction = Correction()
    learn(correction, 2.0, 2.0, n=WINDOW, now_s=0.0)
    learn(correction, 0.8, 0.8, n=FEWEST, now_s=MAX_AGE_S + 1)

    assert (pytest.approx(0.8), pytest.approx(0.8)) == ratios(correction)


def test_a_whole_answer_teaches_its_pace_alone():
    correction = Correction()
    for _ in range(FEWEST):
        correction.learn(OFFER, now_s=0.0, e2el_s=0.2 + 1.5 * 0.01 * 10, n_output_tokens=11)

    assert (1.0, pytest.approx(1.5)) == ratios(correction)


def test_a_whole_answer_is_read_with_what_is_known_of_first_tokens():
    correction = Correction()
    for _ in range(FEWEST):
        correction.learn(OFFER, now_s=0.0, ttft_s=2 * 0.2)
        correction.learn(OFFER, now_s=0.0, e2el_s=2 * 0.2 + 1.5 * 0.01 * 10, n_output_tokens=11)
    for _ in range(WINDOW):
        correction.learn(OFFER, now_s=0.0, e2el_s=2 * 0.2 + 1.5 * 0.01 * 10, n_output_tokens=11)

    assert (2.0, pytest.approx(1.5)) == ratios(correction)


@pytest.mark.parametrize(
    ("offer", "facts"),
    [
        (OFFER, {}),
        (OFFER, {"e2el_s": 9.0}),  # no usage
        (OFFER, {"e2el_s": 9.0, "n_output_tokens": 1}),
        (OFFER, {"ttft_s": 0.0}),
        (OFFER, {"ttft_s": math.nan, "e2el_s": math.nan, "n_output_tokens": 9}),
        (OFFER, {"e2el_s": 0.1, "n_output_tokens": 9}),  # sooner than its first token was predicted
        (Offer(tier="t", accuracy=None, usd=None), {"ttft_s": 1.0, "e2el_s": 9.0, "n_output_tokens": 9}),
        (Offer(tier="t", accuracy=None, usd=None, typical_tpot_s=0.1), {"e2el_s": 9.0, "n_output_tokens": 9}),
        (Offer(tier="t", accuracy=None, usd=None, typical_ttft_s=0.0, typical_tpot_s=0.0), {"ttft_s": 1.0}),
    ],
)
def test_what_tells_nothing_teaches_nothing(offer, facts):
    correction = Correction()
    for _ in range(WINDOW):
        correction.learn(offer, now_s=0.0, **facts)

    assert (1.0, 1.0) == ratios(correction)
    assert {} == correction.drift_ratios()
