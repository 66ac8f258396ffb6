"""What one request leaves behind: metrics, one canonical log line, one traffic-log row.

Filled while the request is served, read once at its end. Prompts go nowhere but, when the user
opted in, into the traffic log.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from llmtier.core.decision import Decision, Offer
from llmtier.engine.wire import Usage
from llmtier.route.predict import request_usd
from llmtier.serve.asgi import Headers
from llmtier.serve.choose import Choice
from llmtier.serve.log import TrafficLog
from llmtier.serve.metrics import NO_TIER, Metrics
from llmtier.serve.needs import Needs
from llmtier.serve.pool import TierPool
from llmtier.serve.rules import hash_bearer
from llmtier.serve.wire import WireRequest
from llmtier.store.traffic import TrafficRow

logger = logging.getLogger(__name__)

FAILOVER = "failover"
"""The reason of a decision that replaces one whose tier failed before the first byte."""

_KEY_DIGITS = 16
"""Of a key's sha256: enough to tell one client's requests from another's."""


class RequestOutcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"  # malformed, unknown model, too large
    REJECTED = "rejected"  # no tier met the need
    ENGINE_REFUSED = "engine_refused"  # the engine's own 4xx, passed on
    UPSTREAM_ERROR = "upstream_error"  # no engine answered
    INTERRUPTED = "interrupted"  # an engine failed after its first byte
    CLIENT_GONE = "client_gone"
    ABORTED = "aborted"  # the gateway was shut down
    INTERNAL_ERROR = "internal_error"


@dataclass(slots=True, kw_only=True)
class Record:
    """The facts of one request; ``None`` until known. Instants are of the gateway's clock.

    Attributes:
        request_id: Sent to the engine and the client.
        received_at: UTC instant of arrival.
        received_s: When the request's head arrived.
        body_s: When its body was complete.
        sent_s: When it was first handed to an engine.
        first_s: First content; streams only.
        last_s: Last content.
        choice: What was decided.
        tier: The tier that answered or was last tried; likewise ``reason``.
        n_in_flight: Requests on the tier before this one.
        status: HTTP status that the client got; 499 when it had left, 500 until something else is known.
        usage: As the engine reports it.
        key_sha256: The first digits of the bearer token's; ``None`` without one.
    """

    request_id: str
    received_at: datetime
    received_s: float
    body_s: float | None = None
    sent_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    request: WireRequest | None = None
    needs: Needs | None = None
    choice: Choice | None = None
    tier: str | None = None
    reason: str | None = None
    n_in_flight: int = 0
    status: int = 500
    outcome: RequestOutcome = RequestOutcome.INTERNAL_ERROR
    usage: Usage = field(default_factory=Usage)
    key_sha256: str | None = None

    @property
    def overhead_s(self) -> float | None:
        """Time the gateway took to decode, score, decide and hand on."""
        return _gap(self.body_s, self.sent_s)

    @property
    def ttft_s(self) -> float | None:
        """Arrival to first content."""
        return _gap(self.received_s, self.first_s)

    @property
    def e2el_s(self) -> float | None:
        """Arrival to last content."""
        return _gap(self.received_s, self.last_s)

    @property
    def decision(self) -> Decision | None:
        """The routing decision."""
        return None if self.choice is None else self.choice.decision

    @property
    def rule(self) -> str | None:
        """Name of the user's rule that held."""
        return None if self.decision is None else self.decision.rule

    @property
    def offer(self) -> Offer | None:
        """What was predicted of the tier that answered."""
        offers = () if self.decision is None else self.decision.offers
        return next((offer for offer in offers if offer.tier == self.tier), None)


class Recorder:
    """Writes down each finished request.

    Args:
        pool: For the profiles that price a request.
        metrics: Counters and histograms.
        traffic: The traffic log; ``None`` when none is kept.
        keeps_text: Whether the traffic log holds the prompts.
    """

    def __init__(self, *, pool: TierPool, metrics: Metrics, traffic: TrafficLog | None, keeps_text: bool) -> None:
        self._pool = pool
        self._metrics = metrics
        self._traffic = traffic
        self._keeps_text = keeps_text

    def decided(self, record: Record) -> None:
        """Count a routing decision or a fail-over."""
        self._metrics.decisions.labels(record.tier or NO_TIER, record.reason or "").inc()

    def finish(self, record: Record) -> None:
        """Write everything of ``record`` down."""
        usd = self._price(record)
        self._count(record, usd)
        _log_line(record, usd)
        if self._traffic is not None and record.choice is not None:
            self._traffic.put(_make_row(record, usd, keeps_text=self._keeps_text))

    def _price(self, record: Record) -> float | None:
        if record.tier is None or record.outcome is not RequestOutcome.OK:
            return None
        profile = self._pool.tiers[record.tier].profile
        return None if profile is None else request_usd(profile, record.usage.completion_tokens)

    def _count(self, record: Record, usd: float | None) -> None:
        tier = record.tier or NO_TIER
        self._metrics.requests.labels(tier, record.outcome.value).inc()
        if record.overhead_s is not None:
            self._metrics.overhead_s.observe(record.overhead_s)
        if record.ttft_s is not None:
            self._metrics.ttft_s.labels(tier).observe(record.ttft_s)
        if record.e2el_s is not None and record.outcome is RequestOutcome.OK:
            self._metrics.e2el_s.labels(tier).observe(record.e2el_s)
        if usd is not None:
            self._metrics.cost_usd.labels(tier).inc(usd)


def begin(request_id: str, *, now: Callable[[], datetime], clock: Callable[[], float], headers: Headers = ()) -> Record:
    """Open the record of a request that has just arrived."""
    received_s = clock()
    key = hash_bearer(headers)
    return Record(
        request_id=request_id,
        received_at=now(),
        received_s=received_s,
        key_sha256=None if key is None else key[:_KEY_DIGITS],
    )


def _log_line(record: Record, usd: float | None) -> None:
    facts: Mapping[str, object] = {
        "request_id": record.request_id,
        "tier": record.tier,
        "reason": record.reason,
        "rule": record.rule,
        "outcome": record.outcome.value,
        "status": record.status,
        "misses": _describe_misses(record),
        "overhead_s": record.overhead_s,
        "ttft_s": record.ttft_s,
        "e2el_s": record.e2el_s,
        "n_input_tokens": record.usage.prompt_tokens,
        "n_output_tokens": record.usage.completion_tokens,
        "usd": usd,
    }
    logger.info("request", extra=dict(facts))


def _make_row(record: Record, usd: float | None, *, keeps_text: bool) -> TrafficRow:
    request, offer, choice, needs = record.request, record.offer, record.choice, record.needs
    messages = request.messages_json.decode() if request is not None and keeps_text and request.messages else None
    return TrafficRow(
        request_id=record.request_id,
        received_at=record.received_at.isoformat(),
        tier=record.tier,
        reason=record.reason or "",
        alias="" if request is None else request.model,
        domain=None if needs is None else needs.domain,
        predicted_accuracy=None if offer is None else offer.accuracy,
        need_accuracy=None if choice is None else choice.requirement.accuracy,
        n_in_flight=record.n_in_flight,
        ttft_s=record.ttft_s,
        e2el_s=record.e2el_s,
        n_input_tokens=record.usage.prompt_tokens,
        n_output_tokens=record.usage.completion_tokens,
        usd=usd,
        status=record.status,
        stream=request is not None and request.is_stream,
        misses=_describe_misses(record),
        prompt_sha256="" if request is None else request.prompt_sha256,
        messages_json=messages,
        key_sha256=record.key_sha256,
    )


def _describe_misses(record: Record) -> str:
    return "" if record.decision is None else "; ".join(miss.describe() for miss in record.decision.misses)


def _gap(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s
