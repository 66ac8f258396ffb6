"""Parquet with a stated schema: columns with units, a version and provenance in the metadata.

Artifacts declare ``Column`` tuples; this module turns them into Arrow schemas, writes rows or
columns atomically and reads them back. A nullable column may be absent from a file, because an
older llmtier did not write it yet: it reads as null. pyarrow and numpy are imported inside functions
because they take 0.1 s.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from llmtier.core.errors import InputFileError
from llmtier.core.provenance import Provenance
from llmtier.store.atomic import write_bytes
from llmtier.store.documents import SCHEMA_VERSION, check_schema_version
from llmtier.store.text import replace_surrogates

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an artifact.

    Attributes:
        name: As in the dataclass whose rows it holds.
        type: ``string int64 float64 bool``, ``strings`` and ``floats`` (lists of those), ``messages``
            (list of role and content), ``scores`` (map to float64) or ``counts`` (map to int64).
        unit: As in the vocabulary; ``None`` for text and names.
        nullable: Whether a row may lack it, and a file the whole column.
    """

    name: str
    type: str
    unit: str | None = None
    nullable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetRows:
    """What a Parquet file holds: rows as plain data and its key-value metadata."""

    rows: list[Row]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetColumns:
    """What an artifact holds, by column; ``floats`` are tuples, for they are read without a list each.

    Attributes:
        values: Of each asked column, all of one length.
        metadata: The file's key-value pairs.
    """

    values: Mapping[str, Sequence[Any]]
    metadata: Mapping[str, str]


def write_rows(
    path: Path, rows: Sequence[Row], columns: Sequence[Column], *, artifact: str, provenance: Provenance | None = None
) -> None:
    """Write rows atomically; lone surrogates, which no file can hold, become U+FFFD.

    Raises:
        ValueError: A value is NaN, or a column that must not be null is.
        DiskError: The file system refused.
    """
    write_bytes(path, encode_rows(rows, columns, artifact=artifact, provenance=provenance))


def encode_rows(
    rows: Sequence[Row], columns: Sequence[Column], *, artifact: str, provenance: Provenance | None = None
) -> bytes:
    """Return the bytes of a Parquet file; raises ``ValueError`` as ``write_rows``."""
    values = {column.name: [row.get(column.name) for row in rows] for column in columns}
    metadata = {} if provenance is None else {"provenance": json.dumps(asdict(provenance))}
    return encode_columns(values, columns, artifact=artifact, metadata=metadata)


def encode_columns(
    values: Mapping[str, Sequence[Any]],
    columns: Sequence[Column],
    *,
    artifact: str,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of a Parquet file whose pages carry checksums.

    Args:
        values: Of each column, all of one length.
        columns: The schema.
        artifact: What it is.
        metadata: Further key-value pairs of the file.

    Raises:
        ValueError: As ``write_rows``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [_to_array(values[column.name], column) for column in columns]
    table = pa.Table.from_arrays(arrays, schema=make_schema(columns))
    _refuse_holes(table, columns)
    stated = {"schema_version": str(SCHEMA_VERSION), "artifact": artifact, **(metadata or {})}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(stated), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_rows(path: Path, columns: Sequence[Column], *, artifact: str, advice: str) -> list[Row]:
    """Read an artifact that llmtier wrote; columns beyond ``columns`` are left out.

    Raises:
        InputFileError: It is absent, no Parquet, another artifact, lacks a column or has it of another type.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    return decode_rows(read_file(path), columns, path=path, artifact=artifact, advice=advice)


def decode_rows(data: bytes, columns: Sequence[Column], *, path: Path, artifact: str, advice: str) -> list[Row]:
    """Do the work of ``read_rows`` on bytes at hand."""
    found = decode_columns(data, columns, path=path, artifact=artifact, advice=advice)
    names = [column.name for column in columns]
    cells = zip(*(found.values[name] for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in cells]


def decode_columns(data: bytes, columns: Sequence[Column], *, path: Path, artifact: str, advice: str) -> ParquetColumns:
    """Do the work of ``read_rows`` by column, on bytes at hand."""
    table = _read_table(data, path=path)
    metadata = _metadata_of(table)
    check_schema_version(metadata.get("schema_version"), path=path, artifact=artifact, advice=advice)
    if metadata.get("artifact") != artifact:
        raise InputFileError(f"expected {artifact}, found {metadata.get('artifact')}", path=path)
    _check_schema(table.schema, columns, path=path, advice=advice)
    values = {
        column.name: _to_values(table.column(column.name), column, path=path)
        if column.name in table.column_names
        else [None] * table.num_rows
        for column in columns
    }
    return ParquetColumns(values=values, metadata=metadata)


def read_any(path: Path) -> ParquetRows:
    """Read whatever Parquet a user has.

    Raises:
        InputFileError: It is absent or no Parquet.
    """
    return decode_any(read_file(path), path=path)


def decode_any(data: bytes, *, path: Path) -> ParquetRows:
    """Do the work of ``read_any`` on bytes at hand."""
    table = _read_table(data, path=path)
    return ParquetRows(rows=_to_plain(table, path=path), metadata=_metadata_of(table))


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        InputFileError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc


def make_schema(columns: Iterable[Column]) -> Any:  # noqa: ANN401 - pyarrow ships no types
    """Return the Arrow schema; the unit of a column stands in its field's metadata."""
    import pyarrow as pa

    return pa.schema(
        pa.field(
            column.name,
            _arrow_type(column.type),
            nullable=column.nullable,
            metadata=None if column.unit is None else {"unit": column.unit},
        )
        for column in columns
    )


def _arrow_type(name: str) -> Any:  # noqa: ANN401 - pyarrow ships no types
    import pyarrow as pa

    match name:
        case "strings":
            return pa.list_(pa.string())
        case "floats":
            return pa.list_(pa.float64())
        case "messages":
            return pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
        case "scores":
            return pa.map_(pa.string(), pa.float64())
        case "counts":
            return pa.map_(pa.string(), pa.int64())
        case _:
            return pa.type_for_alias(name)


def _to_array(values: Sequence[Any], column: Column) -> Any:  # noqa: ANN401 - pyarrow ships no types
    import numpy as np
    import pyarrow as pa

    kind = _arrow_type(column.type)
    if column.type == "floats" and None not in values:  # one pass over all numbers, not one object a row
        ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
        flat = np.fromiter(chain.from_iterable(values), np.float64, count=int(ends[-1]))
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat))
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array(replace_surrogates(list(values)), kind)


def _to_values(found: Any, column: Column, *, path: Path) -> Sequence[Any]:  # noqa: ANN401 - pyarrow ships no types
    if column.type != "floats" or found.null_count:
        return _to_plain(found, path=path)
    rows: list[tuple[float, ...]] = []
    for chunk in found.chunks:
        flat = chunk.values.to_numpy(zero_copy_only=False)
        rows.extend(tuple(flat[start:end].tolist()) for start, end in pairwise(chunk.offsets.to_pylist()))
    return rows


def _read_table(data: bytes, *, path: Path) -> Any:  # noqa: ANN401 - pyarrow ships no types
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
    except (pa.ArrowException, OSError, OverflowError, ValueError) as exc:
        raise _not_parquet(exc, path) from exc


def _to_plain(found: Any, *, path: Path) -> list[Any]:  # noqa: ANN401 - pyarrow ships no types
    import pyarrow as pa

    try:
        plain: list[Any] = found.to_pylist()
    except (pa.ArrowException, OverflowError, ValueError) as exc:  # such as a date beyond Python's
        raise _not_parquet(exc, path) from exc
    return plain


def _not_parquet(cause: Exception, path: Path) -> InputFileError:
    reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    return InputFileError(f"expected Parquet: {reason}", path=path)


def _metadata_of(table: Any) -> dict[str, str]:  # noqa: ANN401 - pyarrow ships no types
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (table.schema.metadata or {}).items()
    }


def _check_schema(
    schema: Any,  # noqa: ANN401 - pyarrow ships no types
    columns: Iterable[Column],
    *,
    path: Path,
    advice: str,
) -> None:
    for column in columns:
        if column.name not in schema.names:
            if not column.nullable:
                raise InputFileError(f"expected column {column.name!r}, which is missing; {advice}", path=path)
        elif (found := schema.field(column.name).type) != _arrow_type(column.type):
            expected = f"expected column {column.name!r} of type {column.type}"
            raise InputFileError(f"{expected}, found {found}; {advice}", path=path)


def _refuse_holes(table: Any, columns: Iterable[Column]) -> None:  # noqa: ANN401 - pyarrow ships no types
    import pyarrow.compute as pc

    for column in columns:
        values = table.column(column.name)
        if not column.nullable and values.null_count:
            raise ValueError(f"column {column.name} must not hold null")
        if column.type == "floats":
            values = pc.list_flatten(values)
            if values.null_count:
                raise ValueError(f"column {column.name} must not hold null")
        if column.type in {"float64", "floats"} and pc.any(pc.is_nan(values)).as_py():
            raise ValueError(f"column {column.name} must not hold NaN; absent is null")
