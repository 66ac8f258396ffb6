"""Rows of one load point become a LoadPoint: order-free, failures apart, absent stays absent."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.profile.load import RequestSample
from llmtier.profile.summarize import summarize
from llmtier.store.profiles import RequestRow

METRICS = ("ttft", "tpot", "itl", "e2el")


def make_sample(sent_s=0.0, ttft_s=1.0, gaps_s=(1.0,), *, delay_s=0.0, n_output_tokens=None, tail_s=0.0, concurrency=2):
    """Return an answered request: sent ``delay_s`` late, ``gaps_s`` between chunks, the end ``tail_s`` after the last."""
    first_s = sent_s + ttft_s
    last_s = first_s + sum(gaps_s)
    row = RequestRow(
        tier="t",
        concurrency=concurrency,
        prompt_id="p",
        scheduled_s=sent_s - delay_s,
        sent_s=sent_s,
        first_s=first_s,
        last_s=last_s,
        done_s=last_s + tail_s,
        n_input_tokens=10,
        n_output_tokens=len(gaps_s) + 1 if n_output_tokens is None else n_output_tokens,
        status="ok",
    )
    return RequestSample(row=row, itl_s=tuple(gaps_s))


def make_failure(sent_s=0.0, done_s=1.0):
    row = replace(make_sample(sent_s).row, first_s=None, last_s=None, done_s=done_s, n_input_tokens=None)
    return RequestSample(row=replace(row, n_output_tokens=None, status="HTTP 500"))


def latencies(point):
    return [(point_value(point, name, "p50"), point_value(point, name, "p95")) for name in METRICS]


def point_value(point, name, quantile):
    return {
        ("ttft", "p50"): point.ttft_p50_s,
        ("ttft", "p95"): point.ttft_p95_s,
        ("tpot", "p50"): point.tpot_p50_s,
        ("tpot", "p95"): point.tpot_p95_s,
        ("itl", "p50"): point.itl_p50_s,
        ("itl", "p95"): point.itl_p95_s,
        ("e2el", "p50"): point.e2el_p50_s,
        ("e2el", "p95"): point.e2el_p95_s,
    }[name, quantile]


def test_a_point_of_known_instants_gives_known_numbers():
    samples = [
        make_sample(0.0, 1.0, (1.0, 3.0), tail_s=0.5),  # TPOT 2, ends at 5.5
        make_sample(1.0, 3.0, (2.0, 2.0, 2.0), delay_s=1.0),  # TTFT 4 from the scheduled instant, TPOT 2, ends at 10
    ]

    point = summarize(samples)

    assert (2, 2, 0) == (point.concurrency, point.n_ok, point.n_failed)
    assert 10.0 == point.duration_s
    assert 0.2 == point.request_rps
    assert 2.5 == point.ttft_p50_s
    assert pytest.approx(1.0 + 0.95 * 3.0) == point.ttft_p95_s
    assert 2.0 == point.tpot_p50_s
    assert 2.0 == point.itl_p50_s
    assert pytest.approx(2.8) == point.itl_p95_s
    assert 7.5 == point.e2el_p50_s  # of 5 and 10
    assert (10.0, 3.5) == (point.mean_input_tokens, point.mean_output_tokens)


def test_several_tokens_in_a_chunk_lower_tpot_but_not_itl():
    point = summarize([make_sample(0.0, 1.0, (1.0, 1.0), n_output_tokens=9)])

    assert 0.25 == point.tpot_p50_s
    assert 1.0 == point.itl_p50_s


def test_a_point_without_answers_has_no_latency():
    point = summarize([make_failure(), make_failure()])

    assert (0, 2) == (point.n_ok, point.n_failed)
    assert [(None, None)] * 4 == latencies(point)
    assert (None, None) == (point.mean_input_tokens, point.mean_output_tokens)


def test_answers_of_one_token_have_no_tpot():
    point = summarize([make_sample(gaps_s=())])

    assert 1.0 == point.ttft_p50_s
    assert (None, None) == (point.tpot_p50_s, point.itl_p50_s)


def test_an_empty_answer_counts_but_has_no_latency():
    empty = make_sample(0.0, 1.0, ())
    empty = RequestSample(row=replace(empty.row, first_s=None, last_s=None, n_output_tokens=0))

    point = summarize([empty])

    assert 1 == point.n_ok
    assert [(None, None)] * 4 == latencies(point)
    assert 0.0 == point.mean_output_tokens


@pytest.mark.parametrize("samples", [[], [make_sample(concurrency=1), make_sample(concurrency=2)]])
def test_a_point_needs_requests_of_one_concurrency(samples):
    with pytest.raises(ValueError, match="one concurrency"):
        summarize(samples)


DURATIONS = st.floats(0.001, 100.0)
SAMPLES = st.builds(
    make_sample, st.floats(0.0, 1000.0), DURATIONS, st.lists(DURATIONS, max_size=5), delay_s=st.floats(0.0, 1.0)
)
FAILURES = st.builds(lambda sent_s, took_s: make_failure(sent_s, sent_s + took_s), st.floats(0.0, 1000.0), DURATIONS)


@settings(max_examples=40)
@given(st.lists(SAMPLES | FAILURES, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_order_does_not_matter(samples, rng):
    assert summarize(samples) == summarize(rng.sample(samples, len(samples)))


@settings(max_examples=40)
@given(st.lists(SAMPLES, min_size=1, max_size=12))
def test_medians_do_not_exceed_upper_quantiles(samples):
    for p50, p95 in latencies(summarize(samples)):
        assert (p50 is None) == (p95 is None)
        assert p50 is None or 0.0 <= p50 <= p95


@settings(max_examples=40)
@given(st.lists(SAMPLES, min_size=1, max_size=10), st.lists(FAILURES, max_size=10))
def test_failures_never_change_latencies(samples, failures):
    alone, mixed = summarize(samples), summarize([*samples, *failures])

    assert latencies(alone) == latencies(mixed)
    assert (alone.mean_input_tokens, alone.mean_output_tokens) == (mixed.mean_input_tokens, mixed.mean_output_tokens)
    assert (len(samples), len(failures)) == (mixed.n_ok, mixed.n_failed)
    assert mixed.duration_s >= alone.duration_s


@settings(max_examples=40)
@given(st.lists(SAMPLES, min_size=1, max_size=10), st.floats(0.5, 4.0))
def test_a_slower_clock_scales_every_latency(samples, factor):
    def stretch(sample):
        row = sample.row
        return RequestSample(
            row=replace(
                row,
                scheduled_s=row.scheduled_s * factor,
                sent_s=row.sent_s * factor,
                first_s=row.first_s * factor,
                last_s=row.last_s * factor,
                done_s=row.done_s * factor,
            ),
            itl_s=tuple(gap_s * factor for gap_s in sample.itl_s),
        )

    before, after = latencies(summarize(samples)), latencies(summarize([stretch(sample) for sample in samples]))

    for old, new in zip(before, after, strict=True):
        assert new == (
            (None, None) if old[0] is None else pytest.approx([value * factor for value in old], rel=1e-6, abs=1e-9)
        )
