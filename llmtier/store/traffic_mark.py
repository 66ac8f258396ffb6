"""The mark of an open traffic log: how many rows a gateway took, and how many of them are on disk.

A file ``traffic-<pid>-<hex>.open`` in the log's folder, mapped into memory, so that a count costs a store and outlives
a killed process (not a power cut: nothing is forced to disk). Its owner holds a lock on it; one without an owner tells
the next gateway what was lost. No rows are kept here.
"""

import fcntl
import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from llmtier.store.atomic import disk_errors

SUFFIX = ".open"
_SIZE_BYTES = 4096
_COUNTS = struct.Struct("<QQ")  # rows taken, rows settled
_NOTE_AT = _COUNTS.size
_NOTE = b"\nan open traffic log of llmtier: 64-bit counts of the rows taken and of those on disk or given up\n"


class OpenMark:
    """The mark of one process; both counts start at 0.

    Args:
        folder: The log's; it must be there.

    Raises:
        DiskError: The file system refused.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"traffic-{os.getpid()}-{uuid4().hex[:8]}{SUFFIX}"
        hidden = self._path.with_name(f".{self._path.name}")  # nobody may find it before it is locked
        with disk_errors(self._path):
            self._descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(self._descriptor, 0, _SIZE_BYTES)  # a store to a hole of a full disk kills
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._map = mmap.mmap(self._descriptor, _SIZE_BYTES)
                hidden.rename(self._path)
            except BaseException:
                hidden.unlink(missing_ok=True)
                os.close(self._descriptor)
                raise
        self._map[_NOTE_AT : _NOTE_AT + len(_NOTE)] = _NOTE
        self._counts = memoryview(self._map)[: _COUNTS.size].cast("Q")

    def note_taken(self, n_rows: int) -> None:
        """Write how many rows were taken in all."""
        self._counts[0] = n_rows

    def note_settled(self, n_rows: int) -> None:
        """Write how many of them are on disk, or were given up and counted."""
        self._counts[1] = n_rows

    def close(self) -> None:
        """Take the mark away: nothing is left to lose. What is noted from now on goes nowhere."""
        with suppress(OSError):
            self._path.unlink()
        self.abandon()

    def abandon(self) -> None:
        """Leave the mark as a process does that is killed."""
        self._counts.release()
        self._counts = memoryview(bytearray(_COUNTS.size)).cast("Q")
        self._map.close()
        os.close(self._descriptor)


def collect_lost(folder: Path) -> int:
    """Return how many rows ended gateways took and never wrote, and remove their marks.

    Raises:
        DiskError: The file system refused.
    """
    with disk_errors(folder):
        return sum(_collect(path) for path in sorted(folder.glob(f"traffic-*{SUFFIX}")))


def _collect(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # another process was faster
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(descriptor).st_nlink:  # as above, between open and lock
            return 0
        head = os.pread(descriptor, _COUNTS.size, 0)
        path.unlink()
    except BlockingIOError:  # its owner lives
        return 0
    finally:
        os.close(descriptor)
    if len(head) < _COUNTS.size:
        return 0
    n_taken, n_settled = _COUNTS.unpack(head)
    return max(int(n_taken) - int(n_settled), 0)
