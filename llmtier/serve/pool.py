"""The served tiers: where each runs, whether it answers, and the ledger of what is on each of its engines.

A tier has one engine or several (``site.py``). Routing sees one of them: that which would get the request now.

Mutable, owned by one event loop, never shared between threads. The counts (``ledger.py``) are exact for this
process; those of the gateway's other processes, and what the engines say of themselves, come from the board.
Sends nothing: ``watch.py`` asks the engines.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from llmtier.core.decision import MissReason
from llmtier.core.errors import PlanError
from llmtier.core.profile import TierProfile
from llmtier.route.predict import Predictor
from llmtier.serve.board import Board, EngineSlot, board_of, has_answered
from llmtier.serve.breaker import Breaker, BreakerState, Failure
from llmtier.serve.choose import AUTO_ALIASES, TierState
from llmtier.serve.correction import Correction
from llmtier.serve.ledger import Flight, PromptSize, TierLedger
from llmtier.serve.resume import Origin
from llmtier.serve.scrape import EngineSigns, find_overload
from llmtier.serve.site import Site, name_site, order_sites


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTier:
    """One tier and the engines behind it.

    Attributes:
        name: What clients may ask for.
        base_url: The engine, such as ``http://127.0.0.1:8101``, without ``/v1``.
        more_urls: Of further engines that serve the same; they are alike in everything else.
        model_name: What the engine calls the model.
        api_key: Sent to the engine as a bearer token; ``None`` when it asks for none.
        profile: What was measured of it; ``None`` without a profile.
        unusable: Why ``profile`` does not describe what runs; ``None`` when it does.
        health_path: Asked for liveness; any answer below 500 counts.
        max_in_flight: Requests that one engine gets at once, all processes together; ``None`` takes its profile's knee.
        origin: What exactly answers, for streams that another engine carries on; ``None`` when unknown.
    """

    name: str
    base_url: str
    model_name: str
    api_key: str | None = field(default=None, repr=False)
    profile: TierProfile | None = None
    unusable: MissReason | None = None
    health_path: str = "/health"
    max_in_flight: int | None = None
    more_urls: tuple[str, ...] = ()
    origin: Origin | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its engines, of which ``base_url`` is the first."""
        return tuple(
            Site(
                name=name_site(self.name, number),
                tier=self.name,
                base_url=url,
                model_name=self.model_name,
                api_key=self.api_key,
                health_path=self.health_path,
                replica=number if self.more_urls else None,
            )
            for number, url in enumerate((self.base_url, *self.more_urls), start=1)
        )


class _Live:
    """What changes of one site while it is served."""

    def __init__(self, tier: ServedTier, site: Site) -> None:
        self.tier = tier
        self.site = site
        self.last_pick = 0
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
        read_s = board.engine(self.site.name, EngineSlot.SIGNS_S)
        if read_s != self._signs_s:
            self._signs_s = read_s
            self._signs = _read_signs(board, self.site.name, read_s)
        return self._signs


class TierPool:
    """The tiers by name, in the order given, each with its sites and their ledgers.

    A method's ``tier`` is a tier's name, its ``site`` a site's.

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
        self._sites = {site.name: site for tier in self._tiers.values() for site in tier.sites}
        self._board = board_of(self._sites) if board is None else board
        self._worker = worker
        self._live = {name: _Live(self._tiers[site.tier], site) for name, site in self._sites.items()}
        self._of_tier = {name: [self._live[site.name] for site in tier.sites] for name, tier in self._tiers.items()}
        self._states = {name: lives[0].state for name, lives in self._of_tier.items()}
        self._n_picks = 0

    @property
    def tiers(self) -> Mapping[str, ServedTier]:
        """Every served tier by name."""
        return self._tiers

    @property
    def sites(self) -> Mapping[str, Site]:
        """Every engine by its site's name."""
        return self._sites

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
        return has_answered(self._board) and any(map(self.is_healthy, self._tiers))

    def states(self) -> Mapping[str, TierState]:
        """Return what routing sees of each tier now; it holds until the next call."""
        now_s = self._clock()
        is_none_left = True
        for name, lives in self._of_tier.items():
            live = lives[0]
            if len(lives) > 1:
                live = self._live[self._find_front(lives, now_s)]
                self._states[name] = live.state
            self._renew_state(live, now_s)
            is_none_left = is_none_left and not live.state.is_healthy
        if is_none_left:  # rather a tier whose breaker is open than nobody
            for name, state in self._states.items():
                state.is_healthy = self.is_healthy(name)
        return self._states

    def _renew_state(self, live: _Live, now_s: float) -> None:
        name, state, ledger = live.site.name, live.state, live.ledger
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

    def pick_site(self, tier: str, conversation: bytes | None = None, *, tried: Collection[str] = ()) -> str | None:
        """Return the site that gets a request now, as its breaker agrees; after one, one of the ``note_`` must follow.

        Of several those that answer, have room and are not left alone come first (see ``order_sites``); where none
        answers, any may be asked, as the only site of a tier is.

        Args:
            tier: Of which.
            conversation: That the request belongs to; ``None`` outside of one.
            tried: Sites that are not to be asked; with them only those that answer are.

        Returns:
            ``None`` where no breaker lets the request pass.
        """
        lives = self._of_tier[tier]
        if len(lives) == 1:
            name = lives[0].site.name
            return name if not tried and self.may_try(name) else None
        now_s = self._clock()
        left = [live for live in self._find_fit(lives, now_s) if live.site.name not in tried]
        if not left and not tried and not self.is_healthy(tier):
            left = lives
        for name in self._order(left, now_s, conversation):
            if self.may_try(name):
                self._n_picks += 1
                self._live[name].last_pick = self._n_picks
                return name
        return None

    def any_site(self, tier: str) -> str:
        """Return the site to ask whatever the breakers say."""
        lives = self._of_tier[tier]
        return lives[0].site.name if len(lives) == 1 else self._find_front(lives, self._clock())

    def n_fit(self, tier: str) -> int:
        """Return how many of the tier's engines answer and are not left alone."""
        return len(self._find_fit(self._of_tier[tier], self._clock()))

    def _find_front(self, lives: list[_Live], now_s: float) -> str:
        """Return the least busy of the sites that get requests, else of those that answer, else of all."""
        fit = self._find_fit(lives, now_s) or [live for live in lives if self._board.is_alive(live.site.name)]
        return self._order(fit or lives, now_s)[0]

    def _find_fit(self, lives: list[_Live], now_s: float) -> list[_Live]:
        """Return the sites that answer and whose breakers let a request pass."""
        board = self._board
        return [live for live in lives if board.is_alive(live.site.name) and not self._is_shut(live, now_s)]

    def _order(self, lives: list[_Live], now_s: float, conversation: bytes | None = None) -> list[str]:
        """Return sites as they should be asked: equals take turns, and one that is overloaded comes after the others."""
        loads = {
            live.site.name: self._find_load(live, now_s) for live in sorted(lives, key=lambda live: live.last_pick)
        }
        return order_sites(loads, conversation)

    def _find_load(self, live: _Live, now_s: float) -> float:
        """Return what all processes and strangers have on a site; infinity where its engine shows that it is full."""
        n = self._board.n_in_flight(live.site.name)
        signs = live.read_signs(self._board)
        if signs is None:
            return n
        is_full = find_overload(signs, now_s=now_s, n_prefilling=n) is not None
        return math.inf if is_full else n + signs.foreign_at(now_s)

    def may_try(self, site: str) -> bool:
        """Return whether the site's breaker lets a request pass; after a yes one of the three ``note_`` must follow."""
        breaker = self._live[site].breaker
        others_s = self._board.others_open_until_s(self._worker, site)
        may = breaker.may_try(self._clock(), others_open_until_s=others_s)
        if breaker.state is not BreakerState.CLOSED:
            self._publish_breaker(site, breaker)
        return may

    def shut_for_s(self, site: str) -> float:
        """Return how long the site's breaker lets nothing pass yet."""
        until_s = max(self._live[site].breaker.open_until_s, self._board.others_open_until_s(self._worker, site))
        return max(until_s - self._clock(), 0.0)

    def breaker_state(self, site: str) -> BreakerState:
        """Return what the site's breaker lets pass."""
        return self._live[site].breaker.state

    def note_success(self, site: str, *, sent_s: float) -> None:
        """Count an answer in full for the site's breaker."""
        breaker = self._live[site].breaker
        was_closed = breaker.state is BreakerState.CLOSED
        breaker.succeed(self._clock(), sent_s=sent_s)
        if not was_closed:
            self._publish_breaker(site, breaker)

    def note_failure(self, site: str, kind: Failure, *, sent_s: float, retry_after_s: float | None = None) -> None:
        """Count a failure of the site's engine for its breaker."""
        breaker = self._live[site].breaker
        breaker.fail(self._clock(), kind, sent_s=sent_s, retry_after_s=retry_after_s)
        self._publish_breaker(site, breaker)

    def note_answering(self, site: str, *, sent_s: float) -> None:
        """Take note that an answer has begun: it ends the trial of a breaker that is half open."""
        breaker = self._live[site].breaker
        if breaker.state is not BreakerState.CLOSED:
            breaker.note_answering(self._clock(), sent_s=sent_s)
            self._publish_breaker(site, breaker)

    def note_dismissed(self, site: str, *, sent_s: float) -> None:
        """Leave a request out that says nothing of the site's engine."""
        breaker = self._live[site].breaker
        if breaker.state is not BreakerState.CLOSED:
            breaker.dismiss(self._clock(), sent_s=sent_s)
            self._publish_breaker(site, breaker)

    def _publish_breaker(self, site: str, breaker: Breaker) -> None:
        self._board.set_open_until(self._worker, site, max(breaker.open_until_s, 0.0))

    def _is_shut(self, live: _Live, now_s: float) -> bool:
        others_s = self._board.others_open_until_s(self._worker, live.site.name)
        return live.breaker.is_shut(now_s, others_open_until_s=others_s)

    def n_in_flight(self, tier: str) -> int:
        """Return how many requests this process has on the tier now."""
        return sum([live.ledger.n_in_flight for live in self._of_tier[tier]])

    def n_on_site(self, site: str) -> int:
        """Return how many requests this process has on one of a tier's engines now."""
        return self._live[site].ledger.n_in_flight

    def tokens_per_character(self, site: str) -> float:
        """Return the length of a site's prompts in tokens, by what its engine has counted."""
        return self._live[site].ledger.tokens_per_character

    def n_elsewhere(self, tier: str) -> float:
        """Return how many requests the gateway's other processes have on the tier."""
        others = [self._board.others(self._worker, live.site.name) for live in self._of_tier[tier]]
        return sum([sum(counts[:2]) for counts in others if counts is not None])

    def is_healthy(self, tier: str) -> bool:
        """Return whether one of the tier's engines answered last time."""
        return any(self._board.is_alive(live.site.name) for live in self._of_tier[tier])

    def begin(self, site: str, size: PromptSize, *, is_stream: bool, max_tokens: int | None = None) -> Flight:
        """Count one request on the site until ``end``, and lend what it is counted by."""
        now_s = self._clock()
        ledger = self._live[site].ledger
        flight = ledger.begin(size, now_s=now_s, is_stream=is_stream, max_tokens=max_tokens)
        self._board.set_counts(self._worker, site, ledger.counts(now_s))
        return flight

    def end(self, site: str, flight: Flight) -> None:
        """Take a request off the site, however it went."""
        ledger = self._live[site].ledger
        ledger.end(flight)
        self._board.set_counts(self._worker, site, ledger.counts(self._clock()))

    def report_lost(self, site: str) -> None:
        """Tell every process that the site's engine cannot be reached; until it answers again."""
        self._board.note_lost(self._worker, site, self._clock())

    def publish(self) -> None:
        """Write every count on the board anew and forget what is old; once a second: rates fall while nobody comes."""
        now_s = self._clock()
        for site, live in self._live.items():
            live.correction.forget(now_s)
            self._board.set_counts(self._worker, site, live.ledger.counts(now_s))

    def correction(self, site: str) -> Correction:
        """Return what the site's predictions are corrected by."""
        return self._live[site].correction

    def _co_tenants(self, tier: ServedTier) -> tuple[tuple[str, float], ...]:
        """Return, of the tiers that share the device and are served here, whether each is at work: 0 or 1."""
        names = () if tier.profile is None else tier.profile.co_tenants
        return tuple((name, float(self._is_at_work(name))) for name in names if name in self._of_tier)

    def _is_at_work(self, tier: str) -> bool:
        return any(self._board.n_in_flight(live.site.name) > 0 for live in self._of_tier[tier])


def _read_signs(board: Board, site: str, read_s: float) -> EngineSigns:
    def known(slot: EngineSlot) -> float | None:
        value = board.engine(site, slot)
        return None if math.isnan(value) else value

    return EngineSigns(
        n_waiting=known(EngineSlot.N_WAITING),
        n_running=known(EngineSlot.N_RUNNING),
        kv_usage=known(EngineSlot.KV_USAGE),
        preemptions_per_s=known(EngineSlot.PREEMPTIONS_PER_S),
        n_foreign=known(EngineSlot.N_FOREIGN),
        read_s=read_s,
    )
