"""The user's own rules: which requests must go where, whatever a scorer would say.

Plain data, as the configuration states it. ``route.rules`` finds the rule that holds for a request.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What must hold of a request, all of it; ``None`` asks for nothing.

    Attributes:
        pattern: Regular expression, searched for in the text that scorers read.
        domain: The client's own label, exactly.
        headers: (name in lower case, exact value) of request headers.
        key_sha256: Digest of the bearer token, in lower-case hex.
        min_characters: Fewest characters of all messages together.
    """

    pattern: str | None = None
    domain: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    key_sha256: str | None = None
    min_characters: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it asks for nothing at all."""
        asked = (self.pattern, self.domain, self.key_sha256, self.min_characters)
        return not self.headers and all(value is None for value in asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Where the requests go that meet a condition; exactly one of the two tiers is set.

    Attributes:
        name: Written into decisions and logs.
        when: The condition.
        least_tier: Tiers that are cheaper than this one may not be chosen.
        pin: The tier that serves, as if the request had named it.
    """

    name: str
    when: Condition
    least_tier: str | None = None
    pin: str | None = None

    def __post_init__(self) -> None:
        if (self.least_tier is None) == (self.pin is None):
            raise ValueError(f"rule {self.name!r}: needs either least_tier or pin, and not both")
        if self.when.is_empty:
            raise ValueError(f"rule {self.name!r}: 'when' needs at least one condition")

    @property
    def tier(self) -> str:
        """The tier it speaks of."""
        return self.least_tier or self.pin or ""
