"""Rows of CSV and TSV files: a header, then one record a row; nothing but the row is held.

Cells are text until ``parse_cells`` turns those with a numeric or nested meaning into values; an empty cell is absent.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from llmtier.core.errors import InputFileError
from llmtier.store.parquet import Row
from llmtier.store.text_rows import read_lines

MAX_CELL_CHARACTERS = 1 << 24  # csv's own limit of 131,072 is less than a long prompt; more is an open quote
_SUFFIXES = frozenset({".csv", ".tsv", ".tab"})
_SEPARATORS = ",;\t"
_NUMBERS = frozenset({"arrival_s", "weight", "rating", "scores", "confidences"})
_COUNTS = frozenset({"max_tokens", "output_tokens_by_tier"})
_NESTED = frozenset({"messages", "scores", "output_tokens_by_tier", "confidences", "body"})


def is_csv(path: Path) -> bool:
    """Tell whether the name says CSV or TSV."""
    return path.suffix.lower() in _SUFFIXES


def read_csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line that a record begins on, its cells by name); every cell is text, or ``None`` where it is empty.

    A comma, semicolon or tab separates, whichever the header has most of; in ``.tsv`` a tab.

    Raises:
        InputFileError: The file cannot be read; it is not UTF-8, a record has more or fewer cells than the header,
            a column stands twice, or a quote stays open.
    """
    lines = _decoded_lines(path)
    first = next(lines, "")
    separator = "\t" if path.suffix.lower() != ".csv" else max(_SEPARATORS, key=first.count)
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    reader = csv.reader(chain([first], lines), delimiter=separator, strict=True)
    number = 1
    header: list[str] | None = None
    try:
        for cells in reader:
            if header is None and cells:
                header = _header(cells, path=path, line=number)
            elif header is not None and cells:
                yield number, _record(header, cells, path=path, line=number)
            number = reader.line_num + 1
    except csv.Error as exc:
        raise InputFileError(f"malformed CSV: {exc}; is a quote left open?", path=path, line=number) from exc


def parse_cells(row: Row) -> Row:
    """Return the row of a CSV file with numbers as numbers and nested cells, which are JSON, decoded.

    What cannot be parsed stays text, so that the reader of rows refuses it by name. A prompt's empty cell is an empty
    prompt, not an absent one.
    """
    parsed = {key: _parse_cell(key, value) for key, value in row.items()}
    if "prompt" in parsed and parsed["prompt"] is None and parsed.get("messages") is None:
        parsed["prompt"] = ""
    return parsed


def _decoded_lines(path: Path) -> Iterator[str]:
    for number, raw in read_lines(path):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            message = f"expected UTF-8: {exc.reason} at byte {exc.start + 1}"
            raise InputFileError(message, path=path, line=number) from exc
        if "\0" in line:
            raise InputFileError(f"is not text: NUL at character {line.index(chr(0)) + 1}", path=path, line=number)
        yield line


def _header(cells: Sequence[str], *, path: Path, line: int) -> list[str]:
    names = [cell.strip() for cell in cells]
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise InputFileError(f"the header has {repeated[0]!r} twice; name each column once", path=path, line=line)
    return names


def _record(header: Sequence[str], cells: Sequence[str], *, path: Path, line: int) -> Row:
    if len(cells) != len(header):
        message = (
            f"expected {len(header)} cells, as the header has, found {len(cells)}; quote cells that hold separators"
        )
        raise InputFileError(message, path=path, line=line)
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _parse_cell(key: str, value: Any) -> Any:  # noqa: ANN401 - a cell, or what a wide column was folded into
    if type(value) is dict:
        return {name: _parse_number(key, item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    if key in _NESTED and value.lstrip()[:1] in {"{", "["}:
        return _parse_nested(value)
    return _parse_number(key, value)


def _parse_nested(value: str) -> Any:  # noqa: ANN401 - JSON is any of six types
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _parse_number(key: str, value: Any) -> Any:  # noqa: ANN401 - as _parse_cell
    if not isinstance(value, str):
        return value
    if key in _COUNTS:
        return _parse_count(value)
    if key not in _NUMBERS:
        return value
    if key == "scores" and (word := value.strip().lower()) in {"true", "false"}:
        return float(word == "true")
    try:
        return float(value)
    except ValueError:
        return value


def _parse_count(value: str) -> int | str:
    """Return a whole number, also one written as ``12.0``, as tables with gaps have them."""
    try:
        number = float(value)
        return int(number) if number.is_integer() else value
    except ValueError:
        return value
