"""A traffic log put through the gateway's own ledger, predictor and correction again, to see predictions uncorrected.

The log holds predictions after their online correction. So every event of each tier is replayed at its logged instant,
a stream's tokens evenly between its first and its last; each request is then predicted with the correction and without,
and the quotient of the two takes the correction off the logged prediction. How near the replay comes is told as well.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from llmtier.core.decision import Offer
from llmtier.core.profile import TierProfile
from llmtier.core.requirement import Requirement
from llmtier.engine.wire import Usage
from llmtier.route.predict import Predictor
from llmtier.serve.choose import Question, TierState, make_offer
from llmtier.serve.correction import Correction
from llmtier.serve.ledger import Flight, PromptSize, TierLedger
from llmtier.serve.needs import Needs
from llmtier.store.traffic import TrafficRow

_PIECE, _END, _BEGIN = 0, 1, 2  # the order of what happens at one instant
_NEEDS = Needs(requirement=Requirement())
_Event = tuple[float, int, int]

Latencies = tuple[float | None, float | None]
"""TTFT and E2EL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A request as the replay predicts it.

    Attributes:
        uncorrected: What was logged, with the correction taken off.
        fidelity: Replayed over logged prediction, corrected.
        long_tokens: Length of the answer behind E2EL; ``None`` when unknown.
        ratios: The factors of the correction, of TTFT and TPOT.
    """

    uncorrected: Latencies
    fidelity: Latencies
    long_tokens: float | None
    ratios: tuple[float, float]


@dataclass(slots=True)
class _Tier:
    """One tier while its log is read again.

    Attributes:
        profile: Of the tier.
        ledger: As the gateway's at that moment; likewise ``correction`` and ``state``.
        flights: By the row's number.
        offers: Without the correction, which learns from their medians; likewise.
    """

    profile: TierProfile
    ledger: TierLedger = field(default_factory=TierLedger)
    correction: Correction = field(default_factory=Correction)
    state: TierState = field(init=False)
    flights: dict[int, Flight] = field(default_factory=dict)
    offers: dict[int, Offer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        predictor, lengths = Predictor(self.profile), self.ledger.lengths
        self.state = TierState(name=self.profile.tier, profile=self.profile, predictor=predictor, lengths=lengths)


class Replay:
    """One log through the gateway's parts again.

    Args:
        log: Whole, from the gateway's first request on.
        profiles: Of its tiers.

    Attributes:
        found: Replayed requests by id.
        corrections: Of each tier, at the end of the log.
    """

    def __init__(self, log: Sequence[TrafficRow], profiles: Mapping[str, TierProfile]) -> None:
        self._tiers = {name: _Tier(profile) for name, profile in profiles.items()}
        self._rows = [row for row in log if row.tier in self._tiers and row.e2el_s is not None and row.status == 200]
        self.found: dict[str, Replayed] = {}
        self._run()
        self.corrections = {name: tier.correction for name, tier in self._tiers.items()}

    def _run(self) -> None:
        events: list[_Event] = [(sent_s(row), _BEGIN, number) for number, row in enumerate(self._rows)]
        heapq.heapify(events)
        while events:
            at_s, kind, number = heapq.heappop(events)
            row = self._rows[number]
            tier = self._tiers[row.tier or ""]
            if kind == _BEGIN:
                self._begin(tier, number, row, at_s)
                for event in _follow(number, row):
                    heapq.heappush(events, event)
            elif kind == _PIECE:
                tier.flights[number].note_piece(at_s)
            else:
                self._end(tier, number, row, at_s)

    def _begin(self, tier: _Tier, number: int, row: TrafficRow, at_s: float) -> None:
        """Predict a request with and without the correction, and put it on the engine."""
        state, size = tier.state, PromptSize(n_characters=row.n_characters or 0)
        state.load = tier.ledger.state(at_s)
        state.tokens_per_character = tier.ledger.tokens_per_character
        question = Question(model=state.name, needs=_NEEDS, probabilities={}, max_tokens=row.max_tokens, size=size)
        state.correction = None
        plain = tier.offers[number] = make_offer(question, state)
        state.correction = tier.correction
        corrected = make_offer(question, state)
        self.found[row.request_id] = Replayed(
            uncorrected=(
                _scale(row.predicted_ttft_s, plain.ttft_s, corrected.ttft_s),
                _scale(row.predicted_e2el_s, plain.e2el_s, corrected.e2el_s),
            ),
            fidelity=(
                _scale(1.0, corrected.ttft_s, row.predicted_ttft_s),
                _scale(1.0, corrected.e2el_s, row.predicted_e2el_s),
            ),
            long_tokens=tier.ledger.lengths.find_long(row.max_tokens),
            ratios=(tier.correction.ttft_ratio, tier.correction.tpot_ratio),
        )
        tier.flights[number] = tier.ledger.begin(size, now_s=at_s, is_stream=row.stream, max_tokens=row.max_tokens)

    def _end(self, tier: _Tier, number: int, row: TrafficRow, at_s: float) -> None:
        """Take a request off the engine and learn from it."""
        overhead_s, flight = row.overhead_s or 0.0, tier.flights.pop(number)
        offer = tier.offers.pop(number)
        if row.outcome == "ok":
            flight.learn(Usage(prompt_tokens=row.n_input_tokens, completion_tokens=row.n_output_tokens))
            tier.correction.learn(
                offer,
                now_s=at_s,
                ttft_s=None if row.ttft_s is None else row.ttft_s - overhead_s,
                e2el_s=None if row.e2el_s is None else row.e2el_s - overhead_s,
                n_output_tokens=row.n_output_tokens,
            )
        tier.ledger.end(flight)


def received_s(row: TrafficRow) -> float:
    """Return when a request came, in seconds of the epoch."""
    return datetime.fromisoformat(row.received_at).timestamp()


def sent_s(row: TrafficRow) -> float:
    """Return when it was handed to an engine."""
    return received_s(row) + (row.overhead_s or 0.0)


def ended_s(row: TrafficRow) -> float:
    """Return when its answer ended."""
    return received_s(row) + (row.e2el_s or 0.0)


def _follow(number: int, row: TrafficRow) -> list[_Event]:
    """Return what comes after a request was sent: its tokens, where they are seen, and its end."""
    last_s = ended_s(row)
    events: list[_Event] = [(last_s, _END, number)]
    if row.ttft_s is not None:
        first_s = received_s(row) + row.ttft_s
        n_gaps = max((row.n_output_tokens or 1) - 1, 1)
        gap_s = (last_s - first_s) / n_gaps
        events += [(first_s + gap_s * at, _PIECE, number) for at in range(n_gaps)]
    return events


def _scale(value: float | None, top: float | None, bottom: float | None) -> float | None:
    return value * top / bottom if value is not None and top is not None and bottom else None
