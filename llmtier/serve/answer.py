"""Serve one request for an answer: plan, send on, fail over to an engine of the same tier or the next, and leave a record.

Reads the plan and the pool; writes the answer, the pool's ledger and the record. Where a request goes is
``planner.py``, what one engine is sent ``attempt.py``.
"""

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial

from llmtier.score.cache import ScoreCache
from llmtier.serve.admission import Place, PlaceState
from llmtier.serve.attempt import Exchange, Sender
from llmtier.serve.choose import find_next_tier
from llmtier.serve.correction import Correction
from llmtier.serve.guard import Guard, make_guard, refuse_failed
from llmtier.serve.http_client import UpstreamClient
from llmtier.serve.http_server import HttpRequest, Reply
from llmtier.serve.metrics import DRIFT
from llmtier.serve.planner import RETRY_AFTER_S, Planner
from llmtier.serve.race import Racer
from llmtier.serve.record import FAILOVER, UPGRADE, Record, Recorder, RequestOutcome, begin
from llmtier.serve.refusal import RequestRefusedError, error_event
from llmtier.serve.relay import UpstreamError, UpstreamFault
from llmtier.serve.shed import Shed
from llmtier.serve.signals import SignalReader, make_asker
from llmtier.serve.state import AppState
from llmtier.serve.trail import Trail
from llmtier.serve.wire import Endpoint


class CompletionHandler:
    """Serves the endpoints of one gateway that engines answer.

    Args:
        state: What the gateway is made of.
        clients: Site name to connections to its engine.
        guard: Who may go where; of the handler that this one replaces, for its requests are still there. ``None``
            makes one.
    """

    def __init__(self, state: AppState, clients: Mapping[str, UpstreamClient], guard: Guard | None = None) -> None:
        self._state = state
        for name, tier in state.pool.tiers.items():
            corrections = [state.pool.correction(site.name) for site in tier.sites]
            state.metrics.set_gauge(DRIFT, partial(_find_drift, corrections), name)
        scores = _remember_scores(state)
        state.metrics.score_cache = scores
        policy = state.policy
        self._recorder = Recorder(
            pool=state.pool,
            metrics=state.metrics,
            traffic=state.traffic,
            keeps_text=state.log_text,
            reference=None if policy is None else policy.reference,
            policy_digest=state.policy_digest,
        )
        self.guard = make_guard(state) if guard is None else guard
        scorer = None if scores is None else _read_signals(state, scores, clients)
        self._planner = Planner(
            state, scorer, on_decided=self._recorder.decided, has_room=self.guard.admission.has_room
        )
        self._sender = Sender(state, clients, self._planner, self.guard)
        self._racer = None
        if state.hedge is not None and state.hedge.is_on:
            self._racer = Racer(state, self._sender, self.guard, state.hedge, on_moved=self._recorder.decided)

    def tick(self) -> None:
        """Hand out what only time brings: slots that other processes gave back; once a second."""
        self.guard.tick()

    def drain(self) -> None:
        """Let nobody wait for a slot any more who does not yet."""
        self.guard.admission.drain()

    async def handle(self, endpoint: Endpoint, http: HttpRequest, reply: Reply) -> None:
        """Serve one request and record it, however it ends.

        Raises:
            RequestRefusedError: The answer is an error of the gateway's own, which the caller sends.
        """
        state = self._state
        record = begin(state.new_id(), now=state.now, received_s=http.received_s, headers=http.headers)
        record.body_s = http.complete_s
        reply.headers[b"x-llmtier-request-id"] = record.request_id.encode()
        try:
            plan = await self._planner.plan(endpoint, http, record)
            await self._answer(Exchange(plan, record, reply, http.complete_s + state.deadlines.total_s))
        except RequestRefusedError as refusal:
            record.status, record.retry_after_s = refusal.status, refusal.retry_after_s
            if record.outcome is RequestOutcome.INTERNAL_ERROR:
                record.outcome = RequestOutcome.REFUSED
            raise
        except asyncio.CancelledError:
            _end_cancelled(record, reply)
            raise
        finally:
            self._recorder.finish(record, n_bytes=len(http.body))

    async def _answer(self, exchange: Exchange) -> None:
        self.guard.budget.earn()
        tier = exchange.plan.decision.tier
        trail = Trail()
        while tier is not None:
            self._go_to(exchange, tier, trail)
            entered = self.guard.enter(trail.tier, exchange.record, exchange.limits)
            if isinstance(entered, Shed):
                self._state.pool.note_dismissed(trail.site, sent_s=self._state.clock())
                tier = self._move_on(exchange, trail, entered)
                continue
            try:
                shed = await self._wait_for_turn(exchange, trail, entered)
                if shed is None:
                    tier = await self._try(exchange, trail, entered)
                else:
                    tier = self._move_on(exchange, trail, shed)
            finally:
                entered.leave()

    def _go_to(self, exchange: Exchange, tier: str, trail: Trail) -> None:
        """Note the tier to ask now: another where a breaker is open."""
        try:
            self.guard.pick(exchange.plan, tier, trail)
        except RequestRefusedError:
            exchange.record.outcome = RequestOutcome.UPSTREAM_ERROR
            raise
        if trail.tier != tier:
            self._note_move(exchange.record, trail.tier)

    async def _wait_for_turn(self, exchange: Exchange, trail: Trail, place: Place) -> Shed | None:
        if place.state is PlaceState.RUNNING:
            return None
        record, since_s, has_turn = exchange.record, self._state.clock(), False
        try:
            shed = await place.turn()
            has_turn = shed is None
        finally:
            record.queued_s = (record.queued_s or 0.0) + self._state.clock() - since_s
            if not has_turn:
                self._state.pool.note_dismissed(trail.site, sent_s=since_s)
        if has_turn:
            self.guard.pick_again(exchange.plan, trail, since_s=since_s)
        return shed

    async def _try(self, exchange: Exchange, trail: Trail, place: Place) -> str | None:
        """Ask where ``trail`` ends; return the tier to ask next, ``None`` when the request has been answered."""
        while True:
            try:
                if self._racer is None:
                    await self._sender.send(exchange, trail.site)
                else:
                    await self._racer.send(exchange, trail, place)
            except UpstreamError as failure:
                following = self._fail_over(exchange, trail, failure)
                if following is not None:
                    return following
            else:
                return None

    def _fail_over(self, exchange: Exchange, trail: Trail, failure: UpstreamError) -> str | None:
        """Return the tier to ask next; ``None`` for another engine of this one, to which ``trail`` then leads.

        Raises:
            RequestRefusedError: There is nobody else, this was the second tier, or too many fail already.
        """
        record = exchange.record
        wait_s = self.guard.judge_failure(trail.site, failure)
        record.is_unreachable = failure.fault is UpstreamFault.CONNECT
        if record.is_unreachable:
            self._state.pool.report_lost(trail.site)
        if self.guard.pick_replica(exchange.plan, trail):
            self._state.metrics.count_replica_retry(trail.tier)
            return None
        following = None if trail.has_moved else find_next_tier(exchange.plan.decision, tried=trail.tiers)
        if following is None or not self.guard.budget.take():
            record.outcome = RequestOutcome.UPSTREAM_ERROR
            raise refuse_failed(failure, wait_s=wait_s) from failure
        trail.has_moved = True
        self._note_move(record, following)
        return following

    def _move_on(self, exchange: Exchange, trail: Trail, shed: Shed) -> str:
        """Return the tier to ask in place of one that has no room.

        Raises:
            RequestRefusedError: 429 or 503; there is none.
        """
        record = exchange.record
        following = find_next_tier(exchange.plan.decision, tried=trail.tiers) if shed.may_upgrade else None
        if following is None:
            exchange.reply.headers.update(shed.headers)
            record.outcome = RequestOutcome.SHED
            raise shed.refusal()
        self._note_move(record, following, UPGRADE)
        return following

    def _note_move(self, record: Record, tier: str, reason: str = FAILOVER) -> None:
        record.tier, record.reason, record.propensity = tier, reason, None
        self._recorder.decided(record)


def _end_cancelled(record: Record, reply: Reply) -> None:
    """Say who ended the request: the client, or the gateway's own end."""
    if reply.is_client_gone:
        record.outcome, record.status = RequestOutcome.CLIENT_GONE, 499
        return
    record.outcome = RequestOutcome.ABORTED
    if reply.status is None:
        record.status = 503
        reply.refuse(
            RequestRefusedError(
                "the gateway is shutting down", status=503, code="shutting_down", retry_after_s=RETRY_AFTER_S
            )
        )
    else:
        reply.finish(error_event("the gateway is shutting down", code="shutting_down"))


def _find_drift(corrections: Iterable[Correction]) -> float | None:
    """Return the largest of the tier's ratios of observed to predicted latency; ``None`` while none is known."""
    return max([ratio for each in corrections for ratio in each.drift_ratios().values()], default=None)


def _read_signals(state: AppState, scores: ScoreCache, clients: Mapping[str, UpstreamClient]) -> SignalReader:
    rater = None if state.signals.rater is None else state.pool.tiers[state.signals.rater]
    return SignalReader(
        state.signals,
        scores,
        policy=state.policy,
        ask=None if rater is None else make_asker(clients[rater.name], rater),
        on_failure=lambda signal: state.metrics.signal_failures.labels(signal.value).inc(),
    )


def _remember_scores(state: AppState) -> ScoreCache | None:
    if state.scorer is None:
        return None
    digest = b"" if state.policy is None else bytes.fromhex(state.policy.scorer.sha256)
    return ScoreCache(state.scorer, capacity=state.limits.cached_scores, digest=digest)
