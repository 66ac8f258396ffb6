"""Who is next: one tier's waiting requests by class, then deadline, then arrival, and nobody for ever.

Pure: instants are passed in, nothing is awaited, and what waits is opaque. A request that has waited long is overdue;
one turn in ``OVERDUE_EVERY`` goes to the overdue request that came first, so that a steady stream of a higher class,
or of requests with deadlines, keeps nobody out. The other turns keep to the order: under a long overload everybody is
overdue, and classes that stopped mattering then would be useless when they are needed.

Bound: an overdue request with m older ones before it is served within ``OVERDUE_EVERY * (m + 1)`` turns.
"""

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

T = TypeVar("T")

OVERDUE_EVERY = 4
"""One turn in so many is the longest waiting's: a quarter of a tier is what priority may cost at most."""


class Priority(IntEnum):
    """The class of a request; the lower number goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """One request in a queue.

    Attributes:
        item: What waits.
        priority: Its class.
        key: Whose it is; ``None`` when unknown, and then it is nobody's share.
        entered_s: When it began to wait.
        deadline_s: Instant by which it must be served; infinite without one.
        latest_start_s: Instant after which starting it is pointless.
        number: Of its arrival in this queue.
    """

    item: T
    priority: Priority
    key: str | None
    entered_s: float
    deadline_s: float = math.inf
    latest_start_s: float = math.inf
    number: int = 0


_Line = list[tuple[float, int, Waiting[T]]]


class PriorityQueue(Generic[T]):
    """One tier's queue; unbounded itself, so its owner asks ``len`` first.

    Args:
        promote_after_s: Time after which a waiting request is overdue; may be changed at any time.
    """

    __slots__ = ("_by_age", "_lines", "_n_of", "_n_pushed", "_n_turns", "promote_after_s")

    def __init__(self, *, promote_after_s: float) -> None:
        self.promote_after_s = promote_after_s
        self._lines: tuple[_Line[T], ...] = tuple([] for _ in Priority)
        self._by_age: dict[int, Waiting[T]] = {}
        self._n_of: Counter[str] = Counter()
        self._n_pushed = 0
        self._n_turns = 0  # since the last one of an overdue request

    def __len__(self) -> int:
        return len(self._by_age)

    def __iter__(self) -> Iterator[Waiting[T]]:
        """Iterate over those that wait, the longest waiting first."""
        return iter(tuple(self._by_age.values()))

    def n_of(self, key: str) -> int:
        """Return how many requests of ``key`` wait."""
        return self._n_of[key]  # a Counter does not store what it is only asked for

    def n_ahead(self, priority: Priority, deadline_s: float = math.inf) -> int:
        """Return how many would go before a request that came now; turns of overdue ones left out."""
        higher = sum([len(line) for line in self._lines[:priority]])
        return higher + bisect_left(self._lines[priority], (deadline_s, self._n_pushed))

    def push(self, waiting: Waiting[T]) -> None:
        """Let one more wait; its number is set here."""
        number = waiting.number = self._n_pushed
        self._n_pushed += 1
        insort(self._lines[waiting.priority], (waiting.deadline_s, number, waiting))
        self._by_age[number] = waiting
        if waiting.key is not None:
            self._n_of[waiting.key] += 1

    def pop(self, now_s: float) -> Waiting[T] | None:
        """Take out the request whose turn it is; ``None`` when nobody waits.

        One that is past its latest start is handed out as well, and costs nobody a turn.
        """
        oldest = next(iter(self._by_age.values()), None)
        if oldest is None:
            return None
        is_due = self._n_turns >= OVERDUE_EVERY - 1 and self._is_overdue(oldest, now_s)
        chosen = oldest if is_due else next(line for line in self._lines if line)[0][2]
        self.remove(chosen)
        if now_s <= chosen.latest_start_s:
            self._n_turns = 0 if chosen is oldest else self._n_turns + 1
        return chosen

    def remove(self, waiting: Waiting[T]) -> None:
        """Take out a request that waits here.

        Raises:
            KeyError: It does not.
        """
        del self._by_age[waiting.number]
        line = self._lines[waiting.priority]
        del line[bisect_left(line, (waiting.deadline_s, waiting.number))]
        key = waiting.key
        if key is not None:
            self._n_of[key] -= 1
            if not self._n_of[key]:
                del self._n_of[key]

    def find_displaced(self, priority: Priority, now_s: float) -> Waiting[T] | None:
        """Return the request that gives way to one of ``priority`` in a full queue: the last of the lowest class.

        ``None`` when nobody is of a lower class, or that one is overdue.
        """
        for line in reversed(self._lines[priority + 1 :]):
            if line:
                last = line[-1][2]
                return None if self._is_overdue(last, now_s) else last
        return None

    def find_expired(self, now_s: float) -> list[Waiting[T]]:
        """Return those past their latest start, the longest waiting first."""
        return [waiting for waiting in self._by_age.values() if waiting.latest_start_s < now_s]

    def _is_overdue(self, waiting: Waiting[T], now_s: float) -> bool:
        return now_s - waiting.entered_s >= self.promote_after_s
