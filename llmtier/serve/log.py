"""The request log's way out: a bounded queue and one writer thread for traffic-log rows and log lines.

The event loop only ever puts a finished request and goes on. A few times a second the thread turns what has gathered
into rows and lines, in slices that are short enough to hold up no request. When disk or standard error are slower than
the traffic, requests are dropped and counted rather than kept without end. A process that is killed loses the lines of
its last ``INTERVAL_S``, and the rows that are in no file yet: how many those were, the next gateway says.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmtier.core.errors import DiskError
from llmtier.serve.lines import LineWriter
from llmtier.store.traffic_buffer import Cells

logger = logging.getLogger(__name__)

INTERVAL_S = 0.2
"""Time between two looks at the queue."""

SLICE_ROWS = 8
"""Requests that are written down at once; some 0.15 ms, for which the event loop may have to wait."""

_PAUSE_S = 5e-5  # a pause of 0 would not let the other thread have the interpreter
_URGENT_BYTES = 8 * 1024 * 1024


class Entry(Protocol):
    """A finished request."""

    def write_down(self) -> tuple[Cells, bool]:
        """Return a cell for each column of the traffic log, and whether they belong into it."""


class RowWriter(Protocol):
    """What the thread writes to: ``store.traffic.TrafficWriter``, which keeps rows that the disk refused."""

    n_dropped: int
    n_files_removed: int

    def open(self) -> int:
        """Begin, in the thread that starts the log; return how many rows were lost before."""

    def note_taken(self, n_rows: int) -> None:
        """Note how many rows were promised so far; on the thread that puts them."""

    def note_skipped(self, n_rows: int) -> None:
        """Note that so many of them will not come."""

    def extend(self, rows: Sequence[Cells]) -> None:
        """Take rows."""

    def flush_if_due(self) -> None:
        """Write what has waited long enough."""

    def close(self) -> None:
        """Write what is held and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueBounds:
    """How much may wait for the log's thread.

    Attributes:
        n_requests: Finished requests.
        n_bytes: Size of the bodies that they hold.
        interval_s: Time between two looks at the queue.
    """

    n_requests: int = 10_000
    n_bytes: int = 64 * 1024 * 1024
    interval_s: float = INTERVAL_S


class TrafficLog:
    """Takes finished requests without waiting.

    Args:
        writer: Used from the writer thread alone, ``note_taken`` apart; ``None`` keeps no traffic log.
        on_dropped: Called with the number of rows lost; must be safe from any thread, as the following.
        on_lost: Called with the number of rows that earlier gateways lost by ending abruptly.
        on_removed: Called with the number of files removed to keep the log's size.
        lines: Where a line for each request goes; ``None`` writes none.
        bounds: Of the queue.
    """

    def __init__(
        self,
        writer: RowWriter | None,
        *,
        on_dropped: Callable[[int], None],
        on_lost: Callable[[int], None] | None = None,
        on_removed: Callable[[int], None] | None = None,
        lines: LineWriter | None = None,
        bounds: QueueBounds | None = None,
    ) -> None:
        self._writer = writer
        self._on_dropped, self._on_lost, self._on_removed = on_dropped, on_lost, on_removed
        self._lines = lines
        bounds = bounds or QueueBounds()
        self._n_requests_max, self._n_bytes_max = bounds.n_requests, bounds.n_bytes
        self._interval_s = bounds.interval_s
        self._queue: deque[tuple[Entry, int]] = deque()
        self._n_taken = 0
        self._n_bytes_in = self._n_bytes_out = 0  # one thread writes the first, the other the second
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="llmtier-traffic-log", daemon=True)

    @property
    def writes_lines(self) -> bool:
        """Whether each request gets a line here."""
        return self._lines is not None

    def start(self) -> None:
        """Look for what an earlier gateway lost, and start the writer thread."""
        if self._writer is not None:
            self._open(self._writer)
        self._thread.start()

    def put(self, entry: Entry, *, n_bytes: int = 0) -> None:
        """Queue a request, or drop and count it when too much waits already.

        Args:
            entry: It must not change any more.
            n_bytes: What it keeps in memory, where that is much.
        """
        n_waiting_bytes = self._n_bytes_in - self._n_bytes_out
        if len(self._queue) >= self._n_requests_max or n_waiting_bytes + n_bytes > self._n_bytes_max:
            self._on_dropped(1)
            return
        self._queue.append((entry, n_bytes))
        self._n_bytes_in += n_bytes
        self._n_taken += 1
        if self._writer is not None:
            self._writer.note_taken(self._n_taken)
        if n_waiting_bytes > _URGENT_BYTES:
            self._wake.set()

    def close(self) -> None:
        """Write everything queued and end; blocks, so call it in a thread from asynchronous code."""
        self._is_closing = True
        self._wake.set()
        if self._thread.ident is not None:  # a gateway that could not start has nothing to write
            self._thread.join()

    def _open(self, writer: RowWriter) -> None:
        try:
            n_lost = writer.open()
        except DiskError:
            logger.exception("traffic log: could not be marked as open; rows that a crash loses will not be counted")
            return
        if n_lost:
            logger.warning(
                "traffic log: the previous gateway ended without writing its last rows", extra={"n_rows_lost": n_lost}
            )
            if self._on_lost is not None:
                self._on_lost(n_lost)

    def _run(self) -> None:
        while True:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            is_closing = self._is_closing  # read first: what was put before is then in the queue
            while self._queue:
                self._write_slice()
                time.sleep(0.0 if is_closing else _PAUSE_S)
            if self._lines is not None:
                self._lines.flush()
            if is_closing:
                break
            if self._writer is not None:
                self._try(self._writer, self._writer.flush_if_due)
        if self._writer is not None:
            self._try(self._writer, self._writer.close)
        if self._lines is not None:
            self._lines.close()

    def _write_slice(self) -> None:
        n_taken = min(SLICE_ROWS, len(self._queue))
        rows = [cells for cells in (self._write_down() for _ in range(n_taken)) if cells is not None]
        writer = self._writer
        if writer is not None:
            writer.note_skipped(n_taken - len(rows))
            self._try(writer, lambda: writer.extend(rows))

    def _write_down(self) -> Cells | None:
        """Write the next request's line; return its row, ``None`` when it gets none."""
        entry, n_bytes = self._queue.popleft()
        try:
            cells, is_row = entry.write_down()
        except Exception:
            logger.exception("request log: a request could not be written down")
            self._on_dropped(1)
            return None
        finally:
            self._n_bytes_out += n_bytes
        if self._lines is not None:
            self._lines.put(cells)
        return cells if is_row else None

    def _try(self, writer: RowWriter, step: Callable[[], object]) -> None:
        n_dropped, n_removed = writer.n_dropped, writer.n_files_removed
        try:
            step()
        except DiskError:
            logger.exception("traffic log: could not write")
        if writer.n_dropped > n_dropped:
            self._on_dropped(writer.n_dropped - n_dropped)
        if writer.n_files_removed > n_removed and self._on_removed is not None:
            self._on_removed(writer.n_files_removed - n_removed)
