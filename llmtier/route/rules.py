"""Find the user's rule that holds for a request, and which tiers it bars.

Pure. The first rule of the list that holds wins, and no other has a say. What is unknown of a request holds
no condition. Patterns are compiled by a function that is passed in, since the engine that keeps them linear
in the text's length is a library (``store.patterns``).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llmtier.core.rule import Condition, Rule

EDGE_CHARACTERS = 4_000
"""Of a text longer than twice this, patterns see the head and the tail of this length each."""

Search = Callable[[str], bool]
"""Whether a pattern occurs in a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What rules may ask of one request; ``None`` where it has none.

    Attributes:
        text: What scorers read of it; asked for only by patterns, and then once.
        n_characters: Of all messages together.
        domain: The client's label.
        headers: Name in lower case to every value it was sent with.
        key_sha256: Digest of its bearer token, in lower-case hex.
    """

    text: Callable[[], str | None] = lambda: None
    n_characters: int | None = None
    domain: str | None = None
    headers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    key_sha256: str | None = None


class RuleBook:
    """The user's rules in their order, ready to be asked.

    Args:
        rules: As configured.
        compile_pattern: Makes a search of a regular expression.

    Attributes:
        rules: As given.
        header_names: The headers that any of them asks for, in lower case.
        reads_keys: Whether any of them asks for the bearer token.
    """

    def __init__(self, rules: Iterable[Rule], *, compile_pattern: Callable[[str], Search]) -> None:
        self.rules = tuple(rules)
        self.header_names = frozenset(name for rule in self.rules for name, _ in rule.when.headers)
        self.reads_keys = any(rule.when.key_sha256 is not None for rule in self.rules)
        patterns = {rule.when.pattern for rule in self.rules if rule.when.pattern is not None}
        self._searches = {pattern: compile_pattern(pattern) for pattern in patterns}

    def find(self, facts: RequestFacts) -> Rule | None:
        """Return the first rule that holds."""
        text: str | None = None
        is_read = False
        for rule in self.rules:
            if not _holds_but_for_pattern(rule.when, facts):
                continue
            if rule.when.pattern is None:
                return rule
            if not is_read:
                text, is_read = _bound(facts.text()), True
            if text is not None and self._searches[rule.when.pattern](text):
                return rule
        return None


def barred_by_order(least_tier: str, order: Sequence[str]) -> frozenset[str]:
    """Return the tiers before ``least_tier`` in an order from cheap to dear; none when it is not in it."""
    return frozenset(order[: order.index(least_tier)]) if least_tier in order else frozenset()


def barred_by_cost(least_tier: str, usd: Mapping[str, float | None]) -> frozenset[str]:
    """Return the tiers that are not known to cost at least as much as ``least_tier``."""
    least_usd = usd.get(least_tier)
    return frozenset(tier for tier, own in usd.items() if tier != least_tier and not _at_least(own, least_usd))


def _holds_but_for_pattern(when: Condition, facts: RequestFacts) -> bool:
    """Return whether all of a condition holds that costs next to nothing to look at."""
    return (
        when.domain in {None, facts.domain}
        and when.key_sha256 in {None, facts.key_sha256}
        and (when.min_characters is None or _at_least(facts.n_characters, when.min_characters))
        and all(value in facts.headers.get(name, ()) for name, value in when.headers)
    )


def _bound(text: str | None) -> str | None:
    if text is None or len(text) <= 2 * EDGE_CHARACTERS:
        return text
    return f"{text[:EDGE_CHARACTERS]}\n{text[-EDGE_CHARACTERS:]}"


def _at_least(value: float | None, least: float | None) -> bool:
    return value is not None and least is not None and value >= least
