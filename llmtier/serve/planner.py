"""Where one request goes: decode, check its key, read its needs, score its prompt, choose, stay with the conversation.

Reads the client's bytes and the pool; writes the facts into the request's record. Sends nothing but what a scorer asks
for (``signals.py``); the decision itself is ``choose.py``.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from llmtier.core.decision import Decision, MissReason, Reason
from llmtier.serve.choose import AUTO_ALIASES, Choice, Question, TierState, choose
from llmtier.serve.http_server import HttpRequest
from llmtier.serve.keys import hash_credential
from llmtier.serve.ledger import PromptSize
from llmtier.serve.needs import Needs, NeedsReader
from llmtier.serve.record import KEY_DIGITS, UPGRADE, WAIT, Record, RequestOutcome
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.room import find_room
from llmtier.serve.rules import find_rule
from llmtier.serve.safe_tier import RoutingStep, SafeTier
from llmtier.serve.signals import SignalReader
from llmtier.serve.state import AppState
from llmtier.serve.stickiness import STICKY, StickyTable, find_session, identify, keep
from llmtier.serve.wire import BodyReader, Endpoint, WireRequest
from llmtier.store.keys import ApiKey

RETRY_AFTER_S = 1


@dataclass(slots=True)
class Plan:
    """A decoded request and where it may go; ``decision.tier`` serves first, and is never ``None``.

    Attributes:
        request: Decoded.
        size: Of its prompt.
        decision: Where it goes, and what else was offered.
        conversation: What it belongs to; ``None`` where conversations are not kept together.
        is_named: Whether the client named the tier itself.
        affinity: What brings it to the same of a tier's engines each time; ``None`` takes any.
    """

    request: WireRequest
    size: PromptSize
    decision: Decision
    conversation: bytes | None
    is_named: bool
    affinity: bytes | None = None


class Planner:
    """Plans the requests of one gateway.

    Args:
        state: What the gateway is made of.
        scorer: Scores prompts; ``None`` without a policy.
        on_decided: Told of each decision's record.
        has_room: Tells of a tier whether a request could start there now.
    """

    def __init__(
        self,
        state: AppState,
        scorer: SignalReader | None,
        *,
        on_decided: Callable[[Record], None],
        has_room: Callable[[str], bool],
    ) -> None:
        self._state = state
        self._scorer = scorer
        self._on_decided = on_decided
        self._has_room = has_room
        self._bodies = BodyReader(state.caps)
        self._needs = NeedsReader(defaults=state.defaults, classes=state.classes)
        self._safe = SafeTier(state)
        self._sticky = StickyTable(ttl_s=state.sticky_s, clock=state.clock) if state.sticky_s > 0 else None
        self._has_replicas = any(tier.more_urls for tier in state.pool.tiers.values())
        profiles = [tier.profile for tier in state.pool.tiers.values()]
        self._limits_context = any(profile is not None and profile.context_tokens is not None for profile in profiles)

    async def plan(self, endpoint: Endpoint, http: HttpRequest, record: Record) -> Plan:
        """Return where a request goes; what is learned on the way is in ``record``, even when it is refused.

        Raises:
            RequestRefusedError: It is malformed, its caller unknown, or no tier may or can serve it.
        """
        key = self._find_key(http, record)
        request = record.request = self._bodies.read(endpoint, http.body)
        needs = record.needs = self._read_needs(http, request, key)
        is_auto = request.model in AUTO_ALIASES
        size = _size_of(request)
        question = Question(
            model=self._find_pin(request, is_auto=is_auto),
            needs=needs,
            probabilities={},
            max_tokens=request.max_tokens,
            size=size,
        )
        choice, conversation = await self._route(question, key, http, request, record)
        record.choice = choice
        record.tier = choice.decision.tier
        record.reason = record.reason or choice.decision.reason.value
        record.propensity = 1.0  # no chance is at work: asked again under this load, it goes there again
        self._on_decided(record)
        if choice.decision.tier is None:
            record.outcome = RequestOutcome.REJECTED
            raise reject(choice)
        affinity = conversation
        if affinity is None and self._has_replicas:
            affinity = self._identify(record, http, request)
        return Plan(request, size, choice.decision, conversation, not is_auto, affinity)

    async def _route(
        self, question: Question, key: ApiKey | None, http: HttpRequest, request: WireRequest, record: Record
    ) -> tuple[Choice, bytes | None]:
        """Return the choice and the conversation that is kept together; whatever breaks here, the safe tier serves.

        Raises:
            RequestRefusedError: No tier may or can serve the request.
        """
        state = self._state
        step, conversation = RoutingStep.RULES, None
        is_auto = request.model in AUTO_ALIASES
        try:
            prompt = request.to_prompt(record.request_id, domain=question.needs.domain)
            if is_auto:
                question.rule = find_rule(state.rules, prompt, domain=question.needs.domain, headers=http.headers)
            step = RoutingStep.SCORE
            if self._scorer is not None and prompt is not None and (question.rule is None or question.rule.pin is None):
                question.probabilities = record.probabilities = await self._scorer.probabilities(prompt)
            step = RoutingStep.CHOOSE
            states = self._states(key, question)
            choice = choose(question, states, policy=state.policy, default_tier=self._default_among(states))
            if is_auto:
                step = RoutingStep.STICKY
                conversation = self._keep_conversation(record, choice, http, request)
                step = RoutingStep.ROOM
                self._make_room(record, choice)
        except RequestRefusedError:
            raise
        except Exception as failure:  # noqa: BLE001  # a bug of ours is no reason to fail the request
            self._safe.note(step, failure)
            record.reason = None
            return self._safe.choose(question, self._allowed(key, question.model)), None
        return choice, conversation

    def _make_room(self, record: Record, choice: Choice) -> None:
        """Send a request elsewhere where its tier has no room, and say so where routing did that itself."""
        decision = choice.decision
        move = find_room(decision, self._has_room, upgrades=self._state.admission.upgrades)
        if move is None or (move.tier == decision.tier and record.reason == STICKY):
            return
        if move.tier != decision.tier:
            choice.decision = replace(decision, tier=move.tier)
        record.reason = WAIT if move.waits else UPGRADE

    def note_served(self, plan: Plan, tier: str) -> None:
        """Remember which tier served a conversation's turn."""
        if self._sticky is not None and plan.conversation is not None:
            self._sticky.note(plan.conversation, tier)

    def _find_key(self, http: HttpRequest, record: Record) -> ApiKey | None:
        """Return whose key a request has; ``None`` where nobody is asked for one."""
        if self._state.keys is None:
            return None
        digest = hash_credential(http.headers)
        if digest is not None:
            record.key_sha256 = digest.hex()[:KEY_DIGITS]
        return self._state.keys.check(digest)

    def _read_needs(self, http: HttpRequest, request: WireRequest, key: ApiKey | None) -> Needs:
        needs = self._needs.read(http.headers, stated=request.stated, key=key)
        return needs.with_context(request.context_tokens) if self._limits_context else needs

    def _find_pin(self, request: WireRequest, *, is_auto: bool) -> str:
        """Return the model to route by: where only a pin makes sense, the one tier that there is.

        Raises:
            RequestRefusedError: Routing was asked for, makes no sense, and there are several tiers.
        """
        why = request.needs_pin if is_auto else None
        if why is None:
            return request.model
        tiers = list(self._state.pool.tiers)
        if len(tiers) == 1:
            return tiers[0]
        message = f"name the tier in place of {request.model!r}: {why}; served: {', '.join(tiers)}"
        raise RequestRefusedError(message, code="tier_needed", param="model")

    def _states(self, key: ApiKey | None, question: Question) -> Mapping[str, TierState]:
        """Return the tiers that the caller may use.

        Raises:
            RequestRefusedError: 403; it may not use the one it names, or none at all.
        """
        states = self._state.pool.states()
        if key is None or key.tiers is None:
            return states
        return {name: states[name] for name in self._allowed(key, question.model)}

    def _allowed(self, key: ApiKey | None, model: str) -> Collection[str]:
        """Return the names of the tiers that the caller may use.

        Raises:
            RequestRefusedError: 403; it may not use the one it names, or none at all.
        """
        names = self._state.pool.tiers
        if key is None or key.tiers is None:
            return names
        allowed = [name for name in names if key.may_use(name)]
        if not allowed or (model in names and model not in allowed):
            message = f"this API key may not use {model!r}; it may use: {', '.join(sorted(key.tiers))}"
            raise RequestRefusedError(message, status=403, code="tier_not_allowed", param="model")
        return allowed

    def _default_among(self, states: Mapping[str, TierState]) -> str | None:
        """Return where ``auto`` goes without a policy: for a caller who may not use the default, the first it may."""
        default = self._state.default_tier
        return default if default is None or default in states else next(iter(states))

    def _keep_conversation(
        self, record: Record, choice: Choice, http: HttpRequest, request: WireRequest
    ) -> bytes | None:
        """Leave a conversation on the tier of its last turn while that meets the need."""
        if self._sticky is None or choice.decision.reason is Reason.RULE:
            return None
        conversation = self._identify(record, http, request)
        if conversation is None:
            return None
        record.session_sha256 = conversation.hex()
        decision = choice.decision
        tier = keep(self._sticky.find(conversation), decision)
        if tier != decision.tier:
            choice.decision = replace(decision, tier=tier)
            record.reason = STICKY
        return conversation

    def _identify(self, record: Record, http: HttpRequest, request: WireRequest) -> bytes | None:
        """Return what the conversation is known by; ``None`` where conversations are not kept together."""
        if self._sticky is None:
            return None
        caller = record.key_sha256 or ""
        return identify(request.messages, session=find_session(http.headers), caller=caller.encode())


def reject(choice: Choice) -> RequestRefusedError:
    """Return the refusal of a request that no tier can serve, with every reason."""
    decision = choice.decision
    misses = "; ".join(miss.describe() for miss in decision.misses)
    too_long = {miss.tier for miss in decision.misses if miss.reason is MissReason.CONTEXT}
    if decision.offers and too_long == {offer.tier for offer in decision.offers}:
        message = f"prompt and max_tokens exceed every tier's context: {misses}"
        return RequestRefusedError(message, code="context_length_exceeded", param="messages")
    message = f"no tier meets the need: {misses}"
    return RequestRefusedError(message, status=503, code="no_feasible_tier", retry_after_s=RETRY_AFTER_S)


def _size_of(request: WireRequest) -> PromptSize:
    if not request.messages:
        return PromptSize(n_tokens=request.n_prompt_tokens)
    return PromptSize(n_characters=sum([len(message.content) for message in request.messages]))
