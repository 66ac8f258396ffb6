"""The traffic log's way to disk: a bounded queue and one writer thread.

The event loop only ever puts a row and goes on; when the disk is slower than the traffic, rows are
dropped and counted rather than kept without end. Writes through ``store.traffic``; decides nothing.
"""

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from llmtier.core.errors import DiskError
from llmtier.store.traffic import TrafficRow

logger = logging.getLogger(__name__)

IDLE_FLUSH_S = 5.0
"""A quiet gateway still has its rows on disk after this long."""


class RowWriter(Protocol):
    """What the thread writes to: ``store.traffic.TrafficWriter``, which keeps rows that the disk refused."""

    n_dropped: int

    def append(self, row: TrafficRow) -> None:
        """Take one row."""

    def flush(self) -> object:
        """Write what is held."""

    def close(self) -> None:
        """Write what is held and end."""


class TrafficLog:
    """Takes rows without waiting.

    Args:
        writer: Used from the writer thread alone.
        on_dropped: Called with the number of rows lost; must be safe from any thread.
        n_queued_max: Rows that may wait.
        idle_flush_s: Silence after which held rows are written.
    """

    def __init__(
        self,
        writer: RowWriter,
        *,
        on_dropped: Callable[[int], None],
        n_queued_max: int = 10_000,
        idle_flush_s: float = IDLE_FLUSH_S,
    ) -> None:
        self._writer = writer
        self._on_dropped = on_dropped
        self._idle_flush_s = idle_flush_s
        self._queue: queue.Queue[TrafficRow | None] = queue.Queue(n_queued_max)
        self._thread = threading.Thread(target=self._run, name="llmtier-traffic-log", daemon=True)

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def put(self, row: TrafficRow) -> None:
        """Queue a row, or drop and count it when the queue is full."""
        try:
            self._queue.put_nowait(row)
        except queue.Full:
            self._on_dropped(1)

    def close(self) -> None:
        """Write everything queued and end; blocks, so call it in a thread from asynchronous code."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                row = self._queue.get(timeout=self._idle_flush_s)
            except queue.Empty:
                self._write(self._writer.flush)
                continue
            if row is None:
                self._write(self._writer.close)
                return
            self._write(partial(self._writer.append, row))

    def _write(self, step: Callable[[], object]) -> None:
        n_dropped_before = self._writer.n_dropped
        try:
            step()
        except DiskError:
            logger.exception("traffic log: could not write")
        n_lost = self._writer.n_dropped - n_dropped_before
        if n_lost:
            self._on_dropped(n_lost)
