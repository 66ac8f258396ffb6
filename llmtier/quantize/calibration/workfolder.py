"""The folder where a build keeps what it has finished, beside the set: ``.<name>.calibration-work``.

One build at a time: a lock that ends with the process. The folder goes away when the set is written; until then the next
build goes on from it. All of it may be deleted when no build is under way.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmtier.core.errors import UsageError
from llmtier.store.atomic import disk_errors
from llmtier.store.calibration_manifest import SetPaths


def work_folder(paths: SetPaths) -> Path:
    """Return where the build of a set keeps its work."""
    return paths.folder / f".{paths.name}.calibration-work"


@contextmanager
def locked_work(paths: SetPaths) -> Iterator[Path]:
    """Make the folder and hold its lock; remove it when the block ends well.

    Raises:
        UsageError: Another build of this set is under way.
        DiskError: The file system refused.
    """
    folder = work_folder(paths)
    descriptor = _open_locked(folder)
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def forget_others(folder: Path, keys: set[str]) -> None:
    """Remove what earlier builds of another recipe left, and files that were never finished.

    Raises:
        DiskError: The file system refused.
    """
    with disk_errors(folder):
        paths = list(folder.iterdir())
    for path in paths:
        if path.name.startswith(("spool-", "rows-", "tmp")) and path.name.split(".")[0] not in keys:
            with disk_errors(path):
                path.unlink(missing_ok=True)


def _open_locked(folder: Path) -> int:
    """Return a locked descriptor of the folder, made where need be.

    A build that ends removes the folder while it holds the lock: what was opened before that is no longer the folder.
    """
    while True:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        is_ours = False
        try:
            _lock(descriptor, folder)
            is_ours = _is_same(descriptor, folder)
        finally:
            if not is_ours:
                os.close(descriptor)
        if is_ours:
            return descriptor


def _is_same(descriptor: int, folder: Path) -> bool:
    with disk_errors(folder):
        return folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())


def _lock(descriptor: int, folder: Path) -> None:
    with disk_errors(folder):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise UsageError(f"another build is under way in {folder}; wait for it, or give another --output") from exc
