"""The folder of a traffic log: names in the order of writing, files for their owner alone, the oldest out.

Several processes may write into it; none waits for another. Knows nothing of what a file holds.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from llmtier.store.atomic import beside, disk_errors, write_all

_PATTERN = "traffic-*.parquet"


def next_path(folder: Path) -> Path:
    """Return a name that sorts behind all there are; two processes that ask at once get two names."""
    numbers = [int(match[1]) for path in folder.glob(_PATTERN) if (match := re.match(r"traffic-(\d+)-", path.name))]
    return folder / f"traffic-{max(numbers, default=0) + 1:06d}-{uuid4().hex[:8]}.parquet"


def write_private(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` wholly or not at all, as ``atomic`` does, but readable by its owner alone.

    Raises:
        DiskError: The file system refused.
    """
    with disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = beside(path, "tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)  # noqa: PTH105 - tests replace os.replace to fill the disk
        finally:
            temporary.unlink(missing_ok=True)


def remove_oldest(folder: Path, newest: Path, *, keep_bytes: int) -> int:
    """Remove files until the rest has at most ``keep_bytes``, never ``newest``; return how many went."""
    n_removed = 0
    with suppress(OSError):  # another process removes as well; the next file tries again
        older = sorted(set(folder.glob(_PATTERN)) - {newest})
        sizes = [path.stat().st_size for path in older]
        excess = sum(sizes) + newest.stat().st_size - keep_bytes
        for path, size in zip(older, sizes, strict=True):
            if excess <= 0:
                break
            path.unlink()
            n_removed += 1
            excess -= size
    return n_removed
