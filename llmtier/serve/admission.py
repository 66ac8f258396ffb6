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
from enum import StrEnum

from llmtier.serve.admission_plan import AdmissionHooks, AdmissionSettings, Fleet, TierLimit
from llmtier.serve.priority_queue import Priority, PriorityQueue, Waiting
from llmtier.serve.shed import Shed, ShedReason

_LEARNING_RATE = 1.0 / 32.0  # as the ledger's windows: about the last 32 requests count
_MAX_RETRY_AFTER_S = 60  # a longer queue will look different by then


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
        if self._waiting is None:
            return self.shed
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        left_s = self._waiting.latest_start_s - self._gate.clock()
        timer = loop.call_later(max(left_s, 0.0), self._expire)
        try:
            await self._future
        except asyncio.CancelledError:
            self.leave()
            raise
        finally:
            timer.cancel()
        return self.shed

    def wait(self, waiting: "Waiting[Place]") -> None:
        """Begin to wait; for the gate."""
        self._waiting = waiting
        self._gate.add(waiting)

    def leave(self) -> None:
        """Give the slot to the next, or stop waiting; again does nothing."""
        if self.state is PlaceState.RUNNING:
            self.state = PlaceState.SERVED
            self._gate.end(self._started_s)
        elif self._waiting is not None:
            self.state = PlaceState.CANCELLED
            self._gate.remove(self._waiting)
            self._waiting = None

    def _expire(self) -> None:
        if self._waiting is not None:
            self._gate.shed(self._waiting, ShedReason.DEADLINE)

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

    __slots__ = ("_admission", "_limit", "_service_s", "clock", "n_running", "queue", "share", "tier")

    def __init__(self, admission: "Admission", tier: str, limit: TierLimit) -> None:
        self._admission = admission
        self.tier = tier
        self.clock = admission.clock
        self.queue: PriorityQueue[Place] = PriorityQueue(promote_after_s=admission.settings.promote_after_s)
        self.n_running = 0
        self._service_s = limit.service_s
        self.set_limit(limit)

    def set_limit(self, limit: TierLimit) -> None:
        """Put a limit in force; what runs beyond it ends as it will."""
        self._limit = math.inf if limit.max_in_flight is None else float(limit.max_in_flight)
        self.share = math.inf
        if limit.max_in_flight is not None:
            self.share = float(self._admission.fleet.share_of(limit.max_in_flight))
        if self._service_s is None:
            self._service_s = limit.service_s

    def wait_or_shed(
        self, priority: Priority, key: str | None, deadline_s: float | None, predicted_s: float | None
    ) -> Place | Shed:
        """Let a request in that found its worker's share in use: borrow a slot, wait for one, or be shed."""
        now_s = self.clock()
        self.pump(now_s)
        if self.has_room():
            self.n_running += 1
            return Place(self, now_s)
        end_s = math.inf if deadline_s is None else deadline_s
        need_s = predicted_s or 0.0
        settings = self._admission.settings
        if key is not None and self.queue.n_of(key) >= max(int(settings.key_share * settings.max_waiting), 1):
            return self.refuse(priority, ShedReason.KEY_SHARE, self._time_of(self.queue.n_of(key)))
        late_s = now_s + self._time_of(self.queue.n_ahead(priority, end_s) + 1) + need_s - end_s
        if late_s > 0:
            return self.refuse(priority, ShedReason.DEADLINE, late_s)
        if not self._make_room(priority, now_s):
            return self.refuse(priority, ShedReason.QUEUE_FULL, self._time_of(len(self.queue)))
        latest_s = min(end_s - need_s, now_s + settings.max_wait_s)
        place = Place(self, now_s, PlaceState.WAITING)
        place.wait(Waiting(place, priority, key, now_s, end_s, latest_s))
        return place

    def add(self, waiting: Waiting[Place]) -> None:
        """Put a request into the queue."""
        self.queue.push(waiting)
        self._admission.n_waiting_in_all += 1

    def remove(self, waiting: Waiting[Place]) -> None:
        """Take a request out of the queue."""
        self.queue.remove(waiting)
        self._admission.n_waiting_in_all -= 1

    def end(self, started_s: float) -> None:
        """Take back a slot, learn how long it was in use, and hand it on."""
        now_s = self.clock()
        self.n_running -= 1
        service_s, known_s = now_s - started_s, self._service_s
        self._service_s = service_s if known_s is None else known_s + _LEARNING_RATE * (service_s - known_s)
        if len(self.queue):
            self.pump(now_s)

    def pump(self, now_s: float) -> None:
        """Hand out the slots that are free, in turn."""
        while self.has_room() and (waiting := self.queue.pop(now_s)) is not None:
            self._admission.n_waiting_in_all -= 1
            if waiting.latest_start_s < now_s:
                self._turn_away(waiting, ShedReason.DEADLINE)
                continue
            self.n_running += 1
            waiting.item.wake(PlaceState.RUNNING, now_s)
            self._admission.hooks.on_turn(self.tier, waiting.priority, now_s - waiting.entered_s)

    def shed(self, waiting: Waiting[Place], reason: ShedReason) -> None:
        """Turn away a request that waits."""
        self.remove(waiting)
        self._turn_away(waiting, reason)

    def _turn_away(self, waiting: Waiting[Place], reason: ShedReason) -> None:
        """Tell a request that it lost its place."""
        shed = self.refuse(waiting.priority, reason, self._time_of(len(self.queue)))
        waiting.item.wake(PlaceState.SHED, self.clock(), shed)

    def refuse(self, priority: Priority, reason: ShedReason, retry_after_s: float = 1.0) -> Shed:
        """Say why a request gets no place."""
        self._admission.hooks.on_shed(self.tier, priority, reason)
        return Shed(
            tier=self.tier, reason=reason, retry_after_s=min(max(math.ceil(retry_after_s), 1), _MAX_RETRY_AFTER_S)
        )

    def _make_room(self, priority: Priority, now_s: float) -> bool:
        """Return whether one more may wait; in a full queue one of a lower class gives way."""
        admission = self._admission
        is_full = len(self.queue) >= admission.settings.max_waiting
        if not is_full and admission.n_waiting_in_all < admission.settings.max_waiting_in_all:
            return True
        displaced = self.queue.find_displaced(priority, now_s)
        if displaced is None:
            return False
        self.shed(displaced, ShedReason.QUEUE_FULL)
        return True

    def _time_of(self, n: int) -> float:
        """Return the time in which ``n`` slots become free; 0 while no time of service is known."""
        return n * (self._service_s or 0.0) / max(self.share, self.n_running)

    def has_room(self) -> bool:
        """Return whether one more could run now: in this worker's share, or borrowed."""
        n = self.n_running
        return n < self.share or (n < self._limit and n + self._admission.fleet.others(self.tier) < self._limit)


class Admission:
    """Lets requests onto the tiers of one worker process.

    Args:
        limits: Of every served tier.
        settings: The bounds of waiting.
        clock: Monotonic seconds, the gateway's own.
        fleet: The worker processes; ``None`` when there is one.
        hooks: Who is told.

    Attributes:
        n_waiting_in_all: Requests that wait, for whatever tier; likewise ``settings`` and the others as passed in.
    """

    def __init__(
        self,
        limits: Mapping[str, TierLimit],
        settings: AdmissionSettings,
        *,
        clock: Callable[[], float],
        fleet: Fleet | None = None,
        hooks: AdmissionHooks | None = None,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.fleet = Fleet() if fleet is None else fleet
        self.hooks = AdmissionHooks() if hooks is None else hooks
        self.n_waiting_in_all = 0
        self._is_draining = False
        self._gates: dict[str, _Gate] = {}
        self.update(limits)

    def enter(
        self,
        tier: str,
        *,
        priority: Priority = Priority.NORMAL,
        key: str | None = None,
        deadline_s: float | None = None,
        predicted_s: float | None = None,
    ) -> Place | Shed:
        """Ask for a slot: a place that runs or waits (``Place.turn`` tells), or why there is none.

        A free slot is given whatever the deadline: whether an idle tier is fast enough is routing's question.

        Args:
            tier: Where.
            priority: Of the request.
            key: Whose it is; ``None`` when unknown, and then no share is kept.
            deadline_s: Instant by which it must have been served; ``None`` without one (see ``find_deadline``).
            predicted_s: Time from its start to what the deadline is about; ``None`` counts as none.

        Raises:
            KeyError: The tier is not served.
        """
        gate = self._gates[tier]
        if self._is_draining:
            return gate.refuse(priority, ShedReason.DRAINING)
        if gate.n_running < gate.share:
            gate.n_running += 1
            return Place(gate, self.clock())
        return gate.wait_or_shed(priority, key, deadline_s, predicted_s)

    def update(self, limits: Mapping[str, TierLimit], settings: AdmissionSettings | None = None) -> None:
        """Put new limits, and settings where given, in force, as a reload does; requests keep their places.

        Tiers that are not named keep their limit: requests may still be there.
        """
        if settings is not None:
            self.settings = settings
            for gate in self._gates.values():
                gate.queue.promote_after_s = settings.promote_after_s
        for tier, limit in limits.items():
            if tier in self._gates:
                self._gates[tier].set_limit(limit)
            else:
                self._gates[tier] = _Gate(self, tier, limit)
        self.tick()

    def tick(self) -> None:
        """Shed who is past its latest start and hand out slots that other workers gave back; once a second or so.

        Every waiting request has a timer of its own and every end hands on, so this is for what neither sees.
        """
        now_s = self.clock()
        for gate in self._gates.values():
            for waiting in gate.queue.find_expired(now_s):
                gate.shed(waiting, ShedReason.DEADLINE)
            gate.pump(now_s)

    def drain(self) -> None:
        """Let nobody in any more; who waits keeps its place."""
        self._is_draining = True

    def shed_waiting(self) -> None:
        """Turn away everybody who waits, as at the end of a drain."""
        for gate in self._gates.values():
            for waiting in gate.queue:
                gate.shed(waiting, ShedReason.DRAINING)

    def has_room(self, tier: str) -> bool:
        """Return whether a request could start on a tier now."""
        return self._gates[tier].has_room()

    def n_waiting(self, tier: str) -> int:
        """Return how many wait for a tier."""
        return len(self._gates[tier].queue)

    def n_running(self, tier: str) -> int:
        """Return how many of this process have a slot of a tier."""
        return self._gates[tier].n_running
