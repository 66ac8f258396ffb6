"""A tier's predicted service, why it was refused, and the choice with every reason.

What the gateway makes for every request is a plain dataclass here, for a frozen one costs three times as much to make.
It is never changed once made all the same.
"""

from dataclasses import dataclass
from enum import StrEnum


class MissReason(StrEnum):
    """Why a tier cannot serve a request."""

    ACCURACY = "accuracy"
    TTFT = "ttft"
    TPOT = "tpot"
    E2EL = "e2el"
    COST = "cost"
    CONTEXT = "context"
    UNHEALTHY = "unhealthy"
    NO_PROFILE = "no_profile"
    STALE_PROFILE = "stale_profile"
    SATURATED = "saturated"
    KV = "kv"
    PREEMPTIONS = "preemptions"
    QUEUE = "queue"
    RULE = "rule"


class Objective(StrEnum):
    """What is best among the tiers that meet the need."""

    CHEAPEST = "cheapest"
    UTILITY = "utility"


class Fallback(StrEnum):
    """What to do when no tier meets the need."""

    MOST_ACCURATE = "most_accurate"
    FASTEST = "fastest"
    UTILITY = "utility"
    REJECT = "reject"


class Reason(StrEnum):
    """Why the chosen tier was chosen."""

    CHEAPEST_FEASIBLE = "cheapest_feasible"
    HIGHEST_UTILITY = "highest_utility"
    PINNED = "pinned"
    RULE = "rule"
    FALLBACK = "fallback"
    SAFE_TIER = "safe_tier"  # routing itself failed
    REJECTED = "rejected"


OVERLOADED = frozenset({MissReason.SATURATED, MissReason.KV, MissReason.PREEMPTIONS, MissReason.QUEUE})
"""Reasons that pass: the tier is known and works, there is only too much on it now."""


@dataclass(slots=True)
class Offer:
    """What a tier would do for a request now; ``None`` means unknown, which never passes a limit.

    Attributes:
        tier: The tier's name.
        accuracy: P(correct), in [0, 1].
        ttft_s: Predicted upper quantile of TTFT; likewise ``tpot_s`` and ``e2el_s``.
        usd: Predicted cost of the request.
        n_in_flight: Requests the tier is serving now; ties go to the lower load.
        context_tokens: Longest prompt plus output that fits; ``None`` when unlimited or unknown.
        is_healthy: Whether the engine answers.
        unusable: Why the tier is no candidate: a profile that cannot be believed, or its concurrency limit
            reached; ``None`` when it is one.
        is_extrapolated: Whether the load or the lengths lie outside what its latency model was fitted on.
        typical_ttft_s: The median that was predicted before any correction, by which the correction is learned;
            likewise ``typical_tpot_s``.
    """

    tier: str
    accuracy: float | None
    usd: float | None
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None
    n_in_flight: int = 0
    context_tokens: int | None = None
    is_healthy: bool = True
    unusable: MissReason | None = None
    is_extrapolated: bool = False
    typical_ttft_s: float | None = None
    typical_tpot_s: float | None = None

    def __post_init__(self) -> None:
        if not (  # also refuses NaN
            (self.accuracy is None or self.accuracy >= 0)
            and (self.usd is None or self.usd >= 0)
            and (self.ttft_s is None or self.ttft_s >= 0)
            and (self.tpot_s is None or self.tpot_s >= 0)
            and (self.e2el_s is None or self.e2el_s >= 0)
        ):
            self._refuse()

    def _refuse(self) -> None:
        found = {name: getattr(self, name) for name in ("accuracy", "usd", "ttft_s", "tpot_s", "e2el_s")}
        bad = ", ".join(f"{name} {value}" for name, value in found.items() if value is not None and not value >= 0)
        raise ValueError(f"offer of {self.tier}: must be >= 0: {bad}")


@dataclass(slots=True)
class Miss:
    """One reason why a tier was refused, with the two numbers that clashed."""

    tier: str
    reason: MissReason
    offered: float | None = None
    needed: float | None = None

    def describe(self) -> str:
        """Return one line for people: tier, reason, the two numbers."""
        if self.needed is None:
            return f"{self.tier}: {self.reason.value}"
        offered = "unknown" if self.offered is None else f"{self.offered:.4g}"
        return f"{self.tier}: {self.reason.value} {offered}, needs {self.needed:.4g}"


@dataclass(slots=True)
class Decision:
    """The tier that serves, why, and every miss of the others.

    Attributes:
        tier: Who serves; ``None`` when rejected.
        reason: Why.
        offers: Of every tier that was looked at.
        misses: Of all offers.
        rule: Name of the user's rule that held, whether or not it changed the choice; ``None`` without one.
    """

    tier: str | None
    reason: Reason
    offers: tuple[Offer, ...] = ()
    misses: tuple[Miss, ...] = ()
    rule: str | None = None
