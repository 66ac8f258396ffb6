"""The folder beside the checkpoints where an unfinished run keeps what a restart needs: ``<out>/.llmtier-work``.

Holds the token ids (``tokens-<digest>.json``) and, for each scheme, a folder of finished layers that the worker reads
and writes. One run at a time: a lock on ``out`` itself that the worker inherits, so that it is held until both are gone.
Nothing here counts as a checkpoint, and all of it may be deleted when no run is under way.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from llmtier.core.errors import DiskError, UsageError
from llmtier.store.atomic import disk_errors

WORK_FOLDER = ".llmtier-work"
LOCK_WAIT_S = 10.0  # a killed command's worker ends within milliseconds; another command's run does not
POLL_S = 0.05
MAX_NAME = 150  # of a name that ``store.atomic.beside`` keeps


@dataclass(frozen=True, slots=True)
class Workplace:
    """A locked work folder.

    Attributes:
        folder: Its path.
        lock: File descriptor of the held lock, to be handed to the worker.
    """

    folder: Path
    lock: int

    def tokens(self, identity: Mapping[str, object]) -> Path:
        """Return the file for the token ids that ``identity`` determines."""
        return self.folder / f"tokens-{digest_of(identity)[:16]}.json"

    def scheme_folder(self, name: str) -> Path:
        """Return the folder for the finished layers of the checkpoint called ``name``."""
        return self.folder / name

    def finish(self, name: str) -> None:
        """Drop the layers of a checkpoint that lies in its place."""
        shutil.rmtree(self.scheme_folder(name), ignore_errors=True)


@contextmanager
def opened(out: Path) -> Iterator[int]:
    """Make the folder and give its descriptor: whoever inherits it holds the lock that is taken on it, also later.

    Raises:
        DiskError: The file system refused.
    """
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_workplace(
    out: Path,
    *,
    names: list[str],
    descriptor: int | None = None,
    wait_s: float = LOCK_WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Workplace]:
    """Lock the work folder of ``out``; remove what killed runs left of the checkpoints called ``names``.

    On success the folder goes away, unless unfinished layers of other checkpoints lie in it; on failure its files stay.

    Args:
        out: Where the checkpoints go.
        names: Theirs.
        descriptor: Of ``opened(out)``, which then keeps the lock; ``None`` opens the folder for the block.
        wait_s: How long another run is waited for.
        sleep: Waits.

    Raises:
        UsageError: Another run holds the lock.
        DiskError: The file system refused.
    """
    with opened(out) if descriptor is None else nullcontext(descriptor) as held:
        wait_for_lock(held, out, wait_s=wait_s, sleep=sleep)
        for name in names:
            mend_leftovers(out, name)
        with working_in(out / WORK_FOLDER):
            yield Workplace(out / WORK_FOLDER, held)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make the work folder for the block, and remove it when nothing of use is left in it."""
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    try:
        yield
        clean(folder)
    finally:
        with suppress(OSError):  # it holds something, or is gone
            folder.rmdir()


def wait_for_lock(descriptor: int, out: Path, *, wait_s: float, sleep: Callable[[float], None]) -> None:
    """Take the lock, or give up after ``wait_s``.

    Raises:
        UsageError: Somebody else keeps it.
        DiskError: The file system has no locks.
    """
    with disk_errors(out):  # some network file systems have no locks
        for _ in range(max(1, round(wait_s / POLL_S))):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sleep(POLL_S)
            else:
                return
    raise UsageError(f"{out}: another llmtier quantize writes there; wait for it, or choose another --output")


def mend_leftovers(out: Path, name: str) -> None:
    """Remove the half-written folders that killed runs left beside ``name``; put back one that was only moved aside."""
    for staging in left_beside(out, name, "tmp"):
        shutil.rmtree(staging, ignore_errors=True)
    if len(name) > MAX_NAME:  # the old folder of another long name would look the same
        return
    for old in left_beside(out, name, "old"):
        if (out / name).exists():
            shutil.rmtree(old, ignore_errors=True)
        else:  # killed between the two renames of a replacement: the old folder is the only one
            with disk_errors(out / name):
                old.rename(out / name)


def left_beside(out: Path, name: str, suffix: str) -> list[Path]:
    """Return the folders that ``store.atomic`` made beside ``name`` and could not remove."""
    return sorted(out.glob(f".{glob.escape(name[:MAX_NAME])}.????????.{suffix}"))


def tidy(out: Path, *, names: list[str]) -> None:
    """Remove what killed runs left of finished checkpoints, unless a run is under way or the disk may not be written."""
    left = [path for name in names for suffix in ("tmp", "old") for path in left_beside(out, name, suffix)]
    left += [path for name in names if (path := out / WORK_FOLDER / name).exists()]
    if not left:
        return
    with suppress(UsageError, DiskError), open_workplace(out, names=names, wait_s=0) as workplace:
        for name in names:
            workplace.finish(name)


def clean(folder: Path) -> None:
    """Remove the work folder when no checkpoint's layers are left in it."""
    if not any(entry.is_dir() for entry in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


def digest_of(identity: Mapping[str, object]) -> str:
    """Return sha256 over plain data, hex; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
