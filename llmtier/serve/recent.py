"""Quantiles of the last few values, kept sorted: an event costs a search and two short moves, a look-up an index.

Pure; knows neither what the values are nor any clock.
"""

import math
from bisect import bisect_left, insort
from collections import deque

WINDOW = 64
"""Values looked back on: enough for a 90th percentile, few enough to follow a change within a minute of traffic."""

FEWEST = 8
"""Values behind a quantile; with fewer there is none."""


class RecentQuantile:
    """One quantile of the last ``size`` values.

    Args:
        level: Such as 0.9; the value of rank ceil((n + 1) level) counts, so that the next one lies at or below it with
            at least that probability while n allows.
        size: Of the window.

    Attributes:
        value: The quantile; ``None`` below ``FEWEST`` values.
    """

    __slots__ = ("_ascending", "_level", "_size", "_values", "value")

    def __init__(self, level: float, *, size: int = WINDOW) -> None:
        self._level = level
        self._size = size
        self._values: deque[float] = deque()
        self._ascending: list[float] = []
        self.value: float | None = None

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        """Take one more value; the oldest goes when there are too many."""
        if len(self._values) == self._size:
            self._take_oldest()
        self._values.append(value)
        insort(self._ascending, value)
        self._find()

    def drop_oldest(self) -> None:
        """Forget the value that came first."""
        self._take_oldest()
        self._find()

    def _take_oldest(self) -> None:
        del self._ascending[bisect_left(self._ascending, self._values.popleft())]

    def _find(self) -> None:
        n = len(self._ascending)
        self.value = None if n < FEWEST else self._ascending[min(math.ceil((n + 1) * self._level), n) - 1]
