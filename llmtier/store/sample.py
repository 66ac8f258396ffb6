"""A bounded sample of named things that depends on their names and the seed alone, in whatever order they come.

Each name has a seeded digest; the ``max_rows`` names of smallest digest are kept. So two rows of one name are both
kept or both dropped, wherever they stand, and a smaller sample is part of a larger one.
"""

import hashlib
from collections.abc import Iterator
from heapq import heappush, heappushpop
from typing import Generic, TypeVar

from llmtier.core.errors import UsageError

T = TypeVar("T")


class Sample(Generic[T]):
    """Holds values by name, at most ``max_rows`` of them.

    Args:
        max_rows: The bound; ``None`` keeps all.
        seed: Of the digests.

    Raises:
        UsageError: The bound is less than one.
    """

    def __init__(self, *, max_rows: int | None, seed: int) -> None:
        if max_rows is not None and max_rows < 1:
            raise UsageError(f"the number of rows to keep must be >= 1, got {max_rows}")
        self._max_rows = max_rows
        self._key = str(seed).encode()[:64]
        self._held: dict[str, T] = {}
        self._largest: list[tuple[int, str]] = []  # a heap of (-digest, name): the first is the next to go

    @property
    def is_bounded(self) -> bool:
        """Return whether anything can be dropped."""
        return self._max_rows is not None

    def __len__(self) -> int:
        """Return how many are held."""
        return len(self._held)

    def __iter__(self) -> Iterator[str]:
        """Yield the names held, in the order they came."""
        return iter(self._held)

    def digest(self, key: str) -> int:
        """Return the seeded digest of a text, in [0, 2**64)."""
        data = key.encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=self._key).digest(), "big")

    def get(self, name: str) -> T | None:
        """Return what is held of a name."""
        return self._held.get(name)

    def replace(self, name: str, value: T) -> None:
        """Change what is held of a name that is held."""
        self._held[name] = value

    def offer(self, name: str, value: T, *, digest: int) -> None:
        """Hold a name that is not held yet, unless enough of smaller digest are; one may go for it."""
        self._held[name] = value
        if self._max_rows is None:
            return
        if len(self._held) <= self._max_rows:
            heappush(self._largest, (-digest, name))
        else:
            _, dropped = heappushpop(self._largest, (-digest, name))
            del self._held[dropped]

    def values(self) -> Iterator[T]:
        """Yield what is held, in the order it came."""
        return iter(self._held.values())
