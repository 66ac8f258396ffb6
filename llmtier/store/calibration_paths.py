"""Paths that a recipe, a manifest or the command line names: what is wrong with one is an error of ours.

Holds no path and reads nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmtier.core.errors import ConfigError, InputFileError


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Translate an ``OSError`` of the block to ``InputFileError`` that names ``path``."""
    try:
        yield
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc


def expand_home(text: str, *, path: Path | None = None) -> Path:
    """Return a path with ``~`` and ``~name`` replaced.

    Args:
        text: As people write it.
        path: The recipe that it stands in; ``None`` for the command line.

    Raises:
        ConfigError: There is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise ConfigError(f"{text!r}: there is no such user; write out the path", path=path) from exc
