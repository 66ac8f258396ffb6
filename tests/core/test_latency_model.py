"""Laws of the latency formula: more load, longer prompts and longer answers never come out faster."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.latency_model import DomainBox, LatencyModel, LoadState, Metric, ResidualBucket, StepModel

BOX = DomainBox(input_tokens=(8, 512), output_tokens=(4, 128), n_in_flight=(0, 16))
STEP = StepModel(
    alpha_s=0.01, prefill_s_per_token=1e-4, attention_s_per_token2=1e-8, sequence_s=5e-4, kv_s_per_token=1e-6
)


def make_model(**changes):
    settings = {
        "step": STEP, "frontend_s": 0.002, "frontend_s_per_token": 1e-6, "wait_share": 0.5, "mean_input_tokens": 100.0,
        "mean_output_tokens": 20.0, "domain": BOX, "n_fit": 1000,
    }  # fmt: skip
    return LatencyModel(**{**settings, **changes})


def costs(most):
    return st.one_of(st.just(0.0), st.floats(most * 1e-3, most))


steps = st.builds(
    StepModel,
    alpha_s=costs(0.1),
    prefill_s_per_token=costs(1e-2),
    attention_s_per_token2=costs(1e-6),
    sequence_s=costs(1e-2),
    kv_s_per_token=costs(1e-4),
)
models = st.builds(
    make_model,
    step=steps,
    frontend_s=costs(0.1),
    frontend_s_per_token=costs(1e-4),
    wait_share=st.floats(0.5, 2.0),
    max_batched_tokens=st.one_of(st.none(), st.integers(16, 4096)),
    max_sequences=st.one_of(st.none(), st.integers(1, 32)),
    co_tenants=st.just((("neighbour", 0.4),)),
)


@st.composite
def states(draw):
    """Draw a state that a ledger could hold, its arrival rate unknown: the load is taken to last."""
    n_decoding, n_prefilling = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    n_joined = draw(st.integers(0, n_prefilling))
    joined_tokens = draw(st.integers(n_joined, 500 * n_joined))
    waiting = n_prefilling - n_joined
    return LoadState(
        n_decoding=n_decoding,
        n_prefilling=n_prefilling,
        n_joined=n_joined,
        joined_tokens=joined_tokens,
        prefill_tokens=joined_tokens + draw(st.integers(waiting, 500 * waiting)),
        kv_tokens=draw(st.integers(2 * n_decoding, 1000 * n_decoding)),
        mean_input_tokens=draw(st.one_of(st.none(), st.floats(1, 500))),
        mean_output_tokens=draw(st.one_of(st.none(), st.floats(1, 500))),
        step_age_s=draw(st.one_of(st.none(), st.floats(0, 1))) if n_decoding + n_prefilling else None,
        co_tenants=draw(st.sampled_from(((), (("neighbour", 0.5),), (("stranger", 1.0),)))),
    )


lengths = st.integers(1, 4096)
few = settings(max_examples=50)


def all_of(model, state, *, input_tokens=100, output_tokens=20):
    """Return the three predictions."""
    return (
        model.ttft_s(state, input_tokens=input_tokens),
        model.tpot_s(state, input_tokens=input_tokens, output_tokens=output_tokens),
        model.e2el_s(state, input_tokens=input_tokens, output_tokens=output_tokens),
    )


def check_never_faster(before, after):
    for less, more in zip(before, after, strict=True):
        assert more >= less * (1 - 1e-9)


@few
@given(models, states(), lengths, lengths)
def test_predictions_are_finite_and_not_negative(model, state, input_tokens, output_tokens):
    predicted = all_of(model, state, input_tokens=input_tokens, output_tokens=output_tokens)

    assert all(value >= 0 and math.isfinite(value) for value in predicted)


@few
@given(models, states(), st.integers(1, 20), st.integers(0, 1000), lengths)
def test_more_decoding_requests_are_never_faster(model, state, n_more, kv_tokens, input_tokens):
    more = replace(state, n_decoding=state.n_decoding + n_more, kv_tokens=state.kv_tokens + kv_tokens)

    check_never_faster(all_of(model, state, input_tokens=input_tokens), all_of(model, more, input_tokens=input_tokens))


@few
@given(models, states(), st.integers(1, 20), st.integers(0, 4096), lengths)
def test_more_waiting_prompts_are_never_faster(model, state, n_more, tokens, input_tokens):
    more = replace(state, n_prefilling=state.n_prefilling + n_more, prefill_tokens=state.prefill_tokens + tokens)

    check_never_faster(all_of(model, state, input_tokens=input_tokens), all_of(model, more, input_tokens=input_tokens))


@few
@given(models, states(), st.integers(1, 4096))
def test_more_held_tokens_are_never_faster(model, state, kv_tokens):
    check_never_faster(all_of(model, state), all_of(model, replace(state, kv_tokens=state.kv_tokens + kv_tokens)))


@few
@given(models, states(), lengths, lengths)
def test_a_longer_prompt_is_never_faster(model, state, input_tokens, more):
    check_never_faster(
        all_of(model, state, input_tokens=input_tokens), all_of(model, state, input_tokens=input_tokens + more)
    )


@few
@given(models, states(), lengths, lengths)
def test_a_longer_answer_never_ends_earlier(model, state, output_tokens, more):
    """TPOT itself may fall, as the load at arrival goes; what it sums to may not."""
    before = all_of(model, state, output_tokens=output_tokens)
    after = all_of(model, state, output_tokens=output_tokens + more)

    assert before[0] == after[0]
    assert after[2] >= before[2] * (1 - 1e-9)


@few
@given(models, states(), st.floats(0, 1), st.floats(0, 1))
def test_a_busier_neighbour_is_never_faster(model, state, one, other):
    low, high = sorted((one, other))

    check_never_faster(*(all_of(model, replace(state, co_tenants=(("neighbour", busy),))) for busy in (low, high)))


@few
@given(models, states())
def test_unknown_neighbours_cost_nothing(model, state):
    alone = replace(state, co_tenants=())

    assert all_of(model, alone) == all_of(model, replace(state, co_tenants=(("stranger", 1.0),)))


@few
@given(models, states(), st.floats(0, 100), st.floats(0, 100))
def test_the_older_the_running_step_the_sooner_the_first_token(model, state, one, other):
    young, old = sorted((one, other))
    ttft_s = [model.ttft_s(replace(state, step_age_s=age_s), input_tokens=50) for age_s in (young, old)]

    assert ttft_s[0] >= ttft_s[1] * (1 - 1e-9)


@few
@given(models, states())
def test_what_is_left_of_the_running_step_lies_between_none_and_all(model, state):
    """An unknown age is one at random, whatever the known ages say at both ends."""
    youngest, unknown, oldest = (
        model.ttft_s(replace(state, step_age_s=age_s), input_tokens=50) for age_s in (0.0, None, 1e9)
    )

    assert oldest * (1 - 1e-9) <= unknown <= youngest * (1 + 1e-9)


def test_an_idle_engine_answers_after_the_frontend_and_one_step():
    model = make_model()

    expected = 0.002 + 100 * 1e-6 + 0.01 + 100 * 1e-4 + 100**2 / 2 * 1e-8 + 5e-4 + 100 * 1e-6

    assert pytest.approx(expected) == model.ttft_s(LoadState(), input_tokens=100)


def test_a_lone_answer_takes_one_step_per_token_at_its_mean_context():
    step_s = 0.01 + 5e-4 + (100 + 10) * 1e-6

    assert pytest.approx(step_s) == make_model().tpot_s(LoadState(), input_tokens=100, output_tokens=20)


@few
@given(models, states(), lengths, lengths)
def test_e2el_is_ttft_and_a_tpot_per_further_token(model, state, input_tokens, output_tokens):
    ttft_s, tpot_s, e2el_s = all_of(model, state, input_tokens=input_tokens, output_tokens=output_tokens)

    assert pytest.approx(ttft_s + tpot_s * (output_tokens - 1)) == e2el_s


def test_a_step_is_the_sum_of_its_parts():
    step_s = STEP.step_s(n_sequences=4, kv_tokens=1000, prefill_tokens=50, attention_tokens2=1250)

    assert pytest.approx(0.01 + 50e-4 + 1250e-8 + 4 * 5e-4 + 1000e-6) == step_s


def test_the_running_step_holds_who_joined_it_not_who_waits():
    state = LoadState(
        n_decoding=2, n_prefilling=3, prefill_tokens=300, n_joined=1, joined_tokens=80, kv_tokens=500
    )  # fmt: skip

    assert pytest.approx(0.01 + 3 * 5e-4 + 580e-6 + 80e-4 + 80**2 / 2 * 1e-8) == make_model().running_step_s(state)


def test_an_arrival_waits_for_what_is_left_of_the_running_step():
    model = make_model()
    state = LoadState(n_decoding=2, kv_tokens=500)
    running_s = model.running_step_s(state)

    ttft_s = {age: model.ttft_s(replace(state, step_age_s=age), input_tokens=10) for age in (0.0, 0.004, 9.0, None)}

    assert pytest.approx(running_s) == ttft_s[0.0] - ttft_s[9.0]
    assert pytest.approx(running_s - 0.004) == ttft_s[0.004] - ttft_s[9.0]
    assert pytest.approx(running_s / 2) == ttft_s[None] - ttft_s[9.0]


def test_steps_scheduled_ahead_are_waited_for_whatever_the_age():
    ahead = make_model(wait_share=1.5)
    state = LoadState(n_decoding=2, kv_tokens=500, step_age_s=9.0)

    more_s = ahead.ttft_s(state, input_tokens=10) - make_model().ttft_s(state, input_tokens=10)

    assert pytest.approx(ahead.running_step_s(state)) == more_s


def test_an_arrival_that_misses_the_next_step_waits_for_the_one_after():
    """The scheduler sees a request ``lag_s`` after it was sent; a step that begins before that goes without it."""
    model, state = make_model(lag_s=0.003), LoadState(n_decoding=2, kv_tokens=500)
    running_s = model.running_step_s(state)
    in_time = replace(state, step_age_s=running_s - 0.004)
    missed = replace(state, step_age_s=running_s - 0.002)

    assert pytest.approx(0.004) == model._running_s(in_time)
    assert pytest.approx(0.002 + running_s) == model._running_s(missed)
    assert pytest.approx(0.003) == model._running_s(LoadState())
    assert pytest.approx(running_s / 2 + 0.003) == model._running_s(state)


@given(st.floats(0, 0.05), st.floats(0, 0.1))
def test_nobody_is_taken_in_before_the_scheduler_sees_it(lag_s, age_s):
    state = LoadState(n_decoding=2, kv_tokens=500, step_age_s=age_s)

    assert make_model(lag_s=lag_s)._running_s(state) >= lag_s - 1e-12


def test_a_prompt_longer_than_a_step_takes_several():
    one, four = make_model(), make_model(max_batched_tokens=128)
    step_s = STEP.step_s(n_sequences=1, kv_tokens=512)

    assert pytest.approx(3 * step_s) == four.ttft_s(LoadState(), input_tokens=512) - one.ttft_s(
        LoadState(), input_tokens=512
    )


def test_a_free_place_costs_no_wait_and_a_full_batch_does():
    limited = make_model(max_sequences=4)
    three, four, six = (LoadState(n_decoding=n, kv_tokens=400) for n in (3, 4, 6))

    waits_s = [limited.ttft_s(s, input_tokens=10) - make_model().ttft_s(s, input_tokens=10) for s in (three, four, six)]

    step_s = STEP.step_s(n_sequences=4, kv_tokens=400)
    assert pytest.approx(0, abs=1e-12) == waits_s[0]
    # One place frees every 20 / 4 steps; what the step lasts longer with those who wait is not paid.
    assert pytest.approx(5 * step_s, rel=0.1) == waits_s[1]
    assert pytest.approx(15 * step_s, rel=0.1) == waits_s[2]


def test_who_waits_for_a_place_does_not_slow_the_steps():
    limited = make_model(max_sequences=4)
    full = LoadState(n_decoding=4, kv_tokens=3 * 110)
    queued = replace(full, n_prefilling=20, prefill_tokens=2000)

    assert limited.tpot_s(full, **WANTED) == limited.tpot_s(queued, **WANTED)
    assert make_model().tpot_s(full, **WANTED) < make_model().tpot_s(queued, **WANTED)


def test_beyond_capacity_a_higher_rate_no_longer_slows_a_full_batch():
    """The queue grows, the batch can not."""
    limited = make_model(max_sequences=4)
    state = LoadState(n_decoding=4, kv_tokens=440)

    fast, faster = (limited.tpot_s(replace(state, arrival_rps=rate), **WANTED) for rate in (200.0, 2000.0))

    assert fast == faster


WANTED = {"input_tokens": 50, "output_tokens": 20}


@few
@given(models, states(), st.floats(0.01, 50))
def test_a_known_rate_gives_finite_predictions_even_beyond_capacity(model, state, arrival_rps):
    predicted = all_of(model, replace(state, arrival_rps=arrival_rps))

    assert all(value >= 0 and math.isfinite(value) for value in predicted)


def test_a_busy_past_is_forgotten_under_a_low_rate_and_an_idle_one_under_a_high_rate():
    """The answer outlasts the load at arrival, which relaxes to what the rate keeps in flight."""
    model = make_model()
    busy, idle = LoadState(n_decoding=16, kv_tokens=1600), LoadState()
    long_answer = {"input_tokens": 50, "output_tokens": 400}

    assert model.tpot_s(replace(busy, arrival_rps=0.01), **long_answer) < model.tpot_s(busy, **long_answer)
    assert model.tpot_s(replace(idle, arrival_rps=20.0), **long_answer) > model.tpot_s(idle, **long_answer)


@pytest.mark.parametrize(
    "name", ["alpha_s", "prefill_s_per_token", "attention_s_per_token2", "sequence_s", "kv_s_per_token"]
)
@pytest.mark.parametrize("value", [-1e-9, math.nan])
def test_a_step_of_negative_or_no_cost_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        replace(STEP, **{name: value})


def bucket(max_in_flight, upper, metric=Metric.TTFT):
    return ResidualBucket(metric=metric, max_in_flight=max_in_flight, n=100, quantiles=((0.5, 0.0), (0.95, upper)))


@pytest.mark.parametrize(("n_in_flight", "expected"), [(0, 0.1), (4, 0.1), (5, 0.3), (8, 0.3), (9, 0.5), (999, 0.5)])
def test_residuals_are_looked_up_by_requests_in_flight(n_in_flight, expected):
    model = make_model(residuals=(bucket(4, 0.1), bucket(8, 0.3), bucket(None, 0.5)))

    assert expected == model.residual(Metric.TTFT, n_in_flight=n_in_flight, level=0.95)


def test_residuals_of_a_higher_load_are_never_smaller():
    model = make_model(residuals=(bucket(4, 0.3), bucket(None, 0.1)))

    assert [0.3, 0.3] == [model.residual(Metric.TTFT, n_in_flight=n, level=0.95) for n in (1, 50)]


def test_a_closed_last_bucket_holds_beyond_its_edge():
    assert 0.2 == make_model(residuals=(bucket(4, 0.2),)).residual(Metric.TTFT, n_in_flight=50, level=0.95)


@pytest.mark.parametrize(("metric", "level"), [(Metric.E2EL, 0.95), (Metric.TTFT, 0.99)])
def test_no_residual_of_another_metric_or_level(metric, level):
    assert make_model(residuals=(bucket(None, 0.2),)).residual(metric, n_in_flight=1, level=level) is None


@pytest.mark.parametrize(
    ("point", "is_inside"),
    [((8, 4, 0), True), ((512, 128, 16), True), ((7, 4, 0), False), ((8, 129, 0), False), ((8, 4, 17), False)],
)
def test_the_box_holds_its_edges_and_nothing_beyond(point, is_inside):
    names = ("input_tokens", "output_tokens", "n_in_flight")

    assert is_inside is BOX.holds(**dict(zip(names, point, strict=True)))


def test_everything_on_the_engine_is_in_flight():
    assert 5 == LoadState(n_decoding=2, n_prefilling=3).n_in_flight
