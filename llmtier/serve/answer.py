"""Serve one completion request: decode, decide, send on, fail over once, and leave a record.

Reads the client's bytes and the pool; writes the answer, the pool's ledger and the record. The
decision itself is ``choose.py``, the bytes are ``relay.py``.
"""

import asyncio
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import aiohttp

from llmtier.core.decision import Decision, MissReason, Offer
from llmtier.core.prompt import Prompt
from llmtier.core.rule import Rule
from llmtier.engine.wire import Usage
from llmtier.score.cache import ScoreCache
from llmtier.serve.asgi import Headers, Receive, Reply, read_body, run_until_gone
from llmtier.serve.choose import AUTO_ALIASES, Choice, Question, choose, find_next_tier
from llmtier.serve.ledger import Flight, PromptSize
from llmtier.serve.needs import read_needs
from llmtier.serve.record import FAILOVER, Record, Recorder, RequestOutcome, begin
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.relay import (
    Upstream,
    UpstreamError,
    UpstreamFault,
    UpstreamRequest,
    open_upstream,
    relay_events,
    relay_whole,
)
from llmtier.serve.rules import find_rule
from llmtier.serve.signals import SignalReader, make_asker
from llmtier.serve.sse_relay import SseRelay, read_usage
from llmtier.serve.state import AppState
from llmtier.serve.wire import Endpoint, WireRequest, decode_request

RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A decoded request and where it may go; ``tier`` serves first."""

    request: WireRequest
    size: PromptSize
    decision: Decision
    tier: str
    upstream: UpstreamRequest


class CompletionHandler:
    """Serves the completion endpoints of one gateway.

    Args:
        state: What the gateway is made of.
        session: Connections to the engines.
    """

    def __init__(self, state: AppState, session: aiohttp.ClientSession) -> None:
        self._state = state
        self._session = session
        scores = _remember_scores(state)
        state.metrics.score_cache = scores
        self._scorer = None if scores is None else _read_signals(state, scores, session)
        self._recorder = Recorder(
            pool=state.pool, metrics=state.metrics, traffic=state.traffic, keeps_text=state.log_text
        )

    async def handle(self, endpoint: Endpoint, headers: Headers, receive: Receive, reply: Reply) -> None:
        """Serve one request and record it, however it ends.

        Raises:
            RequestRefusedError: The answer is an error of the gateway's own, which the caller sends.
        """
        state = self._state
        record = begin(state.new_id(), now=state.now, clock=state.clock, headers=headers)
        reply.headers[b"x-llmtier-request-id"] = record.request_id.encode()
        try:
            limits = state.limits
            body = await read_body(receive, headers, limit_bytes=limits.body_bytes, timeout_s=limits.body_s)
            record.body_s = state.clock()
            is_done = body is not None and await run_until_gone(
                self._answer(record, decode_request(endpoint, body), headers, reply), receive
            )
            if not is_done and record.outcome is RequestOutcome.INTERNAL_ERROR:
                record.outcome, record.status = RequestOutcome.CLIENT_GONE, 499
        except RequestRefusedError as refusal:
            record.status = refusal.status
            if record.outcome is RequestOutcome.INTERNAL_ERROR:
                record.outcome = RequestOutcome.REFUSED
            raise
        except asyncio.CancelledError:
            record.outcome = RequestOutcome.ABORTED
            raise
        finally:
            self._recorder.finish(record)

    async def _answer(self, record: Record, request: WireRequest, headers: Headers, reply: Reply) -> None:
        plan = await self._plan(record, request, headers)
        tier: str | None = plan.tier
        tried: list[str] = []
        while tier is not None:
            tried.append(tier)
            record.n_in_flight = self._state.pool.n_in_flight(tier)
            try:
                with self._state.pool.serving(tier, plan.size, is_stream=request.is_stream) as flight:
                    await self._serve(record, plan, tier, reply, flight)
                if record.outcome is RequestOutcome.OK:
                    flight.learn(record.usage)
                tier = None
            except UpstreamError as failure:
                tier = self._fail_over(record, plan.decision, tried, failure)

    async def _plan(self, record: Record, request: WireRequest, headers: Headers) -> _Plan:
        state = self._state
        record.request = request
        record.needs = read_needs(headers, defaults=state.defaults, context_tokens=request.context_tokens)
        size = _size_of(request)
        prompt = request.to_prompt(record.request_id, domain=record.needs.domain)
        rules = state.rules if request.model in AUTO_ALIASES else None
        rule = find_rule(rules, prompt, domain=record.needs.domain, headers=headers)
        question = Question(
            model=request.model,
            needs=record.needs,
            probabilities=await self._score(prompt, rule),
            max_tokens=request.max_tokens,
            size=size,
            rule=rule,
        )
        choice = choose(question, state.pool.states(), policy=state.policy, default_tier=state.default_tier)
        record.choice = choice
        record.tier, record.reason = choice.decision.tier, choice.decision.reason.value
        self._recorder.decided(record)
        if choice.decision.tier is None:
            record.outcome = RequestOutcome.REJECTED
            raise _reject(choice)
        ends_s = asyncio.get_running_loop().time() + state.deadlines.total_s
        upstream = UpstreamRequest(
            path=request.endpoint.value, request_id=record.request_id, is_stream=request.is_stream, ends_s=ends_s
        )
        return _Plan(request=request, size=size, decision=choice.decision, tier=choice.decision.tier, upstream=upstream)

    async def _score(self, prompt: Prompt | None, rule: Rule | None) -> Mapping[str, float]:
        """Return P(correct) by tier; nothing where a rule has settled the tier already."""
        if self._scorer is None or prompt is None or (rule is not None and rule.pin is not None):
            return {}
        return await self._scorer.probabilities(prompt)

    async def _serve(self, record: Record, plan: _Plan, tier_name: str, reply: Reply, flight: Flight) -> None:
        state = self._state
        tier = state.pool.tiers[tier_name]
        body = plan.request.forwarded(tier.model_name)
        record.sent_s = record.sent_s or state.clock()
        upstream = await open_upstream(self._session, tier, plan.upstream, body, state.deadlines)
        with closing(upstream):
            record.status = upstream.status
            _announce(reply, record)
            if upstream.is_events:
                await self._relay_events(record, plan, upstream, reply, flight)
            else:
                await self._relay_whole(record, upstream, reply)

    async def _relay_whole(self, record: Record, upstream: Upstream, reply: Reply) -> None:
        is_ok = upstream.status < 400
        if is_ok:
            record.last_s = self._state.clock()
            record.usage = read_usage(upstream.first) or Usage()
        await relay_whole(upstream, reply)
        record.outcome = RequestOutcome.OK if is_ok else RequestOutcome.ENGINE_REFUSED

    async def _relay_events(
        self, record: Record, plan: _Plan, upstream: Upstream, reply: Reply, flight: Flight
    ) -> None:
        clock = self._state.clock
        events = SseRelay(strips_usage=not plan.request.wants_usage)

        def note_instant() -> None:
            record.last_s = now_s = clock()
            if events.has_content:
                flight.note_piece(now_s)
                if record.first_s is None:
                    record.first_s = now_s

        try:
            broken = await relay_events(upstream, reply, events, ends_s=plan.upstream.ends_s, on_piece=note_instant)
            record.outcome = RequestOutcome.OK if broken is None else RequestOutcome.INTERRUPTED
        finally:
            record.usage = events.usage or Usage()

    def _fail_over(self, record: Record, decision: Decision, tried: list[str], failure: UpstreamError) -> str | None:
        """Return the tier to try next.

        Raises:
            RequestRefusedError: 502 or 504; this was the second tier, or there is no other.
        """
        if failure.fault is UpstreamFault.CONNECT:
            self._state.pool.mark_dead(tried[-1])
        following = find_next_tier(decision, tried=tried) if len(tried) == 1 else None
        if following is None:
            record.outcome = RequestOutcome.UPSTREAM_ERROR
            is_late = failure.fault is UpstreamFault.TIMEOUT
            code = "upstream_timeout" if is_late else "upstream_error"
            raise RequestRefusedError(str(failure), status=504 if is_late else 502, code=code) from failure
        record.tier, record.reason = following, FAILOVER
        self._recorder.decided(record)
        return following


def _read_signals(state: AppState, scores: ScoreCache, session: aiohttp.ClientSession) -> SignalReader:
    rater = None if state.signals.rater is None else state.pool.tiers[state.signals.rater]
    return SignalReader(
        state.signals,
        scores,
        policy=state.policy,
        ask=None if rater is None else make_asker(session, rater),
        on_failure=lambda signal: state.metrics.signal_failures.labels(signal.value).inc(),
    )


def _remember_scores(state: AppState) -> ScoreCache | None:
    if state.scorer is None:
        return None
    digest = b"" if state.policy is None else bytes.fromhex(state.policy.scorer.sha256)
    return ScoreCache(state.scorer, capacity=state.limits.cached_scores, digest=digest)


def _size_of(request: WireRequest) -> PromptSize:
    if not request.messages:
        return PromptSize(n_tokens=request.n_prompt_tokens)
    return PromptSize(n_characters=sum(len(message.content) for message in request.messages))


def _reject(choice: Choice) -> RequestRefusedError:
    decision = choice.decision
    misses = "; ".join(miss.describe() for miss in decision.misses)
    too_long = {miss.tier for miss in decision.misses if miss.reason is MissReason.CONTEXT}
    if decision.offers and too_long == {offer.tier for offer in decision.offers}:
        message = f"prompt and max_tokens exceed every tier's context: {misses}"
        return RequestRefusedError(message, code="context_length_exceeded", param="messages")
    message = f"no tier meets the need: {misses}"
    return RequestRefusedError(message, status=503, code="no_feasible_tier", retry_after_s=RETRY_AFTER_S)


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
