"""The metrics page: of one process, and of several with their dead."""

import re
import threading
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmtier.serve import metrics as families
from llmtier.serve.board import EngineSlot, board_of
from llmtier.serve.metrics import CountBook, Metrics


@pytest.fixture
def pool():
    return SimpleNamespace(
        tiers={"small": None, "large": None}, n_in_flight=lambda _: 2, is_healthy=lambda _: True, sites={}
    )


def samples(page):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_the_page_names_every_metric_of_the_contract(pool):
    page = Metrics(pool).render().decode()
    counters = (
        *("requests", "route_decisions", "sla_miss", "engine_restarts", "log_dropped", "cost_usd", "savings_usd"),
        *("deviations", "score_cache_hits", "score_cache_misses", "signal_failures"),
    )
    others = (
        *("gateway_overhead_seconds", "ttft_seconds", "itl_seconds", "e2el_seconds", "tier_inflight", "tier_healthy"),
        *("tier_queue", "tier_demand", "breaker_state", "profile_drift_ratio", "policy_info"),
    )
    promised = [*(f"llmtier_{name}_total" for name in counters), *(f"llmtier_{name}" for name in others)]

    assert set(promised) <= set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))


def test_gauges_are_read_when_the_page_is_made(pool):
    metrics = Metrics(pool, policy_digest="aa")
    drift = [1.0]
    metrics.set_gauge(families.DRIFT, lambda: drift[0], "small")
    metrics.set_gauge(families.BREAKER, lambda: None, "small")
    drift[0] = 1.25
    metrics.set_policy("bb")
    found = samples(metrics.render())

    assert 1.25 == found["llmtier_profile_drift_ratio", ("tier", "small")]
    assert (2.0, 1.0) == (
        found["llmtier_tier_inflight", ("tier", "large")],
        found["llmtier_tier_healthy", ("tier", "large")],
    )
    assert [("llmtier_policy_info", ("digest", "bb"))] == [key for key in found if key[0] == "llmtier_policy_info"]
    assert not [key for key in found if key[0] == "llmtier_breaker_state"]


def test_histograms_are_cumulative_and_end_with_all(pool):
    metrics = Metrics(pool)
    for value_s in (0.0001, 0.002, 0.09, 5.0):
        metrics.tally.observe(("llmtier_gateway_overhead_seconds",), value_s, families.OVERHEAD_S.bounds)
    found = samples(metrics.render())
    buckets = {key[1][1]: value for key, value in found.items() if key[0].endswith("_bucket")}

    assert {"0.0001": 1, "0.001": 1, "0.0025": 2, "0.1": 3, "+Inf": 4}.items() <= buckets.items()
    assert (4, pytest.approx(5.0921)) == (
        found[("llmtier_gateway_overhead_seconds_count",)],
        found[("llmtier_gateway_overhead_seconds_sum",)],
    )


def test_counts_from_many_threads_are_all_there(pool):
    metrics = Metrics(pool)

    def count():
        for _ in range(2000):
            metrics.log_dropped.inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 8000 == samples(metrics.render())[("llmtier_log_dropped_total",)]


def test_a_rare_event_is_counted_under_its_label(pool):
    metrics = Metrics(pool)
    metrics.signal_failures.labels("rating").inc()
    metrics.signal_failures.labels("rating").inc()

    assert 2 == samples(metrics.render())["llmtier_signal_failures_total", ("signal", "rating")]


def test_counts_of_the_score_cache_are_read(pool):
    metrics = Metrics(pool)
    metrics.score_cache = SimpleNamespace(n_hits=3, n_misses=4)
    found = samples(metrics.render())

    assert (3, 4) == (found[("llmtier_score_cache_hits_total",)], found[("llmtier_score_cache_misses_total",)])


def test_a_control_process_adds_its_workers_up_and_keeps_the_dead(pool):
    board = board_of(["small", "large"])
    board.set_engine("small", EngineSlot.ALIVE, 1.0)
    book = CountBook(board)
    workers = [Metrics(pool), Metrics(pool)]
    for number, worker in enumerate(workers):
        worker.tally.add((families.REQUESTS.name, "small", "ok"), 10.0 * (number + 1))
        book.take(number, worker.encode())
    both = samples(book.page())
    book.bury(0)
    book.count(families.ENGINE_RESTARTS).labels("small").inc()
    later = samples(book.page())
    n_ok = ("llmtier_requests_total", ("outcome", "ok"), ("tier", "small"))

    assert (30, 30) == (both[n_ok], later[n_ok])
    assert (4, 2) == tuple(page["llmtier_tier_inflight", ("tier", "small")] for page in (both, later))
    assert (1, 0) == tuple(later["llmtier_tier_healthy", ("tier", tier)] for tier in ("small", "large"))
    assert 1 == later["llmtier_engine_restarts_total", ("tier", "small")]
