"""How long a tier's answers were of late, by how long they were allowed to be.

A limit on the whole time needs a length that few answers exceed; a price and a gap per token need the mean, because
both are sums over requests, and that stays with the ledger. So this holds the 90th percentile alone. Requests that
allow 16 tokens and those that allow any number are different traffic: each class of ``max_tokens``, a factor of four
wide, has its own window, and what it has not seen often enough comes from all of them together.
"""

from llmtier.serve.recent import RecentQuantile

LEVEL = 0.9
"""With the upper quantile of the latency on top, 0.95 would promise far more than 19 requests in 20."""

_N_CLASSES = 10


class OutputLengths:
    """Recent lengths of one tier's answers."""

    __slots__ = ("_all", "_classes")

    def __init__(self) -> None:
        self._all = RecentQuantile(LEVEL)
        self._classes = tuple(RecentQuantile(LEVEL) for _ in range(_N_CLASSES))

    def add(self, n_tokens: int, max_tokens: int | None) -> None:
        """Take the length of an answer that came in full."""
        self._all.add(n_tokens)
        self._classes[_class_of(max_tokens)].add(n_tokens)

    def find_long(self, max_tokens: int | None) -> float | None:
        """Return the length that nine in ten answers keep to; ``None`` until enough have come."""
        long = self._classes[_class_of(max_tokens)].value
        if long is None:
            long = self._all.value
        return long if long is None or max_tokens is None or long <= max_tokens else float(max_tokens)


def _class_of(max_tokens: int | None) -> int:
    """Return 0 for no limit, else the number of the power of four that the limit keeps to."""
    if max_tokens is None:
        return 0
    return min((max(max_tokens - 1, 0).bit_length() + 1) // 2 + 1, _N_CLASSES - 1)
