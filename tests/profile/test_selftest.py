"""The client's self-test: its sums on samples made by hand, and once for real against the mock's process."""

import math
import sys

import pytest

from llmtier.core.errors import EngineStartError
from llmtier.profile import selftest
from llmtier.profile.selftest import N_STREAMS, RATE_RPS, STEP_S, _summarize, run_self_test, self_test_document
from tests.profile.simulated_load import make_sample


def steady(sent_s, *, ttft_s, gap_s, n=5, **more):
    return make_sample(sent_s, [sent_s + ttft_s + gap_s * index for index in range(n)], **more)


def test_errors_are_what_was_measured_less_what_the_mock_does():
    streams = [steady(0.0, ttft_s=1.0, gap_s=STEP_S + 1e-4) for _ in range(4)]
    alone = [steady(float(n), ttft_s=STEP_S + (0.001 if n < 8 else 0.003), gap_s=STEP_S, n=2) for n in range(10)]
    scheduled = [make_sample(n + 0.002, [n + 0.5], scheduled_s=float(n)) for n in range(10)]

    found = _summarize(streams, alone, scheduled, cpu_s=0.1, wall_s=2.0)

    assert (4 * 5 / 2.0, 0.1 / 20) == (found.chunks_per_s, found.client_cpu_s_per_chunk)
    assert pytest.approx(1e-4) == found.itl_error_mean_s
    assert pytest.approx(0.001) == found.ttft_error_p50_s
    assert pytest.approx(0.003) == found.ttft_error_p95_s
    assert [pytest.approx(0.002)] * 2 == [found.schedule_delay_p50_s, found.schedule_delay_p99_s]
    assert (N_STREAMS, RATE_RPS) == (found.n_streams, found.rate_rps)


def test_warmup_and_failures_count_in_no_error():
    good = steady(0.0, ttft_s=STEP_S, gap_s=STEP_S)
    bad = [
        steady(0.0, ttft_s=9.0, gap_s=9.0, is_warmup=True),
        steady(0.0, ttft_s=9.0, gap_s=9.0, status="cut"),
    ]
    on_time = make_sample(0.0, [0.5])
    late = make_sample(9.0, [9.5], scheduled_s=0.0, is_warmup=True)

    found = _summarize([good, *bad], [good, bad[0]], [on_time, late], cpu_s=1.0, wall_s=1.0)

    assert pytest.approx(0.0, abs=1e-9) == found.itl_error_mean_s
    assert pytest.approx(0.0, abs=1e-9) == found.ttft_error_p95_s
    assert 0.0 == found.schedule_delay_p99_s


def test_a_mock_that_answers_nothing_is_no_result():
    with pytest.raises(EngineStartError, match="answered nothing"):
        _summarize([], [], [], cpu_s=1.0, wall_s=1.0)


@pytest.mark.anyio
async def test_a_mock_that_does_not_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(EngineStartError, match="did not start"):
        await run_self_test(n_requests=1, n_scheduled=1)


@pytest.mark.anyio
async def test_the_client_is_measured_against_a_mock_of_its_own(monkeypatch):
    monkeypatch.setattr(selftest, "_N_ALONE", 10)

    found = await run_self_test(n_requests=48, n_scheduled=20)

    document = self_test_document(found)
    assert all(math.isfinite(value) for value in document.values())
    assert found.chunks_per_s > 0
    assert found.client_cpu_s_per_chunk > 0
    assert 0 <= found.schedule_delay_p50_s <= found.schedule_delay_p99_s
    assert found.ttft_error_p50_s <= found.ttft_error_p95_s
    assert found.ttft_error_p50_s > -0.0005  # the mock gives no token before its step has ended
