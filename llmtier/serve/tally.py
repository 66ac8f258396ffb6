"""Counts, histograms and gauge readings as plain numbers: cheap to add to, to send, and to add up.

A request adds to dictionaries and lists; no metrics library is on its path. Each process of a gateway has a tally of its
own and sends all of it now and then (``encode_tally``); the control process keeps the latest of each in a ``TallyBook``,
so a message that was lost costs nothing, and the counts of a process that died stay in the sums. Knows no metric by
name: that is ``metrics.py``.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import msgspec

Key = tuple[str, ...]
"""A metric's name, then its label values."""

Combine = Callable[[float, float], float]


class Histogram(msgspec.Struct, kw_only=True):
    """How many values fell into each bucket.

    Attributes:
        counts: One a bucket, the last being that of values above every bound.
        total: Sum of the values.
    """

    counts: list[int]
    total: float = 0.0


class Tally(msgspec.Struct, kw_only=True):
    """The numbers of one process; counts only ever grow.

    Attributes:
        counts: Sums by key.
        histograms: By key.
        gauges: Readings of the moment; a tally that is added to has none.
    """

    counts: dict[Key, float] = {}
    histograms: dict[Key, Histogram] = {}
    gauges: dict[Key, float] = {}

    def add(self, key: Key, amount: float = 1.0) -> None:
        """Add to a count."""
        counts = self.counts
        counts[key] = counts.get(key, 0.0) + amount

    def observe(self, key: Key, value: float, bounds: Sequence[float]) -> None:
        """Put a value into the histogram ``key``.

        Args:
            key: Of the histogram, which is made when it is new.
            value: A value equal to a bound belongs to that bound's bucket.
            bounds: Ascending upper bounds, the same at every call for one metric.
        """
        found = self.histograms.get(key)
        if found is None:
            found = self.histograms[key] = Histogram(counts=[0] * (len(bounds) + 1))
        found.counts[bisect_left(bounds, value)] += 1
        found.total += value

    def merge(self, other: "Tally", *, combine: Mapping[str, Combine] | None = None) -> None:
        """Add the numbers of another process.

        Args:
            other: It is not changed, and shares nothing with this one afterwards.
            combine: By metric name, what two readings of a gauge become; others are added.
        """
        for key, amount in other.counts.items():
            self.add(key, amount)
        for key, histogram in other.histograms.items():
            self._merge_histogram(key, histogram)
        for key, value in other.gauges.items():
            how = (combine or {}).get(key[0], _sum)
            self.gauges[key] = how(self.gauges[key], value) if key in self.gauges else value

    def _merge_histogram(self, key: Key, other: Histogram) -> None:
        found = self.histograms.get(key)
        if found is None:
            self.histograms[key] = Histogram(counts=[*other.counts], total=other.total)
            return
        if len(found.counts) != len(other.counts):
            raise ValueError(f"{key[0]}: {len(found.counts)} buckets here, {len(other.counts)} there")
        found.counts = [mine + theirs for mine, theirs in zip(found.counts, other.counts, strict=True)]
        found.total += other.total


class TallyBook:
    """The latest tally of every process, and the sums of those that ended.

    Args:
        combine: As for ``Tally.merge``.
    """

    def __init__(self, combine: Mapping[str, Combine] | None = None) -> None:
        self._combine = combine
        self._latest: dict[str, Tally] = {}
        self._ended = Tally()

    def put(self, source: str, tally: Tally) -> None:
        """Take what ``source`` has counted since it began, in place of what it said before.

        A process that starts anew is another source, or must be retired first: its counts begin at 0 again.
        """
        self._latest[source] = tally

    def retire(self, source: str) -> None:
        """Keep the counts of a process that ended, and forget its gauges."""
        tally = self._latest.pop(source, None)
        if tally is not None:
            self._ended.merge(Tally(counts=tally.counts, histograms=tally.histograms))

    def total(self) -> Tally:
        """Return the sums over all processes, past and present."""
        total = Tally()
        for tally in (self._ended, *self._latest.values()):
            total.merge(tally, combine=self._combine)
        return total


def encode_tally(tally: Tally) -> bytes:
    """Return a tally as bytes for another process of the same gateway; no file format."""
    return _ENCODER.encode(tally)


def decode_tally(data: bytes) -> Tally:
    """Return what ``encode_tally`` was given.

    Raises:
        ValueError: It is no tally.
    """
    return _DECODER.decode(data)


def _sum(one: float, other: float) -> float:
    return one + other


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Tally)
