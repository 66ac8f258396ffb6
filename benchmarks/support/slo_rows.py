"""What the client saw joined with what the gateway logged, and what other predictors would have said: a row a request.

The others are computed afterwards from the traffic log, for the tier that served: the same model with the online
correction taken off, the profile's own 95th percentile at that concurrency, and the tier's 95th percentile of the last
minute. None of them could have routed differently here: that would have made another load.
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from llmtier.core.decision import Offer
from llmtier.core.latency_model import LatencyModel, LoadState, Metric
from llmtier.core.profile import TierProfile
from llmtier.route.predict import UPPER_LEVEL, Predictor
from llmtier.serve.correction import Correction
from llmtier.store.traffic import TrafficRow
from support.slo_load import ROUTED, Ask, Seen

LIVE, UNCORRECTED, PROFILE_P95, LAST_MINUTE = "live", "uncorrected", "profile_p95", "last_minute_p95"
PREDICTORS = (LIVE, UNCORRECTED, PROFILE_P95, LAST_MINUTE)
MINUTE_S = 60.0
FEWEST = 20
"""Answers within the last minute behind a 95th percentile; with fewer it says nothing."""

_OF_TIME = ("ttft", "tpot", "e2el")
_FALLBACK = "fallback"

Latencies = tuple[float | None, float | None]
"""TTFT and E2EL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request with limits that was decided on.

    Attributes:
        seen: What the client saw.
        logged: What the gateway wrote down.
        says: Whether the decision said that the tier that serves meets every limit.
        predicted: What each predictor says of that tier, by its name; ``None`` where it says nothing.
        long_tokens: Length of the answer that the predicted E2EL holds; ``None`` when unknown.
    """

    seen: Seen
    logged: TrafficRow
    says: bool
    predicted: Mapping[str, Latencies]
    long_tokens: float | None

    @property
    def limits(self) -> Latencies:
        """TTFT and E2EL asked for."""
        return self.seen.ask.ttft_s, self.seen.ask.e2el_s

    @property
    def observed(self) -> Latencies:
        """TTFT and E2EL at the client."""
        return self.seen.ttft_s, self.seen.e2el_s

    @property
    def is_met(self) -> bool:
        """Whether every limit held at the client; a failure holds none."""
        return _holds(self.observed, self.limits)

    @property
    def is_met_at_gateway(self) -> bool:
        """Likewise by the gateway's clock."""
        return _holds((self.logged.ttft_s, self.logged.e2el_s), self.limits)

    @property
    def is_routed(self) -> bool:
        """Whether the gateway chose the tier."""
        return self.seen.ask.model == ROUTED

    def margin(self, predictor: str) -> float | None:
        """Return the least log(limit / predicted): from 0 on all hold; ``None`` when it says nothing of one."""
        margins: list[float] = []
        for limit_s, predicted_s in zip(self.limits, self.predicted[predictor], strict=True):
            if limit_s is not None:
                if predicted_s is None:
                    return None
                margins.append(math.log(limit_s / predicted_s))
        return min(margins)


def _holds(observed: Latencies, limits: Latencies) -> bool:
    pairs = zip(observed, limits, strict=True)
    return all(limit_s is None or (value_s is not None and value_s <= limit_s) for value_s, limit_s in pairs)


def write_seen(seen: Iterable[Seen], path: Path) -> None:
    """Keep what the client saw."""
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in seen), encoding="utf-8")


def read_seen(path: Path) -> list[Seen]:
    """Read it back."""
    documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Seen(**{**document, "ask": Ask(**document["ask"])}) for document in documents]


def join(seen: Iterable[Seen], log: Sequence[TrafficRow], profiles: Mapping[str, TierProfile]) -> tuple[list[Row], int]:
    """Return a row for each request with limits that the log knows, and how many it does not know."""
    by_id = {row.request_id: row for row in log}
    unwound, _ = unwind(log, profiles)
    profiled = {name: Predictor(replace(profile, latency=None)) for name, profile in profiles.items()}
    minutes = last_minutes(log)
    rows: list[Row] = []
    n_unknown = 0
    for one in seen:
        if one.ask.ttft_s is None and one.ask.e2el_s is None:
            continue
        logged = by_id.get(one.request_id or "")
        if logged is None or logged.tier is None:
            n_unknown += 1
            continue
        offer = profiled[logged.tier].offer(LoadState(n_decoding=logged.n_in_flight), None)
        taken_off = unwound.get(logged.request_id, Unwound())
        predicted: dict[str, Latencies] = {
            LIVE: (one.predicted_ttft_s, one.predicted_e2el_s),
            UNCORRECTED: (taken_off.ttft_s, taken_off.e2el_s),
            PROFILE_P95: (offer.ttft_s, offer.e2el_s),
            LAST_MINUTE: minutes.get(logged.request_id, (None, None)),
        }
        says = logged.reason != _FALLBACK and not has_missed(logged)
        rows.append(Row(seen=one, logged=logged, says=says, predicted=predicted, long_tokens=taken_off.long_tokens))
    return rows, n_unknown


def has_missed(row: TrafficRow) -> bool:
    """Return whether the decision names a limit of time that the tier which served does not meet."""
    return any(part.startswith(f"{row.tier}: ") and part.split()[1] in _OF_TIME for part in row.misses.split("; "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwound:
    """A prediction without its online correction.

    Attributes:
        ttft_s: Upper quantile; likewise ``e2el_s``.
        long_tokens: Length of the answer behind E2EL.
        ratios: The factors that were taken off, of TTFT and TPOT.
    """

    ttft_s: float | None = None
    e2el_s: float | None = None
    long_tokens: float | None = None
    ratios: tuple[float, float] = (1.0, 1.0)


@dataclass(slots=True)
class _Tier:
    """One tier while its log is read again.

    Attributes:
        model: Of its profile.
        correction: As the gateway's at that moment.
    """

    model: LatencyModel
    correction: Correction = field(default_factory=Correction)

    def factors(self, n: int) -> tuple[float, float, float, float, float]:
        """Return what the model is raised by: TTFT, TPOT, E2EL to the upper quantile, TTFT and TPOT to the median."""
        found = [self.model.residual(metric, n_in_flight=n, level=UPPER_LEVEL) for metric in Metric]
        found += [self.model.residual(metric, n_in_flight=n, level=0.5) for metric in (Metric.TTFT, Metric.TPOT)]
        ttft, tpot, e2el, middle_ttft, middle_tpot = (math.exp(value or 0.0) for value in found)
        return ttft, tpot, e2el, middle_ttft, middle_tpot


def unwind(
    log: Sequence[TrafficRow], profiles: Mapping[str, TierProfile]
) -> tuple[dict[str, Unwound], dict[str, Correction]]:
    """Learn the correction again as the gateway did, event by event, and take it off each prediction.

    The log holds predictions after the correction; from the first request on its factors are known, so what was before
    is known as well, and what the next factor is learned from. Returns each request's prediction, and each tier's
    correction at the end, which the gateway's own gauge must agree with.
    """
    tiers = {name: _Tier(p.latency) for name, p in profiles.items() if p.latency is not None}
    events: list[tuple[float, int, TrafficRow]] = []
    for row in log:
        if row.tier in tiers and row.predicted_ttft_s is not None and row.overhead_s is not None:
            at_s = instant_s(row)
            events.append((at_s + row.overhead_s, 1, row))
            if row.outcome == "ok" and row.e2el_s is not None:
                events.append((at_s + row.e2el_s, 0, row))
    found: dict[str, Unwound] = {}
    offers: dict[str, Offer] = {}
    for at_s, is_decision, row in sorted(events, key=lambda event: event[:2]):
        tier = tiers[row.tier or ""]
        if is_decision:
            found[row.request_id], offers[row.request_id] = _take_off(row, tier)
        elif row.request_id in offers:
            _learn(tier.correction, offers[row.request_id], row, at_s)
    return found, {name: tier.correction for name, tier in tiers.items()}


def _take_off(row: TrafficRow, tier: _Tier) -> tuple[Unwound, Offer]:
    up_ttft, up_tpot, up_e2el, middle_ttft, middle_tpot = tier.factors(row.n_in_flight)
    by_ttft, by_tpot = tier.correction.ttft_ratio, tier.correction.tpot_ratio
    ttft_s = (row.predicted_ttft_s or 0.0) / by_ttft / up_ttft
    tpot_s = (row.predicted_tpot_s or 0.0) / by_tpot / up_tpot
    whole_s = (row.predicted_e2el_s or 0.0) / up_e2el
    n_more = max((whole_s - ttft_s * by_ttft) / (tpot_s * by_tpot), 0.0) if tpot_s else 0.0
    unwound = Unwound(
        ttft_s=ttft_s * up_ttft,
        e2el_s=(ttft_s + tpot_s * n_more) * up_e2el,
        long_tokens=n_more + 1.0,
        ratios=(by_ttft, by_tpot),
    )
    typical = (ttft_s * middle_ttft, tpot_s * middle_tpot)
    return unwound, Offer(row.tier or "", None, None, typical_ttft_s=typical[0], typical_tpot_s=typical[1])


def _learn(correction: Correction, offer: Offer, row: TrafficRow, at_s: float) -> None:
    overhead_s = row.overhead_s or 0.0
    correction.learn(
        offer,
        now_s=at_s,
        ttft_s=None if row.ttft_s is None else row.ttft_s - overhead_s,
        e2el_s=None if row.e2el_s is None else row.e2el_s - overhead_s,
        n_output_tokens=row.n_output_tokens,
    )


def last_minutes(log: Sequence[TrafficRow]) -> dict[str, Latencies]:
    """Return the 95th percentiles over the answers of the same tier that ended within the minute before, by request."""
    found: dict[str, Latencies] = {}
    for tier in {row.tier for row in log}:
        rows = sorted((row for row in log if row.tier == tier), key=instant_s)
        ended = sorted((row for row in rows if row.e2el_s is not None), key=_end_s)
        window: deque[TrafficRow] = deque()
        n_taken = 0
        for row in rows:
            now_s = instant_s(row)
            while n_taken < len(ended) and _end_s(ended[n_taken]) <= now_s:
                window.append(ended[n_taken])
                n_taken += 1
            while window and _end_s(window[0]) < now_s - MINUTE_S:
                window.popleft()
            found[row.request_id] = (_p95([x.ttft_s for x in window]), _p95([x.e2el_s for x in window]))
    return found


def _p95(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.quantile(known, 0.95)) if len(known) >= FEWEST else None


def instant_s(row: TrafficRow) -> float:
    """Return when a request came, in seconds of the epoch."""
    return datetime.fromisoformat(row.received_at).timestamp()


def _end_s(row: TrafficRow) -> float:
    return instant_s(row) + (row.e2el_s or 0.0)
