"""What admission goes by: the bounds of waiting, a tier's limit, a worker's share of it, and a request's deadline.

Plain values, made from the configuration and the profiles by whoever starts a gateway. ``admission.py`` acts on them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from llmtier.core.decision import Offer
from llmtier.core.profile import TierProfile
from llmtier.core.requirement import Requirement
from llmtier.serve.priority_queue import Priority
from llmtier.serve.shed import ShedReason


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSettings:
    """The bounds of waiting, those of one worker process.

    Attributes:
        max_waiting: Most that wait for one tier; 0 lets nobody wait.
        max_waiting_in_all: Most that wait.
        key_share: Share of a tier's queue that one key may fill, at least one place.
        promote_after_s: Time after which a waiting request is overdue (see ``priority_queue``).
        max_wait_s: Longest wait, also of a request without a deadline.
        upgrades: Whether ``auto`` takes a dearer tier that has room before it waits for a cheaper one.
        priorities: SLO class to priority; the others, and requests without a class, are ``NORMAL``.
    """

    max_waiting: int = 256
    max_waiting_in_all: int = 1024
    key_share: float = 0.5
    promote_after_s: float = 5.0
    max_wait_s: float = 60.0
    upgrades: bool = True
    priorities: Mapping[str, Priority] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_waiting < 0 or self.max_waiting_in_all < 0:
            raise ValueError(f"max_waiting must be >= 0, got {self.max_waiting} and {self.max_waiting_in_all} in all")
        if not 0 < self.key_share <= 1:
            raise ValueError(f"key_share must lie in (0, 1], got {self.key_share}")
        if not (self.promote_after_s >= 0 and 0 <= self.max_wait_s < math.inf):
            raise ValueError(
                f"promote_after_s and max_wait_s must be >= 0, the latter finite, got {self.promote_after_s}, {self.max_wait_s}"
            )

    def priority_of(self, slo_class: str | None) -> Priority:
        """Return the priority of a request of that SLO class."""
        return Priority.NORMAL if slo_class is None else self.priorities.get(slo_class, Priority.NORMAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLimit:
    """How much one tier takes.

    Attributes:
        max_in_flight: Most at once, over all workers; ``None`` without a limit, and then nobody waits.
        service_s: Mean time of one request there, to begin with; ``None`` estimates no wait until some have ended.
    """

    max_in_flight: int | None
    service_s: float | None = None

    def __post_init__(self) -> None:
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise ValueError(f"max_in_flight must be >= 1, got {self.max_in_flight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionHooks:
    """Who is told what happens to requests that found no room; the fast path tells nobody.

    Attributes:
        on_turn: A request that waited has its turn: tier, priority, seconds waited.
        on_shed: A request was shed, at the door or later: tier, priority, reason.
    """

    on_turn: Callable[[str, Priority, float], None] = lambda _tier, _priority, _waited_s: None
    on_shed: Callable[[str, Priority, ShedReason], None] = lambda _tier, _priority, _reason: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The worker processes of a gateway, as one of them sees them.

    Attributes:
        worker: Number of this one, from 0.
        n_workers: Processes that serve.
        others: What the other workers have in flight on a tier, as the board shows it.
    """

    worker: int = 0
    n_workers: int = 1
    others: Callable[[str], float] = lambda _tier: 0.0

    def share_of(self, limit: int) -> int:
        """Return this worker's share of a limit: the shares sum to it, and none is below 1."""
        return max(limit // self.n_workers + (self.worker < limit % self.n_workers), 1)


def limit_of(profile: TierProfile | None, *, configured: int | None = None) -> TierLimit:
    """Return a tier's limit: as configured, else its knee.

    The time of service at the knee follows from the rate there (Little's law: in flight = rate x time).
    """
    knee = None if profile is None else profile.max_in_flight
    goodput_rps = None if profile is None else profile.goodput_rps
    service_s = knee / goodput_rps if knee is not None and goodput_rps else None
    return TierLimit(max_in_flight=knee if configured is None else configured, service_s=service_s)


def scale_limit(limit: TierLimit, n_engines: int) -> TierLimit:
    """Return the limit of so many engines together; the time of service stays."""
    most = limit.max_in_flight
    return limit if most is None or n_engines == 1 else replace(limit, max_in_flight=most * n_engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The limit that waiting breaks first.

    Attributes:
        at_s: Instant at which it is broken.
        predicted_s: Time from the start to what it limits.
    """

    at_s: float
    predicted_s: float


def find_deadline(limits: Requirement, offer: Offer | None, *, received_s: float) -> Deadline | None:
    """Return the limit that leaves the least time to wait; ``None`` without one. TPOT is no matter of waiting.

    Args:
        limits: Of the request.
        offer: What the tier is predicted to do; what it leaves open counts as no time.
        received_s: When the request arrived: its limits run from there.
    """
    predicted = (None, None) if offer is None else (offer.ttft_s, offer.e2el_s)
    found = [
        Deadline(at_s=received_s + limit_s, predicted_s=predicted_s or 0.0)
        for limit_s, predicted_s in zip((limits.ttft_s, limits.e2el_s), predicted, strict=True)
        if limit_s is not None
    ]
    return min(found, key=lambda deadline: deadline.at_s - deadline.predicted_s, default=None)
