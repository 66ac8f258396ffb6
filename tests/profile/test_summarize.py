"""Requests of one load point become a LoadPoint: order-free, failures apart, absent stays absent."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.profile.sample import RequestSample
from llmtier.profile.summarize import PointFacts, summarize
from llmtier.store.profiles import RequestRow

CLOSED = PointFacts(shape="closed:2", concurrency=2, asked_rps=None, seed=3, is_open=False)
OPEN = PointFacts(shape="poisson:2", concurrency=None, asked_rps=2.0, seed=3, is_open=True)
METRICS = ("ttft", "tpot", "itl", "e2el", "ttft_from_send", "e2el_from_send")


def make_sample(sent_s=0.0, ttft_s=1.0, gaps_s=(1.0,), *, delay_s=0.0, n_output_tokens=None, tail_s=0.0):
    """Return an answer: sent ``delay_s`` late, ``gaps_s`` between chunks, the end ``tail_s`` after the last."""
    content_s = tuple((sent_s + ttft_s + np.cumsum([0.0, *gaps_s])).tolist())
    row = RequestRow(
        tier="t",
        concurrency=None,
        prompt_id="p",
        scheduled_s=sent_s - delay_s,
        sent_s=sent_s,
        first_s=content_s[0],
        last_s=content_s[-1],
        done_s=content_s[-1] + tail_s,
        n_input_tokens=10,
        n_output_tokens=len(content_s) if n_output_tokens is None else n_output_tokens,
    )
    return RequestSample(row=row, content_s=content_s)


def make_failure(sent_s=0.0, took_s=1.0):
    row = replace(make_sample(sent_s).row, first_s=None, last_s=None, done_s=sent_s + took_s, n_output_tokens=None)
    return RequestSample(row=replace(row, status="HTTP 500"))


def steady_load(n=300, seed=0, gap_s=0.5):
    """Return a constant arrival rate whose answers take 0.5 to 1.5 s."""
    rng = np.random.default_rng(seed)
    return [make_sample(i * gap_s, 0.1 * rng.uniform(0.5, 1.5), (0.9 * rng.uniform(0.5, 1.5),)) for i in range(n)]


def latencies(point):
    return {name: (getattr(point, f"{name}_p50_s"), getattr(point, f"{name}_p95_s")) for name in METRICS}


def test_a_point_of_known_instants_gives_known_numbers():
    samples = [
        make_sample(0.0, 1.0, (1.0, 3.0), tail_s=0.5),  # TPOT 2, ends at 5.5
        make_sample(5.5, 3.0, (2.0, 2.0, 2.0), delay_s=1.0),  # TTFT 4 from the scheduled instant, TPOT 2, ends at 14.5
    ]
    point = summarize(samples, replace(CLOSED, concurrency=1))

    assert (1, 2, 0, 2) == (point.concurrency, point.n_ok, point.n_failed, point.n_sent)
    assert 14.5 == point.duration_s
    assert (2.5, pytest.approx(1.0 + 0.95 * 3.0)) == latencies(point)["ttft"]
    assert 2.0 == point.ttft_from_send_p50_s
    assert 2.0 == point.tpot_p50_s
    assert (2.0, pytest.approx(2.8)) == latencies(point)["itl"]
    assert (7.5, 7.0) == (point.e2el_p50_s, point.e2el_from_send_p50_s)  # of 5 and 10, of 5 and 9
    assert (10.0, 3.5) == (point.mean_input_tokens, point.mean_output_tokens)
    assert (0.5, pytest.approx(0.99)) == (point.schedule_delay_p50_s, point.schedule_delay_p99_s)
    assert pytest.approx(1.0) == point.mean_in_flight
    assert ("closed:2", 3, None, None) == (point.shape, point.seed, point.asked_rps, point.achieved_rps)
    assert any("2 answers" in fault for fault in point.invalid)


def test_a_steady_open_loop_is_believed_and_complete():
    point = summarize(steady_load(2000), OPEN)

    assert () == point.invalid
    assert point.is_steady
    assert (2.0, 2.0) == (point.asked_rps, pytest.approx(point.achieved_rps))
    assert pytest.approx(2.0, rel=0.01) == point.request_rps
    assert pytest.approx(2.0, rel=0.05) == point.mean_in_flight
    assert 0.05 > abs(point.little_residual)
    assert 0.95 == point.bound_confidence
    for name in ("ttft", "tpot", "e2el"):
        assert getattr(point, f"{name}_p95_s") <= getattr(point, f"{name}_p95_high_s")


def test_requests_that_share_one_swing_of_the_load_bound_nothing():
    crowded = [make_sample(i * 0.05, 0.1, (0.9,)) for i in range(800)]  # 20 in flight

    assert summarize(crowded, OPEN).ttft_p95_high_s is None
    assert summarize(crowded, replace(CLOSED, concurrency=20)).ttft_p95_high_s is not None


def test_every_request_that_is_not_warmup_waits_for_its_schedule():
    late = [replace_row(sample, scheduled_s=sample.row.scheduled_s - 0.02) for sample in steady_load()]
    point = summarize(late, OPEN)

    assert pytest.approx(0.02) == point.schedule_delay_p50_s
    assert pytest.approx(point.ttft_from_send_p50_s + 0.02) == point.ttft_p50_s
    assert any("schedule delay" in fault for fault in point.invalid)


def replace_row(sample, **changes):
    return replace(sample, row=replace(sample.row, **changes))


def test_throughput_is_that_of_the_full_load_not_of_fill_and_drain():
    rounds = [make_sample(2.0 * i, 0.5, (1.5,)) for i in range(20) for _ in range(8)]  # eight workers in step
    point = summarize(rounds, replace(CLOSED, concurrency=8))

    assert pytest.approx(4.0, rel=1e-9) == point.request_rps  # eight every 2 s
    assert pytest.approx(8.0) == point.mean_in_flight


def test_a_window_that_begins_amid_a_round_has_the_same_throughput():
    rng = np.random.default_rng(1)
    rounds = [make_sample(2.0 * i + 0.01 * rng.random(), 0.5, (1.48,)) for i in range(20) for _ in range(32)]
    point = summarize(rounds, replace(CLOSED, concurrency=32))

    assert pytest.approx(16.0, rel=0.02) == point.request_rps


def test_an_overloaded_open_loop_is_marked_with_the_reason():
    samples = [make_sample(i * 0.5, 0.1 + 0.2 * i, (0.5,)) for i in range(200)]
    point = summarize(samples, OPEN)

    assert point.is_steady is False
    assert any(fault.startswith("no steady state: TTFT") for fault in point.invalid)


def test_warmup_counts_in_nothing_but_the_number_sent():
    samples = steady_load()
    slow = [replace(make_sample(-20.0 + i, 9.0, (9.0,)), is_warmup=True) for i in range(15)]
    failed = replace(make_failure(-3.0), is_warmup=True)
    point, warmed = summarize(samples, OPEN), summarize([*slow, failed, *samples], OPEN)

    assert latencies(point) == latencies(warmed)
    assert (point.n_ok, 0, 316) == (warmed.n_ok, warmed.n_failed, warmed.n_sent)


def test_several_tokens_in_a_chunk_lower_tpot_but_not_itl():
    point = summarize([make_sample(0.0, 1.0, (1.0, 1.0), n_output_tokens=9)], CLOSED)

    assert (0.25, 1.0) == (point.tpot_p50_s, point.itl_p50_s)


def test_a_point_without_answers_has_no_latency_and_says_why():
    point = summarize([make_failure(float(i)) for i in range(30)], OPEN)

    assert (0, 30) == (point.n_ok, point.n_failed)
    assert {(None, None)} == set(latencies(point).values())
    assert (None, None) == (point.mean_input_tokens, point.mean_output_tokens)
    assert "30 of 30 requests failed, more than 1%: HTTP 500 x30" == point.invalid[0]


def test_a_point_of_one_instant_is_still_a_point():
    row = make_failure().row
    point = summarize([RequestSample(row=replace(row, done_s=row.sent_s))], CLOSED)

    assert point.duration_s > 0
    assert (None, None) == (point.mean_in_flight, point.little_residual)


def test_answers_of_one_token_have_no_tpot():
    point = summarize([make_sample(gaps_s=())], CLOSED)

    assert (1.0, None, None) == (point.ttft_p50_s, point.tpot_p50_s, point.itl_p50_s)


def test_an_empty_answer_counts_but_has_no_latency():
    empty = RequestSample(row=replace(make_sample().row, first_s=None, last_s=None, n_output_tokens=0))
    point = summarize([empty], CLOSED)

    assert 1 == point.n_ok
    assert {(None, None)} == set(latencies(point).values())
    assert 0.0 == point.mean_output_tokens


def test_a_machine_that_slept_makes_the_point_invalid():
    assert ("the machine slept for 30 s, more than 0.5 s",) == summarize(
        steady_load(), replace(OPEN, suspended_s=30.0)
    ).invalid


def test_limits_come_from_the_facts():
    samples = [replace_row(sample, scheduled_s=sample.row.scheduled_s - 0.02) for sample in steady_load()]

    assert () == summarize(samples, replace(OPEN, max_schedule_delay_s=0.05)).invalid


def test_nothing_is_no_point():
    with pytest.raises(ValueError, match="needs samples"):
        summarize([], CLOSED)


DURATIONS = st.floats(0.001, 100.0)
SAMPLES = st.builds(
    make_sample, st.floats(0.0, 1000.0), DURATIONS, st.lists(DURATIONS, max_size=5), delay_s=st.floats(0.0, 1.0)
)
FAILURES = st.builds(make_failure, st.floats(0.0, 1000.0), DURATIONS)


@settings(max_examples=40, deadline=None)
@given(st.lists(SAMPLES | FAILURES, min_size=1, max_size=30), st.randoms(use_true_random=False), st.booleans())
def test_order_does_not_matter(samples, rng, is_open):
    unique = list({sample.row.scheduled_s: sample for sample in samples}.values())
    facts = OPEN if is_open else CLOSED
    point, shuffled = summarize(unique, facts), summarize(rng.sample(unique, len(unique)), facts)

    assert latencies(point) == latencies(shuffled)
    assert point.duration_s == pytest.approx(shuffled.duration_s)
    assert (point.n_ok, point.n_failed, point.invalid) == (shuffled.n_ok, shuffled.n_failed, shuffled.invalid)


@settings(max_examples=40, deadline=None)
@given(st.lists(SAMPLES | FAILURES, min_size=1, max_size=30))
def test_medians_do_not_exceed_upper_quantiles_nor_those_their_bounds(samples):
    point = summarize(samples, OPEN)

    for p50, p95 in latencies(point).values():
        assert (p50 is None) == (p95 is None)
        assert p50 is None or 0.0 <= p50 <= p95
    assert point.ttft_p95_high_s is None  # 30 requests bound no p95
    assert len(samples) == point.n_sent
    assert point.duration_s > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.25, 4.0))
def test_a_slower_clock_scales_every_latency(seed, factor):
    samples = steady_load(60, seed)
    slower = [
        make_sample(
            sample.row.sent_s * factor,
            (sample.content_s[0] - sample.row.sent_s) * factor,
            ((sample.content_s[1] - sample.content_s[0]) * factor,),
        )
        for sample in samples
    ]
    point, scaled = summarize(samples, OPEN), summarize(slower, OPEN)

    assert point.n_ok == scaled.n_ok
    assert point.duration_s * factor == pytest.approx(scaled.duration_s)
    for name, values in latencies(point).items():
        assert [value * factor for value in values] == pytest.approx(list(latencies(scaled)[name]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 10))
def test_failures_change_no_latency_but_are_counted(seed, n_failed):
    samples = steady_load(80, seed)
    failures = [make_failure(1.25 + 0.5 * i, 0.2) for i in range(n_failed)]
    alone, mixed = summarize(samples, OPEN), summarize([*samples, *failures], OPEN)

    assert latencies(alone) == latencies(mixed)
    assert (alone.n_ok, n_failed) == (mixed.n_ok, mixed.n_failed)
    assert mixed.invalid[0].startswith(f"{n_failed} of {80 + n_failed} requests failed")
    assert math.isclose(alone.duration_s, mixed.duration_s)
