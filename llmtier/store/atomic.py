"""Writing that happens wholly or not at all: temporary file beside the target, fsync, rename.

Every artifact of llmtier goes through here. A full disk, a kill or a power cut leaves the old
artifact as it was. ``OSError`` is translated to ``DiskError``, which names the path and what to
do; reading is not done here.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from llmtier.core.errors import DiskError, UsageError
from llmtier.store.text import replace_surrogates

_ADVICE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of the quota or choose another folder",
    errno.EROFS: "choose a folder on a writable file system",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def write_bytes(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, through a symbolic link where it is one; make missing folders.

    Raises:
        DiskError: The file system refused, or ``path`` is something other than a regular file.
    """
    with disk_errors(path):
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise DiskError(f"cannot write {path}: it is not a regular file; choose another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(target, "tmp")
        try:
            _write_synced(temporary, data)
            os.replace(temporary, target)  # noqa: PTH105 - tests replace os.replace to fill the disk
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` as UTF-8; raises as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, document: object) -> None:
    """Put ``document`` at ``path`` as indented JSON, keys in their order.

    Raises:
        ValueError: It holds NaN or an infinity, which JSON does not have.
        DiskError: As ``write_bytes``.
    """
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_text(path, replace_surrogates(text))


def replace_directory(staging: Path, target: Path) -> None:
    """Put the folder ``staging`` in the place of ``target``; both on one file system.

    The old folder is moved aside, and back when the new one cannot take its place. A power cut
    between the two renames leaves the old folder beside the target as ``.<name>.<hex>.old``.

    Raises:
        DiskError: The file system refused; the old folder is where it was.
    """
    with disk_errors(target):
        _sync_tree(staging)
        old = beside(target, "old")
        had_old = target.exists()
        if had_old:
            os.replace(target, old)  # noqa: PTH105 - as above
        try:
            os.replace(staging, target)  # noqa: PTH105 - as above
        except OSError:
            if had_old:
                old.rename(target)
            raise
        _sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def staged_directory(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Give an empty folder beside ``target`` that takes its place on success and vanishes otherwise.

    Args:
        target: The folder to make.
        force: Replace a folder that holds something.

    Raises:
        UsageError: ``target`` holds something and ``force`` is not given.
        DiskError: The file system refused.
    """
    check_replaceable(target, force=force)
    staging = beside(target, "tmp")
    with disk_errors(staging):
        staging.mkdir(parents=True)
    try:
        yield staging
        replace_directory(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(target: Path, *, force: bool) -> None:
    """Refuse to overwrite unasked.

    Raises:
        UsageError: ``target`` is a file or a non-empty folder, and ``force`` is not given.
        DiskError: It cannot be looked into.
    """
    with disk_errors(target):
        is_taken = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if is_taken and not force:
        raise UsageError(f"{target} exists already; pass --force to replace it, or choose another folder")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translate an ``OSError`` of the block to ``DiskError`` that names ``path``."""
    try:
        yield
    except OSError as exc:
        advice = _ADVICE.get(exc.errno or 0, "check the path and its folder")
        raise DiskError(f"cannot write {path}: {exc.strerror or exc}; {advice}") from exc


def beside(target: Path, suffix: str) -> Path:
    """Return an unused hidden name in the folder of ``target``."""
    return target.with_name(f".{target.name[:150]}.{uuid4().hex[:8]}.{suffix}")


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, however few the system takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # less the umask
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
