"""Rows of an artifact that grows: Arrow columns in memory, a few rows at a time.

Turning rows into columns as they come costs a fraction of what dictionaries cost, keeps long logs small in memory, and
holds no thread up for long. Writes nothing: ``encode`` gives the bytes of a Parquet file.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from llmtier.store.documents import SCHEMA_VERSION
from llmtier.store.parquet import Column, make_schema
from llmtier.store.text import replace_surrogates

Cells = tuple[object, ...]
"""One row: a cell for each column, in their order."""

CHUNK_ROWS = 64
"""Rows that become columns at once: some 0.2 ms, during which no other Python thread runs."""


class RowBuffer:
    """Rows that wait for their file.

    Args:
        columns: Of every row. NaN becomes null, which is what absent is.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = tuple(columns)
        self._schema: Any = None  # pyarrow takes 0.1 s to import
        self._kinds: list[tuple[Any, bool | None]] = []  # Arrow's type, and whether NaN is possible
        self._fresh: list[Cells] = []
        self._batches: list[Any] = []
        self._n_settled = 0
        self._n_bytes = 0

    @property
    def n_rows(self) -> int:
        """Rows held."""
        return self._n_settled + len(self._fresh)

    @property
    def n_bytes(self) -> int:
        """Size of the columns held; the rows of the last ``CHUNK_ROWS`` are not in it yet."""
        return self._n_bytes

    def append(self, row: Cells) -> int:
        """Take a row; return how many rows turned out to be none that the columns can hold, and are gone."""
        self._fresh.append(row)
        return self.settle() if len(self._fresh) >= CHUNK_ROWS else 0

    def settle(self) -> int:
        """Turn every row taken into columns; returns as ``append``."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return 0
        try:
            self._keep(self._to_batch(fresh))
        except (TypeError, ValueError, OverflowError):  # Arrow's own errors are kinds of these
            return sum(not self._settle_alone(row) for row in fresh)
        return 0

    def drop_oldest(self, *, keep: int) -> int:
        """Drop all but the last ``keep`` settled rows; return how many went."""
        excess = n_dropped = max(self._n_settled - keep, 0)
        while excess:
            first = self._batches[0]
            n_rows = first.num_rows
            if n_rows > excess:
                self._batches[0] = first.slice(excess)
            else:
                del self._batches[0]
            excess -= min(n_rows, excess)
        self._n_settled -= n_dropped
        self._n_bytes = sum(batch.get_total_buffer_size() for batch in self._batches) if n_dropped else self._n_bytes
        return n_dropped

    def encode(self, *, artifact: str, metadata: Mapping[str, str]) -> bytes:
        """Return the settled rows as a Parquet file whose pages carry checksums."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        stated = {"schema_version": str(SCHEMA_VERSION), "artifact": artifact, **metadata}
        table = pa.Table.from_batches(self._batches, schema=self._schema).replace_schema_metadata(stated)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        return buffer.getvalue()

    def clear(self) -> None:
        """Forget every settled row."""
        self._batches.clear()
        self._n_settled = self._n_bytes = 0

    def _keep(self, batch: Any) -> None:  # noqa: ANN401 - pyarrow ships no types
        self._batches.append(batch)
        self._n_settled += batch.num_rows
        self._n_bytes += batch.get_total_buffer_size()

    def warm(self) -> None:
        """Load what the first rows would have to wait for: where pandas is installed, pyarrow imports it then."""
        import pyarrow as pa

        pa.array([None])

    def _settle_alone(self, row: Cells) -> bool:
        """Keep one row of a batch that could not be kept, without half surrogate pairs; return whether it could be."""
        try:
            self._keep(self._to_batch([tuple(replace_surrogates(list(row)))]))
        except (TypeError, ValueError, OverflowError):
            return False
        return True

    def _to_batch(self, rows: Sequence[Cells]) -> Any:  # noqa: ANN401 - pyarrow ships no types
        import pyarrow as pa

        if self._schema is None:
            self._schema = make_schema(self._columns)
            self._kinds = [
                (field.type, True if column.type == "float64" else None)
                for field, column in zip(self._schema, self._columns, strict=True)
            ]
        arrays = [
            pa.array(cells, kind, from_pandas=is_float)
            for cells, (kind, is_float) in zip(zip(*rows, strict=True), self._kinds, strict=True)
        ]
        for array, column in zip(arrays, self._columns, strict=True):
            if array.null_count and not column.nullable:
                raise ValueError(f"column {column.name} must not hold null")
        return pa.record_batch(arrays, schema=self._schema)
