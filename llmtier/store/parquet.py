"""Parquet with a stated schema: columns with units, a version and provenance in the metadata.

Artifacts declare ``Column`` tuples; this module turns them into Arrow schemas, writes rows
atomically and reads them back. pyarrow is imported inside functions because it takes 0.1 s.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
        type: ``string int64 float64 bool``, ``messages`` (list of role and content),
            ``scores`` (map to float64) or ``counts`` (map to int64).
        unit: As in the vocabulary; ``None`` for text and names.
        nullable: Whether a row may lack it.
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
    import pyarrow.parquet as pq

    metadata = {"schema_version": str(SCHEMA_VERSION), "artifact": artifact}
    if provenance is not None:
        metadata["provenance"] = json.dumps(asdict(provenance))
    table = _make_table(rows, columns).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_rows(path: Path, columns: Sequence[Column], *, artifact: str, advice: str) -> list[Row]:
    """Read an artifact that llmtier wrote; columns beyond ``columns`` are left out.

    Raises:
        InputFileError: It is absent, no Parquet, another artifact, or lacks a column.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    return decode_rows(read_file(path), columns, path=path, artifact=artifact, advice=advice)


def decode_rows(data: bytes, columns: Sequence[Column], *, path: Path, artifact: str, advice: str) -> list[Row]:
    """Do the work of ``read_rows`` on bytes at hand."""
    found = decode_any(data, path=path)
    check_schema_version(found.metadata.get("schema_version"), path=path, artifact=artifact, advice=advice)
    if found.metadata.get("artifact") != artifact:
        raise InputFileError(f"expected {artifact}, found {found.metadata.get('artifact')}", path=path)
    names = [column.name for column in columns]
    if found.rows and (missing := [name for name in names if name not in found.rows[0]]):
        raise InputFileError(f"expected column {missing[0]!r}, which is missing; {advice}", path=path)
    return [{name: row[name] for name in names} for row in found.rows]


def read_any(path: Path) -> ParquetRows:
    """Read whatever Parquet a user has.

    Raises:
        InputFileError: It is absent or no Parquet.
    """
    return decode_any(read_file(path), path=path)


def decode_any(data: bytes, *, path: Path) -> ParquetRows:
    """Do the work of ``read_any`` on bytes at hand."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, OverflowError, ValueError) as exc:  # such as a date beyond Python's
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise InputFileError(f"expected Parquet: {reason}", path=path) from exc
    metadata = {key.decode(): value.decode(errors="replace") for key, value in (table.schema.metadata or {}).items()}
    return ParquetRows(rows=rows, metadata=metadata)


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        InputFileError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc


def _make_table(rows: Sequence[Row], columns: Sequence[Column]) -> Any:  # noqa: ANN401 - pyarrow ships no types
    import pyarrow as pa

    schema = make_schema(columns)
    try:
        table = pa.Table.from_pylist(list(rows), schema=schema)
    except UnicodeEncodeError:
        table = pa.Table.from_pylist([replace_surrogates(row) for row in rows], schema=schema)
    _refuse_holes(table, columns)
    return table


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
        case "messages":
            return pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
        case "scores":
            return pa.map_(pa.string(), pa.float64())
        case "counts":
            return pa.map_(pa.string(), pa.int64())
        case _:
            return pa.type_for_alias(name)


def _refuse_holes(table: Any, columns: Iterable[Column]) -> None:  # noqa: ANN401 - pyarrow ships no types
    import pyarrow.compute as pc

    for column in columns:
        values = table.column(column.name)
        if not column.nullable and values.null_count:
            raise ValueError(f"column {column.name} must not hold null")
        if column.type == "float64" and pc.any(pc.is_nan(values)).as_py():
            raise ValueError(f"column {column.name} must not hold NaN; absent is null")
