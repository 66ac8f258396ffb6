"""Arrival traces: when requests came and how long they were, without their texts.

Reads CSV (also gzipped) and Parquet with ``arrival_s, input_tokens, output_tokens``, the Azure LLM
inference traces (``TIMESTAMP, ContextTokens, GeneratedTokens``) and the gateway's traffic log.
Streams: of a long file only the asked rows are kept. Writes nothing.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.store.prompts import is_parquet, traffic_files

logger = logging.getLogger(__name__)

_MAX_TOKENS = 2**31 - 1  # beyond any context; catches a timestamp in the wrong column


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of a trace.

    Attributes:
        arrival_s: Seconds since the earliest arrival of the trace.
        input_tokens: Length of the prompt; likewise ``output_tokens`` of the answer.
    """

    arrival_s: float
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """The columns of one kind of trace, arrival first.

    Attributes:
        columns: Arrival, input tokens, output tokens.
        is_instant: Whether the arrival is a date and time rather than seconds.
        may_lack_tokens: Whether a row without token counts is a request that was never answered, left out here.
    """

    columns: tuple[str, str, str]
    is_instant: bool
    may_lack_tokens: bool = False


_HEADERS = (
    _Header(columns=("arrival_s", "input_tokens", "output_tokens"), is_instant=False),
    _Header(columns=("TIMESTAMP", "ContextTokens", "GeneratedTokens"), is_instant=True),
    _Header(columns=("received_at", "n_input_tokens", "n_output_tokens"), is_instant=True, may_lack_tokens=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Some rows of a file as they stand in it.

    Attributes:
        path: Of the file.
        columns: Arrow arrays of arrival, input tokens, output tokens; text in a CSV.
        header: What they are.
        numbers: Line of each row in a CSV, number of the row in Parquet, counted from 1.
    """

    path: Path
    columns: tuple[Any, Any, Any]
    header: _Header
    numbers: NDArray[np.int64]

    def refuse(self, index: int, message: str) -> NoReturn:
        """Raise the error that points at a row."""
        number = int(self.numbers[index])
        if is_parquet(self.path):
            raise InputFileError(f"row {number}: {message}", path=self.path)
        raise InputFileError(message, path=self.path, line=number)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Checked rows: absolute arrivals in seconds, and token counts."""

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.float64]
    output_tokens: NDArray[np.float64]


def read_arrivals(path: Path, *, limit: int | None = None) -> tuple[Arrival, ...]:
    """Read a trace, ascending, the earliest arrival at 0.

    A file that is not in order is put in order, with a warning. Requests of a traffic log that were never answered
    have no length and are left out.

    Args:
        path: A CSV or Parquet file, or a folder of traffic logs.
        limit: Read this many rows from the begin of the file; ``None`` reads all.

    Raises:
        InputFileError: It is absent, empty or lacks a column, or a row holds no number, a negative one or NaN;
            says the line.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    files = traffic_files(path) if path.is_dir() else [path]
    batches = itertools.chain.from_iterable(_read_batches(file) for file in files)
    rows = [_check(batch) for batch in _first(batches, limit)]
    if not sum(part.arrival_s.size for part in rows):
        raise InputFileError("holds no arrivals; expected one request a row", path=path)
    return _assemble(rows, path)


def _assemble(parts: Sequence[_Rows], path: Path) -> tuple[Arrival, ...]:
    arrival_s = np.concatenate([part.arrival_s for part in parts])
    input_tokens = np.concatenate([part.input_tokens for part in parts])
    output_tokens = np.concatenate([part.output_tokens for part in parts])
    n_early = int((np.diff(arrival_s) < 0).sum())
    if n_early:
        logger.warning("trace was not in order of arrival; sorted", extra={"path": str(path), "n_rows": n_early})
    order = np.argsort(arrival_s, kind="stable")
    since_s = arrival_s[order] - arrival_s[order[0]]
    return tuple(
        Arrival(arrival_s=instant, input_tokens=int(n_input), output_tokens=int(n_output))
        for instant, n_input, n_output in zip(
            since_s.tolist(), input_tokens[order].tolist(), output_tokens[order].tolist(), strict=True
        )
    )


def _first(batches: Iterable[_Batch], limit: int | None) -> Iterator[_Batch]:
    """Yield batches until ``limit`` rows are there, the last one cut."""
    n_left = limit
    for batch in batches:
        n_rows = batch.numbers.size
        if n_left is not None and n_rows >= n_left:
            yield _keep(batch, np.arange(n_rows) < n_left)
            return
        n_left = None if n_left is None else n_left - n_rows
        yield batch


def _read_batches(path: Path) -> Iterator[_Batch]:
    """Yield the rows of one file.

    Raises:
        InputFileError: It cannot be read or lacks a column.
    """
    import pyarrow as pa

    try:
        path.open("rb").close()
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc
    try:
        yield from _read_parquet(path) if is_parquet(path) else _read_csv(path)
    except (pa.ArrowException, OSError, ValueError) as exc:
        kind = "Parquet" if is_parquet(path) else "CSV"
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise InputFileError(f"cannot be read as {kind}: {reason}", path=path) from exc


def _read_parquet(path: Path) -> Iterator[_Batch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        header = _find_header(file.schema_arrow.names, path)
        n_before = 0
        for found in file.iter_batches(columns=list(header.columns)):
            yield _to_batch(found, header, path, np.arange(n_before + 1, n_before + found.num_rows + 1))
            n_before += found.num_rows


def _read_csv(path: Path) -> Iterator[_Batch]:
    """Read every cell as text, so that a bad one can be quoted with its line; blank lines are left out, but counted."""
    import pyarrow as pa
    from pyarrow import csv

    misfits: list[tuple[int, str]] = []  # line and text of a row with another number of columns

    def note_misfit(row: Any) -> str:  # noqa: ANN401 - pyarrow ships no types
        misfits.append((row.number, row.text))
        return "error"

    header = _read_csv_header(path)
    names = list(header.columns)
    try:
        with csv.open_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False),  # else rows have no number
            parse_options=csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=note_misfit),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=names),
        ) as reader:
            n_before = 1  # the header
            for found in reader:
                yield _drop_blank(
                    _to_batch(found, header, path, np.arange(n_before + 1, n_before + found.num_rows + 1))
                )
                n_before += found.num_rows
    except pa.ArrowInvalid as exc:
        if not misfits:
            raise
        line, text = misfits[0]
        raise InputFileError(f"has more or fewer columns than line 1: {_quote(text)}", path=path, line=line) from exc


def _read_csv_header(path: Path) -> _Header:
    from pyarrow import csv

    with csv.open_csv(path, parse_options=csv.ParseOptions(invalid_row_handler=lambda _: "skip")) as reader:
        return _find_header(reader.schema.names, path)


def _drop_blank(batch: _Batch) -> _Batch:
    """Leave out the lines that hold nothing in any of the three columns."""
    import pyarrow.compute as pc

    lengths = [np.asarray(pc.binary_length(_trim(column))) for column in batch.columns]
    return batch if lengths[0].all() else _keep(batch, np.maximum.reduce(lengths) > 0)


def _keep(batch: _Batch, is_kept: NDArray[np.bool_]) -> _Batch:
    import pyarrow as pa

    first, second, third = (column.filter(pa.array(is_kept)) for column in batch.columns)
    return _Batch(path=batch.path, columns=(first, second, third), header=batch.header, numbers=batch.numbers[is_kept])


def _find_header(names: Sequence[str], path: Path) -> _Header:
    for header in _HEADERS:
        if set(header.columns) <= set(names):
            return header
    likeliest = max(_HEADERS, key=lambda header: len(set(header.columns) & set(names)))
    missing = [name for name in likeliest.columns if name not in names]
    expected = " or ".join(",".join(header.columns) for header in _HEADERS)
    raise InputFileError(f"has no column {missing[0]!r}; expected {expected}", path=path)


def _to_batch(found: Any, header: _Header, path: Path, numbers: NDArray[np.int64]) -> _Batch:  # noqa: ANN401 - as above
    first, second, third = (_plain(found.column(found.schema.get_field_index(name))) for name in header.columns)
    return _Batch(path=path, columns=(first, second, third), header=header, numbers=numbers)


def _plain(column: Any) -> Any:  # noqa: ANN401 - as above
    import pyarrow as pa

    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _check(batch: _Batch) -> _Rows:
    """Return the rows of a batch as numbers.

    Raises:
        InputFileError: One of them is no trace's row; says where.
    """
    if batch.header.may_lack_tokens:
        batch = _drop_unanswered(batch)
    name, *_ = batch.header.columns
    arrival_s = _instants(batch) if batch.header.is_instant else _numbers(batch, 0)
    if (below := np.flatnonzero(arrival_s < 0)).size and not batch.header.is_instant:
        batch.refuse(int(below[0]), f"{name} must not be negative, got {arrival_s[below[0]]:g}")
    return _Rows(arrival_s=arrival_s, input_tokens=_counts(batch, 1), output_tokens=_counts(batch, 2))


def _drop_unanswered(batch: _Batch) -> _Batch:
    """Leave out the rows without token counts: null, or empty in a CSV."""
    import pyarrow as pa
    import pyarrow.compute as pc

    has_counts = [
        pc.fill_null(pc.not_equal(column, ""), False) if pa.types.is_string(column.type) else pc.is_valid(column)
        for column in batch.columns[1:]
    ]
    return _keep(batch, np.asarray(has_counts[0]) & np.asarray(has_counts[1]))


def _counts(batch: _Batch, index: int) -> NDArray[np.float64]:
    """Return a column of token counts."""
    counts = _numbers(batch, index)
    bad = np.flatnonzero((counts < 0) | (counts > _MAX_TOKENS) | (counts != np.floor(counts)))
    if bad.size:
        name, found = batch.header.columns[index], float(counts[bad[0]])
        batch.refuse(int(bad[0]), f"{name} must be a whole number from 0 to {_MAX_TOKENS}, got {found:.17g}")
    return counts


def _numbers(batch: _Batch, index: int) -> NDArray[np.float64]:
    """Return a column as finite numbers."""
    import pyarrow as pa

    column = batch.columns[index]
    try:
        values = np.asarray(_trim(column).cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except (pa.ArrowException, ValueError):
        values = np.array([_float_or_nan(cell) for cell in column.to_pylist()], dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        found = column[int(bad[0])].as_py()
        batch.refuse(int(bad[0]), f"{batch.header.columns[index]} must be a number, got {_quote(found)}")
    return values


def _instants(batch: _Batch) -> NDArray[np.float64]:
    """Return a column of dates and times as seconds since 1970; those without a zone are taken as UTC."""
    import pyarrow as pa

    column = _trim(batch.columns[0])
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        for zone in (None, "UTC"):  # text without an offset fits the one, text with an offset the other
            nanoseconds = _to_nanoseconds(column, zone)
            if nanoseconds is not None and not nanoseconds.null_count:
                return np.asarray(nanoseconds.to_numpy(zero_copy_only=False), dtype=np.float64) / 1e9
    return _refuse_instants(batch)


def _to_nanoseconds(column: Any, zone: str | None) -> Any:  # noqa: ANN401 - pyarrow ships no types
    """Return whole nanoseconds since 1970; ``None`` when a row does not fit."""
    import pyarrow as pa

    try:
        return column.cast(pa.timestamp("ns", tz=zone)).cast(pa.int64())
    except (pa.ArrowException, ValueError):
        return None


def _refuse_instants(batch: _Batch) -> NoReturn:
    name = batch.header.columns[0]
    for index, cell in enumerate(batch.columns[0].to_pylist()):
        try:
            datetime.fromisoformat(str(cell).strip())
        except ValueError:
            example = "a date and time such as 2023-11-16 18:17:03.979"
            batch.refuse(index, f"{name} must be {example}, got {_quote(cell)}")
    batch.refuse(0, f"{name} must be a date and time, with an offset such as +00:00 in every row or in none")


def _trim(column: Any) -> Any:  # noqa: ANN401 - pyarrow ships no types
    """Return text without the spaces around it, other types as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(column) if pa.types.is_string(column.type) else column


def _float_or_nan(cell: object) -> float:
    try:
        return float(str(cell))
    except ValueError:
        return float("nan")


def _quote(cell: object) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:60]}…"
