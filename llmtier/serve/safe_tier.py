"""Where a request goes when routing itself fails: a bug, a scorer that breaks, a signal that never comes.

Reads only what cannot fail with them: the pool's names and health, the key, the user's rule where one was found. Predicts
nothing and scores nothing. Counts each failure and logs the first of each kind with its traceback.
"""

import logging
from collections.abc import Collection
from enum import StrEnum

from llmtier.core.decision import Decision, Miss, MissReason, Offer, Reason
from llmtier.core.rule import Rule
from llmtier.serve.choose import AUTO_ALIASES, Choice, Question, find_next_tier, refuse_unknown
from llmtier.serve.metrics import ROUTING_FAILURES
from llmtier.serve.state import AppState

logger = logging.getLogger(__name__)


class RoutingStep(StrEnum):
    """What failed; words for a metric."""

    RULES = "rules"
    SCORE = "score"
    CHOOSE = "choose"
    STICKY = "sticky"
    ROOM = "room"


class SafeTier:
    """Stands in for the routing of one gateway.

    Args:
        state: What the gateway is made of.

    Attributes:
        name: The tier: as configured, else the policy's reference, else the default, else the first that is served.
    """

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._tally = state.metrics.tally
        self._seen: set[tuple[RoutingStep, type[Exception]]] = set()
        reference = None if state.policy is None else state.policy.reference
        self.name = state.safe_tier or reference or state.default_tier or next(iter(state.pool.tiers))

    def note(self, step: RoutingStep, failure: Exception) -> None:
        """Count a failure; a new kind of it goes to the log."""
        self._tally.add((ROUTING_FAILURES.name, step.value))
        kind = (step, type(failure))
        if kind not in self._seen:
            self._seen.add(kind)
            facts = {"step": step.value, "safe_tier": self.name}
            logger.error("routing failed; such requests go to the safe tier", exc_info=failure, extra=facts)

    def choose(self, question: Question, allowed: Collection[str]) -> Choice:
        """Return where a request goes whose routing failed: the tier it names, else the safe one.

        Args:
            question: As far as it was made out; a rule of the user's that was found holds.
            allowed: Tiers that the caller may use; not empty.

        Raises:
            RequestRefusedError: 404; it names a tier that is not served.
        """
        is_pinned = question.model not in AUTO_ALIASES
        if is_pinned and question.model not in self._state.pool.tiers:
            raise refuse_unknown(question.model, self._state.pool.tiers)
        tier = question.model if is_pinned else self._among(allowed, question.rule)
        names = [tier] if is_pinned else [tier, *(name for name in allowed if name != tier)]
        offers = tuple([self._offer(name) for name in names])
        misses = tuple([Miss(offer.tier, MissReason.UNHEALTHY) for offer in offers if not offer.is_healthy])
        reason = Reason.PINNED if is_pinned else Reason.SAFE_TIER
        decision = Decision(tier, reason, offers, misses, None if question.rule is None else question.rule.name)
        if not offers[0].is_healthy:
            decision.tier = find_next_tier(decision, tried=()) or tier
        return Choice(decision, question.needs.requirement)

    def _among(self, allowed: Collection[str], rule: Rule | None) -> str:
        wanted = self.name if rule is None else self._obey(rule)
        return wanted if wanted in allowed else next(iter(allowed))

    def _obey(self, rule: Rule) -> str:
        """Return the rule's tier, or the safe one where the policy is known to rank that above."""
        order = [] if self._state.policy is None else [tier.name for tier in self._state.policy.tiers]
        is_known = rule.pin is None and rule.tier in order and self.name in order
        return self.name if is_known and order.index(self.name) > order.index(rule.tier) else rule.tier

    def _offer(self, name: str) -> Offer:
        pool = self._state.pool
        return Offer(name, None, None, n_in_flight=pool.n_in_flight(name), is_healthy=pool.is_healthy(name))
