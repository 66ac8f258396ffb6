"""The ledger's view on timelines made by hand: who is on the engine at the instant of each request."""

from dataclasses import replace

import pytest

from llmtier.core.latency_model import LoadState
from llmtier.profile.ledger_view import N_LEAST, N_RECENT, rebuild_states, tokens_per_chunk
from tests.profile.simulated_load import make_sample


def last_state(*samples):
    return rebuild_states(samples)[-1]


def test_first_request_meets_an_idle_engine():
    [state] = rebuild_states([make_sample(5.0, [6.0])])

    assert LoadState() == state


def test_one_decoding_request_is_counted_with_the_tokens_that_have_come():
    state = last_state(make_sample(0.0, [1.0, 2.0, 3.0, 4.0], n_input=10), make_sample(2.5, [4.0]))

    assert (1, 0, 0, 12) == (state.n_decoding, state.n_prefilling, state.prefill_tokens, state.kv_tokens)
    assert 0.5 == state.step_age_s


def test_a_prefilling_request_waits_with_its_whole_prompt():
    """It reached an idle engine, so the step that runs began with it and holds its prompt."""
    state = last_state(make_sample(0.0, [3.0], n_input=70), make_sample(1.0, [4.0]))

    assert (0, 1, 70, 0) == (state.n_decoding, state.n_prefilling, state.prefill_tokens, state.kv_tokens)
    assert (1, 70, 1.0) == (state.n_joined, state.joined_tokens, state.step_age_s)


def test_only_requests_sent_before_the_running_step_began_are_in_it():
    state = last_state(
        make_sample(0.0, [1.0, 2.0, 3.0, 4.0], n_input=10),
        make_sample(1.5, [3.0], n_input=20),  # sent before the step that began at 2.0
        make_sample(2.2, [4.0], n_input=40),  # sent during it
        make_sample(2.6, [4.0], n_input=80),
    )

    assert (1, 2, 60) == (state.n_decoding, state.n_prefilling, state.prefill_tokens)
    assert (1, 20) == (state.n_joined, state.joined_tokens)
    assert pytest.approx(0.6) == state.step_age_s


def test_a_second_request_to_an_idle_engine_has_not_joined_the_first_ones_step():
    state = last_state(make_sample(0.0, [3.0], n_input=70), make_sample(1.0, [4.0], n_input=5), make_sample(2.0, [4.0]))

    assert (2, 75, 1, 70, 2.0) == (
        state.n_prefilling, state.prefill_tokens, state.n_joined, state.joined_tokens, state.step_age_s,
    )  # fmt: skip


def test_done_requests_are_gone_and_their_lengths_remembered():
    half = N_LEAST // 2
    samples = [
        *(make_sample(float(number), [number + 0.1, number + 0.2], n_input=10) for number in range(half)),
        *(make_sample(10.0 + number, [10.5 + number] * 4, n_input=30) for number in range(half)),
        make_sample(90.0, [91.0]),
    ]

    state = last_state(*samples)

    assert (0, None) == (state.n_in_flight, state.step_age_s)
    assert (20.0, 3.0) == (state.mean_input_tokens, state.mean_output_tokens)


def test_means_of_a_few_requests_are_unknown():
    states = rebuild_states([make_sample(float(number), [number + 0.5]) for number in range(N_LEAST + 1)])

    assert [None] * N_LEAST == [state.mean_output_tokens for state in states[:-1]]
    assert (10.0, 1.0) == (states[-1].mean_input_tokens, states[-1].mean_output_tokens)


def test_the_running_step_began_with_the_newest_token_of_anyone_even_one_who_is_done():
    slow, done = make_sample(0.0, [1.0, 2.0, 10.0]), make_sample(0.5, [2.0, 3.0])

    state = last_state(slow, done, make_sample(3.5, [10.0]))

    assert (1, 0.5) == (state.n_decoding, state.step_age_s)


def test_a_request_that_ends_at_the_instant_of_the_next_is_gone():
    """The worker of a closed loop sends when its answer has ended: it does not wait for itself."""
    state = last_state(make_sample(0.0, [1.0, 2.0]), make_sample(2.0, [3.0]))

    assert 0 == state.n_in_flight


def test_a_failed_request_is_on_the_engine_until_it_fails():
    failed = make_sample(0.0, [], done_s=5.0, n_input=50, status="timeout")
    during, after = make_sample(1.0, [2.0], n_input=1), make_sample(6.0, [7.0])

    states = rebuild_states([failed, during, after])

    assert [(0, 0), (1, 50), (0, 0)] == [(state.n_prefilling, state.prefill_tokens) for state in states]


def test_failed_requests_count_in_no_mean_output():
    failed = [make_sample(float(number), [], done_s=number + 0.5, status="timeout") for number in range(N_LEAST)]
    answered = [make_sample(20.0 + number, [20.5 + number] * 3) for number in range(N_LEAST)]

    assert last_state(*failed, make_sample(19.0, [19.5])).mean_output_tokens is None
    assert 3.0 == last_state(*failed, *answered, make_sample(40.0, [41.0])).mean_output_tokens


def test_a_failed_request_without_usage_counts_as_a_request_of_no_tokens():
    failed = replace(make_sample(0.0, [], done_s=5.0, status="timeout"))
    failed = replace(failed, row=replace(failed.row, n_input_tokens=None))

    state = last_state(failed, make_sample(1.0, [2.0]))

    assert (1, 0, None) == (state.n_prefilling, state.prefill_tokens, state.mean_input_tokens)


def test_states_come_in_the_order_of_the_samples_though_sent_in_another():
    early, late = make_sample(0.0, [1.0, 5.0]), make_sample(2.0, [3.0])

    assert rebuild_states([early, late]) == rebuild_states([late, early])[::-1]


def test_arrival_rate_is_unknown_until_some_have_come_and_exact_for_a_steady_stream():
    samples = [make_sample(float(number), [number + 0.25, number + 0.5]) for number in range(3 * N_RECENT)]

    rates = [state.arrival_rps for state in rebuild_states(samples)]

    assert [None] * (N_LEAST) == rates[:N_LEAST]
    assert all(rate == pytest.approx(1.0) for rate in rates[N_LEAST:])


def test_arrival_rate_forgets_what_is_long_ago():
    slow = [make_sample(10.0 * number, [10.0 * number + 0.5]) for number in range(N_RECENT)]
    begun_s = slow[-1].row.sent_s
    fast = [make_sample(begun_s + 0.1 * number, [begun_s + 0.1 * number + 0.05]) for number in range(1, N_RECENT + 2)]

    assert pytest.approx(10.0) == rebuild_states([*slow, *fast])[-1].arrival_rps


def test_requests_that_all_come_at_once_have_no_rate():
    """A burst at one instant spans no time: an unknown rate, not an endless one."""
    states = rebuild_states([make_sample(1.0, [2.0, 3.0]) for _ in range(20)])

    assert all(state.arrival_rps is None for state in states)
    assert 19 == states[-1].n_prefilling


def test_chunks_of_several_tokens_hold_them_all():
    pair = make_sample(0.0, [1.0, 2.0, 9.0], n_input=10, n_output=12)

    assert 4.0 == tokens_per_chunk(pair)
    assert 10 + 2 * 4 == last_state(pair, make_sample(3.0, [4.0])).kv_tokens


def test_an_answer_without_usage_is_one_token_per_chunk():
    sample = make_sample(0.0, [1.0, 2.0])
    sample = replace(sample, row=replace(sample.row, n_output_tokens=None))

    assert 1.0 == tokens_per_chunk(sample)
    assert 1.0 == tokens_per_chunk(make_sample(0.0, [], done_s=1.0))
