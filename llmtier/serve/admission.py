"""How many requests run on a tier at once, and what becomes of the others: wait for a turn, move on, or be shed.

Holds per tier its limit (the profile's knee unless configured), a bounded queue (``priority_queue.py``) and the mean
time of service, from which waits are estimated. A request that cannot be served in time is told so at once, and one
that waits leaves at its latest start: nobody is left to rot. Sends nothing; the caller tries another tier or answers
with the ``Shed``. One event loop's, instants are of one monotonic clock; each waiting request has one future.

Several worker processes share a tier without a lock. Each has a fixed share of the limit, and the shares sum to it
(at least 1 each, so a limit below the number of workers rises to that). A worker with all its share in use borrows
what the board shows idle. Fixed shares alone would leave an engine idle when the kernel hands most connections to one
worker; counting only by the board would have a worker wait for slots that end elsewhere, with nobody to wake it. So:
who has room in its share never looks at the board nor waits; who waits has all its share running and is woken by its
own. The price: a lender that wants its share back takes it, and until the borrower's requests end there are more than
the limit, by what was borrowed.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from llmtier.core.decision import Offer
from llmtier.core.requirement import Requirement
from llmtier.serve.priority_queue import Priority, PriorityQueue, Waiting
from llmtier.serve.refusal import RequestRefusedError

_LEARNING_RATE = 1.0 / 32.0  # as the ledger's windows: about the last 32 requests count
_MAX_RETRY_AFTER_S = 60  # a queue that is longer says nothing about the time beyond

_HEADERS = (b"x-llmtier-dropped-reason", b"x-llm-d-request-dropped-reason")


class ShedReason(StrEnum):
    """Why a request was not let in; stable words that clients see."""

    QUEUE_FULL = "queue-full"  # or it had to give way to a higher class
    KEY_SHARE = "key-share"
    DEADLINE = "deadline"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shed:
    """What a request that was not let in is told.

    Attributes:
        tier: Where it could not run.
        reason: Why.
        retry_after_s: When the tier will have caught up, from the rate at which it does.
    """

    tier: str
    reason: ShedReason
    retry_after_s: int = 1

    @property
    def may_upgrade(self) -> bool:
        """Whether another tier may be tried instead."""
        return self.reason is not ShedReason.DRAINING

    @property
    def status(self) -> int:
        """429 where the client asks for too much, 503 where the gateway is too slow or about to leave."""
        return 429 if self.reason in {ShedReason.QUEUE_FULL, ShedReason.KEY_SHARE} else 503

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What says the reason, under the own name and llm-d's."""
        return [(name, self.reason.value.encode()) for name in _HEADERS]

    def refusal(self) -> RequestRefusedError:
        """Return the error to answer with; ``headers`` go with it."""
        match self.reason:
            case ShedReason.QUEUE_FULL:
                why = f"the queue of tier {self.tier!r} is full"
            case ShedReason.KEY_SHARE:
                why = f"this API key has its share of tier {self.tier!r}'s queue waiting"
            case ShedReason.DEADLINE:
                why = f"tier {self.tier!r} cannot serve this request in time under its present load"
            case ShedReason.DRAINING:
                why = "the gateway is shutting down"
        code = self.reason.value.replace("-", "_")
        message = f"{why}; ask again in {self.retry_after_s} s"
        return RequestRefusedError(message, status=self.status, code=code, retry_after_s=self.retry_after_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSettings:
    """The bounds of waiting, those of one worker process.

    Attributes:
        max_waiting: Most that wait for one tier; 0 lets nobody wait.
        max_waiting_in_all: Most that wait.
        key_share: Share of a tier's queue that one key may fill, at least one place.
        promote_after_s: Time after which a waiting request is overdue (see ``priority_queue``).
        max_wait_s: Longest wait, also of a request without a deadline.
        priorities: SLO class to priority; the others, and requests without a class, are ``NORMAL``.
    """

    max_waiting: int = 256
    max_waiting_in_all: int = 1024
    key_share: float = 0.5
    promote_after_s: float = 5.0
    max_wait_s: float = 60.0
    priorities: Mapping[str, Priority] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_waiting < 0 or self.max_waiting_in_all < 0:
            raise ValueError(f"max_waiting must be >= 0, got {self.max_waiting} and {self.max_waiting_in_all} in all")
        if not 0 < self.key_share <= 1:
            raise ValueError(f"key_share must lie in (0, 1], got {self.key_share}")
        if not (self.promote_after_s >= 0 and self.max_wait_s >= 0):
            raise ValueError(
                f"promote_after_s and max_wait_s must be >= 0, got {self.promote_after_s}, {self.max_wait_s}"
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


class PlaceState(StrEnum):
    """Where a request stands; the last three are ends."""

    WAITING = "waiting"
    RUNNING = "running"
    SERVED = "served"
    SHED = "shed"
    CANCELLED = "cancelled"


class Place:
    """One request's place on a tier: first perhaps in its queue, then in a slot. ``leave`` must follow.

    Attributes:
        state: Where it stands.
        shed: Why it lost its place; ``None`` unless it did.
    """

    __slots__ = ("_future", "_gate", "_started_s", "_waiting", "shed", "state")

    def __init__(self, gate: "_Gate", started_s: float, state: PlaceState = PlaceState.RUNNING) -> None:
        self._gate = gate
        self._started_s = started_s  # of waiting, while it waits
        self.state = state
        self.shed: Shed | None = None
        self._waiting: Waiting[Place] | None = None
        self._future: asyncio.Future[None] | None = None

    async def turn(self) -> Shed | None:
        """Wait for a slot; ``None`` when there is one, else why there will be none.

        Whoever is cancelled while waiting has left its place.
        """
        if self.state is not PlaceState.WAITING or self._waiting is None:
            return self.shed
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        left_s = self._waiting.latest_start_s - self._gate.clock()
        timer = loop.call_later(max(left_s, 0.0), self._gate.expire, self)
        try:
            await self._future
        except asyncio.CancelledError:
            self.leave()
            raise
        finally:
            timer.cancel()
        return self.shed

    def leave(self) -> None:
        """Give the slot to the next, or stop waiting; again does nothing."""
        if self.state is PlaceState.RUNNING:
            self.state = PlaceState.SERVED
            self._gate.end(self._started_s)
        elif self.state is PlaceState.WAITING:
            self.state = PlaceState.CANCELLED
            self._gate.cancel(self)

    def wake(self, state: PlaceState, now_s: float, shed: Shed | None = None) -> None:
        """End the waiting; for the gate."""
        self.state = state
        self._started_s = now_s
        self.shed = shed
        self._waiting = None
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class _Gate:
    """One tier's limit, queue and mean service."""

    __slots__ = (
        "_admission", "_limit", "_service_s", "clock", "n_borrowable", "n_running", "queue", "share", "tier",
    )  # fmt: skip
