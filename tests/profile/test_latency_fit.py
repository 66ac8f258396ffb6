"""The fit against simulated engines of known coefficients, and against what goes wrong in a measurement."""

import math
from dataclasses import replace

import numpy as np
import pytest

from llmtier.core.errors import InputFileError
from llmtier.core.latency_model import Metric
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.engine.simulate import simulate
from llmtier.profile.latency_fit import LEVELS, find_max_sequences, fit_latency, observe
from llmtier.profile.step_rows import busy_times
from tests.profile.simulated_load import (
    LONG,
    MIXED,
    SHORT,
    TRUTH,
    chunked,
    closed,
    design,
    load,
    make_sample,
    moved,
    poisson,
    to_samples,
)

NOISY = replace(TRUTH, noise=0.1)


def errors_of(model, settings):
    """Return each coefficient's relative error."""
    step = model.step
    pairs = (
        (step.alpha_s, settings.alpha_s),
        (step.prefill_s_per_token, settings.beta_s_per_token),
        (step.sequence_s, settings.sequence_s),
        (step.kv_s_per_token, settings.gamma_s_per_kv_token),
    )
    return [found / true - 1 for found, true in pairs]


ENGINES = {
    "small GPU": TRUTH,
    "slow prefill": MockSettings(alpha_s=0.03, beta_s_per_token=0.002, sequence_s=0.004, gamma_s_per_kv_token=5e-6),
    "fast": MockSettings(alpha_s=0.004, beta_s_per_token=2e-5, sequence_s=1e-4, gamma_s_per_kv_token=1e-6),
}


@pytest.mark.parametrize("settings", ENGINES.values(), ids=ENGINES)
def test_coefficients_come_back_exactly_without_noise(settings):
    model = fit_latency(design(settings), [])

    assert 0.01 > max(map(abs, errors_of(model, settings)))
    # The mock has no quadratic part and no frontend: nothing may leak into them.
    assert 0.01 * settings.beta_s_per_token > model.step.attention_s_per_token2 * 512
    assert 0.01 * settings.alpha_s > model.frontend_s
    assert pytest.approx(0.5, abs=0.02) == model.wait_share


@pytest.mark.parametrize("settings", ENGINES.values(), ids=ENGINES)
def test_coefficients_come_back_through_noise(settings):
    model = fit_latency(design(replace(settings, noise=0.1)), [])

    assert 0.1 > max(map(abs, errors_of(model, settings)))


def test_an_engine_without_kv_cost_is_not_given_one():
    settings = replace(NOISY, gamma_s_per_kv_token=0.0)

    model = fit_latency(design(settings), [])

    assert 1e-7 > model.step.kv_s_per_token
    assert pytest.approx(settings.alpha_s, rel=0.1) == model.step.alpha_s


def test_frontend_time_is_told_apart_from_steps():
    """Every chunk comes 3 ms late and 10 us per prompt token later still: the network and the tokenizer."""

    def late(sample):
        delay_s = 0.003 + 1e-5 * sample.row.n_input_tokens
        shifted = moved(sample, lambda value: value + delay_s)
        return replace(shifted, row=replace(shifted.row, sent_s=sample.row.sent_s, scheduled_s=sample.row.scheduled_s))

    rng = np.random.default_rng(0)
    run = simulate(TRUTH, np.arange(80) * 10.0, rng.integers(16, 512, 80), rng.integers(8, 64, 80), rng)

    model = fit_latency([load([late(sample) for sample in to_samples(run)])], [])

    assert pytest.approx(0.003, rel=0.05) == model.frontend_s
    # Alone, a prompt's own prefill is seen in no other's interval, so both costs per token are one.
    assert pytest.approx(TRUTH.beta_s_per_token + 1e-5, rel=0.05) == (
        model.frontend_s_per_token + model.step.prefill_s_per_token
    )


def test_the_lag_before_the_scheduler_is_told_from_the_rest_of_the_frontend():
    """Requests reach the engine 6 ms after they were sent, a third of a step: those who come late miss a step."""
    rng = np.random.default_rng(1)
    slow = MockSettings(alpha_s=0.02, beta_s_per_token=1e-5, sequence_s=0.0, gamma_s_per_kv_token=0.0)
    arrivals_s = np.cumsum(rng.exponential(0.2, 400))
    run = simulate(slow, arrivals_s, rng.integers(16, 64, 400), rng.integers(8, 40, 400), rng)
    samples = [
        replace(
            sample, row=replace(sample.row, sent_s=sample.row.sent_s - 0.006, scheduled_s=sample.row.sent_s - 0.006)
        )
        for sample in to_samples(run)
    ]

    model = fit_latency([load(samples)], [])

    assert pytest.approx(0.006, abs=0.0015) == model.lag_s
    assert 0.001 > model.frontend_s


def test_domain_means_and_count_are_those_of_the_loads():
    loads = design(TRUTH, concurrency=(1, 3))
    seen = [one for each in loads for one in observe(each)]

    model = fit_latency(loads, [])

    assert len(seen) == model.n_fit
    assert sum(one.input_tokens for one in seen) / len(seen) == model.mean_input_tokens
    assert (0.0, 2.0) == model.domain.n_in_flight
    assert 16 <= model.domain.input_tokens[0]
    assert 500 < model.domain.input_tokens[1] <= 512


def test_the_engines_limit_of_sequences_is_found_where_it_was_hit():
    limited = replace(TRUTH, max_num_seqs=8)
    loads = [*design(limited, concurrency=(1, 4)), load(closed(limited, 24, SHORT, n=160, seed=3))]

    assert 8 == find_max_sequences(loads)
    assert 8 == fit_latency(loads, []).max_sequences


def test_no_limit_of_sequences_where_none_was_hit():
    assert fit_latency(design(TRUTH), []).max_sequences is None
    assert find_max_sequences([load(poisson(TRUTH, 8.0, n=200, seed=1))]) is None
    assert find_max_sequences([]) is None


def test_a_busy_neighbour_is_priced():
    """While the neighbour runs, this engine's clock goes at 0.6 of its speed: 0.4 s lost per busy second."""
    speed = 0.6
    period_s = 4.0  # of the engine's own time: half of it beside the neighbour

    def stretched(own_s):
        whole, rest = divmod(own_s, period_s)
        lone, beside = min(rest, period_s / 2), max(rest - period_s / 2, 0.0)
        return whole * (period_s / 2) * (1 + 1 / speed) + lone + beside / speed

    wall_s = stretched(period_s)
    busy = busy_times([(number * wall_s + period_s / 2, (number + 1) * wall_s) for number in range(100)])
    loads = [
        load([moved(sample, stretched) for sample in each.samples], neighbour=busy)
        for each in design(TRUTH, concurrency=(1, 4, 8))
    ]

    model = fit_latency(loads, [])

    assert [("neighbour", pytest.approx(1 - speed, abs=0.02))] == list(model.co_tenants)
    assert 0.05 > max(map(abs, errors_of(model, TRUTH)))
    [state] = {one.state.co_tenants for one in observe(loads[0])[:1]}
    assert "neighbour" == state[0][0]


def test_an_idle_neighbour_costs_nothing():
    loads = [replace(each, co_tenants={"idle": busy_times([])}) for each in design(TRUTH, concurrency=(1, 4))]

    assert (("idle", 0.0),) == fit_latency(loads, []).co_tenants


def test_several_tokens_per_chunk_fit_as_well():
    """A client sees only where chunks end, so the counts are right to a chunk, not to a token."""
    loads = [
        load([chunked(sample, 4) for sample in closed(TRUTH, c, lengths, n=60, seed=c, n_output=(40, 120))])
        for lengths in (SHORT, LONG)
        for c in (1, 4, 12)
    ]

    found = fit_latency(loads, []).step

    for n_sequences, kv_tokens in ((1, 100), (4, 1200), (12, 5000)):
        true_s = TRUTH.alpha_s + TRUTH.sequence_s * n_sequences + TRUTH.gamma_s_per_kv_token * kv_tokens
        assert pytest.approx(true_s, rel=0.05) == found.step_s(n_sequences=n_sequences, kv_tokens=kv_tokens)


def test_without_usage_there_is_no_model():
    def silent(sample):
        return replace(sample, row=replace(sample.row, n_input_tokens=None, n_output_tokens=None))

    loads = [load([silent(sample) for sample in each.samples]) for each in design(TRUTH, concurrency=(1, 4))]

    with pytest.raises(InputFileError, match="reported usage"):
        fit_latency(loads, [])


@pytest.mark.parametrize("loads", [[load([])], [load(closed(TRUTH, 1, SHORT, n=20, seed=0))]])
def test_too_few_answers_are_no_model(loads):
    with pytest.raises(InputFileError, match="too few"):
        fit_latency(loads, [])


def test_answers_of_a_single_token_are_no_model():
    """They tell nothing of decoding."""
    with pytest.raises(InputFileError, match="0 answers of 4 tokens"):
        fit_latency([load(closed(TRUTH, 2, SHORT, n=80, seed=0, n_output=(1, 2)))], [])


def test_refused_requests_do_not_hurt():
    refusing = replace(TRUTH, faults=(Fault(kind=FaultKind.REFUSE, probability=0.2),))
    loads = design(refusing, n=60)

    model = fit_latency(loads, [])

    assert any(not sample.is_ok for each in loads for sample in each.samples)
    assert 0.01 > max(map(abs, errors_of(model, TRUTH)))


def test_answers_that_broke_off_are_left_out_but_their_load_counts():
    def broken(number, sample):
        return replace(sample, row=replace(sample.row, status="cut")) if number % 5 == 0 else sample

    loads = [load([broken(*pair) for pair in enumerate(each.samples)]) for each in design(TRUTH, n=60)]

    model = fit_latency(loads, [])

    assert 0.01 > max(map(abs, errors_of(model, TRUTH)))
    assert model.n_fit < sum(len(each.samples) for each in loads) * 0.85


def test_a_hiccup_of_the_machine_is_trimmed():
    """One step of each load takes fifty times as long: everything after it comes later."""

    def hiccup(samples):
        begun_s = samples[len(samples) // 2].content_s[0] + 1e-6
        return [moved(sample, lambda value: value + (1.0 if value > begun_s else 0.0)) for sample in samples]

    model = fit_latency([load(hiccup(each.samples)) for each in design(TRUTH)], [])

    assert 0.02 > max(map(abs, errors_of(model, TRUTH)))


def test_warmup_loads_the_engine_but_is_not_observed():
    each = load(closed(TRUTH, 4, SHORT, n=30, seed=0))

    seen = observe(each)

    assert 26 == len(seen)
    assert 3 == seen[0].state.n_in_flight


def test_an_observation_holds_latencies_from_the_schedule():
    late = make_sample(1.0, [3.0, 4.0, 5.0], scheduled_s=0.5, n_input=7)

    [seen] = observe(load([late]))

    assert (7, 3, 2.5, 1.0, 4.5) == (seen.input_tokens, seen.output_tokens, seen.ttft_s, seen.tpot_s, seen.e2el_s)
    assert [2.5, 1.0, 4.5] == [seen.observed(metric) for metric in Metric]


def test_residuals_of_every_metric_hold_their_levels_on_what_they_come_from():
    calibration = [load(poisson(NOISY, rate, n=150, seed=int(rate))) for rate in (3.0, 6.0)]

    model = fit_latency(design(NOISY), calibration)

    seen = [one for each in calibration for one in observe(each)]
    for metric in Metric:
        buckets = [bucket for bucket in model.residuals if bucket.metric is metric]
        assert sum(one.observed(metric) is not None for one in seen) == sum(bucket.n for bucket in buckets)
        assert buckets[-1].max_in_flight is None
        assert all(LEVELS == tuple(level for level, _ in bucket.quantiles) for bucket in buckets)
        covered = [
            one.observed(metric)
            <= one.predicted(model, metric)
            * math.exp(model.residual(metric, n_in_flight=one.state.n_in_flight, level=0.95))
            for one in seen
        ]
        assert sum(covered) >= 0.95 * len(covered)


def test_residual_quantiles_ascend_with_their_level():
    model = fit_latency(design(NOISY), [load(poisson(NOISY, 5.0, n=100, seed=0))])

    for bucket in model.residuals:
        values = [value for _, value in bucket.quantiles]
        assert sorted(values) == values


def test_without_calibration_the_residuals_are_those_of_the_fit():
    model = fit_latency(design(TRUTH, concurrency=(1,)), [])

    # A lone request on an engine without noise: the formula is exact.
    assert all(abs(value) < 0.05 for bucket in model.residuals for _, value in bucket.quantiles)


def test_predictions_of_an_exact_engine_are_exact_where_nothing_is_left_to_chance():
    """A lone request on an idle engine to which no other comes: everything follows from the coefficients."""
    model = fit_latency(design(TRUTH), [])
    alone = [
        replace(one, state=replace(one.state, arrival_rps=None))
        for one in observe(load(closed(TRUTH, 1, MIXED, n=30, seed=99)))
    ]

    for metric in Metric:
        for one in alone:
            assert pytest.approx(one.observed(metric), rel=1e-3) == one.predicted(model, metric), metric


def test_a_request_that_comes_during_a_step_waits_for_its_end():
    """Among steady decoders no other arrives: TTFT is what is left of the step, then the one it joins."""
    settings = replace(TRUTH, gamma_s_per_kv_token=0.0)
    arrivals_s = [0.0, 0.001, 0.002, 1.2345]
    run = simulate(settings, arrivals_s, [50] * 4, [200] * 4, np.random.default_rng(0))

    model = fit_latency(design(settings), [])
    seen = observe(load(to_samples(run)))[-1]

    assert (3, 0) == (seen.state.n_decoding, seen.state.n_prefilling)
    assert pytest.approx(seen.ttft_s, rel=0.02) == model.ttft_s(seen.state, input_tokens=50)


@pytest.mark.parametrize("n_output", [(30, 31), (8, 64)])
def test_the_limit_is_found_in_lockstep_too(n_output):
    """Answers of one length all end in one step, so that no arrival ever meets a full batch."""
    limited = replace(TRUTH, max_num_seqs=6)

    assert 6 == find_max_sequences([load(closed(limited, 20, SHORT, n=160, seed=3, n_output=n_output))])


@pytest.mark.parametrize("has_rate", [True, False])
def test_a_flooded_engine_with_a_limit_is_predicted(has_rate):
    """Arrivals at twice the capacity: the queue delays the first token, never the steps."""
    limited = replace(TRUTH, max_num_seqs=8)
    model = fit_latency([*design(limited, concurrency=(1, 4)), load(closed(limited, 24, SHORT, n=160, seed=3))], [])
    seen = [
        one if has_rate else replace(one, state=replace(one.state, arrival_rps=None))
        for one in observe(load(poisson(limited, 9.0, n=300, seed=5)))
    ]

    assert max(one.state.n_in_flight for one in seen) > 5 * limited.max_num_seqs
    for metric in Metric:
        errors = [one.predicted(model, metric) / one.observed(metric) - 1 for one in seen]
        assert 0.1 > abs(sum(errors) / len(errors)), metric


def test_a_full_batch_without_a_queue_is_no_limit():
    """As many workers as places: what can not be seen is not claimed."""
    assert find_max_sequences([load(closed(replace(TRUTH, max_num_seqs=6), 6, SHORT, n=160, seed=3))]) is None


def test_the_fit_does_not_depend_on_the_order_of_loads_or_samples():
    loads = design(NOISY)

    forth, back = fit_latency(loads, []), fit_latency([load(each.samples[::-1]) for each in loads[::-1]], [])

    np.testing.assert_allclose(errors_of(forth, TRUTH), errors_of(back, TRUTH), atol=1e-6)
    assert forth.frontend_s == pytest.approx(back.frontend_s, abs=1e-6)


def test_the_step_limit_of_prompt_tokens_is_carried():
    assert 512 == fit_latency(design(TRUTH), [], max_batched_tokens=512).max_batched_tokens
