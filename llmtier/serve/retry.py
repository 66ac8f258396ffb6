"""What bounds and times a second try: the budget of all of them, and how long an engine asks to be left alone.

Pure: counts and parses, knows neither tiers nor requests. Whether a try makes sense is the caller's business.
"""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_S = 300.0
"""An engine cannot shut itself out for longer by one header."""

_SECONDS = re.compile(rb"\d+(\.\d*)?")
_MAX_HEADER_BYTES = 64  # the longest HTTP date has 33


class RetryBudget:
    """Second tries of any kind, fail-overs among them, kept to a share of the requests; one process's.

    A token bucket that requests fill, not time: an outage cannot turn n requests into more than
    (1 + ``share``) n + ``burst`` tries, however long it lasts, and an idle gateway saves up no more than ``burst``.

    Args:
        share: Second tries that each request earns; from above 0 to 1.
        burst: Most that can be saved up, and what there is at the start; at least 1.

    Attributes:
        n_taken: Second tries that were granted.
        n_refused: Second tries that were not.
    """

    __slots__ = ("_cost", "_most", "_saved", "n_refused", "n_taken")

    def __init__(self, *, share: float = 0.2, burst: float = 10.0) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"retry share {share}: must be above 0 and at most 1")
        if not 1.0 <= burst < float("inf"):
            raise ValueError(f"retry burst {burst}: must be at least 1 and finite")
        self._cost = 1.0 / share  # counted in requests: those add up without rounding
        self._most = burst * self._cost
        self._saved = self._most
        self.n_taken = 0
        self.n_refused = 0

    @property
    def n_left(self) -> int:
        """Second tries that would be granted now."""
        return int(self._saved / self._cost)

    def earn(self) -> None:
        """Count a request; once for each that a client sent, not for each try."""
        saved = self._saved + 1.0
        self._saved = min(self._most, saved)

    def take(self) -> bool:
        """Return whether one more second try may be made, and count it or the refusal."""
        if self._saved < self._cost:
            self.n_refused += 1
            return False
        self._saved -= self._cost
        self.n_taken += 1
        return True


def parse_retry_after(value: bytes, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for, from 0 to ``MAX_RETRY_AFTER_S``.

    Seconds, whole as in RFC 9110 (section 10.2.3) or with decimals as some servers send, or one of its dates; a date
    that has passed is 0.

    Args:
        value: The header's value.
        now: With its time zone; only for dates.

    Returns:
        ``None`` for anything else.
    """
    value = value.strip(b" \t")
    if len(value) > _MAX_HEADER_BYTES:
        return None
    if _SECONDS.fullmatch(value):
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(value.decode("ascii"))
    except (ValueError, TypeError, IndexError, OverflowError):  # all that a malformed date has been seen to raise
        return None
    if at.tzinfo is None:  # the asctime form names no zone; HTTP dates are UTC
        at = at.replace(tzinfo=UTC)
    return min(max((at - now).total_seconds(), 0.0), MAX_RETRY_AFTER_S)
