"""Rows of any Parquet file, a batch at a time: neither the file nor a row group is held as rows.

Reads a user's Parquet, which states no version, or our own, which must state ours. ``parquet`` holds our schemas and
all writing.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmtier.core.errors import InputFileError
from llmtier.store.documents import check_schema_version
from llmtier.store.parquet import Row

BATCH_ROWS = 2048
_BUFFER_BYTES = 1 << 20  # a column chunk is read in pieces, not whole


def read_parquet_rows(path: Path, *, reads: Callable[[str], bool]) -> Iterator[tuple[int, Row]]:
    """Yield (row counted from 1, cells by name).

    Args:
        path: The file.
        reads: Tells which columns matter; the others are not decoded, unless none matters.

    Raises:
        InputFileError: The file cannot be read, is no Parquet, is damaged, or holds text that is not UTF-8.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    import pyarrow as pa

    number = 1
    try:
        with path.open("rb") as stream:
            for names, batch in _batches(stream, path, reads):
                cells = [_cells(batch.column(name), first=number, path=path) for name in names]
                for row in zip(*cells, strict=True):
                    yield number, dict(zip(names, row, strict=True))
                    number += 1
    except OSError as exc:
        raise _read_error(exc, path) from exc
    except (pa.ArrowException, OverflowError, ValueError) as exc:  # such as a date beyond Python's
        raise _read_error(exc, path) from exc


def to_plain(array: Any) -> list[Any]:  # noqa: ANN401 - pyarrow ships no types
    """Return an array's values as plain data, a map as a dictionary.

    Lists, structs and maps are built from their columns: one scalar after the other takes several times as long.
    """
    import pyarrow as pa

    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
        return texts
    if pa.types.is_map(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(array)
    if pa.types.is_struct(kind):
        return _structs(array)
    if pa.types.is_timestamp(kind) and kind.unit == "ns":  # Python's instants end at microseconds
        array = array.cast(pa.timestamp("us", tz=kind.tz), safe=False)
    plain: list[Any] = array.to_pylist()
    return plain


def _batches(stream: Any, path: Path, reads: Callable[[str], bool]) -> Iterator[tuple[Sequence[str], Any]]:  # noqa: ANN401 - as above
    import pyarrow.parquet as pq

    with pq.ParquetFile(stream, page_checksum_verification=True, buffer_size=_BUFFER_BYTES) as file:
        _check_version(file.schema_arrow.metadata or {}, path)
        there = file.schema_arrow.names
        names = [name for name in there if reads(name)] or there
        if len(set(names)) < len(names):
            raise InputFileError("a column stands twice; name each column once", path=path)
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
            yield names, batch


def _cells(array: Any, *, first: int, path: Path) -> list[Any]:  # noqa: ANN401 - as above
    """Return a column's values; the row of a text that is not UTF-8 is found by looking at each."""
    import pyarrow as pa

    try:
        return to_plain(array)
    except (pa.ArrowException, UnicodeDecodeError):
        for number, scalar in enumerate(array, start=first):
            try:
                scalar.as_py()
            except UnicodeDecodeError as exc:
                message = f"row {number}: expected UTF-8: {exc.reason} at byte {exc.start + 1}"
                raise InputFileError(message, path=path) from exc
        raise


def _check_version(metadata: dict[bytes, bytes], path: Path) -> None:
    if b"schema_version" in metadata:
        advice = "write it again, or read it with the llmtier that wrote it"
        found = metadata[b"schema_version"].decode(errors="replace")
        check_schema_version(found, path=path, artifact="table", advice=advice)


def _read_error(cause: Exception, path: Path) -> InputFileError:
    if isinstance(cause, OSError) and cause.strerror is not None:
        return InputFileError(f"cannot be read: {cause.strerror}", path=path)
    reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    return InputFileError(f"expected Parquet: {reason}", path=path)


def _lists(array: Any) -> list[Any]:  # noqa: ANN401 - as above
    import pyarrow as pa

    if not len(array):
        return []
    ends = array.offsets.to_pylist()
    first, last = ends[0], ends[-1]
    lists: list[Any]
    if pa.types.is_map(array.type):
        keys, items = (to_plain(part.slice(first, last - first)) for part in (array.keys, array.items))
        spans = pairwise(end - first for end in ends)
        lists = [dict(zip(keys[start:end], items[start:end], strict=True)) for start, end in spans]
    else:
        values = to_plain(array.values.slice(first, last - first))
        lists = [values[start - first : end - first] for start, end in pairwise(ends)]
    if array.null_count:
        return [found if there else None for found, there in zip(lists, array.is_valid().to_pylist(), strict=True)]
    return lists


def _structs(array: Any) -> list[Any]:  # noqa: ANN401 - as above
    names = [field.name for field in array.type]
    cells = [to_plain(array.field(place)) for place in range(len(names))]
    rows: list[Any] = [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]
    if array.null_count:
        return [row if there else None for row, there in zip(rows, array.is_valid().to_pylist(), strict=True)]
    return rows
