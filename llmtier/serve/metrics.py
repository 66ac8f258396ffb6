"""The gateway's Prometheus metrics: which there are, and the page that shows them.

Counts are added to a ``Tally``; the page is rendered by prometheus_client from one tally, that of a single process or the
sum over all. Labels are bounded: tier names, reasons and outcomes, never anything a client chose.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from llmtier.score.cache import ScoreCache
from llmtier.serve.board import Board, find_healthy
from llmtier.serve.pool import TierPool
from llmtier.serve.site import group_sites
from llmtier.serve.tally import Combine, Key, Tally, TallyBook, decode_tally, encode_tally

NO_TIER = "none"
"""The tier label of a request that reached no tier."""

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.

    Attributes:
        name: Without ``_total``, which counters get on the page.
        help: What it counts or measures.
        labels: Names of its labels.
        bounds: Upper bounds of a histogram's buckets; empty for other kinds.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = field(default=())


REQUESTS = Family("llmtier_requests", "Requests by the tier that ended them.", ("tier", "outcome"))
DECISIONS = Family("llmtier_route_decisions", "Routing decisions, fail-overs included.", ("tier", "reason"))
SLA_MISSES = Family(
    "llmtier_sla_miss", "Requests that missed a limit of time they stated, by what cost it.", ("tier", "cause")
)
COST_USD = Family("llmtier_cost_usd", "Cost of answered requests.", ("tier",))
SAVINGS_USD = Family("llmtier_savings_usd", "What answers cost less than on the reference tier.", ("tier",))
OVERSPEND_USD = Family("llmtier_overspend_usd", "What answers cost more than on the reference tier.", ("tier",))
DEVIATIONS = Family(
    "llmtier_deviations", "Requests served by a less accurate tier than the policy chooses without load.", ("tier",)
)
SIGNAL_FAILURES = Family(
    "llmtier_signal_failures",
    "Prompts scored without an embedding or a rating that could not be had.",
    ("signal",),
)
ROUTING_FAILURES = Family(
    "llmtier_routing_failures", "Requests that could not be routed and went to the safe tier.", ("step",)
)
HEDGES = Family(
    "llmtier_hedges", "First bytes that were late: how asking a second tier went, or why none was.", ("result",)
)
RELOADS = Family("llmtier_config_reloads", "Configurations read anew, done or refused.", ("outcome",))
SHED = Family("llmtier_shed", "Requests that a tier had no room for in time, moved on or refused.", ("tier", "reason"))
REPLICA_RETRIES = Family(
    "llmtier_replica_retries", "Requests that failed on an engine and were asked of another of its tier.", ("tier",)
)
RESUMES = Family(
    "llmtier_resumes", "Streams that broke after their first byte: whether they were carried on.", ("result", "reason")
)
ENGINE_RESTARTS = Family("llmtier_engine_restarts", "Engines started again after they had ended.", ("tier",))
LOG_DROPPED = Family("llmtier_log_dropped", "Traffic-log rows lost: queue full or disk failing.")
LOG_LOST = Family("llmtier_log_lost", "Traffic-log rows that a gateway before this one lost by ending abruptly.")
LOG_FILES_REMOVED = Family("llmtier_log_files_removed", "Traffic-log files removed to keep the log's size.")
LINES_DROPPED = Family("llmtier_log_lines_dropped", "Lines of the request log lost: standard error was blocked.")
CACHE_HITS = Family("llmtier_score_cache_hits", "Prompts whose scores were remembered.")
CACHE_MISSES = Family("llmtier_score_cache_misses", "Prompts that the scorer was asked.")

OVERHEAD_S = Family(
    "llmtier_gateway_overhead_seconds",
    "Whole body received to request handed to the engine.",
    bounds=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1),
)
TTFT_S = Family(
    "llmtier_ttft_seconds",
    "Request received to first content.",
    ("tier",),
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6),
)
ITL_S = Family(
    "llmtier_itl_seconds",
    "Mean time between two pieces of content, one value a stream.",
    ("tier",),
    (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0),
)
E2EL_S = Family(
    "llmtier_e2el_seconds",
    "Request received to last content.",
    ("tier",),
    (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0),
)

INFLIGHT = Family("llmtier_tier_inflight", "Requests on the tier now.", ("tier",))
HEALTHY = Family("llmtier_tier_healthy", "1 while one of the tier's engines answers.", ("tier",))
ENGINE_UP = Family("llmtier_engine_up", "1 while the engine answers, where a tier has several.", ("tier", "replica"))
ENGINE_INFLIGHT = Family(
    "llmtier_engine_inflight", "Requests on the engine now, where a tier has several.", ("tier", "replica")
)
ENGINE_BREAKER = Family(
    "llmtier_engine_breaker_state", "As llmtier_breaker_state, where a tier has several.", ("tier", "replica")
)
QUEUE = Family("llmtier_tier_queue", "Requests that wait in the gateway for the tier.", ("tier",))
DEMAND = Family("llmtier_tier_demand", "Requests that want the tier: on it, and waiting for it.", ("tier",))
BREAKER = Family("llmtier_breaker_state", "The tier's circuit breaker: 0 closed, 1 on trial, 2 open.", ("tier",))
DRIFT = Family("llmtier_profile_drift_ratio", "Observed latency over that of the profile.", ("tier",))
POLICY_INFO = Family("llmtier_policy_info", "1 for the policy in force.", ("digest",))

_COUNTERS = (
    *(REQUESTS, DECISIONS, SLA_MISSES, COST_USD, SAVINGS_USD, OVERSPEND_USD, DEVIATIONS, SIGNAL_FAILURES),
    *(SHED, RELOADS, REPLICA_RETRIES, ROUTING_FAILURES, HEDGES, RESUMES),
    *(ENGINE_RESTARTS, LOG_DROPPED, LOG_LOST, LOG_FILES_REMOVED, LINES_DROPPED, CACHE_HITS, CACHE_MISSES),
)
_HISTOGRAMS = (OVERHEAD_S, TTFT_S, ITL_S, E2EL_S)
_GAUGES = (
    *(INFLIGHT, HEALTHY, QUEUE, DEMAND, BREAKER, DRIFT, POLICY_INFO),
    *(ENGINE_UP, ENGINE_INFLIGHT, ENGINE_BREAKER),
)

COMBINE: dict[str, Combine] = {
    HEALTHY.name: min,
    BREAKER.name: max,
    DRIFT.name: max,
    POLICY_INFO.name: max,
    ENGINE_UP.name: min,
    ENGINE_BREAKER.name: max,
}
"""What the processes' readings of a gauge become; those of the others are added."""

Reading = Callable[[], float | None]


class Count:
    """One counter with its labels, for events that are rare: safe from any thread.

    Args:
        tally: Where it is kept.
        key: Its name and labels.
    """

    _lock = threading.Lock()

    def __init__(self, tally: Tally, key: Key) -> None:
        self._tally = tally
        self._key = key

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        with self._lock:
            self._tally.add(self._key, amount)

    def labels(self, *values: str) -> "Count":
        """Return the counter of these label values."""
        return Count(self._tally, (*self._key, *values))


class Metrics:
    """What one process counts.

    Args:
        pool: Whose tiers the gauges speak of.
        policy_digest: Of the policy in force; ``None`` without one.

    Attributes:
        tally: What the path adds to, on the event loop's thread alone.
        score_cache: Where the counts of remembered scores are read; ``None`` counts nothing.
    """

    content_type = CONTENT_TYPE

    def __init__(self, pool: TierPool, *, policy_digest: str | None = None) -> None:
        self.tally = Tally()
        self.score_cache: ScoreCache | None = None
        self._readings: dict[Key, Reading] = {}
        for family in _COUNTERS:
            if not family.labels:  # a rate needs a 0 to start from; and no thread but the loop's may add a key
                self.tally.counts[(family.name,)] = 0.0
        self.log_dropped = self.count(LOG_DROPPED)
        self.log_lost = self.count(LOG_LOST)
        self.log_files_removed = self.count(LOG_FILES_REMOVED)
        self.lines_dropped = self.count(LINES_DROPPED)
        self.signal_failures = self.count(SIGNAL_FAILURES)
        self.engine_restarts = self.count(ENGINE_RESTARTS)
        for name in pool.tiers:
            self.set_gauge(INFLIGHT, partial(pool.n_in_flight, name), name)
            self.set_gauge(DEMAND, partial(pool.n_in_flight, name), name)
            self.set_gauge(HEALTHY, partial(pool.is_healthy, name), name)
        for site in pool.sites.values():
            if site.replica is not None:
                labels = (site.tier, str(site.replica))
                self.set_gauge(ENGINE_UP, partial(pool.board.is_alive, site.name), *labels)
                self.set_gauge(ENGINE_INFLIGHT, partial(pool.n_on_site, site.name), *labels)
        self.set_policy(policy_digest)

    def count(self, family: Family) -> Count:
        """Return the counter of a metric, for events off the path."""
        return Count(self.tally, (family.name,))

    def count_reload(self, outcome: str) -> None:
        """Count a configuration that was read anew."""
        self.tally.add((RELOADS.name, outcome))

    def count_replica_retry(self, tier: str) -> None:
        """Count a request that another engine of its tier was asked."""
        self.tally.add((REPLICA_RETRIES.name, tier))

    def count_shed(self, tier: str, reason: str) -> None:
        """Count a request that a tier had no room for."""
        self.tally.add((SHED.name, tier, reason))

    def count_resume(self, result: str, reason: str) -> None:
        """Count a stream that broke while the configuration allows to carry on."""
        self.tally.add((RESUMES.name, result, reason))

    def set_gauge(self, family: Family, read: Reading, *labels: str) -> None:
        """Read a gauge from ``read`` whenever a page is made; ``None`` leaves it out."""
        self._readings[(family.name, *labels)] = read

    def set_policy(self, digest: str | None) -> None:
        """Name the policy in force."""
        self._readings = {key: read for key, read in self._readings.items() if key[0] != POLICY_INFO.name}
        if digest is not None:
            self.set_gauge(POLICY_INFO, lambda: 1.0, digest)

    def snapshot(self) -> Tally:
        """Return everything counted so far with the gauges as they stand; for the event loop's thread."""
        if self.score_cache is not None:
            self.tally.counts[(CACHE_HITS.name,)] = float(self.score_cache.n_hits)
            self.tally.counts[(CACHE_MISSES.name,)] = float(self.score_cache.n_misses)
        readings = {key: read() for key, read in self._readings.items()}
        gauges = {key: float(value) for key, value in readings.items() if value is not None}
        return Tally(counts=self.tally.counts, histograms=self.tally.histograms, gauges=gauges)

    def encode(self) -> bytes:
        """Return the snapshot for the control process's ``CountBook``."""
        return encode_tally(self.snapshot())

    def render(self) -> bytes:
        """Return this process's page."""
        return render_page(self.snapshot())


class CountBook:
    """What the control process knows of its workers' counts, those of the dead included.

    Args:
        board: Says whose engine answers, fresher than the workers' counts.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._own = Tally()
        self._book = TallyBook(COMBINE)

    def count(self, family: Family) -> Count:
        """Return a counter of the control process's own, such as ``ENGINE_RESTARTS``."""
        return Count(self._own, (family.name,))

    def take(self, worker: int, tally: bytes) -> None:
        """Keep the newest counts of a worker.

        Raises:
            ValueError: They are none.
        """
        self._book.put(str(worker), decode_tally(tally))

    def bury(self, worker: int) -> None:
        """Add a dead worker's last counts to what stays; of its last second nothing is known."""
        self._book.retire(str(worker))

    def page(self) -> bytes:
        """Return the metrics page."""
        total = self._book.total()
        total.merge(self._own)
        for tier, is_healthy in find_healthy(self._board).items():
            total.gauges[(HEALTHY.name, tier)] = float(is_healthy)
        for tier, sites in group_sites(self._board.shape.sites).items():
            if len(sites) > 1:
                for number, site in enumerate(sites, start=1):
                    total.gauges[(ENGINE_UP.name, tier, str(number))] = float(self._board.is_alive(site))
        return render_page(total)


def render_page(tally: Tally) -> bytes:
    """Return the text exposition of a tally."""
    registry = CollectorRegistry()
    registry.register(_TallyCollector(tally))
    return generate_latest(registry)


class _TallyCollector(Collector):
    """Shows a tally to prometheus_client."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    @override
    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        counts, gauges = _by_name(self._tally.counts), _by_name(self._tally.gauges)
        for family in _COUNTERS:
            counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for labels, amount in counts.get(family.name, []):
                counter.add_metric(labels, amount)
            yield counter
        for family in _GAUGES:
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for labels, value in gauges.get(family.name, []):
                gauge.add_metric(labels, value)
            yield gauge
        for family in _HISTOGRAMS:
            yield self._show_histogram(family)

    def _show_histogram(self, family: Family) -> HistogramMetricFamily:
        shown = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for key, histogram in self._tally.histograms.items():
            if key[0] == family.name:
                shown.add_metric(key[1:], _cumulate(family.bounds, histogram.counts), histogram.total)
        return shown


def _by_name(values: dict[Key, float]) -> dict[str, list[tuple[Sequence[str], float]]]:
    found: dict[str, list[tuple[Sequence[str], float]]] = {}
    for (name, *labels), value in values.items():
        found.setdefault(name, []).append((labels, value))
    return found


def _cumulate(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    n_so_far = 0
    buckets: list[tuple[str, float]] = []
    for bound, n in zip((*map(repr, bounds), "+Inf"), counts, strict=True):
        n_so_far += n
        buckets.append((bound, float(n_so_far)))
    return buckets
