"""Serve one request for an answer: plan, send on, fail over once, and leave a record.

Reads the plan and the pool; writes the answer, the pool's ledger and the record. Where a request goes is
``planner.py``, the bytes are ``relay.py``.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from llmtier.core.decision import Offer
from llmtier.core.requirement import Requirement
from llmtier.engine.wire import Usage
from llmtier.score.cache import ScoreCache
from llmtier.serve.admission import Place, PlaceState
from llmtier.serve.answer_check import Complaint, check_answer, check_vectors, expect
from llmtier.serve.breaker import Failure
from llmtier.serve.choose import find_next_tier
from llmtier.serve.correction import Correction
from llmtier.serve.guard import Guard, make_guard, refuse_failed
from llmtier.serve.http_client import UpstreamAnswer, UpstreamClient
from llmtier.serve.http_server import HttpRequest, Reply
from llmtier.serve.ledger import Flight
from llmtier.serve.metrics import DRIFT
from llmtier.serve.planner import RETRY_AFTER_S, Plan, Planner
from llmtier.serve.record import FAILOVER, Record, Recorder, RequestOutcome, begin
from llmtier.serve.refusal import RequestRefusedError, error_event
from llmtier.serve.relay import Errand, StreamRelay, UpstreamError, UpstreamFault, open_answer
from llmtier.serve.shed import Shed
from llmtier.serve.signals import SignalReader, make_asker
from llmtier.serve.sse_relay import SseRelay, read_finish_reason, read_usage
from llmtier.serve.state import AppState
from llmtier.serve.stream_check import StreamCheck
from llmtier.serve.watch import authorization
from llmtier.serve.wire import Endpoint, WireRequest

NO_LIMITS = Requirement()


_FAILED = {RequestOutcome.INTERRUPTED: Failure.BROKEN, RequestOutcome.WORTHLESS: Failure.ANSWER}


@dataclass(slots=True)
class _Exchange:
    """One request on its way.

    Attributes:
        plan: Decoded, and where it may go.
        record: What is written down of it.
        reply: The client's.
        ends_s: Instant at which it is over.
    """

    plan: Plan
    record: Record
    reply: Reply
    ends_s: float

    @property
    def limits(self) -> Requirement:
        """What it asked for."""
        return NO_LIMITS if self.record.needs is None else self.record.needs.requirement


class CompletionHandler:
    """Serves the endpoints of one gateway that engines answer.

    Args:
        state: What the gateway is made of.
        clients: Tier name to connections to its engine.
        guard: Who may go where; of the handler that this one replaces, for its requests are still there. ``None``
            makes one.
    """

    def __init__(self, state: AppState, clients: Mapping[str, UpstreamClient], guard: Guard | None = None) -> None:
        self._state = state
        self._clients = clients
        self._authorizations = {name: authorization(tier) for name, tier in state.pool.tiers.items()}
        for name in state.pool.tiers:
            state.metrics.set_gauge(DRIFT, partial(_find_drift, state.pool.correction(name)), name)
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
        self._planner = Planner(state, scorer, on_decided=self._recorder.decided)

    def tick(self) -> None:
        """Hand out what only time brings: slots that other processes gave back; once a second."""
        self.guard.admission.tick()

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
            await self._answer(_Exchange(plan, record, reply, http.complete_s + state.deadlines.total_s))
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

    async def _answer(self, exchange: _Exchange) -> None:
        self.guard.budget.earn()
        decision = exchange.plan.decision
        tier = decision.tier
        tried: list[str] = []
        while tier is not None:
            tier = self._go_to(exchange, tier, tried)
            tried.append(tier)
            entered = self.guard.enter(tier, exchange.record, exchange.limits)
            if isinstance(entered, Shed):
                self._state.pool.note_dismissed(tier, sent_s=self._state.clock())
                tier = self._move_on(exchange, tried, entered)
                continue
            try:
                shed = await self._wait_for_turn(exchange.record, entered)
                tier = await self._try(exchange, tried) if shed is None else self._move_on(exchange, tried, shed)
            finally:
                entered.leave()

    def _go_to(self, exchange: _Exchange, tier: str, tried: list[str]) -> str:
        """Return the tier to ask now: another where a breaker is open."""
        plan = exchange.plan
        try:
            picked = self.guard.pick(plan.decision, tier, tried, is_named=plan.is_named)
        except RequestRefusedError:
            exchange.record.outcome = RequestOutcome.UPSTREAM_ERROR
            raise
        if picked != tier:
            self._note_move(exchange.record, picked)
        return picked

    async def _wait_for_turn(self, record: Record, place: Place) -> Shed | None:
        if place.state is PlaceState.RUNNING:
            return None
        since_s = self._state.clock()
        try:
            return await place.turn()
        finally:
            record.queued_s = (record.queued_s or 0.0) + self._state.clock() - since_s

    async def _try(self, exchange: _Exchange, tried: list[str]) -> str | None:
        """Ask the last of ``tried``; return the tier to ask next, ``None`` when the request has been answered."""
        pool, plan, record, tier = self._state.pool, exchange.plan, exchange.record, tried[-1]
        record.n_in_flight = pool.n_in_flight(tier)
        record.n_attempts += 1
        is_stream = plan.request.is_stream
        flight = pool.begin(tier, plan.size, is_stream=is_stream, max_tokens=plan.request.max_tokens)
        try:
            await self._serve(exchange, tier, flight)
        except UpstreamError as failure:
            return self._fail_over(exchange, tried, failure, sent_s=flight.sent_s)
        except BaseException:  # the client or the gateway leaves: it says nothing of the engine
            pool.note_dismissed(tier, sent_s=flight.sent_s)
            raise
        finally:
            pool.end(tier, flight)
        self._judge(exchange, tier, flight)
        return None

    def _judge(self, exchange: _Exchange, tier: str, flight: Flight) -> None:
        """Tell breaker and predictions how an answer ended that was sent to the client."""
        pool, outcome = self._state.pool, exchange.record.outcome
        if outcome is RequestOutcome.OK:
            pool.note_success(tier, sent_s=flight.sent_s)
            self._learn(exchange, tier, flight)
        elif outcome in _FAILED:
            pool.note_failure(tier, _FAILED[outcome], sent_s=flight.sent_s)
        else:
            pool.note_dismissed(tier, sent_s=flight.sent_s)

    def _learn(self, exchange: _Exchange, tier: str, flight: Flight) -> None:
        """Take from an answer in full what the next predictions are made of."""
        record = exchange.record
        self._planner.note_served(exchange.plan, tier)
        if exchange.plan.request.n > 1:  # its tokens are those of several answers side by side
            return
        flight.learn(record.usage)
        offer = record.offer
        if offer is not None and record.last_s is not None:
            sent_s = flight.sent_s
            self._state.pool.correction(tier).learn(
                offer,
                now_s=record.last_s,
                ttft_s=None if record.first_s is None else record.first_s - sent_s,
                e2el_s=record.last_s - sent_s,
                n_output_tokens=record.usage.completion_tokens,
            )

    async def _serve(self, exchange: _Exchange, tier_name: str, flight: Flight) -> None:
        record, state = exchange.record, self._state
        errand = self._make_errand(exchange, tier_name)
        record.sent_s = record.sent_s or state.clock()
        answer, body = await open_answer(errand, clock=state.clock)
        record.status = answer.status
        _announce(exchange.reply, record)
        if body is None:
            await self._relay_events(exchange, errand, answer, flight)
        else:
            self._relay_whole(exchange, answer, body)

    def _make_errand(self, exchange: _Exchange, tier_name: str) -> Errand:
        state = self._state
        request = exchange.plan.request
        request_id = b"x-request-id: " + exchange.record.request_id.encode() + b"\r\n"
        return Errand(
            tier=tier_name,
            client=self._clients[tier_name],
            path=request.endpoint.value,
            headers=self._authorizations[tier_name] + request_id,
            body=request.forwarded(state.pool.tiers[tier_name].model_name),
            is_stream=request.is_stream,
            ends_s=exchange.ends_s,
            first_s=state.clock() + state.deadlines.first_byte_s,
            stall_s=state.deadlines.stall_s,
            check=_make_check(request),
        )

    def _relay_whole(self, exchange: _Exchange, answer: UpstreamAnswer, body: bytes) -> None:
        record = exchange.record
        is_ok = answer.status < 400
        if is_ok:
            record.last_s = self._state.clock()
            is_responses = exchange.plan.request.endpoint is Endpoint.RESPONSES
            record.usage = read_usage(body, is_responses=is_responses) or Usage()
            record.finish_reason = read_finish_reason(body)
        retry = [(b"retry-after", answer.retry_after)] if answer.retry_after else []
        record.outcome = RequestOutcome.OK if is_ok else RequestOutcome.ENGINE_REFUSED
        exchange.reply.send_whole(
            answer.status, body, content_type=answer.content_type or b"application/json", headers=retry
        )

    async def _relay_events(self, exchange: _Exchange, errand: Errand, answer: UpstreamAnswer, flight: Flight) -> None:
        record, state, request = exchange.record, self._state, exchange.plan.request
        events = SseRelay(strips_usage=not request.wants_usage, is_responses=request.endpoint is Endpoint.RESPONSES)
        check = StreamCheck(expect(request.endpoint, request.fields))

        def note(now_s: float, whole: bytes) -> None:
            record.last_s = now_s
            if whole:
                check.feed(whole)
            if events.has_content:
                flight.note_piece(now_s)
                record.n_pieces += 1
                if record.first_s is None:
                    record.first_s = now_s
                    state.pool.note_answering(errand.tier, sent_s=flight.sent_s)

        relay = StreamRelay(errand, answer, exchange.reply, events, on_piece=note, clock=state.clock)
        try:
            broken = await relay.run()
            record.outcome = RequestOutcome.OK if broken is None else RequestOutcome.INTERRUPTED
        finally:
            record.usage = events.usage or Usage()
            record.finish_reason = events.finish_reason
        if broken is None:  # a run of one token is counted, not cut off: somebody may have asked for it
            check.finish(record.usage.completion_tokens)
            if check.complaint is not None:
                record.outcome = RequestOutcome.WORTHLESS

    def _fail_over(self, exchange: _Exchange, tried: list[str], failure: UpstreamError, *, sent_s: float) -> str | None:
        """Return the tier to ask next.

        Raises:
            RequestRefusedError: It was the second one that failed, there is no other, or too many fail already.
        """
        record = exchange.record
        wait_s = self.guard.judge_failure(tried[-1], failure, sent_s=sent_s)
        record.is_unreachable = failure.fault is UpstreamFault.CONNECT
        if record.is_unreachable:
            self._state.pool.report_lost(tried[-1])
        following = None
        if record.n_attempts == 1:
            following = find_next_tier(exchange.plan.decision, tried=tried)
        if following is None or not self.guard.budget.take():
            record.outcome = RequestOutcome.UPSTREAM_ERROR
            raise refuse_failed(failure, wait_s=wait_s) from failure
        self._note_move(record, following)
        return following

    def _move_on(self, exchange: _Exchange, tried: list[str], shed: Shed) -> str:
        """Return the tier to ask in place of one that has no room.

        Raises:
            RequestRefusedError: 429 or 503; there is none.
        """
        record = exchange.record
        following = find_next_tier(exchange.plan.decision, tried=tried) if shed.may_upgrade else None
        if following is None:
            exchange.reply.headers.update(shed.headers)
            record.outcome = RequestOutcome.SHED
            raise shed.refusal()
        self._note_move(record, following)
        return following

    def _note_move(self, record: Record, tier: str) -> None:
        record.tier, record.reason, record.propensity = tier, FAILOVER, None
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


def _find_drift(correction: Correction) -> float | None:
    """Return the larger of the tier's ratios of observed to predicted latency; ``None`` while none is known."""
    return max(correction.drift_ratios().values(), default=None)


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


def _make_check(request: WireRequest) -> Callable[[bytes], Complaint | None]:
    """Return what finds an answer worthless that its engine calls a success."""
    if request.endpoint is Endpoint.EMBEDDINGS:
        return check_vectors
    return partial(check_answer, expected=expect(request.endpoint, request.fields))


def _announce(reply: Reply, record: Record) -> None:
    reply.headers[b"x-llmtier-tier"] = (record.tier or "").encode()
    reply.headers[b"x-llmtier-reason"] = (record.reason or "").encode()
    if record.rule is not None:
        reply.headers[b"x-llmtier-rule"] = record.rule.encode()
    if record.offer is not None:
        reply.headers.update(_predictions(record.offer))


def _predictions(offer: Offer) -> dict[bytes, bytes]:
    known = {b"x-llmtier-predicted-ttft-ms": offer.ttft_s, b"x-llmtier-predicted-e2el-ms": offer.e2el_s}
    return {name: b"%.1f" % (value * 1000.0) for name, value in known.items() if value is not None}
