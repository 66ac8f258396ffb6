"""A first byte that is late: ask a second tier as well, let whichever speaks first serve, and cancel the other at once.

Off unless configured. The first attempt runs as ever; at the instant at which its first byte counts as late, ``hedge.py``
says whether somebody else is asked. An attempt must take the client's reply before its first byte (``lane.py``), so exactly one
answer is sent. If one fails while the other runs, that one is the fail-over; if both do, the second failure is the request's.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from llmtier.core.decision import Reason
from llmtier.serve.admission import Place, PlaceState
from llmtier.serve.attempt import Exchange, Sender
from llmtier.serve.breaker import BreakerState
from llmtier.serve.guard import Guard
from llmtier.serve.hedge import Hedge, HedgeCandidate, Hedger, HedgeSettings, Late, eligible_offers
from llmtier.serve.lane import Lane, LaneReply, copy_record
from llmtier.serve.metrics import HEDGES
from llmtier.serve.record import HEDGE, Record
from llmtier.serve.relay import UpstreamError, UpstreamFault
from llmtier.serve.state import AppState
from llmtier.serve.trail import Trail

logger = logging.getLogger(__name__)

_WON, _LOST, _FAILED, _NO_ROOM = "won", "lost", "failed", "no-room"


class Racer:
    """Sends requests, some of them twice.

    Args:
        state: What the gateway is made of.
        sender: Sends one to one engine.
        guard: Who may go where.
        settings: When a second engine is asked.
        on_moved: Told of the record of a request that the second one serves.
    """

    def __init__(
        self,
        state: AppState,
        sender: Sender,
        guard: Guard,
        settings: HedgeSettings,
        *,
        on_moved: Callable[[Record], None],
    ) -> None:
        self.state = state
        self.sender = sender
        self.guard = guard
        self.on_moved = on_moved
        self._hedger = Hedger(settings)

    async def send(self, exchange: Exchange, trail: Trail, place: Place) -> None:
        """Ask where ``trail`` ends, and perhaps another tier; return when the client has its answer.

        Args:
            exchange: The request.
            trail: Who was asked; the second tier is added, and the one whose failure is raised is the last.
            place: The slot of the first.

        Raises:
            UpstreamError: All that were asked failed and nothing was sent; the breaker has not been told of this one.
        """
        if not exchange.record.n_attempts:
            self._hedger.note_request()
        late = self._find_late(exchange, trail.site)
        if late is None or (due_s := self._hedger.due_s(late)) is None:
            await self.sender.send(exchange, trail.site)
            return
        race = _Race(self, exchange, trail)
        race.enter(Lane(trail.tier, trail.site, place, copy_record(exchange.record)))
        try:
            if not await race.is_over_by(due_s):
                self._hedge(race, late, now_s=max(self.state.clock(), due_s))  # a timer may be early by a tick
            await race.finish()
        finally:
            await race.close()

    def _find_late(self, exchange: Exchange, site: str) -> Late | None:
        """Return the request as hedging sees it; ``None`` for one that must stay, or was tried before."""
        plan, record = exchange.plan, exchange.record
        if plan.is_named or record.n_attempts or plan.decision.reason is Reason.RULE:
            return None
        tokens_per_character = self.state.pool.tokens_per_character(site)
        return Late(
            received_s=record.received_s,
            sent_s=self.state.clock(),
            limits=exchange.limits,
            offer=record.offer,
            prompt_tokens=plan.size.estimate_tokens(tokens_per_character),
            is_whole=not plan.request.is_stream,
        )

    def _hedge(self, race: "_Race", late: Late, *, now_s: float) -> None:
        """Ask somebody else as well, if that is worth it."""
        state, exchange = self.state, race.exchange
        verdict = self._hedger.decide(late, self._candidates(race), now_s=now_s)
        if not isinstance(verdict, Hedge):
            self.count(verdict.value)
            return
        record = copy_record(race.lanes[0].record)
        record.tier, record.reason, record.propensity = verdict.tier, HEDGE, None
        place = self.guard.enter(verdict.tier, record, exchange.limits)
        site = None
        if isinstance(place, Place) and place.state is PlaceState.RUNNING:
            site = state.pool.pick_site(verdict.tier, exchange.plan.affinity)
        if site is None or not isinstance(place, Place):
            if isinstance(place, Place):
                place.leave()
            self.count(_NO_ROOM)
            return
        exchange.record.hedged = _FAILED  # until it is known better
        race.trail.has_moved = True
        race.enter(Lane(verdict.tier, site, place, record))

    def _candidates(self, race: "_Race") -> list[HedgeCandidate]:
        """Return the other tiers that met every need and have a slot, as they are now."""
        pool, admission = self.state.pool, self.guard.admission
        states = pool.states()
        found: list[HedgeCandidate] = []
        for offer in eligible_offers(race.exchange.plan.decision, tried=race.trail.tiers):
            name, now = offer.tier, states[offer.tier]
            is_closed = any(pool.breaker_state(site.name) is BreakerState.CLOSED for site in pool.tiers[name].sites)
            if admission.has_room(name) and is_closed:
                fresh = replace(
                    offer, n_in_flight=now.load.n_in_flight, is_healthy=now.is_healthy, unusable=now.unusable
                )
                limit, n_waiting = self.guard.limit_of(name), admission.n_waiting(name)
                found.append(HedgeCandidate(offer=fresh, max_in_flight=limit, n_waiting=n_waiting))
        return found

    def count(self, result: str) -> None:
        """Count how a late first byte went on."""
        self.state.metrics.tally.add((HEDGES.name, result))


class _Race:
    """One request that may be asked for twice.

    Args:
        racer: Whose.
        exchange: The request.
        trail: Who was asked.
    """

    def __init__(self, racer: Racer, exchange: Exchange, trail: Trail) -> None:
        self._racer = racer
        self.exchange = exchange
        self.trail = trail
        self.lanes: list[Lane] = []
        self._winner: Lane | None = None

    def enter(self, lane: Lane) -> None:
        """Let one more attempt run."""
        exchange = self.exchange
        reply = LaneReply(exchange.reply, lambda: self._claim(lane))
        attempt = self._racer.sender.send(Exchange(exchange.plan, lane.record, reply, exchange.ends_s), lane.site)
        self.lanes.append(lane)
        lane.task = asyncio.create_task(attempt)
        if lane.tier not in self.trail.tiers:
            self.trail.enter(lane.tier, lane.site)

    async def is_over_by(self, due_s: float) -> bool:
        """Wait for the first lane until then; return whether it has spoken or failed."""
        task = self.lanes[0].task
        await asyncio.wait((task,), timeout=max(due_s - self._racer.state.clock(), 0.0))
        return task.done() or self._winner is not None

    async def finish(self) -> None:
        """Wait for the end of the lane that serves.

        Raises:
            UpstreamError: None does.
        """
        while running := [lane for lane in self.lanes if not lane.is_settled]:
            await asyncio.wait([lane.task for lane in running], return_when=asyncio.FIRST_COMPLETED)
            for lane in running:
                if lane.task.done():
                    self._settle(lane, n_others=len([each for each in self.lanes if not each.is_settled]) - 1)

    def _settle(self, lane: Lane, *, n_others: int) -> None:
        """Take note of a lane's end; its slot is free at once.

        Raises:
            UpstreamError: It was the last, and nothing was sent.
        """
        lane.is_settled = True
        lane.place.leave()
        failure = None if lane.task.cancelled() else lane.task.exception()
        if failure is None:
            return
        if lane is self._winner or (self._winner is None and not n_others):
            if self.trail.tier != lane.tier:
                self.trail.tiers.remove(lane.tier)
                self.trail.enter(lane.tier, lane.site)
            raise failure
        self._note_failure(lane, failure)

    def _note_failure(self, lane: Lane, failure: BaseException) -> None:
        """Tell breaker and pool of a failure that the other lane makes up for."""
        if not isinstance(failure, UpstreamError):
            logger.error("one of two attempts failed", exc_info=failure, extra={"tier": lane.tier})
            return
        self._racer.guard.judge_failure(lane.site, failure)
        if failure.fault is UpstreamFault.CONNECT:
            self._racer.state.pool.report_lost(lane.site)

    def _claim(self, lane: Lane) -> bool:
        """Let the first that asks have the client's reply, and cancel the other at once."""
        if self._winner is None:
            self._winner = lane
            for other in self.lanes:
                if other is not lane:
                    other.task.cancel()
            if lane is not self.lanes[0]:
                self._racer.on_moved(lane.record)
        return self._winner is lane

    async def close(self) -> None:
        """End what still runs, and let the request's record be that of whoever served, or came last."""
        running = [lane.task for lane in self.lanes if not lane.task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for lane in self.lanes:
            lane.place.leave()
            if lane.record.n_attempts == self.exchange.record.n_attempts:  # cancelled before its first step
                self._racer.state.pool.note_dismissed(lane.site, sent_s=self._racer.state.clock())
            if not lane.is_settled and not lane.task.cancelled() and (failure := lane.task.exception()) is not None:
                self._note_failure(lane, failure)
        self._merge()

    def _merge(self) -> None:
        record, first = self.exchange.record, self.lanes[0].record
        last = next(lane for lane in self.lanes if lane.tier == self.trail.tier)
        served = self._winner or last
        hedged, n_before = record.hedged, record.n_attempts
        record.__dict__.update(served.record.__dict__)
        record.sent_s, record.n_attempts, record.hedged = first.sent_s, n_before + len(self.lanes), hedged
        if len(self.lanes) > 1:
            if self._winner is not None:
                record.hedged = _LOST if self._winner is self.lanes[0] else _WON
            self._racer.count(record.hedged or _FAILED)
