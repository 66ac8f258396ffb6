"""The circuit breaker of one tier in one process: whether it may be tried, from how its requests ended.

Closed, every request passes. A run of failures, a high share of them or the engine's own Retry-After opens it: none
passes. When that time is over, half-open, exactly one passes, the probe; how it ends closes or opens the breaker.
Instants come from the caller; no I/O, no lock: one event loop owns a breaker. The gateway's other processes have their
own, and see of this one only ``open_until_s``. After Nygard, *Release It!* (2007), chapter 5.

What counts, each request once, when it is over:

* ``succeed``: an answer in full that ``answer_check.py`` has nothing against. Likewise an answer whose client was slow.
* ``fail``: no connection, late, cut off, 408, 5xx but 501, an error inside an answer, a worthless answer.
* ``fail`` with ``Failure.BUSY``, a 429: says that the engine lives, hence counts towards nothing, but its Retry-After
  is kept.
* ``dismiss``: what the client caused and what was never sent: other 4xx, 501, a client that left, a request of the
  gateway's that went elsewhere in the end. It counts neither way, and gives a probe's place back.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from llmtier.serve.retry import MAX_RETRY_AFTER_S

_N_BUCKETS = 6
"""Parts of the window; it forgets a part at a time, so it is between 5/6 of its length and all of it."""

_NEVER_S = -math.inf


class BreakerState(StrEnum):
    """What passes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Failure(StrEnum):
    """How an engine failed."""

    CONNECT = "connect"  # no connection
    TIMEOUT = "timeout"  # its first byte or a later one was late; 408
    STATUS = "status"  # 5xx
    BROKEN = "broken"  # it was cut off, or was no HTTP
    ANSWER = "answer"  # an error inside a 200, or a worthless answer
    BUSY = "busy"  # 429


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """When a breaker opens, and for how long.

    Attributes:
        n_consecutive: Failures without a success between them that open it.
        failed_share: Share of failures in the window that opens it, likewise.
        n_fewest: Outcomes in the window below which their share says nothing.
        window_s: Length of the window.
        first_open_s: Time that it stays open at first; twice that after each probe that failed.
        longest_open_s: Most that doubling comes to.
        probe_s: Time after which a probe that has not reported is given up, and the next may pass.
        others_first_s: Head start of the process that opened its breaker over the others.
    """

    n_consecutive: int = 5
    failed_share: float = 0.5
    n_fewest: int = 20
    window_s: float = 30.0
    first_open_s: float = 5.0
    longest_open_s: float = 60.0
    probe_s: float = 60.0  # as long as the first byte may take
    others_first_s: float = 1.0

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: A number out of its range.
        """
        if self.n_consecutive < 1 or self.n_fewest < 1:
            raise ValueError(f"n_consecutive {self.n_consecutive} and n_fewest {self.n_fewest}: must be at least 1")
        if not 0.0 < self.failed_share <= 1.0:
            raise ValueError(f"failed_share {self.failed_share}: must be above 0 and at most 1")
        if not 0.0 < self.first_open_s <= self.longest_open_s < math.inf:
            raise ValueError(f"open for {self.first_open_s} to {self.longest_open_s} s: must be above 0 and ascending")
        if not (0.0 < self.window_s < math.inf and 0.0 < self.probe_s < math.inf):
            raise ValueError(f"window_s {self.window_s} and probe_s {self.probe_s}: must be above 0 and finite")
        if not 0.0 <= self.others_first_s < math.inf:
            raise ValueError(f"others_first_s {self.others_first_s}: must be at least 0 and finite")


class Breaker:
    """The breaker of one tier.

    ``sent_s`` of its methods is the instant at which the request was let pass: outcomes of requests older than the
    last opening or the present probe say nothing new, and are left out. Without it every outcome is the newest.

    Args:
        settings: When it opens, and for how long.

    Attributes:
        state: What passes.
        n_opened: Times that it opened, after a probe that failed as well.
        open_until_s: For the other processes: instant before which they should keep away; while half-open that is the
            probe's deadline. Minus infinity while closed.
    """

    __slots__ = ("_failures", "_next_open_s", "_settings", "_since_s", "_window", "n_opened", "open_until_s", "state")

    def __init__(self, settings: BreakerSettings | None = None) -> None:
        self._settings = settings or BreakerSettings()
        self._window = _Window(self._settings.window_s)
        self._failures = 0
        self._next_open_s = self._settings.first_open_s
        self._since_s = _NEVER_S
        self.state = BreakerState.CLOSED
        self.n_opened = 0
        self.open_until_s = _NEVER_S

    def is_shut(self, now_s: float, *, others_open_until_s: float = _NEVER_S) -> bool:
        """Return whether ``may_try`` would say no; changes nothing, so it is for choosing between tiers.

        Args:
            now_s: The present instant.
            others_open_until_s: Latest ``open_until_s`` of the other processes. Unless this one's own is later, it
                waits for that and a head start more: the process that opened its breaker last is the one that probes.
        """
        own_s = self.open_until_s
        if now_s < own_s:
            return True
        return others_open_until_s >= own_s and now_s < others_open_until_s + self._settings.others_first_s

    def may_try(self, now_s: float, *, others_open_until_s: float = _NEVER_S) -> bool:
        """Return whether a request may be sent now; while not closed, a yes hands out the probe.

        After a yes the caller must report with one of ``succeed``, ``fail`` and ``dismiss``.
        """
        if self.is_shut(now_s, others_open_until_s=others_open_until_s):
            return False
        if self.state is not BreakerState.CLOSED:
            self.state = BreakerState.HALF_OPEN
            self._since_s = now_s
            self.open_until_s = now_s + self._settings.probe_s
        return True

    def note_answering(self, now_s: float, *, sent_s: float | None = None) -> None:
        """Take note that the first tokens of an answer came: enough for a probe to close the breaker.

        A long stream would otherwise keep the tier shut to its end. Optional, and no outcome: that still follows.
        """
        if self.state is BreakerState.HALF_OPEN and not self._is_stale(sent_s):
            self._close(now_s)

    def succeed(self, now_s: float, *, sent_s: float | None = None) -> None:
        """Count an answer in full; a probe's closes the breaker."""
        if self.state is not BreakerState.CLOSED:
            self.note_answering(now_s, sent_s=sent_s)
        elif self._is_stale(sent_s):
            return
        self._failures = 0
        self._window.add_success(now_s)

    def fail(
        self, now_s: float, kind: Failure, *, sent_s: float | None = None, retry_after_s: float | None = None
    ) -> None:
        """Count a failure; it may open the breaker, and a probe's does.

        Args:
            now_s: The present instant.
            kind: ``BUSY`` counts towards nothing.
            sent_s: When the request was let pass; ``None`` takes it for the newest.
            retry_after_s: The engine's Retry-After: no request before that, whatever the counts; at most 300 s.
        """
        asked_s = min(max(retry_after_s or 0.0, 0.0), MAX_RETRY_AFTER_S)
        match self.state:
            case BreakerState.OPEN:
                self.open_until_s = max(self.open_until_s, now_s + asked_s)
            case BreakerState.HALF_OPEN if not self._is_stale(sent_s):
                self._fail_probe(now_s, kind, asked_s)
            case BreakerState.CLOSED if not self._is_stale(sent_s):
                self._fail_closed(now_s, kind, asked_s)

    def dismiss(self, now_s: float, *, sent_s: float | None = None) -> None:
        """Leave a request out that says nothing of the engine; the place of a probe is free again."""
        if self.state is BreakerState.HALF_OPEN and not self._is_stale(sent_s):
            self._open(now_s, 0.0)

    def _is_stale(self, sent_s: float | None) -> bool:
        return sent_s is not None and sent_s < self._since_s

    def _fail_closed(self, now_s: float, kind: Failure, asked_s: float) -> None:
        settings = self._settings
        if kind is not Failure.BUSY:
            self._failures += 1
            n, n_failed = self._window.add_failure(now_s)
            is_run = self._failures >= settings.n_consecutive
            if is_run or (n >= settings.n_fewest and n_failed >= settings.failed_share * n):
                self._open_longer(now_s, asked_s)
                return
        if asked_s > 0.0:
            self._open(now_s, asked_s)

    def _fail_probe(self, now_s: float, kind: Failure, asked_s: float) -> None:
        if kind is Failure.BUSY:
            self._open(now_s, asked_s or self._settings.first_open_s)
        else:
            self._open_longer(now_s, asked_s)

    def _open_longer(self, now_s: float, asked_s: float) -> None:
        for_s = max(self._next_open_s, asked_s)
        self._next_open_s = min(2.0 * self._next_open_s, self._settings.longest_open_s)
        self._open(now_s, for_s)

    def _open(self, now_s: float, for_s: float) -> None:
        self.n_opened += for_s > 0.0
        self.state = BreakerState.OPEN
        self.open_until_s = now_s + for_s
        self._since_s = now_s

    def _close(self, now_s: float) -> None:
        """Begin anew; what the probe that did it comes to still counts, so ``_since_s`` stays where it is."""
        self.state = BreakerState.CLOSED
        self.open_until_s = _NEVER_S
        self._next_open_s = self._settings.first_open_s
        self._failures = 0
        self._window.clear(now_s)


class _Window:
    """Outcomes of the last seconds, counted in parts of equal length."""

    __slots__ = ("_ends_s", "_failed", "_n", "_part_s", "_parts", "_parts_failed")

    def __init__(self, length_s: float) -> None:
        self._part_s = length_s / _N_BUCKETS
        self.clear(_NEVER_S)

    def clear(self, now_s: float) -> None:
        """Forget everything and begin a part at ``now_s``."""
        self._parts = [0] * _N_BUCKETS  # the newest is the last
        self._parts_failed = [0] * _N_BUCKETS
        self._n = self._failed = 0
        self._ends_s = now_s + self._part_s

    def add_success(self, now_s: float) -> None:
        """Count a success."""
        if now_s >= self._ends_s:
            self._move(now_s)
        self._parts[-1] += 1
        self._n += 1

    def add_failure(self, now_s: float) -> tuple[int, int]:
        """Count a failure; return how many outcomes the window holds, and how many of them are failures."""
        if now_s >= self._ends_s:
            self._move(now_s)
        self._parts[-1] += 1
        self._parts_failed[-1] += 1
        self._n += 1
        self._failed += 1
        return self._n, self._failed

    def _move(self, now_s: float) -> None:
        if now_s >= self._ends_s + (_N_BUCKETS - 1) * self._part_s:
            self.clear(now_s)
            return
        while now_s >= self._ends_s:
            self._n -= self._parts.pop(0)
            self._failed -= self._parts_failed.pop(0)
            self._parts.append(0)
            self._parts_failed.append(0)
            self._ends_s += self._part_s


def classify_status(status: int) -> Failure | None:
    """Return what an engine's HTTP status says of the engine; ``None`` when nothing: success or the client's fault.

    501 is among the latter: vLLM answers so when a request asks for what the model cannot do.
    """
    if status == 429:
        return Failure.BUSY
    if status == 408:
        return Failure.TIMEOUT
    return Failure.STATUS if status >= 500 and status != 501 else None
