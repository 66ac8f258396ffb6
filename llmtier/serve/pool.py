"""The served tiers: where each runs, whether it answers, and the ledger of what is on it.

Mutable, owned by one event loop, never shared between threads. The counts (``ledger.py``) are exact for this
process; those of the gateway's other processes, and what the engines say of themselves, come from the board.
Sends nothing: ``watch.py`` asks the engines.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from llmtier.core.decision import MissReason
from llmtier.core.errors import PlanError
from llmtier.core.profile import TierProfile
from llmtier.route.predict import Predictor
from llmtier.serve.board import Board, EngineSlot, board_of
from llmtier.serve.breaker import Breaker, BreakerState, Failure
from llmtier.serve.choose import AUTO_ALIASES, TierState
from llmtier.serve.correction import Correction
from llmtier.serve.ledger import Flight, PromptSize, TierLedger
from llmtier.serve.resume import Site
from llmtier.serve.scrape import EngineSigns, find_overload


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTier:
    """One tier and the engine behind it.

    Attributes:
        name: What clients may ask for.
        base_url: The engine, such as ``http://127.0.0.1:8101``, without ``/v1``.
        model_name: What the engine calls the model.
        api_key: Sent to the engine as a bearer token; ``None`` when it asks for none.
        profile: What was measured of it; ``None`` without a profile.
        unusable: Why ``profile`` does not describe what runs; ``None`` when it does.
        health_path: Asked for liveness; any answer below 500 counts.
        max_in_flight: Requests that it gets at once, all processes together; ``None`` takes its profile's knee.
        site: What exactly answers, for streams that another engine carries on; ``None`` when unknown.
    """

    name: str
    base_url: str
    model_name: str
    api_key: str | None = field(default=None, repr=False)
    profile: TierProfile | None = None
    unusable: MissReason | None = None
    health_path: str = "/health"
    max_in_flight: int | None = None
    site: Site | None = None


class _Live:
    """What changes of one tier while it is served."""

    def __init__(self, tier: ServedTier) -> None:
        self.tier = tier
        self.ledger = TierLedger()
        self.correction = Correction()
        self.breaker = Breaker()
        self.state = TierState(
            name=tier.name,
            profile=tier.profile,
            unusable=tier.unusable,
            predictor=None if tier.profile is None else Predictor(tier.profile),
            correction=self.correction,
            lengths=self.ledger.lengths,
        )
        self._signs: EngineSigns | None = None
        self._signs_s = 0.0

    def read_signs(self, board: Board) -> EngineSigns | None:
        """Return what the engine last said of itself; ``None`` before it has."""
        read_s = board.engine(self.tier.name, EngineSlot.SIGNS_S)
        if read_s != self._signs_s:
            self._signs_s = read_s
            self._signs = _read_signs(board, self.tier.name, read_s)
        return self._signs


class TierPool:
    """The tiers by name, in the order given, each with its ledger.

    Args:
        tiers: What is served.
        clock: Monotonic seconds, the same as the gateway's.
        board: What the processes of this gateway share; ``None`` when there is one process.
        worker: Number of this process on the board.

    Raises:
        PlanError: A name is given twice or is an alias of routing, or there is no tier.
    """

    def __init__(
        self,
        tiers: Iterable[ServedTier],
        *,
        clock: Callable[[], float] = time.perf_counter,
        board: Board | None = None,
        worker: int = 0,
    ) -> None:
        self._clock = clock
        self._tiers: dict[str, ServedTier] = {}
        for tier in tiers:
            if tier.name in self._tiers or tier.name in AUTO_ALIASES:
                raise PlanError(f"tier name {tier.name!r} is taken; give each served tier a name of its own")
            self._tiers[tier.name] = tier
        if not self._tiers:
            raise PlanError("a gateway needs at least one tier; add one under 'tiers' in the configuration")
        self._board = board_of(self._tiers) if board is None else board
        self._worker = worker
        self._live = {name: _Live(tier) for name, tier in self._tiers.items()}
        self._states = {name: live.state for name, live in self._live.items()}

    @property
    def tiers(self) -> Mapping[str, ServedTier]:
        """Every served tier by name."""
        return self._tiers

    @property
    def worker(self) -> int:
        """Number of this process on the board."""
        return self._worker

    @property
    def board(self) -> Board:
        """What the processes of this gateway share."""
        return self._board

    @property
    def is_ready(self) -> bool:
        """Every tier has answered once, and one answers now: a later loss of one tier is routed around."""
        return all(self._board.engine(name, EngineSlot.WAS_ALIVE) for name in self._tiers) and any(
            map(self.is_healthy, self._tiers)
        )

    def states(self) -> Mapping[str, TierState]:
        """Return what routing sees of each tier now; it holds until the next call."""
        now_s = self._clock()
        is_none_left = True
        for name, live in self._live.items():
            state, ledger = live.state, live.ledger
            signs = live.read_signs(self._board)
            n_foreign = 0.0 if signs is None else signs.foreign_at(now_s)
            state.is_healthy = self._board.is_alive(name) and not self._is_shut(live, now_s)
            state.load = ledger.state(
                now_s,
                co_tenants=self._co_tenants(live.tier),
                others=self._board.others(self._worker, name),
                n_foreign=n_foreign,
            )
            state.tokens_per_character = ledger.tokens_per_character
            state.unusable = live.tier.unusable
            if signs is not None and state.unusable is None:
                state.unusable = find_overload(signs, now_s=now_s, n_prefilling=state.load.n_prefilling)
            is_none_left = is_none_left and not state.is_healthy
        if is_none_left:  # rather a tier whose breaker is open than nobody
            for name, state in self._states.items():
                state.is_healthy = self._board.is_alive(name)
        return self._states

    def may_try(self, name: str) -> bool:
        """Return whether the tier's breaker lets a request pass; after a yes one of the three ``note_`` must follow."""
        breaker = self._live[name].breaker
        others_s = self._board.others_open_until_s(self._worker, name)
        may = breaker.may_try(self._clock(), others_open_until_s=others_s)
        if breaker.state is not BreakerState.CLOSED:
            self._publish_breaker(name, breaker)
        return may

    def shut_for_s(self, name: str) -> float:
        """Return how long the tier's breaker lets nothing pass yet."""
        until_s = max(self._live[name].breaker.open_until_s, self._board.others_open_until_s(self._worker, name))
        return max(until_s - self._clock(), 0.0)

    def breaker_state(self, name: str) -> BreakerState:
        """Return what the tier's breaker lets pass."""
        return self._live[name].breaker.state

    def note_success(self, name: str, *, sent_s: float) -> None:
        """Count an answer in full for the tier's breaker."""
        breaker = self._live[name].breaker
        was_closed = breaker.state is BreakerState.CLOSED
        breaker.succeed(self._clock(), sent_s=sent_s)
        if not was_closed:
            self._publish_breaker(name, breaker)

    def note_failure(self, name: str, kind: Failure, *, sent_s: float, retry_after_s: float | None = None) -> None:
        """Count a failure of the tier's engine for its breaker."""
        breaker = self._live[name].breaker
        breaker.fail(self._clock(), kind, sent_s=sent_s, retry_after_s=retry_after_s)
        self._publish_breaker(name, breaker)

    def note_answering(self, name: str, *, sent_s: float) -> None:
        """Take note that an answer has begun: it ends the trial of a breaker that is half open."""
        breaker = self._live[name].breaker
        if breaker.state is not BreakerState.CLOSED:
            breaker.note_answering(self._clock(), sent_s=sent_s)
            self._publish_breaker(name, breaker)

    def note_dismissed(self, name: str, *, sent_s: float) -> None:
        """Leave a request out that says nothing of the tier's engine."""
        breaker = self._live[name].breaker
        if breaker.state is not BreakerState.CLOSED:
            breaker.dismiss(self._clock(), sent_s=sent_s)
            self._publish_breaker(name, breaker)

    def _publish_breaker(self, name: str, breaker: Breaker) -> None:
        self._board.set_open_until(self._worker, name, max(breaker.open_until_s, 0.0))

    def _is_shut(self, live: _Live, now_s: float) -> bool:
        others_s = self._board.others_open_until_s(self._worker, live.tier.name)
        return live.breaker.is_shut(now_s, others_open_until_s=others_s)

    def n_in_flight(self, name: str) -> int:
        """Return how many requests this process has on the tier now."""
        return self._live[name].ledger.n_in_flight

    def is_healthy(self, name: str) -> bool:
        """Return whether the tier's engine answered last time."""
        return self._board.is_alive(name)

    def begin(self, name: str, size: PromptSize, *, is_stream: bool, max_tokens: int | None = None) -> Flight:
        """Count one request on the tier until ``end``, and lend what it is counted by."""
        now_s = self._clock()
        ledger = self._live[name].ledger
        flight = ledger.begin(size, now_s=now_s, is_stream=is_stream, max_tokens=max_tokens)
        self._board.set_counts(self._worker, name, ledger.counts(now_s))
        return flight

    def end(self, name: str, flight: Flight) -> None:
        """Take a request off the tier, however it went."""
        ledger = self._live[name].ledger
        ledger.end(flight)
        self._board.set_counts(self._worker, name, ledger.counts(self._clock()))

    def report_lost(self, name: str) -> None:
        """Tell every process that the tier's engine cannot be reached; until it answers again."""
        self._board.note_lost(self._worker, name, self._clock())

    def publish(self) -> None:
        """Write every count on the board anew and forget what is old; once a second: rates fall while nobody comes."""
        now_s = self._clock()
        for name, live in self._live.items():
            live.correction.forget(now_s)
            self._board.set_counts(self._worker, name, live.ledger.counts(now_s))

    def correction(self, name: str) -> Correction:
        """Return what the tier's predictions are corrected by."""
        return self._live[name].correction

    def _co_tenants(self, tier: ServedTier) -> tuple[tuple[str, float], ...]:
        """Return, of the tiers that share the device and are served here, whether each is at work: 0 or 1."""
        names = () if tier.profile is None else tier.profile.co_tenants
        return tuple((name, float(self._board.n_in_flight(name) > 0)) for name in names if name in self._live)


def _read_signs(board: Board, tier: str, read_s: float) -> EngineSigns:
    def known(slot: EngineSlot) -> float | None:
        value = board.engine(tier, slot)
        return None if math.isnan(value) else value

    return EngineSigns(
        n_waiting=known(EngineSlot.N_WAITING),
        n_running=known(EngineSlot.N_RUNNING),
        kv_usage=known(EngineSlot.KV_USAGE),
        preemptions_per_s=known(EngineSlot.PREEMPTIONS_PER_S),
        n_foreign=known(EngineSlot.N_FOREIGN),
        read_s=read_s,
    )
