"""Carry a stream on that broke after its first byte: on another engine of its tier or checkpoint, or on its own again.

Reads what the client was sent; asks one engine, once; writes the rest of the answer, or the error event that ends a
stream today. How a stream goes on is ``resume.py``'s to say, whether the new text fits ``resume_splice.py``'s. On any
doubt the stream stays broken.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

from llmtier.core.requirement import Requirement
from llmtier.serve.admission import Place, PlaceState
from llmtier.serve.breaker import Failure
from llmtier.serve.guard import Guard
from llmtier.serve.http_client import UpstreamClient
from llmtier.serve.http_server import Reply
from llmtier.serve.ledger import PromptSize
from llmtier.serve.pool import ServedTier
from llmtier.serve.record import Record
from llmtier.serve.relay import Errand, StreamRelay, UpstreamError, UpstreamFault, open_answer
from llmtier.serve.resume import Closing, Refusal, ResumeAsk, ResumeMode, ResumePlan, find_refusal, plan
from llmtier.serve.resume_log import RefusalReason
from llmtier.serve.resume_relay import KeptRelay, SplicedRelay
from llmtier.serve.sse_relay import SseRelay
from llmtier.serve.state import AppState
from llmtier.serve.stream_check import StreamCheck
from llmtier.serve.watch import authorization
from llmtier.serve.wire import Endpoint, WireRequest

RETRY_S = 0.5
"""Time between two tries to connect to an engine that is starting."""

IDS_FIELD = "return_token_ids"
_TRUE = msgspec.Raw(b"true")
_NO_LIMITS = Requirement()
CLOSED = "closed"
"""In place of a recipe: the answer was whole but for its end."""

_ENDPOINTS = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})


class Failing(StrEnum):
    """Why a stream that might go on did not; a label of the metric."""

    BUDGET = "budget"  # too many second tries
    NO_ENGINE = "no_engine"  # none that would give the same answer could be reached in time
    ENGINE = "engine"  # the one that was asked did not begin to answer
    BROKEN = "broken"  # it broke as well
    DIFFERS = "differs"  # what it sent is not the rest of what was sent before


@dataclass(frozen=True, slots=True)
class _Visit:
    """An engine was asked; ``failing`` is what went wrong, ``None`` when nothing did."""

    failing: Failing | None


@dataclass(slots=True, kw_only=True)
class Cut:
    """One stream that broke, its client still there.

    Attributes:
        request: The client's.
        record: What is written down of it.
        reply: The client's, begun.
        size: Of the prompt, for the ledger.
        sent: What the client has.
        broken: The relay that broke; it knows what the first engine was sent, and can tell the client.
        why: What happened.
        check: Whether the answer is worth anything.
        rest: Through which the stream ended well; ``None`` until it has.
    """

    request: WireRequest
    record: Record
    reply: Reply
    size: PromptSize
    sent: KeptRelay
    broken: StreamRelay
    why: str
    check: StreamCheck
    rest: SseRelay | None = None


class Resumer:
    """Carries broken streams on.

    Args:
        state: What the gateway is made of.
        clients: Site name to connections to its engine.
        guard: Whose budget of second tries this takes from.
        mode: How much certainty is asked for.
    """

    def __init__(self, state: AppState, clients: Mapping[str, UpstreamClient], guard: Guard, mode: ResumeMode) -> None:
        self._state = state
        self._clients = clients
        self._guard = guard
        self._mode = mode

    def prepare(self, request: WireRequest, site: str) -> None:
        """Have the engine tell token ids where a broken stream could be carried on by them."""
        if self._mode is not ResumeMode.IDS:
            return
        origin = self._tier_of(site).origin
        if origin is not None and origin.is_vllm and find_refusal(self._ask(request, site)) is None:
            request.add(IDS_FIELD, _TRUE)
        else:
            request.take_back(IDS_FIELD)

    def keep(self, request: WireRequest) -> KeptRelay | None:
        """Return what relays the first stream; ``None`` where it is not carried on, whatever happens."""
        if request.endpoint not in _ENDPOINTS:
            return None
        return KeptRelay(strips_usage=not request.wants_usage, strips_ids=self._strips_ids(request))

    async def carry_on(self, cut: Cut) -> bool:
        """Bring the stream to its end, or tell the client that it broke; return whether its end is a good one."""
        metrics = self._state.metrics
        planned = plan(self._ask(cut.request, cut.broken.errand.tier), cut.sent.log)
        if isinstance(planned, Closing):
            cut.record.resumed = CLOSED
            _close(cut, planned)
            metrics.count_resume("done", CLOSED)
            return True
        if isinstance(planned, ResumePlan) and not self._is_exact_enough(cut, planned):
            planned = Refusal(reason=RefusalReason.INEXACT)
        if isinstance(planned, Refusal):
            metrics.count_resume("refused", planned.reason.value)
            _tell(cut)
            return False
        failing = await self._go_on(cut, planned)
        if failing is None:
            cut.record.resumed = planned.recipe.value
            metrics.count_resume("done", planned.recipe.value)
            return True
        metrics.count_resume("failed", failing.value)
        if not cut.reply.is_finished:
            _tell(cut)
        return False

    def _tier_of(self, site: str) -> ServedTier:
        pool = self._state.pool
        return pool.tiers[pool.sites[site].tier]

    def _ask(self, request: WireRequest, site: str) -> ResumeAsk:
        profile = self._tier_of(site).profile
        return ResumeAsk(
            endpoint=request.endpoint,
            fields=request.fields,
            max_tokens=request.max_tokens,
            wants_usage=request.wants_usage,
            context_tokens=None if profile is None else profile.context_tokens,
        )

    def _strips_ids(self, request: WireRequest) -> bool:
        return self._mode is ResumeMode.IDS and IDS_FIELD not in request.fields

    def _is_exact_enough(self, cut: Cut, planned: ResumePlan) -> bool:
        """Tell whether the recipe will do; an unknown engine may take no notice of text that it is to go on from."""
        if planned.is_exact:
            return True
        origin = self._tier_of(cut.broken.errand.tier).origin
        if origin is None or self._mode is not ResumeMode.TEXT:
            return False
        return origin.engine_kind != "openai" or origin.is_vllm

    async def _go_on(self, cut: Cut, planned: ResumePlan) -> Failing | None:
        """Ask the first engine that can be reached; return what went wrong, ``None`` for nothing."""
        if not self._guard.budget.take():
            return Failing.BUDGET
        try:
            async with asyncio.timeout(max(cut.broken.errand.ends_s - self._state.clock(), 0.0)):
                await cut.reply.drain()  # a slow client is waited for before an engine is
        except TimeoutError:
            return Failing.NO_ENGINE
        return await self._find_engine(cut, planned)

    async def _find_engine(self, cut: Cut, planned: ResumePlan) -> Failing | None:
        pool, own = self._state.pool, cut.broken.errand.tier
        while self._state.clock() < cut.broken.errand.ends_s:
            for site in self._find_others(own):
                if pool.may_try(site) and (done := await self._visit_other(cut, planned, site)):
                    return done.failing
            if cut.broken.is_late:  # it still accepts connections and does nothing
                break
            if done := await self._visit(cut, planned, own):
                return done.failing
            await asyncio.sleep(RETRY_S)
        return Failing.NO_ENGINE

    def _find_others(self, own: str) -> list[str]:
        """Return the other sites that answer as this one does and seem to work, those of its own tier first."""
        pool = self._state.pool
        tier = self._tier_of(own)
        found = [site.name for site in tier.sites if site.name != own]
        for other in pool.tiers.values():
            if other is not tier and tier.origin and other.origin and other.origin.can_continue(tier.origin):
                found += [site.name for site in other.sites]
        return [site for site in found if pool.board.is_alive(site)]

    async def _visit_other(self, cut: Cut, planned: ResumePlan, site: str) -> _Visit | None:
        """Ask another engine: one of this tier in the slot that the request has there, else if one is free at once."""
        tier = self._tier_of(site)
        if tier is self._tier_of(cut.broken.errand.tier):
            return await self._visit_counted(cut, planned, site)
        place = self._guard.enter(tier.name, cut.record, _NO_LIMITS)
        try:
            if isinstance(place, Place) and place.state is PlaceState.RUNNING:
                return await self._visit_counted(cut, planned, site)
            self._state.pool.note_dismissed(site, sent_s=self._state.clock())
            return None
        finally:
            if isinstance(place, Place):
                place.leave()

    async def _visit_counted(self, cut: Cut, planned: ResumePlan, site: str) -> _Visit | None:
        pool = self._state.pool
        flight = pool.begin(site, cut.size, is_stream=True, max_tokens=cut.request.max_tokens)
        try:
            return await self._visit(cut, planned, site)
        finally:
            pool.end(site, flight)

    async def _visit(self, cut: Cut, planned: ResumePlan, site: str) -> _Visit | None:
        """Ask one engine and relay what it says; ``None`` when it cannot be reached."""
        pool, sent_s = self._state.pool, self._state.clock()
        try:
            failing = await self._serve(cut, planned, site)
        except UpstreamError as failure:
            failure.sent_s = sent_s
            if failure.fault is UpstreamFault.CONNECT and site == cut.broken.errand.tier:
                return None  # known already; a breaker must not stay open for longer because somebody waits
            self._guard.judge_failure(site, failure)
            if failure.fault is UpstreamFault.CONNECT:
                pool.report_lost(site)
                return None
            cut.record.n_attempts += 1
            return _Visit(Failing.ENGINE)
        except BaseException:
            pool.note_dismissed(site, sent_s=sent_s)
            raise
        if failing is None:
            pool.note_success(site, sent_s=sent_s)
        elif failing is Failing.BROKEN:
            pool.note_failure(site, Failure.BROKEN, sent_s=sent_s)
        else:
            pool.note_dismissed(site, sent_s=sent_s)
        return _Visit(failing)

    async def _serve(self, cut: Cut, planned: ResumePlan, site: str) -> Failing | None:
        """Relay one engine's continuation.

        Raises:
            UpstreamError: It did not begin to answer.
        """
        errand = self._make_errand(cut, planned, site)
        answer, body = await open_answer(errand, clock=self._state.clock)
        cut.record.n_attempts += 1
        if body is not None:
            return Failing.ENGINE
        splicer = planned.splicer()
        events = SplicedRelay(
            splicer,
            strips_usage=not cut.request.wants_usage,
            strips_ids=self._strips_ids(cut.request),
            on_misfit=answer.close,
        )
        on_piece = _make_note(cut, events)
        relay = StreamRelay(errand, answer, cut.reply, events, cut.check, on_piece=on_piece, clock=self._state.clock)
        if await relay.run() is None:
            cut.rest = events
            return None
        return Failing.BROKEN if splicer.error is None else Failing.DIFFERS

    def _make_errand(self, cut: Cut, planned: ResumePlan, site: str) -> Errand:
        engine = self._state.pool.sites[site]
        request_id = b"x-request-id: " + cut.record.request_id.encode() + b"-resumed\r\n"  # engines want no id twice
        return replace(
            cut.broken.errand,
            tier=site,
            client=self._clients[site],
            path=planned.endpoint.value,
            headers=authorization(engine) + request_id,
            body=planned.body(engine.model_name),
            first_s=self._state.clock() + self._state.deadlines.first_byte_s,
        )


def _make_note(cut: Cut, events: SseRelay) -> Callable[[float], None]:
    """Return what keeps the record up to date with the rest of the stream."""
    record = cut.record

    def note(now_s: float) -> None:
        record.last_s = now_s
        if events.has_content:
            record.n_pieces += 1
            if record.first_s is None:
                record.first_s = now_s

    return note


def _close(cut: Cut, closing: Closing) -> None:
    """Send the end of an answer that needs no engine any more."""
    end = SseRelay(strips_usage=False)
    cut.reply.finish(end.feed(closing.tail))
    end.finish_reason = end.finish_reason or cut.sent.finish_reason
    end.usage = end.usage or cut.sent.usage
    cut.rest = end


def _tell(cut: Cut) -> None:
    """End the stream as one that broke: with the engine's own error where it sent one."""
    if cut.sent.withheld:
        cut.reply.write(cut.sent.withheld)
    if b"[DONE]" in cut.sent.withheld:
        cut.reply.finish()
    else:
        cut.broken.tell(cut.why)
