"""The gateway's Prometheus metrics, in a registry of their own.

Written by ``record.py``; rendered at ``/metrics``. Labels are bounded: tier names, reasons and
outcomes, never anything a client chose.
"""

from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from llmtier.score.cache import ScoreCache
from llmtier.serve.pool import TierPool

NO_TIER = "none"
"""The tier label of a request that reached no tier."""

_OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1)
_TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)
_E2EL_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Metrics:
    """Every metric of one gateway.

    Args:
        pool: Where the in-flight gauge reads.

    Attributes:
        score_cache: Where the counts of remembered scores are read; ``None`` counts nothing.
    """

    content_type = CONTENT_TYPE_LATEST.encode()

    def __init__(self, pool: TierPool) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.score_cache: ScoreCache | None = None
        registry.register(_ScoreCacheCounts(self))
        self.requests = Counter(
            "llmtier_requests", "Requests by the tier that ended them.", ["tier", "outcome"], registry=registry
        )
        self.decisions = Counter(
            "llmtier_route_decisions", "Routing decisions, fail-overs included.", ["tier", "reason"], registry=registry
        )
        self.overhead_s = Histogram(
            "llmtier_gateway_overhead_seconds",
            "Whole body received to request handed to the engine.",
            buckets=_OVERHEAD_S,
            registry=registry,
        )
        self.ttft_s = Histogram(
            "llmtier_ttft_seconds", "Request received to first content.", ["tier"], buckets=_TTFT_S, registry=registry
        )
        self.e2el_s = Histogram(
            "llmtier_e2el_seconds", "Request received to last content.", ["tier"], buckets=_E2EL_S, registry=registry
        )
        self.cost_usd = Counter("llmtier_cost_usd", "Cost of answered requests.", ["tier"], registry=registry)
        self.log_dropped = Counter(
            "llmtier_log_dropped", "Traffic-log rows lost: queue full or disk failing.", registry=registry
        )
        self.signal_failures = Counter(
            "llmtier_signal_failures",
            "Prompts scored without an embedding or a rating that could not be had.",
            ["signal"],
            registry=registry,
        )
        inflight = Gauge("llmtier_tier_inflight", "Requests on the tier now.", ["tier"], registry=registry)
        healthy = Gauge("llmtier_tier_healthy", "1 while the tier's engine answers.", ["tier"], registry=registry)
        for name in pool.tiers:
            inflight.labels(name).set_function(partial(pool.n_in_flight, name))
            healthy.labels(name).set_function(partial(pool.is_healthy, name))

    def render(self) -> bytes:
        """Return the text exposition."""
        return generate_latest(self._registry)


class _ScoreCacheCounts(Collector):
    """Reads a cache's own counts when a page is made, so that a request pays nothing for them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @override
    def collect(self) -> Iterator[CounterMetricFamily]:
        cache = self._metrics.score_cache
        n_hits, n_misses = (0, 0) if cache is None else (cache.n_hits, cache.n_misses)
        yield CounterMetricFamily("llmtier_score_cache_hits", "Prompts whose scores were remembered.", n_hits)
        yield CounterMetricFamily("llmtier_score_cache_misses", "Prompts that the scorer was asked.", n_misses)
