"""Serve one request for an answer: plan, send on, fail over once, and leave a record.

Reads the plan and the pool; writes the answer, the pool's ledger and the record. Where a request goes is
``planner.py``, the bytes are ``relay.py``.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from llmtier.core.decision import Decision, Offer
from llmtier.engine.wire import Usage
from llmtier.score.cache import ScoreCache
from llmtier.serve.choose import find_next_tier
from llmtier.serve.correction import Correction
from llmtier.serve.http_client import UpstreamAnswer, UpstreamClient
from llmtier.serve.http_server import HttpRequest, Reply
from llmtier.serve.ledger import Flight
from llmtier.serve.metrics import DRIFT
from llmtier.serve.planner import RETRY_AFTER_S, Plan, Planner
from llmtier.serve.record import FAILOVER, Record, Recorder, RequestOutcome, begin
from llmtier.serve.refusal import RequestRefusedError, error_event
from llmtier.serve.relay import Errand, StreamRelay, UpstreamError, UpstreamFault, open_answer
from llmtier.serve.signals import SignalReader, make_asker
from llmtier.serve.sse_relay import SseRelay, read_finish_reason, read_usage
from llmtier.serve.state import AppState
from llmtier.serve.watch import authorization
from llmtier.serve.wire import Endpoint


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


class CompletionHandler:
    """Serves the endpoints of one gateway that engines answer.

    Args:
        state: What the gateway is made of.
        clients: Tier name to connections to its engine.
    """

    def __init__(self, state: AppState, clients: Mapping[str, UpstreamClient]) -> None:
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
        scorer = None if scores is None else _read_signals(state, scores, clients)
        self._planner = Planner(state, scorer, on_decided=self._recorder.decided)

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
            await self._answer(_Exchange(plan, record, reply, state.clock() + state.deadlines.total_s))
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
        pool, plan, record = self._state.pool, exchange.plan, exchange.record
        request = plan.request
        tier = plan.decision.tier
        tried: list[str] = []
        while tier is not None:
            tried.append(tier)
            record.n_in_flight = pool.n_in_flight(tier)
            record.n_attempts += 1
            flight = pool.begin(tier, plan.size, is_stream=request.is_stream, max_tokens=request.max_tokens)
            try:
                await self._serve(exchange, tier, flight)
                if record.outcome is RequestOutcome.OK:
                    self._learn(exchange, tier, flight)
                tier = None
            except UpstreamError as failure:
                tier = self._fail_over(record, plan.decision, tried, failure)
            finally:
                pool.end(tried[-1], flight)

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
        record, state = exchange.record, self._state
        request = exchange.plan.request
        events = SseRelay(strips_usage=not request.wants_usage, is_responses=request.endpoint is Endpoint.RESPONSES)

        def note(now_s: float) -> None:
            record.last_s = now_s
            if events.has_content:
                flight.note_piece(now_s)
                record.n_pieces += 1
                if record.first_s is None:
                    record.first_s = now_s

        relay = StreamRelay(
            errand,
            answer,
            exchange.reply,
            events,
            on_piece=note,
            clock=state.clock,
        )
        try:
            broken = await relay.run()
            record.outcome = RequestOutcome.OK if broken is None else RequestOutcome.INTERRUPTED
        finally:
            record.usage = events.usage or Usage()
            record.finish_reason = events.finish_reason

    def _fail_over(self, record: Record, decision: Decision, tried: list[str], failure: UpstreamError) -> str | None:
        """Return the tier to try next.

        Raises:
            RequestRefusedError: 502 or 504; this was the second tier, or there is no other.
        """
        record.is_unreachable = failure.fault is UpstreamFault.CONNECT
        if record.is_unreachable:
            self._state.pool.report_lost(tried[-1])
        following = find_next_tier(decision, tried=tried) if len(tried) == 1 else None
        if following is None:
            record.outcome = RequestOutcome.UPSTREAM_ERROR
            is_late = failure.fault is UpstreamFault.TIMEOUT
            code = "upstream_timeout" if is_late else "upstream_error"
            raise RequestRefusedError(str(failure), status=504 if is_late else 502, code=code) from failure
        record.tier, record.reason, record.propensity = following, FAILOVER, None
        self._recorder.decided(record)
        return following


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
