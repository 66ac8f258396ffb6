"""Judgements whose right answer is known before they are made."""

import math
from dataclasses import replace

import numpy as np
import pytest

from llmtier.core.latency_model import DomainBox, LatencyModel, LoadState, Metric, ResidualBucket, StepModel
from llmtier.profile.judge import GRID, judge, predict_quantile
from llmtier.profile.latency_fit import LEVELS, Observation, fit_latency, observe
from tests.profile.simulated_load import TRUTH, design, load, poisson

STEP = StepModel(alpha_s=0.01, prefill_s_per_token=1e-3, attention_s_per_token2=0.0, sequence_s=0.0, kv_s_per_token=0.0)
MODEL = LatencyModel(
    step=STEP,
    frontend_s=0.0,
    frontend_s_per_token=0.0,
    wait_share=0.5,
    mean_input_tokens=100,
    mean_output_tokens=10,
    domain=DomainBox(input_tokens=(1, 1000), output_tokens=(1, 1000), n_in_flight=(0, 1)),
    n_fit=100,
)


def observation(input_tokens, *, factor=1.0, output_tokens=10):
    """Return a request on an idle engine whose latencies are ``factor`` times what ``MODEL`` says."""
    seen = Observation(
        state=LoadState(), input_tokens=input_tokens, output_tokens=output_tokens, ttft_s=1.0, tpot_s=1.0, e2el_s=1.0
    )
    ttft_s, tpot_s, e2el_s = (factor * seen.predicted(MODEL, metric) for metric in Metric)
    return replace(seen, ttft_s=ttft_s, tpot_s=tpot_s if output_tokens > 1 else None, e2el_s=e2el_s)


def with_residual(model, upper):
    """Return the model with an unbiased median and this upper residual."""
    buckets = [
        ResidualBucket(metric=metric, max_in_flight=None, n=100, quantiles=((0.5, 0.0), (0.95, upper)))
        for metric in Metric
    ]
    return replace(model, residuals=tuple(buckets))


@pytest.mark.parametrize("metric", Metric)
def test_a_perfect_model_makes_no_error_and_no_wrong_decision(metric):
    seen = [observation(length) for length in range(10, 500, 7)]

    judged = judge(with_residual(MODEL, 0.0), seen, metric)

    assert (len(seen), 0.0, 0.0, 0.0, 1.0) == (
        judged.n, judged.mape, judged.bias, judged.p95_error_s, judged.coverage,
    )  # fmt: skip
    assert list(GRID) == [slo.level for slo in judged.slos]
    assert all((1.0, 1.0, 1.0, 1.0) == decisions(slo) for slo in judged.slos)


def decisions(slo):
    return slo.precision, slo.recall, slo.upper_precision, slo.upper_recall


def test_a_model_that_is_a_tenth_too_slow_is_biased_by_a_tenth():
    judged = judge(MODEL, [observation(length, factor=1 / 1.1) for length in range(10, 500, 7)], Metric.TTFT)

    assert pytest.approx(0.1) == judged.mape == judged.bias
    assert judged.coverage is None  # it has no residuals, so it promises none


def test_errors_of_both_signs_cancel_in_the_bias_only():
    """The prediction is 0.75 of the one and 1.25 of the other."""
    seen = observation(100)
    predicted_s = seen.predicted(MODEL, Metric.TTFT)
    both = [replace(seen, ttft_s=predicted_s / 0.75), replace(seen, ttft_s=predicted_s / 1.25)]

    judged = judge(MODEL, both, Metric.TTFT)

    assert pytest.approx(0.25) == judged.mape
    assert pytest.approx(0.0, abs=1e-12) == judged.bias


def test_a_model_that_always_says_fast_has_full_recall_and_the_base_rate_as_precision():
    useless = replace(MODEL, step=replace(STEP, alpha_s=0.0, prefill_s_per_token=0.0), frontend_s=1e-9)

    judged = judge(useless, [observation(length) for length in range(1, 401)], Metric.TTFT)

    for slo in judged.slos:
        assert 1.0 == slo.recall
        assert pytest.approx(slo.level, abs=0.01) == slo.precision


def test_a_model_that_always_says_slow_never_says_yes():
    pessimist = replace(MODEL, frontend_s=1e6)

    judged = judge(pessimist, [observation(length) for length in range(1, 101)], Metric.TTFT)

    assert all((None, 0.0) == (slo.precision, slo.recall) for slo in judged.slos)
    assert judged.mape > 100


def test_the_upper_prediction_says_yes_less_often_and_is_right_more_often():
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.3, 400)
    seen = [observation(int(n), factor=f) for n, f in zip(rng.integers(10, 500, 400), noise, strict=True)]
    model = with_residual(MODEL, 0.3 * 1.645)

    slo = judge(model, seen, Metric.TTFT).at(0.5)

    assert slo.upper_recall < slo.recall
    assert slo.upper_precision > slo.precision
    assert 0.93 < judge(model, seen, Metric.TTFT).coverage < 0.97


def test_precision_and_recall_count_by_hand():
    """Observed 1 to 4, the limit is the median 2.5; it says 1, 9, 2, 4: one right yes, one wrong, one missed."""
    lengths = (1000, 9000, 2000, 4000)
    model = replace(MODEL, step=replace(STEP, alpha_s=0.0))
    seen = [replace(observation(length), ttft_s=float(rank)) for rank, length in enumerate(lengths, start=1)]

    slo = judge(model, seen, Metric.TTFT).at(0.5)

    assert (2.5, 0.5, 0.5) == (slo.slo_s, slo.precision, slo.recall)


def test_requests_without_the_metric_are_left_out():
    seen = [observation(length, output_tokens=1 if length % 2 else 10) for length in range(10, 50)]

    assert 20 == judge(MODEL, seen, Metric.TPOT).n
    assert 40 == judge(MODEL, seen, Metric.TTFT).n


def test_nothing_observed_is_no_judgement():
    assert judge(MODEL, [], Metric.TTFT) is None
    assert judge(MODEL, [observation(10, output_tokens=1)], Metric.TPOT) is None


def test_a_residual_is_a_factor_on_the_prediction():
    seen = observation(100)

    assert pytest.approx(2 * seen.ttft_s) == predict_quantile(
        with_residual(MODEL, math.log(2)), seen, Metric.TTFT, 0.95
    )
    assert pytest.approx(seen.ttft_s) == predict_quantile(MODEL, seen, Metric.TTFT, 0.95)


def test_conformal_quantiles_cover_what_they_promise_on_exchangeable_requests():
    """Requests of one kind, split at random: coverage is binomial about the level, a calibration's own draw on top."""
    rng = np.random.default_rng(4)
    n_calibration, n_new = 400, 2000
    factors = rng.lognormal(0.1, 0.4, n_calibration + n_new)
    seen = [observation(100, factor=factor) for factor in factors]
    ratios = np.sort(np.log(factors[:n_calibration]))

    for level in (level for level in LEVELS if level > 0.5):
        upper = ratios[math.ceil((n_calibration + 1) * level) - 1]
        covered = judge_coverage(upper, seen[n_calibration:])
        sd = math.sqrt(level * (1 - level) * (1 / n_new + 1 / n_calibration))
        assert level - 3 * sd <= covered <= min(level + 3 * sd, 1.0), level


def judge_coverage(upper, seen):
    return judge(with_residual(MODEL, upper), seen, Metric.TTFT).coverage


def test_a_fitted_model_keeps_its_promise_on_new_arrivals_of_the_same_load():
    noisy = replace(TRUTH, noise=0.1)
    model = fit_latency(design(noisy), [load(poisson(noisy, 4.0, n=400, seed=1))])

    seen = observe(load(poisson(noisy, 4.0, n=400, seed=2)))
    judged = judge(model, seen, Metric.E2EL)

    # Requests of one busy spell share their fate: 400 are worth some 60, whose share spreads by 0.03.
    assert 0.86 <= judged.coverage <= 1.0
    assert judged.at(0.9).precision > 0.85
