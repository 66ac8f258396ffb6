"""One request sent to one engine, and its answer carried to the client.

Reads the plan; writes the answer, the ledger of the tier and the record, and tells breaker and predictions how it went.
Which tier is asked, and which after it, is ``answer.py``; the bytes are ``relay.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from llmtier.core.decision import Offer
from llmtier.core.requirement import Requirement
from llmtier.engine.wire import Usage
from llmtier.serve.answer_check import Complaint, check_answer, check_vectors, expect
from llmtier.serve.breaker import Failure
from llmtier.serve.guard import Guard
from llmtier.serve.http_client import UpstreamAnswer, UpstreamClient
from llmtier.serve.http_server import Reply
from llmtier.serve.ledger import Flight
from llmtier.serve.planner import Plan, Planner
from llmtier.serve.record import Record, RequestOutcome
from llmtier.serve.relay import Errand, StreamRelay, UpstreamError, open_answer
from llmtier.serve.resume_relay import KeptRelay
from llmtier.serve.resumer import Cut, Resumer
from llmtier.serve.sse_relay import SseRelay, read_finish_reason, read_usage
from llmtier.serve.state import AppState
from llmtier.serve.stream_check import StreamCheck
from llmtier.serve.watch import authorization
from llmtier.serve.wire import Endpoint, WireRequest

_NO_LIMITS = Requirement()
_FAILED = {RequestOutcome.INTERRUPTED: Failure.BROKEN, RequestOutcome.WORTHLESS: Failure.ANSWER}


@dataclass(slots=True)
class Exchange:
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
        return _NO_LIMITS if self.record.needs is None else self.record.needs.requirement


class Sender:
    """Sends requests to engines.

    Args:
        state: What the gateway is made of.
        clients: Site name to connections to its engine.
        planner: Told of what was served.
        guard: Whose budget of second tries broken streams are carried on from.
    """

    def __init__(self, state: AppState, clients: Mapping[str, UpstreamClient], planner: Planner, guard: Guard) -> None:
        self._state = state
        self._clients = clients
        self._planner = planner
        self._resumer = None if state.resume is None else Resumer(state, clients, guard, state.resume)
        self._authorizations = {name: authorization(site) for name, site in state.pool.sites.items()}

    async def send(self, exchange: Exchange, site: str) -> None:
        """Ask one engine, of a tier whose slot is held; return when the client has its answer.

        Raises:
            UpstreamError: It failed and nothing was sent to the client; the breaker has not been told.
        """
        pool, plan, record = self._state.pool, exchange.plan, exchange.record
        record.n_in_flight = pool.n_on_site(site)
        record.replica = pool.sites[site].replica
        record.n_attempts += 1
        is_stream = plan.request.is_stream
        flight = pool.begin(site, plan.size, is_stream=is_stream, max_tokens=plan.request.max_tokens)
        try:
            await self._serve(exchange, site, flight)
        except UpstreamError as failure:
            failure.sent_s = flight.sent_s
            raise
        except BaseException:  # the client or the gateway leaves: it says nothing of the engine
            pool.note_dismissed(site, sent_s=flight.sent_s)
            raise
        finally:
            pool.end(site, flight)
        if not exchange.record.is_judged:
            self._judge(exchange, site, flight)

    def _judge(self, exchange: Exchange, site: str, flight: Flight) -> None:
        """Tell breaker and predictions how an answer ended that was sent to the client."""
        pool, outcome = self._state.pool, exchange.record.outcome
        if outcome is RequestOutcome.OK:
            pool.note_success(site, sent_s=flight.sent_s)
            self._learn(exchange, site, flight)
        elif outcome in _FAILED:
            pool.note_failure(site, _FAILED[outcome], sent_s=flight.sent_s)
        else:
            pool.note_dismissed(site, sent_s=flight.sent_s)

    def _learn(self, exchange: Exchange, site: str, flight: Flight) -> None:
        """Take from an answer in full what the next predictions are made of."""
        record = exchange.record
        self._planner.note_served(exchange.plan, self._state.pool.sites[site].tier)
        if exchange.plan.request.n > 1:  # its tokens are those of several answers side by side
            return
        flight.learn(record.usage)
        offer = record.offer
        if offer is not None and record.last_s is not None:
            sent_s = flight.sent_s
            self._state.pool.correction(site).learn(
                offer,
                now_s=record.last_s,
                ttft_s=None if record.first_s is None else record.first_s - sent_s,
                e2el_s=record.last_s - sent_s,
                n_output_tokens=record.usage.completion_tokens,
            )

    async def _serve(self, exchange: Exchange, site: str, flight: Flight) -> None:
        record, state = exchange.record, self._state
        errand = self._make_errand(exchange, site)
        record.sent_s = record.sent_s or state.clock()
        answer, body = await open_answer(errand, clock=state.clock)
        record.status = answer.status
        _announce(exchange.reply, record)
        if body is None:
            await self._relay_events(exchange, errand, answer, flight)
        else:
            self._relay_whole(exchange, answer, body)

    def _make_errand(self, exchange: Exchange, site: str) -> Errand:
        state = self._state
        request = exchange.plan.request
        if self._resumer is not None and request.is_stream:
            self._resumer.prepare(request, site)
        request_id = b"x-request-id: " + exchange.record.request_id.encode() + b"\r\n"
        return Errand(
            tier=site,
            client=self._clients[site],
            path=request.endpoint.value,
            headers=self._authorizations[site] + request_id,
            body=request.forwarded(state.pool.sites[site].model_name),
            is_stream=request.is_stream,
            ends_s=exchange.ends_s,
            first_s=state.clock() + state.deadlines.first_byte_s,
            stall_s=state.deadlines.stall_s,
            check=_make_check(request),
        )

    def _relay_whole(self, exchange: Exchange, answer: UpstreamAnswer, body: bytes) -> None:
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

    async def _relay_events(self, exchange: Exchange, errand: Errand, answer: UpstreamAnswer, flight: Flight) -> None:
        record, state, request = exchange.record, self._state, exchange.plan.request
        events = self._make_events(request)
        check = StreamCheck(expect(request.endpoint, request.fields))

        def note(now_s: float) -> None:
            record.last_s = now_s
            if events.has_content:
                flight.note_piece(now_s)
                record.n_pieces += 1
                if record.first_s is None:
                    record.first_s = now_s
                    state.pool.note_answering(errand.tier, sent_s=flight.sent_s)

        relay = StreamRelay(errand, answer, exchange.reply, events, check, on_piece=note, clock=state.clock)
        relay.leaves_open = isinstance(events, KeptRelay)
        try:
            broken = await relay.run()
            if broken is not None and isinstance(events, KeptRelay):
                events, broken = await self._carry_on(_make_cut(exchange, relay, events, check, why=broken), flight)
            record.outcome = RequestOutcome.OK if broken is None else RequestOutcome.INTERRUPTED
            if check.is_worthless and events.is_done:
                record.outcome = RequestOutcome.WORTHLESS
        finally:
            record.usage = events.usage or Usage()
            record.finish_reason = events.finish_reason

    def _make_events(self, request: WireRequest) -> SseRelay:
        """Return the state of a stream's bytes: with a memory where it may be carried on."""
        kept = None if self._resumer is None else self._resumer.keep(request)
        is_responses = request.endpoint is Endpoint.RESPONSES
        return kept or SseRelay(strips_usage=not request.wants_usage, is_responses=is_responses)

    async def _carry_on(self, cut: Cut, flight: Flight) -> tuple[SseRelay, str | None]:
        """Bring a stream that broke to its end; return through what it went last, and why it is broken all the same."""
        if self._resumer is None or cut.reply.is_finished:
            return cut.sent, cut.why
        cut.record.is_judged = True
        self._state.pool.note_failure(cut.broken.errand.tier, Failure.BROKEN, sent_s=flight.sent_s)
        is_whole = await self._resumer.carry_on(cut)
        return (cut.rest or cut.sent, None) if is_whole else (cut.sent, cut.why)


def _make_cut(exchange: Exchange, relay: StreamRelay, kept: KeptRelay, check: StreamCheck, *, why: str) -> Cut:
    return Cut(
        request=exchange.plan.request,
        record=exchange.record,
        reply=exchange.reply,
        size=exchange.plan.size,
        sent=kept,
        broken=relay,
        why=why,
        check=check,
    )


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
