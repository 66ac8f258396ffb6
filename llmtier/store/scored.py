"""Scored prompts: what ``llmtier audit`` writes, one row a prompt, in batches so that a log may be of any length.

Writes Parquet to a temporary file that takes its place when all rows are in; a file that is left half-way leaves
nothing. Reads nothing.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmtier.core.errors import UsageError
from llmtier.store.atomic import beside, disk_errors
from llmtier.store.documents import SCHEMA_VERSION
from llmtier.store.parquet import Column, make_schema
from llmtier.store.prompts import is_parquet
from llmtier.store.text import replace_surrogates

BATCH_ROWS = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPrompt:
    """One prompt as a policy sees it.

    Attributes:
        prompt: The last turn of the user.
        score: P(correct) of the reference less that of the cheapest tier: higher needs the stronger.
        tier: Who would serve it on an unloaded system.
        probabilities: Tier name to P(correct).
    """

    prompt: str
    score: float
    tier: str
    probabilities: Mapping[str, float]


class ScoredWriter:
    """Writes one file; use it as a context, which puts the file in place when no error left it.

    Args:
        path: Ends in ``.parquet``.
        tiers: Names of the ``p_<tier>`` columns.

    Raises:
        UsageError: The name does not say Parquet.
    """

    def __init__(self, path: Path, tiers: Sequence[str]) -> None:
        if not is_parquet(path):
            raise UsageError(f"{path}: scored prompts are written as Parquet; let the name end in .parquet")
        self._path = path
        self._temporary = beside(path, "tmp")
        self._tiers = tuple(tiers)
        columns = (
            Column("prompt", "string"),
            Column("score", "float64", unit="1"),
            Column("tier", "string"),
            *(Column(f"p_{tier}", "float64", unit="1") for tier in tiers),
        )
        metadata = {"schema_version": str(SCHEMA_VERSION), "artifact": "scored"}
        self._schema = make_schema(columns).with_metadata(metadata)
        self._writer: Any = None
        self._waiting: list[ScoredPrompt] = []

    def __enter__(self) -> Self:
        """Open the temporary file.

        Raises:
            DiskError: The file system refused.
        """
        import pyarrow.parquet as pq

        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the file in place, or remove what there is of it."""
        try:
            with disk_errors(self._path):
                if kind is None:
                    self._flush()
                self._writer.close()
                if kind is None:
                    os.replace(self._temporary, self._path)  # noqa: PTH105 - as in ``atomic``
        finally:
            self._temporary.unlink(missing_ok=True)

    def append(self, row: ScoredPrompt) -> None:
        """Take one row.

        Raises:
            DiskError: The file system refused.
        """
        self._waiting.append(row)
        if len(self._waiting) >= BATCH_ROWS:
            with disk_errors(self._path):
                self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        rows, self._waiting = self._waiting, []
        values: dict[str, list[Any]] = {
            "prompt": [replace_surrogates(row.prompt) for row in rows],
            "score": [row.score for row in rows],
            "tier": [row.tier for row in rows],
            **{f"p_{tier}": [row.probabilities[tier] for row in rows] for tier in self._tiers},
        }
        self._writer.write_table(pa.Table.from_pydict(values, schema=self._schema))
