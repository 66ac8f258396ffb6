"""JSON lines: one object a line, errors with file and line.

Reads any ``.jsonl``; lines end at a line feed only. Writing goes through ``atomic.write_text``.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llmtier.core.errors import InputFileError
from llmtier.store.atomic import write_text
from llmtier.store.documents import parse_json, shorten
from llmtier.store.text import replace_surrogates


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line counted from 1, object) of each line that is not blank.

    Raises:
        InputFileError: The file is absent or holds no row; a line is not UTF-8, not JSON or no object.
    """
    n_rows = 0
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                if raw.strip(b" \t\r\n\xef\xbb\xbf"):
                    n_rows += 1
                    yield number, parse_line(raw, path=path, number=number)
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc
    if not n_rows:
        raise InputFileError("holds no rows; expected one JSON object a line", path=path)


def parse_line(raw: bytes, *, path: Path, number: int) -> dict[str, Any]:
    """Parse one line.

    Raises:
        InputFileError: It is not UTF-8, not JSON or no object.
    """
    try:
        row = parse_json(raw.decode("utf-8-sig" if number == 1 else "utf-8").strip())
    except UnicodeDecodeError as exc:
        raise InputFileError(f"expected UTF-8: {exc.reason} at byte {exc.start + 1}", path=path, line=number) from exc
    except ValueError as exc:
        raise InputFileError(f"expected a JSON object: {exc}", path=path, line=number) from exc
    if not isinstance(row, dict):
        raise InputFileError(f"expected a JSON object, got {shorten(row)}", path=path, line=number)
    return row


def write_jsonl(path: Path, rows: Iterable[object]) -> None:
    """Write one object a line, atomically.

    Raises:
        ValueError: A row holds NaN or an infinity.
        DiskError: The file system refused.
    """
    write_text(path, "".join(format_line(row) for row in rows))


def format_line(row: object) -> str:
    """Return one line with its line feed; ASCII, so that no text can break it."""
    line = json.dumps(row, allow_nan=False)
    if "\\ud" in line:  # half of a surrogate pair, or a whole one
        line = json.dumps(replace_surrogates(row), allow_nan=False)
    return line + "\n"
