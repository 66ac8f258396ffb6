"""What the client saw joined with what the gateway logged, and what other predictors would have said: a row a request.

The others are computed afterwards from the traffic log, for the tier that served: the same model with the online
correction taken off, the profile's own 95th percentile at that concurrency, and the tier's 95th percentile of the last
minute. None of them could have routed differently here: that would have made another load.
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from llmtier.core.latency_model import LoadState
from llmtier.core.profile import TierProfile
from llmtier.route.predict import Predictor
from llmtier.store.traffic import TrafficRow
from support.slo_load import ROUTED, Ask, Seen
from support.slo_replay import Latencies, Replayed, ended_s, received_s

LIVE, UNCORRECTED, PROFILE_P95, LAST_MINUTE = "live", "uncorrected", "profile_p95", "last_minute_p95"
PREDICTORS = (LIVE, UNCORRECTED, PROFILE_P95, LAST_MINUTE)
MINUTE_S = 60.0
FEWEST = 20
"""Answers within the last minute behind a 95th percentile; with fewer it says nothing."""

_OF_TIME = ("ttft", "tpot", "e2el")
_FALLBACK = "fallback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One request with limits that was decided on.

    Attributes:
        seen: What the client saw.
        logged: What the gateway wrote down.
        says: Whether the decision said that the tier that serves meets every limit.
        predicted: What each predictor says of that tier, by its name; ``None`` where it says nothing.
        replayed: What the replay of the log says; ``None`` where it has no place for it.
    """

    seen: Seen
    logged: TrafficRow
    says: bool
    predicted: Mapping[str, Latencies]
    replayed: Replayed | None

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


def join(
    seen: Iterable[Seen],
    log: Sequence[TrafficRow],
    replayed: Mapping[str, Replayed],
    profiles: Mapping[str, TierProfile],
) -> tuple[list[Row], int]:
    """Return a row for each request with limits that the log knows, and how many it does not know."""
    by_id = {row.request_id: row for row in log}
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
        again = replayed.get(logged.request_id)
        predicted: dict[str, Latencies] = {
            LIVE: (one.predicted_ttft_s, one.predicted_e2el_s),
            UNCORRECTED: (None, None) if again is None else again.uncorrected,
            PROFILE_P95: (offer.ttft_s, offer.e2el_s),
            LAST_MINUTE: minutes.get(logged.request_id, (None, None)),
        }
        says = logged.reason != _FALLBACK and not has_missed(logged)
        rows.append(Row(seen=one, logged=logged, says=says, predicted=predicted, replayed=again))
    return rows, n_unknown


def has_missed(row: TrafficRow) -> bool:
    """Return whether the decision names a limit of time that the tier which served does not meet."""
    return any(part.startswith(f"{row.tier}: ") and part.split()[1] in _OF_TIME for part in row.misses.split("; "))


def last_minutes(log: Sequence[TrafficRow]) -> dict[str, Latencies]:
    """Return the 95th percentiles over the answers of the same tier that ended within the minute before, by request."""
    found: dict[str, Latencies] = {}
    for tier in {row.tier for row in log}:
        rows = sorted((row for row in log if row.tier == tier), key=received_s)
        ended = sorted((row for row in rows if row.e2el_s is not None), key=ended_s)
        window: deque[TrafficRow] = deque()
        n_taken = 0
        for row in rows:
            now_s = received_s(row)
            while n_taken < len(ended) and ended_s(ended[n_taken]) <= now_s:
                window.append(ended[n_taken])
                n_taken += 1
            while window and ended_s(window[0]) < now_s - MINUTE_S:
                window.popleft()
            found[row.request_id] = (_p95([x.ttft_s for x in window]), _p95([x.e2el_s for x in window]))
    return found


def _p95(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.quantile(known, 0.95)) if len(known) >= FEWEST else None
