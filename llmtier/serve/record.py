"""What one request leaves behind: metrics, one canonical log line, one traffic-log row.

Filled while the request is served, counted at its end, and then handed to the log's thread, which turns it into line and
row (``record_cells.py``). Prompts go nowhere but, when the user opted in, into the traffic log.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import StrEnum

from llmtier.core.decision import Decision, Offer
from llmtier.core.profile import TierProfile
from llmtier.engine.wire import Usage
from llmtier.route.predict import request_usd
from llmtier.serve import metrics as families
from llmtier.serve.choose import Choice
from llmtier.serve.lines import FIELDS
from llmtier.serve.log import TrafficLog
from llmtier.serve.metrics import NO_TIER, Metrics
from llmtier.serve.needs import Needs
from llmtier.serve.pool import TierPool
from llmtier.serve.record_cells import make_cells
from llmtier.serve.rules import hash_bearer
from llmtier.serve.sla import Verdict, is_deviation, judge
from llmtier.serve.wire import WireRequest
from llmtier.store.traffic import TRAFFIC_COLUMNS
from llmtier.store.traffic_buffer import Cells

logger = logging.getLogger(__name__)

FAILOVER = "failover"
"""The reason of a decision that replaces one whose tier failed before the first byte."""

UPGRADE = "upgrade"
"""The reason of a decision that goes to another tier for want of room on a cheaper one."""

WAIT = "wait"
"""The reason of a decision to wait for the cheapest tier that meets the need, not where routing alone would go."""

HEDGE = "hedge"
"""The reason of an answer from the tier that was asked as well when the first one was late."""

KEY_DIGITS = 16
"""Of a key's sha256: enough to tell one client's requests from another's."""

_COLUMN_NAMES = tuple(column.name for column in TRAFFIC_COLUMNS)


class RequestOutcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    REFUSED = "refused"  # malformed, unknown model, too large
    REJECTED = "rejected"  # no tier met the need
    SHED = "shed"  # no tier had room in time
    ENGINE_REFUSED = "engine_refused"  # the engine's own 4xx, passed on
    UPSTREAM_ERROR = "upstream_error"  # no engine answered
    INTERRUPTED = "interrupted"  # an engine failed after its first byte
    WORTHLESS = "worthless"  # its engine ended it well, but one token over and over, or NaN; the client was told
    CLIENT_GONE = "client_gone"
    ABORTED = "aborted"  # the gateway was shut down
    INTERNAL_ERROR = "internal_error"


class Record:
    """The facts of one request; ``None`` until known. Instants are of the gateway's clock.

    Not a dataclass: what is still unknown stands once in the class, not in every instance, so that making one costs
    0.4 us and not 2. Each attribute is set at most a few times, by whoever learns it; none after ``Recorder.finish``.

    Args:
        request_id: Sent to the engine and the client.
        received_at: UTC instant of arrival.
        received_s: When the request's head arrived.

    Attributes:
        body_s: When its body was complete.
        sent_s: When it was first handed to an engine.
        first_s: First content; streams only.
        last_s: Last content.
        queued_s: How long it waited in the gateway for a turn.
        choice: What was decided.
        probabilities: P(correct) by tier, as the scorer said; ``None`` when it was not asked.
        tier: The tier that answered or was last tried; likewise ``reason``.
        replica: Number of the engine that answered or was last asked, where its tier has several.
        n_in_flight: Requests on that engine before this one.
        n_attempts: Times that an engine was asked.
        is_unreachable: Whether the last engine could not be connected to.
        n_pieces: Pieces of content that a stream came in.
        status: HTTP status that the client got; 499 when it had left, 500 until something else is known.
        hedged: How asking a second tier went: ``won``, ``lost`` or ``failed``; ``None`` when nobody was asked.
        is_judged: Whether the breaker has been told how the engine did.
        resumed: How the stream was carried on after it broke; ``None`` when it was not.
        usage: As the engine reports it.
        finish_reason: As the engine gives it, of the first choice.
        retry_after_s: What the client was told to wait.
        propensity: Probability with which the decision takes ``tier``; 1 where no chance is at work, ``None`` after a fail-over.
        key_sha256: The first digits of the bearer token's; ``None`` without one.
        session_sha256: The first digits of the conversation's digest; ``None`` when nobody asked.
        usd: Cost of the answer; the recorder's, as what follows.
        verdict: Whether the limits of time held.
        is_deviation: Whether the tier is less accurate than what the policy chooses without load.
        policy_digest: Of the policy in force.
        keeps_text: Whether the traffic log holds this prompt.
    """

    body_s: float | None = None
    sent_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    queued_s: float | None = None
    request: WireRequest | None = None
    needs: Needs | None = None
    choice: Choice | None = None
    probabilities: Mapping[str, float] | None = None
    tier: str | None = None
    reason: str | None = None
    replica: int | None = None
    n_in_flight: int = 0
    n_attempts: int = 0
    is_unreachable: bool = False
    n_pieces: int = 0
    hedged: str | None = None
    is_judged: bool = False
    resumed: str | None = None
    status: int = 500
    outcome: RequestOutcome = RequestOutcome.INTERNAL_ERROR
    usage: Usage = Usage()  # never changed, only replaced
    finish_reason: str | None = None
    retry_after_s: float | None = None
    propensity: float | None = None
    key_sha256: str | None = None
    session_sha256: str | None = None
    usd: float | None = None
    verdict: Verdict = Verdict(None)
    is_deviation: bool = False
    policy_digest: str | None = None
    keeps_text: bool = False

    def __init__(self, *, request_id: str, received_at: datetime, received_s: float) -> None:
        self.request_id = request_id
        self.received_at = received_at
        self.received_s = received_s

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
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        n_tokens = self.usage.completion_tokens
        return _mean_gap(self.first_s, self.last_s, n_tokens or 0)

    @property
    def itl_s(self) -> float | None:
        """Mean time between two pieces of content, or two tokens where nobody counted the pieces."""
        return _mean_gap(self.first_s, self.last_s, self.n_pieces) if self.n_pieces else self.tpot_s

    @property
    def decision(self) -> Decision | None:
        """The routing decision."""
        return None if self.choice is None else self.choice.decision

    @property
    def rule(self) -> str | None:
        """Name of the user's rule that held."""
        return None if self.choice is None else self.choice.decision.rule

    @property
    def offer(self) -> Offer | None:
        """What was predicted of the tier that answered."""
        if self.choice is not None:
            for offer in self.choice.decision.offers:
                if offer.tier == self.tier:
                    return offer
        return None

    def write_down(self) -> tuple[Cells, bool]:
        """Return the cells of its row, and whether it belongs into the traffic log: whether anything was decided."""
        return make_cells(self), self.choice is not None


class _TierKeys:
    """The names of one tier's counts, made once."""

    __slots__ = ("cost", "deviations", "e2el", "itl", "overspend", "profile", "savings", "ttft")

    def __init__(self, tier: str, profile: TierProfile | None) -> None:
        self.profile = profile
        self.ttft = (families.TTFT_S.name, tier)
        self.itl = (families.ITL_S.name, tier)
        self.e2el = (families.E2EL_S.name, tier)
        self.cost = (families.COST_USD.name, tier)
        self.savings = (families.SAVINGS_USD.name, tier)
        self.overspend = (families.OVERSPEND_USD.name, tier)
        self.deviations = (families.DEVIATIONS.name, tier)


_OVERHEAD = (families.OVERHEAD_S.name,)


class Recorder:
    """Counts each finished request and hands it to the log.

    Args:
        pool: For the profiles that price a request.
        metrics: Where it is counted.
        traffic: The log's thread; ``None`` when there is no traffic log, and lines go through ``logging``.
        keeps_text: Whether the traffic log holds the prompts.
        reference: The policy's reference tier, against which savings are counted; ``None`` without one.
        policy_digest: Of the policy in force.
    """

    def __init__(
        self,
        *,
        pool: TierPool,
        metrics: Metrics,
        traffic: TrafficLog | None,
        keeps_text: bool,
        reference: str | None = None,
        policy_digest: str | None = None,
    ) -> None:
        self._tally = metrics.tally
        self._traffic = traffic
        self._keeps_text = keeps_text
        self._policy_digest = policy_digest
        self._keys = {name: _TierKeys(name, tier.profile) for name, tier in pool.tiers.items()}
        self._no_keys = _TierKeys(NO_TIER, None)
        self._reference = None if reference is None else pool.tiers[reference].profile

    def decided(self, record: Record) -> None:
        """Count a routing decision or a fail-over."""
        self._tally.add((families.DECISIONS.name, record.tier or NO_TIER, record.reason or ""))

    def finish(self, record: Record, *, n_bytes: int = 0) -> None:
        """Count ``record`` and hand it to the log; it must not change any more.

        Args:
            record: Of a request that ended.
            n_bytes: Size of the body that it holds.
        """
        tier = record.tier
        keys = self._no_keys if tier is None else self._keys[tier]
        knee = None if keys.profile is None else keys.profile.max_in_flight
        record.verdict = judge(record, max_in_flight=knee)
        if is_deviation(record):
            record.is_deviation = True
            self._tally.add(keys.deviations)
        self._count(record, tier or NO_TIER, keys)
        self._log(record, n_bytes)

    def _count(self, record: Record, tier: str, keys: _TierKeys) -> None:
        tally = self._tally
        tally.add((families.REQUESTS.name, tier, record.outcome.value))
        overhead_s, ttft_s = record.overhead_s, record.ttft_s
        if overhead_s is not None:
            tally.observe(_OVERHEAD, overhead_s, families.OVERHEAD_S.bounds)
        if ttft_s is not None:
            tally.observe(keys.ttft, ttft_s, families.TTFT_S.bounds)
            itl_s = record.itl_s
            if itl_s is not None:
                tally.observe(keys.itl, itl_s, families.ITL_S.bounds)
        if record.outcome is RequestOutcome.OK:
            if (e2el_s := record.e2el_s) is not None:
                tally.observe(keys.e2el, e2el_s, families.E2EL_S.bounds)
            self._price(record, keys)
        if record.verdict.cause is not None:
            tally.add((families.SLA_MISSES.name, tier, record.verdict.cause.value))

    def _price(self, record: Record, keys: _TierKeys) -> None:
        n_tokens = record.usage.completion_tokens
        usd = None if keys.profile is None else request_usd(keys.profile, n_tokens)
        if usd is None:
            return
        record.usd = usd
        self._tally.add(keys.cost, usd)
        reference_usd = None if self._reference is None else request_usd(self._reference, n_tokens)
        if reference_usd is not None:
            saved_usd = reference_usd - usd
            self._tally.add(keys.savings if saved_usd >= 0 else keys.overspend, abs(saved_usd))

    def _log(self, record: Record, n_bytes: int) -> None:
        record.policy_digest = self._policy_digest
        traffic = self._traffic
        if (traffic is None or not traffic.writes_lines) and logger.isEnabledFor(logging.INFO):
            _log_line(record)
        if traffic is not None:
            record.keeps_text = self._keeps_text
            traffic.put(record, n_bytes=n_bytes)


def begin(
    request_id: str, *, now: Callable[[], datetime], received_s: float, headers: Iterable[tuple[bytes, bytes]] = ()
) -> Record:
    """Open the record of a request that has arrived.

    Args:
        request_id: The gateway's own.
        now: For the stamp.
        received_s: When its head arrived.
        headers: Names in lower case.
    """
    record = Record(request_id=request_id, received_at=now(), received_s=received_s)
    key = hash_bearer(headers)
    if key is not None:
        record.key_sha256 = key[:KEY_DIGITS]
    return record


def _log_line(record: Record) -> None:
    """Write the line through ``logging``, for a gateway without a log thread or within another program."""
    row = dict(zip(_COLUMN_NAMES, make_cells(record), strict=True))
    logger.info("request", extra={name: row[name] for name in FIELDS})


def _gap(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s


def _mean_gap(first_s: float | None, last_s: float | None, n: int) -> float | None:
    if n < 2 or first_s is None or last_s is None:
        return None
    return (last_s - first_s) / (n - 1)
