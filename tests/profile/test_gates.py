"""Each gate closes on its own fault, says both numbers, and stays open otherwise."""

from dataclasses import replace

import pytest

from llmtier.profile.gates import Limits, Readings, failure_counts, find_faults, sent_rates_rps
from llmtier.profile.sample import RequestSample
from llmtier.profile.window import Window
from llmtier.store.profiles import RequestRow

LIMITS = Limits()


def make_sample(scheduled_s, *, delay_s=0.0, status="ok", n_output_tokens=2, took_s=1.0, is_warmup=False):
    sent_s = scheduled_s + delay_s
    content_s = (sent_s + took_s / 2, sent_s + took_s) if status == "ok" else ()
    row = RequestRow(
        tier="t",
        concurrency=None,
        prompt_id="p",
        scheduled_s=scheduled_s,
        sent_s=sent_s,
        first_s=content_s[0] if content_s else None,
        last_s=content_s[-1] if content_s else None,
        done_s=sent_s + took_s,
        n_input_tokens=10,
        n_output_tokens=n_output_tokens,
        status=status,
    )
    return RequestSample(row=row, content_s=content_s, is_warmup=is_warmup)


def make_samples(n=200, **options):
    return [make_sample(i * 0.5, **options) for i in range(n)]


def faults_of(samples, **options):
    window = Window(counted=tuple(range(len(samples))), start_s=0.0, end_s=100.0, is_steady=True)
    readings = Readings(window=window, little_residual=0.0, mean_in_flight=2.0, is_open=True)
    return find_faults(samples, replace(readings, **options), LIMITS)


def test_a_clean_point_has_no_fault():
    assert () == faults_of(make_samples())


def test_a_late_client_is_named():
    samples = [
        *make_samples(190, took_s=0.1),
        *(make_sample(95 + i * 0.5, delay_s=0.025, took_s=0.1) for i in range(10)),
    ]

    assert ("p99 schedule delay is 25 ms, more than 10 ms: the client was late",) == faults_of(samples)


def test_a_delay_that_is_little_beside_the_first_token_passes():
    assert () == faults_of(make_samples(delay_s=0.045))  # TTFT is 0.5 s
    assert any("55 ms, more than 50 ms" in fault for fault in faults_of(make_samples(delay_s=0.055)))


def test_a_client_that_falls_behind_is_named():
    samples = [make_sample(i * 0.5, delay_s=i * 0.05) for i in range(200)]

    assert any("1.818 requests/s were sent of 2 scheduled, less than 95%" in fault for fault in faults_of(samples))
    assert not any("scheduled, less" in fault for fault in faults_of(samples, is_open=False))


def test_failures_are_counted_by_kind():
    samples = make_samples()
    samples[5:7] = [make_sample(2.5, status="HTTP 500"), make_sample(3.0, status="HTTP 500")]
    samples[9] = make_sample(4.5, status="timeout")

    assert {"HTTP 500": 2, "timeout": 1} == failure_counts(samples)
    assert ("3 of 200 requests failed, more than 1%: HTTP 500 x2, timeout x1",) == faults_of(samples)


def test_few_failures_pass():
    samples = make_samples()
    samples[5] = make_sample(2.5, status="HTTP 500")

    assert () == faults_of(samples)


def test_failures_of_the_warmup_are_not_the_points():
    samples = [make_sample(-5.0, status="HTTP 503", is_warmup=True), *make_samples()]

    assert {} == failure_counts(samples)
    assert () == faults_of(samples)


def test_an_unsteady_window_gives_its_reason():
    window = Window(counted=tuple(range(200)), start_s=0.0, end_s=9.0, is_steady=False, reason="TTFT kept growing")

    assert ("no steady state: TTFT kept growing",) == faults_of(make_samples(), window=window)


@pytest.mark.parametrize(("residual", "is_fault"), [(0.15, False), (0.17, True), (-0.17, True), (None, False)])
def test_littles_law_must_hold(residual, is_fault):
    faults = faults_of(make_samples(), little_residual=residual)  # 2 in flight of 200 counted: 16 %

    assert is_fault == any("Little's law" in fault for fault in faults)


def test_the_edges_of_a_short_window_are_allowed_for():
    window = Window(counted=tuple(range(40)), start_s=0.0, end_s=9.0, is_steady=True)

    assert () == faults_of(make_samples(), window=window, little_residual=0.4, mean_in_flight=16.0)


def test_nineteen_answers_are_too_few():
    assert ("19 answers in the window, fewer than the 20 needed",) == faults_of(make_samples(19))
    assert () == faults_of(make_samples(20))


def test_missing_usage_is_named():
    samples = [*make_samples(100), *make_samples(100, n_output_tokens=None)]

    assert ("100 of 200 answers reported no usage, more than 1%",) == faults_of(samples)


def test_a_machine_that_slept_is_named():
    assert ("the machine slept for 30 s, more than 0.5 s",) == faults_of(make_samples(), suspended_s=30.0)


def test_a_long_standstill_under_load_is_named():
    samples = [*make_samples(), make_sample(140.0, took_s=0.2), make_sample(140.01, took_s=2.0)]
    stopped = samples[-1]
    samples[-1] = replace(stopped, row=replace(stopped.row, done_s=172.01), content_s=(140.02, 172.01))

    assert any("nothing happened for 31.8 s" in fault for fault in faults_of(samples))


def test_an_idle_or_slow_engine_does_not_stand_still():
    idle = [*make_samples(100), *(make_sample(200 + i * 0.5) for i in range(100))]
    slow = [make_sample(i * 0.5, took_s=20.0) for i in range(30)]
    one_by_one = [make_sample(i * 20.0, took_s=16.0) for i in range(30)]

    assert [(), (), ()] == [faults_of(idle), faults_of(slow), faults_of(one_by_one)]


def test_rates_are_between_first_and_last():
    assert (1.0, 2.0) == pytest.approx(sent_rates_rps([make_sample(i * 0.5, delay_s=i * 0.5) for i in range(11)]))
    assert sent_rates_rps(make_samples(1)) is None
    assert sent_rates_rps([make_sample(1.0), make_sample(1.0)]) is None


def test_no_sample_is_too_few_answers():
    assert 1 == len(faults_of([]))
