"""The routing rule on live state: profiles + load + P(correct) -> Decision.

Pure glue over ``llmtier.route``, shared by the gateway and ``llmtier explain``: reads what is passed
in, writes nothing, asks no engine. The scorer has already run.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from llmtier.core.decision import OVERLOADED, Decision, Fallback, Miss, MissReason, Objective, Offer, Reason
from llmtier.core.latency_model import LoadState
from llmtier.core.policy import Policy
from llmtier.core.profile import TierProfile
from llmtier.core.requirement import Requirement
from llmtier.core.rule import Rule
from llmtier.route.decide import decide, find_misses
from llmtier.route.predict import Predictor, accuracy_need
from llmtier.route.rules import barred_by_cost, barred_by_order
from llmtier.serve.correction import Correction
from llmtier.serve.ledger import CHARACTERS_PER_TOKEN, PromptSize
from llmtier.serve.lengths import OutputLengths
from llmtier.serve.needs import Needs
from llmtier.serve.refusal import RequestRefusedError

AUTO_ALIASES = ("auto", "llmtier")
"""The model names that ask for routing; no tier may be called so."""

_HOPELESS = frozenset({MissReason.UNHEALTHY, MissReason.CONTEXT})
_ROUTABLE = frozenset({None, *OVERLOADED})


@dataclass(slots=True, kw_only=True)
class TierState:
    """One tier at this moment; the gateway keeps one a tier and renews what changes.

    Attributes:
        name: The tier's name.
        profile: What was measured; ``None`` without a profile.
        unusable: Why ``profile`` cannot be believed, or why the engine takes no more; ``None`` when neither holds.
        is_healthy: Whether the engine answers.
        load: What the gateway has there now.
        tokens_per_character: Of the prompts that its engine has counted.
        predictor: Of ``profile``; made when first asked, and best made once.
        correction: Factors on the predictions, learned online; ``None`` leaves them as profiled.
        lengths: Of the tier's recent answers; ``None`` takes the mean for the upper limit.
    """

    name: str
    profile: TierProfile | None
    unusable: MissReason | None = None
    is_healthy: bool = True
    load: LoadState = field(default_factory=LoadState)
    tokens_per_character: float = 1.0 / CHARACTERS_PER_TOKEN
    predictor: Predictor | None = field(default=None, repr=False, compare=False)
    correction: Correction | None = None
    lengths: OutputLengths | None = None


@dataclass(slots=True, kw_only=True)
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


@dataclass(slots=True)
class Choice:
    """What was decided, and by which limits.

    Attributes:
        decision: The tier and every reason.
        limits: What the request asked for, defaults included.
        need_accuracy: The accuracy that was needed: the policy's need, or the request's where that is higher.
    """

    decision: Decision
    limits: Requirement
    need_accuracy: float | None = None

    @property
    def requirement(self) -> Requirement:
        """The limits with the accuracy need in place."""
        return replace(self.limits, accuracy=self.need_accuracy)


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
    limits = question.needs.requirement
    decision = decide(limits, offers, fallback=Fallback.MOST_ACCURATE, barred=barred)
    return Choice(decision, limits, limits.accuracy)


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


def refuse_unknown(model: str, served: Iterable[str]) -> RequestRefusedError:
    """Return the refusal of a request for a model that is not served."""
    names = ", ".join((AUTO_ALIASES[0], *served))
    message = f"model {model!r} is not served here; served: {names}"
    return RequestRefusedError(message, status=404, code="model_not_found", param="model")


def make_offer(question: Question, state: TierState) -> Offer:
    """Predict what one tier would do; P(correct) falls back to the tier's measured mean."""
    profile, probabilities = state.profile, question.probabilities
    if profile is None:
        return Offer(
            tier=state.name,
            accuracy=probabilities.get(state.name),
            usd=None,
            n_in_flight=state.load.n_in_flight,
            is_healthy=state.is_healthy,
            unusable=state.unusable or MissReason.NO_PROFILE,
        )
    predictor = state.predictor
    if predictor is None or predictor.profile is not profile:
        predictor = state.predictor = Predictor(profile)
    # Where a scorer ran, its silence on a tier is not the tier's mean.
    accuracy = probabilities.get(state.name) if probabilities else predictor.mean_accuracy(question.needs.domain)
    size, most, load = question.size, question.max_tokens, state.load
    n_out = None if most is None or most >= predictor.expect_output(load) else float(most)
    n_in = None if size is None else size.estimate_tokens(state.tokens_per_character)
    long = None if state.lengths is None else state.lengths.find_long(most)
    correction = state.correction
    if correction is None:
        return predictor.offer(load, accuracy, n_in, n_out, long, state.unusable, state.is_healthy)
    ratios = (correction.ttft_ratio, correction.tpot_ratio)
    return predictor.offer(load, accuracy, n_in, n_out, long, state.unusable, state.is_healthy, *ratios)


def _choose_by_policy(
    question: Question, states: Mapping[str, TierState], policy: Policy, barred: Collection[str]
) -> Choice:
    limits = question.needs.requirement
    offers = [make_offer(question, states[tier.name]) for tier in policy.tiers if tier.name in states]
    need = limits.accuracy
    if policy.objective is Objective.CHEAPEST:
        need = _keep_to_gap(question, offers, policy)
    decision = decide(
        limits,
        offers,
        fallback=policy.fallback,
        barred=barred,
        objective=policy.objective,
        weights=policy.weights,
        need_accuracy=need,
    )
    return Choice(decision, limits, need)


def _keep_to_gap(question: Question, offers: list[Offer], policy: Policy) -> float | None:
    """Return the policy's accuracy need; replace in ``offers`` what is not believed of them."""
    gap, reference = policy.gap_of(question.needs.domain), policy.reference
    known = {offer.tier: offer.accuracy for offer in offers if offer.accuracy is not None}
    if gap is None:  # nothing is certified there, so nothing is believed of the others
        offers[:] = [offer if offer.tier == reference else replace(offer, accuracy=None) for offer in offers]
    return accuracy_need(known, reference=reference, max_gap=gap or 0.0, floor=question.needs.requirement.accuracy)


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
        raise refuse_unknown(tier, states)
    offers = [make_offer(question, state) for state in (states[tier], *(o for o in others if o.name != tier))]
    limits = question.needs.requirement
    misses: list[Miss] = []
    for offer in offers:
        misses += find_misses(limits, offer, barred)
    return Choice(Decision(tier, Reason.PINNED, tuple(offers), tuple(misses)), limits, limits.accuracy)
