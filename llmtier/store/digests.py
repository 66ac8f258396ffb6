"""sha256 of files and checkpoints: what artifacts are bound to instead of names and dates.

Reads files; writes nothing.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from llmtier.core.errors import InputFileError

_CHECKPOINT_PATTERNS = ("*.safetensors", "*.bin", "*.gguf", "tokenizer*", "chat_template*", "config.json")


def file_sha256(path: Path) -> str:
    """Return the 64 hex digits of a file's sha256.

    Raises:
        InputFileError: It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc


def tree_sha256(directory: Path, patterns: Iterable[str]) -> str:
    """Return one sha256 over names and contents of the files directly in ``directory`` that match.

    Raises:
        InputFileError: A file cannot be read.
    """
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    lines = [f"{file_sha256(path)}  {path.name}\n" for path in sorted(found)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def checkpoint_digest(path: Path) -> str:
    """Return the sha256 over weights, tokenizer, chat template and ``config.json`` of a checkpoint folder.

    Raises:
        InputFileError: There is no ``config.json``, so it is no checkpoint.
    """
    if not (path / "config.json").is_file():
        raise InputFileError("is no checkpoint: it has no config.json; give a folder of Hugging Face format", path=path)
    return tree_sha256(path, _CHECKPOINT_PATTERNS)
