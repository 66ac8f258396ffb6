"""The files that calibration texts come from, read in chunks so that none has to fit into memory.

Reads JSON lines, JSON arrays, Parquet, plain text (documents separated by blank lines) and the gateway's traffic logs;
a folder means every such file in it. A chunk holds rows not yet looked at, so that another process can parse them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from llmtier.core.errors import InputFileError
from llmtier.store.calibration_paths import read_errors
from llmtier.store.digests import file_sha256
from llmtier.store.documents import parse_json, shorten
from llmtier.store.jsonl import parse_line
from llmtier.store.logs import adapt_row, text_advice
from llmtier.store.parquet import Row

CHUNK_ROWS = 1000
CHUNK_BYTES = 4_000_000  # chats of a long context are some 100 kB each
READ_CHARACTERS = 1 << 20
JSON_LINES = frozenset({".jsonl", ".ndjson"})
PARQUET = frozenset({".parquet", ".pq"})
TEXT = frozenset({".txt", ".md"})
SUFFIXES = tuple(sorted({".json", *JSON_LINES, *PARQUET, *TEXT}))
ANY_JSON = json.JSONDecoder()

RawRow = bytes | Row
"""A line of JSON, or a row that is parsed already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some rows of one file.

    Attributes:
        path: The file.
        numbers: Line, or row of an array or a Parquet file, from 1; one a row.
        rows: As they stand in the file.
    """

    path: Path
    numbers: tuple[int, ...]
    rows: tuple[RawRow, ...]

    def parse(self) -> Iterator[tuple[int, Row | None]]:
        """Yield number and row; ``None`` for a log's row that kept no text.

        Raises:
            InputFileError: A row is no JSON object, or a log's row cannot be read; names file and line.
        """
        for number, raw in zip(self.numbers, self.rows, strict=True):
            row = parse_line(raw, path=self.path, number=number) if isinstance(raw, bytes) else raw
            try:
                yield number, adapt_row(row)
            except (ValueError, AttributeError, KeyError) as exc:
                raise InputFileError(f"cannot be read as a log's row: {exc}", path=self.path, line=number) from exc


def source_files(path: Path) -> tuple[Path, ...]:
    """Return the files that ``path`` means: itself, or those of a folder in the order of their names.

    Raises:
        InputFileError: There is none, or it is of a kind that cannot be read.
    """
    with read_errors(path):
        is_folder, is_there = path.is_dir(), path.exists()
        entries = sorted(file for file in path.iterdir() if file.is_file()) if is_folder else []
    if is_folder:
        files = tuple(filter(is_readable, entries))
        if not files:
            raise InputFileError(f"holds no file with texts ({' '.join(SUFFIXES)})", path=path)
        return files
    if not is_there:
        raise InputFileError("no such file or folder", path=path)
    if not is_readable(path):
        raise InputFileError(f"cannot tell what it holds by its name; expected {' '.join(SUFFIXES)}", path=path)
    return (path,)


def is_readable(path: Path) -> bool:
    """Tell whether the name is that of a file that can be read here."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def files_sha256(path: Path, files: Iterable[Path]) -> str:
    """Return the sha256 of a file, or one over names and contents of a folder's files.

    Raises:
        InputFileError: One cannot be read.
    """
    if not path.is_dir():
        return file_sha256(path)
    lines = (f"{file_sha256(file)}  {file.relative_to(path)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_chunks(files: Iterable[Path], *, limit: int | None = None) -> Iterator[Chunk]:
    """Yield the rows of the files in order, at most ``limit``; a chunk holds rows of one file.

    Raises:
        InputFileError: A file cannot be read, or is not what its name says.
    """
    n_left = limit
    for file in files:
        rows = islice(read_rows(file), n_left)
        for chunk in gather(file, rows):
            n_left = None if n_left is None else n_left - len(chunk.rows)
            yield chunk


def gather(path: Path, rows: Iterator[tuple[int, RawRow]]) -> Iterator[Chunk]:
    """Put rows together, until a chunk has enough of them or enough bytes."""
    numbers: list[int] = []
    held: list[RawRow] = []
    n_bytes = 0
    for number, row in rows:
        numbers.append(number)
        held.append(row)
        n_bytes += len(row) if isinstance(row, bytes) else 0
        if len(held) >= CHUNK_ROWS or n_bytes >= CHUNK_BYTES:
            yield Chunk(path=path, numbers=tuple(numbers), rows=tuple(held))
            numbers, held, n_bytes = [], [], 0
    if held:
        yield Chunk(path=path, numbers=tuple(numbers), rows=tuple(held))


def read_rows(path: Path) -> Iterator[tuple[int, RawRow]]:
    """Yield number and row of one file, whatever its kind.

    Raises:
        InputFileError: It cannot be read, or is not what its name says.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in PARQUET:
            yield from _read_parquet(path)
        elif suffix in TEXT:
            yield from _read_text(path)
        elif suffix in JSON_LINES or not _is_array(path):
            yield from _read_lines(path)
        else:
            yield from _read_array(path)
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc
    except UnicodeDecodeError as exc:
        raise InputFileError(f"expected UTF-8: {exc.reason} at byte {exc.start + 1} of its piece", path=path) from exc


def no_text_advice(files: Iterable[Path]) -> str:
    """Say what to do about files of which no row held text."""
    row = next((row for _, row in chain.from_iterable(map(read_rows, files))), {})
    parsed = parse_line(row, path=Path(), number=1) if isinstance(row, bytes) else row
    is_log = "messages_json" in parsed or "request_id" in parsed
    return text_advice(parsed) if is_log else "no row holds text; name the right columns in [source.fields]"


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip(b" \t\r\n\xef\xbb\xbf"):
                yield number, raw


def _read_text(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield runs of lines between blank ones, numbered by their first line."""
    first, lines = 1, list[str]()
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                first = first if lines else number
                lines.append(line)
            elif lines:
                yield first, {"text": "".join(lines).strip()}
                lines = []
    if lines:
        yield first, {"text": "".join(lines).strip()}


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=CHUNK_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OverflowError, ValueError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise InputFileError(f"expected Parquet: {reason}", path=path) from exc


def _is_array(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as stream:
        return any(line.lstrip().startswith("[") for line in islice((line for line in stream if line.strip()), 1))


def _read_array(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the objects of a JSON array without holding it whole."""
    with path.open(encoding="utf-8-sig") as stream:
        for number, (element, written) in enumerate(_elements(stream, path), start=1):
            if "\\u" in written:
                _check_strict(written, path=path, number=number)
            if not isinstance(element, dict):
                raise InputFileError(f"element {number}: expected an object, got {shorten(element)}", path=path)
            yield number, element


def _check_strict(written: str, *, path: Path, number: int) -> None:
    """Refuse what a line of JSON lines may not hold either, such as half of a surrogate pair."""
    try:
        parse_json(written)
    except ValueError as exc:
        raise InputFileError(f"element {number}: {exc}", path=path) from exc


def _elements(stream: IO[str], path: Path) -> Iterator[tuple[Any, str]]:
    """Yield each element of an array, and how it is written."""
    buffer, position, n_wanted = stream.read(READ_CHARACTERS).lstrip().removeprefix("["), 0, READ_CHARACTERS
    while True:
        position = _skip(buffer, position, " \t\r\n,")
        if buffer.startswith("]", position):
            return
        try:
            element, end = ANY_JSON.raw_decode(buffer, position)
        except (json.JSONDecodeError, RecursionError) as exc:
            more = stream.read(n_wanted)
            if not more:
                raise InputFileError(f"expected a JSON array of objects: {exc}", path=path) from exc
            buffer, position = buffer[position:] + more, 0
            n_wanted *= 2  # a long element is not decoded again and again
            continue
        yield element, buffer[position:end]
        position = end


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position
