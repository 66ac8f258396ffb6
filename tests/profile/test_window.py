"""The steady window: warm-up, fill-up and drain left out, an overloaded queue named."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.profile.sample import RequestSample
from llmtier.profile.window import find_window
from llmtier.store.profiles import RequestRow


def make_sample(scheduled_s, ttft_s, e2el_s, *, status="ok", is_warmup=False):
    """Return a request that left when it was scheduled."""
    first_s, last_s = scheduled_s + ttft_s, scheduled_s + e2el_s
    is_ok = status == "ok"
    row = RequestRow(
        tier="t",
        concurrency=None,
        prompt_id="p",
        scheduled_s=scheduled_s,
        sent_s=scheduled_s,
        first_s=first_s if is_ok else None,
        last_s=last_s if is_ok else None,
        done_s=last_s,
        n_input_tokens=10,
        n_output_tokens=2 if is_ok else None,
        status=status,
    )
    return RequestSample(row=row, content_s=(first_s, last_s) if is_ok else (), is_warmup=is_warmup)


def open_queue(rng, rate_rps, n, *, n_servers=8, service_s=1.0, n_warmup=0):
    """Return Poisson arrivals at a first-come queue of ``n_servers``; each answer starts when its service does."""
    arrivals_s = np.cumsum(rng.exponential(1 / rate_rps, n + n_warmup))
    free_s = [0.0] * n_servers
    samples = []
    for i, arrival_s in enumerate(arrivals_s.tolist()):
        start_s = max(heapq.heappop(free_s), arrival_s)
        took_s = service_s * rng.uniform(0.5, 1.5)
        heapq.heappush(free_s, start_s + took_s)
        ttft_s = start_s - arrival_s + 0.1 * took_s
        samples.append(make_sample(arrival_s, ttft_s, start_s - arrival_s + took_s, is_warmup=i < n_warmup))
    return samples


def closed_loop(rng, concurrency, n, *, n_warmup=0):
    """Return ``n`` requests of workers that send one after the other."""
    ends_s = [0.0] * concurrency
    samples = []
    for i in range(n + n_warmup):
        start_s = heapq.heappop(ends_s) + 1e-6  # a worker takes a moment between two requests
        took_s = rng.uniform(0.5, 1.5)
        heapq.heappush(ends_s, start_s + took_s)
        samples.append(make_sample(start_s, 0.1 * took_s, took_s, is_warmup=i < n_warmup))
    return samples


def test_a_queue_below_its_capacity_is_steady():
    rng = np.random.default_rng(1)
    steady = [find_window(open_queue(rng, 5.6, 600, n_warmup=40), is_open=True).is_steady for _ in range(60)]

    assert 57 <= sum(steady)


@pytest.mark.parametrize(("load", "least"), [(1.15, 18), (1.3, 20), (3.0, 20)])
def test_a_queue_above_its_capacity_is_not(load, least):
    rng = np.random.default_rng(2)
    windows = [find_window(open_queue(rng, 8.0 * load, 600), is_open=True) for _ in range(20)]
    flagged = [window for window in windows if window.is_steady is False]

    assert least <= len(flagged)
    assert all("TTFT" in window.reason or "E2EL" in window.reason for window in flagged)


def test_warmup_is_never_counted():
    samples = open_queue(np.random.default_rng(3), 4.0, 200, n_warmup=30)

    assert not any(samples[i].is_warmup for i in find_window(samples, is_open=True).counted)


def test_a_slow_start_is_cut():
    rng = np.random.default_rng(4)
    samples = [
        make_sample(i * 0.1, (2.0 if i < 50 else 0.2) + rng.uniform(0, 0.05), 2.5 if i < 50 else 0.5)
        for i in range(300)
    ]
    window = find_window(samples, is_open=True)

    assert 50 == window.counted[0]
    assert 5.0 == pytest.approx(window.start_s)
    assert window.is_steady


@pytest.mark.parametrize(("shift", "is_steady"), [(0.02, True), (0.5, False)])
def test_a_change_that_is_sure_but_slight_is_of_no_interest(shift, is_steady):
    """An engine that hardly scatters: 2 % between the halves is hundreds of standard errors."""
    rng = np.random.default_rng(4)
    ttft_s = [0.001 * (1 + shift * (i >= 22)) + rng.uniform(0, 1e-6) for i in range(44)]
    window = find_window([make_sample(i * 0.1, ttft_s[i], 0.005) for i in range(44)], is_open=True)

    assert is_steady is window.is_steady


def test_a_busy_spell_at_the_start_is_no_warmup():
    rng = np.random.default_rng(5)
    samples = [make_sample(i * 0.1, rng.exponential(0.2 if i >= 10 else 0.28), 1.0) for i in range(400)]

    assert 0 == find_window(samples, is_open=True).counted[0]


def test_a_slow_start_of_the_answers_alone_is_cut_too():
    rng = np.random.default_rng(6)
    samples = [make_sample(i * 0.1, 0.1, (4.0 if i < 60 else 1.0) + rng.uniform(0, 0.1)) for i in range(400)]

    assert 60 == find_window(samples, is_open=True).counted[0]


def test_an_open_loop_ends_with_the_oldest_request_that_outlived_the_arrivals():
    samples = [make_sample(float(i), 0.1, 3.5) for i in range(40)]  # the last arrival is at 39
    window = find_window(samples, is_open=True)

    assert tuple(range(36)) == window.counted  # 36 ends at 39.5
    assert (0.0, 36.0) == (window.start_s, window.end_s)


def test_a_closed_loop_ends_when_a_worker_runs_out_of_work():
    samples = closed_loop(np.random.default_rng(7), 8, 300)
    window = find_window(samples, is_open=False)
    last_sent_s = max(sample.row.sent_s for sample in samples)
    out_of_work_s = min(sample.row.done_s for sample in samples if sample.row.done_s > last_sent_s)

    assert all(samples[i].row.done_s <= out_of_work_s for i in window.counted)
    assert 300 - 3 * 8 <= len(window.counted) < 300
    assert window.is_steady


def test_a_single_worker_keeps_every_request():
    samples = closed_loop(np.random.default_rng(8), 1, 60)
    window = find_window(samples, is_open=False)

    assert 60 == len(window.counted)
    assert max(sample.row.done_s for sample in samples) == window.end_s


def test_the_drain_cut_does_not_prefer_short_requests():
    rng = np.random.default_rng(9)
    means = []
    for _ in range(150):
        samples = closed_loop(rng, 16, 160)
        window = find_window(samples, is_open=False)
        means.append(np.mean([samples[i].row.done_s - samples[i].row.sent_s for i in window.counted]))

    assert 1.0 == pytest.approx(np.mean(means), abs=0.006)  # its standard error is 0.002


def test_a_hung_request_does_not_end_the_window():
    samples = [make_sample(float(i), 0.1, 0.5) for i in range(100)]
    samples[3] = make_sample(3.0, 0.1, 500.0, status="timeout")
    window = find_window(samples, is_open=True)

    assert 99 == len(window.counted)
    assert 3 in window.counted


def test_one_wave_of_requests_has_no_lasting_load():
    samples = [make_sample(0.0, 0.1, 1.0 + i / 100) for i in range(32)]
    window = find_window(samples, is_open=False)

    assert window.is_steady is None
    assert 32 == len(window.counted)
    assert "full load" in window.reason


def test_few_answers_leave_it_open():
    window = find_window([make_sample(float(i), 0.1, 0.5) for i in range(10)], is_open=True)

    assert (9, None, None) == (len(window.counted), window.is_steady, window.reason)


def test_no_answer_at_all_still_has_a_window():
    window = find_window([make_sample(float(i), 0.1, 0.5, status="HTTP 500") for i in range(30)], is_open=True)

    assert 30 == len(window.counted)
    assert window.is_steady is None
    assert window.reason is not None


def test_only_warmup_counts_nothing():
    window = find_window([make_sample(1.0, 0.1, 0.5, is_warmup=True)], is_open=True)

    assert () == window.counted


def test_nothing_has_no_window():
    with pytest.raises(ValueError, match="needs samples"):
        find_window([], is_open=True)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans(), st.floats(-1e4, 1e4))
def test_neither_order_nor_origin_of_the_clock_matters(seed, is_open, shift_s):
    rng = np.random.default_rng(seed)
    samples = open_queue(rng, 5.0, 80, n_warmup=5) if is_open else closed_loop(rng, 4, 80, n_warmup=5)
    order = rng.permutation(len(samples)).tolist()
    moved = [
        make_sample(
            samples[i].row.scheduled_s + shift_s,
            samples[i].content_s[0] - samples[i].row.scheduled_s,
            samples[i].content_s[-1] - samples[i].row.scheduled_s,
            is_warmup=samples[i].is_warmup,
        )
        for i in order
    ]
    window, other = find_window(samples, is_open=is_open), find_window(moved, is_open=is_open)

    assert set(window.counted) == {order[i] for i in other.counted}
    assert window.is_steady == other.is_steady
    assert window.end_s + shift_s == pytest.approx(other.end_s)
