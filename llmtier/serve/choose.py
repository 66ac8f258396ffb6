"""The routing rule on live state: profiles + load + P(correct) -> Decision.

Pure glue over ``llmtier.route``, shared by the gateway and ``llmtier explain``: reads what is passed
in, writes nothing, asks no engine. The scorer has already run.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from llmtier.core.decision import Decision, Fallback, MissReason, Objective, Offer, Reason
from llmtier.core.latency_model import LoadState
from llmtier.core.policy import Policy
from llmtier.core.profile import TierProfile
from llmtier.core.requirement import Requirement
from llmtier.core.rule import Rule
from llmtier.route.decide import decide, find_misses, pin
from llmtier.route.predict import accuracy_need, predict
from llmtier.route.rules import barred_by_cost, barred_by_order
from llmtier.serve.ledger import CHARACTERS_PER_TOKEN, PromptSize
from llmtier.serve.needs import Needs
from llmtier.serve.refusal import RequestRefusedError

AUTO_ALIASES = ("auto", "llmtier")
"""The model names that ask for routing; no tier may be called so."""

_HOPELESS = frozenset({MissReason.UNHEALTHY, MissReason.CONTEXT})
_ROUTABLE = frozenset({None, MissReason.SATURATED})


@dataclass(frozen=True, slots=True, kw_only=True)
class TierState:
    """One tier at this moment.

    Attributes:
        name: The tier's name.
        profile: What was measured; ``None`` without a profile.
        unusable: Why ``profile`` cannot be believed; ``None`` when it can.
        is_healthy: Whether the engine answers.
        load: What the gateway has there now.
        tokens_per_character: Of the prompts that its engine has counted.
    """

    name: str
    profile: TierProfile | None
    unusable: MissReason | None = None
    is_healthy: bool = True
    load: LoadState = field(default_factory=LoadState)
    tokens_per_character: float = 1.0 / CHARACTERS_PER_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is being routed.

    Attributes:
        model: A tier's name, or one of ``AUTO_ALIASES``.
        needs: Limits and domain.
        probabilities: Tier name to P(correct) of this prompt; empty without a scorer or without text.
        max_tokens: Longest answer asked for; ``None`` when open.
        size: Of the prompt; ``None`` when unknown, and then it is taken to be as long as those profiled.
        rule: The user's rule that holds; it moves requests for ``AUTO_ALIASES`` alone.
    """

    model: str
    needs: Needs
    probabilities: Mapping[str, float]
    max_tokens: int | None = None
    size: PromptSize | None = None
    rule: Rule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was decided, and by which limits.

    Attributes:
        decision: The tier and every reason.
        requirement: The request's limits with the policy's accuracy need in place.
    """

    decision: Decision
    requirement: Requirement


def choose(
    question: Question, states: Mapping[str, TierState], *, policy: Policy | None, default_tier: str | None
) -> Choice:
    """Choose the tier that serves: the one that was named, else as a rule, the policy or the default says.

    Raises:
        RequestRefusedError: 404 for a model that is not served; 400 when nothing is there to route by.
    """
    if question.model not in AUTO_ALIASES:
        return _pin(question, states, question.model, others=())
    rule = question.rule
    if rule is None:
        return _route(question, states, policy, default_tier)
    if rule.pin is not None:
        choice = _pin_by_rule(question, states, rule.pin, policy=policy)
    elif default_tier in (barred := _find_barred(rule, states, policy)) and policy is None:
        choice = _pin_by_rule(question, states, rule.tier, barred=barred)
    else:
        choice = _route(question, states, policy, default_tier, barred=barred)
    return replace(choice, decision=replace(choice.decision, rule=rule.name))


def _route(
    question: Question,
    states: Mapping[str, TierState],
    policy: Policy | None,
    default_tier: str | None,
    *,
    barred: Collection[str] = (),
) -> Choice:
    if policy is not None:
        return _choose_by_policy(question, states, policy, barred)
    if default_tier is not None:
        return _pin(question, states, default_tier, others=states.values(), barred=barred)
    offers = tuple(make_offer(question, state) for state in states.values())
    if all(offer.unusable not in _ROUTABLE for offer in offers):
        raise RequestRefusedError(
            f"model {question.model!r} needs a policy, a profile or gateway.default_tier; "
            f"run 'llmtier fit-thresholds' or ask for one of: {', '.join(states)}",
            code="no_policy",
            param="model",
        )
    requirement = question.needs.requirement
    decision = decide(requirement, offers, fallback=Fallback.MOST_ACCURATE, barred=barred)
    return Choice(decision=decision, requirement=requirement)


def find_next_tier(decision: Decision, *, tried: Collection[str]) -> str | None:
    """Return where a failed request goes: tiers without a miss first, then the most accurate.

    Those that a rule bars come last. ``None`` when none is left that could answer.
    """
    missed = {miss.tier for miss in decision.misses}
    barred = {miss.tier for miss in decision.misses if miss.reason is MissReason.RULE}
    hopeless = {miss.tier for miss in decision.misses if miss.reason in _HOPELESS}
    left = [offer for offer in decision.offers if offer.tier not in hopeless and offer.tier not in tried]

    def rank(offer: Offer) -> tuple[bool, bool, float, str]:
        accuracy = -1.0 if offer.accuracy is None else offer.accuracy
        return (offer.tier in barred, offer.tier in missed, -accuracy, offer.tier)

    return min(left, key=rank).tier if left else None


def make_offer(question: Question, state: TierState) -> Offer:
    """Predict what one tier would do; P(correct) falls back to the tier's measured mean."""
    profile = state.profile
    if profile is None:
        return Offer(
            tier=state.name,
            accuracy=question.probabilities.get(state.name),
            usd=None,
            n_in_flight=state.load.n_in_flight,
            is_healthy=state.is_healthy,
            unusable=state.unusable or MissReason.NO_PROFILE,
        )
    return predict(
        profile,
        accuracy=_find_accuracy(question, state),
        state=state.load,
        input_tokens=None if question.size is None else question.size.estimate_tokens(state.tokens_per_character),
        output_tokens=_cap_output(profile, question.max_tokens, recent=state.load.mean_output_tokens),
        unusable=state.unusable,
        is_healthy=state.is_healthy,
    )


def _choose_by_policy(
    question: Question, states: Mapping[str, TierState], policy: Policy, barred: Collection[str]
) -> Choice:
    candidates = _ranked_by(policy, states)
    requirement = question.needs.requirement
    offers = [make_offer(question, state) for state in candidates]
    if policy.objective is Objective.CHEAPEST:
        requirement, offers = _keep_to_gap(question, candidates, offers, policy=policy)
    decision = decide(
        requirement,
        offers,
        fallback=policy.fallback,
        barred=barred,
        objective=policy.objective,
        weights=policy.weights,
    )
    return Choice(decision=decision, requirement=requirement)


def _keep_to_gap(
    question: Question, candidates: Iterable[TierState], offers: list[Offer], *, policy: Policy
) -> tuple[Requirement, list[Offer]]:
    """Return the request's limits with the policy's accuracy need, and the offers as far as they are believed."""
    gap = policy.gap_of(question.needs.domain)
    need = accuracy_need(
        _known_accuracies(question, candidates),
        reference=policy.reference,
        max_gap=gap or 0.0,
        floor=question.needs.requirement.accuracy,
    )
    if gap is None:  # nothing is certified there, so nothing is believed of the others
        offers = [offer if offer.tier == policy.reference else replace(offer, accuracy=None) for offer in offers]
    return replace(question.needs.requirement, accuracy=need), offers


def _ranked_by(policy: Policy, states: Mapping[str, TierState]) -> list[TierState]:
    return [states[tier.name] for tier in policy.tiers if tier.name in states]


def _find_barred(rule: Rule, states: Mapping[str, TierState], policy: Policy | None) -> frozenset[str]:
    """Return the tiers that a rule of a least tier forbids: by the policy's order, else by measured cost."""
    if policy is not None:
        return barred_by_order(rule.tier, [tier.name for tier in policy.tiers])
    costs = {name: None if state.profile is None else state.profile.cost for name, state in states.items()}
    return barred_by_cost(
        rule.tier, {name: None if cost is None else cost.usd_per_request for name, cost in costs.items()}
    )


def _pin_by_rule(
    question: Question,
    states: Mapping[str, TierState],
    tier: str,
    *,
    policy: Policy | None = None,
    barred: Collection[str] = (),
) -> Choice:
    """Pin to a rule's tier; unlike a client's own pin, another tier may stand in when it fails."""
    others = states.values() if policy is None else _ranked_by(policy, states)
    choice = _pin(question, states, tier, others=others, barred=barred)
    return replace(choice, decision=replace(choice.decision, reason=Reason.RULE))


def _pin(
    question: Question,
    states: Mapping[str, TierState],
    tier: str,
    *,
    others: Iterable[TierState],
    barred: Collection[str] = (),
) -> Choice:
    if tier not in states:
        names = ", ".join((AUTO_ALIASES[0], *states))
        message = f"model {tier!r} is not served here; served: {names}"
        raise RequestRefusedError(message, status=404, code="model_not_found", param="model")
    offers = [make_offer(question, state) for state in (states[tier], *(o for o in others if o.name != tier))]
    requirement = question.needs.requirement
    misses = tuple(miss for offer in offers for miss in find_misses(requirement, offer, barred))
    return Choice(decision=replace(pin(tier, offers), misses=misses), requirement=requirement)


def _known_accuracies(question: Question, states: Iterable[TierState]) -> dict[str, float]:
    found = {state.name: _find_accuracy(question, state) for state in states}
    return {name: accuracy for name, accuracy in found.items() if accuracy is not None}


def _find_accuracy(question: Question, state: TierState) -> float | None:
    if question.probabilities:  # a scorer ran: its silence on a tier is not the tier's mean
        return question.probabilities.get(state.name)
    estimate = None if state.profile is None else state.profile.accuracy_of(question.needs.domain)
    return None if estimate is None else estimate.accuracy


def _cap_output(profile: TierProfile, max_tokens: int | None, *, recent: float | None) -> float | None:
    """Return ``max_tokens`` where it cuts below the length that is expected; ``None`` leaves that in force."""
    if profile.latency is not None:
        expected = profile.latency.mean_output_tokens if recent is None else recent
    else:  # without a model the latencies are those of the lengths that were profiled
        lengths = [point.mean_output_tokens for point in profile.points if point.mean_output_tokens is not None]
        expected = min(lengths, default=0.0)
    return float(max_tokens) if max_tokens is not None and max_tokens < expected else None
