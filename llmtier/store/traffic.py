"""The traffic log: one row per request that the gateway served, as Parquet files in a folder.

The gateway appends from one writer thread; each flush makes one whole file, so a reader never
sees half of one. Texts are there only when the user opted in.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from llmtier.store.parquet import Column, read_rows, write_rows
from llmtier.store.prompts import traffic_files

TRAFFIC_COLUMNS = (
    Column("request_id", "string"),
    Column("received_at", "string", unit="ISO 8601, UTC"),
    Column("tier", "string", nullable=True),
    Column("reason", "string"),
    Column("alias", "string"),
    Column("domain", "string", nullable=True),
    Column("predicted_accuracy", "float64", unit="1", nullable=True),
    Column("need_accuracy", "float64", unit="1", nullable=True),
    Column("n_in_flight", "int64", unit="requests"),
    Column("ttft_s", "float64", unit="s", nullable=True),
    Column("e2el_s", "float64", unit="s", nullable=True),
    Column("n_input_tokens", "int64", unit="tokens", nullable=True),
    Column("n_output_tokens", "int64", unit="tokens", nullable=True),
    Column("usd", "float64", unit="usd", nullable=True),
    Column("status", "int64", unit="HTTP status"),
    Column("stream", "bool"),
    Column("misses", "string"),
    Column("prompt_sha256", "string"),
    Column("messages_json", "string", nullable=True),
    Column("key_sha256", "string", nullable=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRow:
    """One request as the gateway saw it.

    Attributes:
        request_id: The gateway's own.
        received_at: UTC instant, ISO 8601.
        tier: Who answered; ``None`` when nobody did.
        reason: ``Reason`` of the decision, or the error's name.
        alias: The ``model`` that was asked for.
        domain: The client's label; ``None`` when absent.
        predicted_accuracy: P(correct) on ``tier``; ``None`` when unknown.
        need_accuracy: What the decision asked for; ``None`` when nothing.
        n_in_flight: Requests on the tier when it was chosen.
        ttft_s: Measured at the gateway; likewise ``e2el_s``.
        n_input_tokens: As the engine reports; likewise ``n_output_tokens``.
        usd: Predicted cost.
        status: HTTP status sent.
        stream: Whether the client asked for a stream.
        misses: Why the other tiers were refused, one line each.
        prompt_sha256: Of the messages.
        messages_json: The messages as JSON text; ``None`` unless the user opted in.
        key_sha256: First 16 hex digits of the sha256 of the client's bearer token; ``None`` without one.
    """

    request_id: str
    received_at: str
    tier: str | None
    reason: str
    alias: str
    domain: str | None
    predicted_accuracy: float | None
    need_accuracy: float | None
    n_in_flight: int
    ttft_s: float | None
    e2el_s: float | None
    n_input_tokens: int | None
    n_output_tokens: int | None
    usd: float | None
    status: int
    stream: bool
    misses: str
    prompt_sha256: str
    messages_json: str | None = None
    key_sha256: str | None = None


class TrafficWriter:
    """Gathers rows and writes them as ``traffic-<n>-<hex>.parquet``; for one thread.

    When the disk refuses, rows wait in memory for the next try, at most four files' worth:
    beyond that the oldest are dropped and counted.

    Args:
        directory: The log's folder; made when the first file is written.
        rotate_rows: Rows of a full file.
    """

    def __init__(self, directory: Path, *, rotate_rows: int = 10_000) -> None:
        if rotate_rows < 1:
            raise ValueError(f"rotate_rows must be >= 1, got {rotate_rows}")
        self.n_dropped = 0
        self._directory = directory
        self._rotate_rows = rotate_rows
        self._rows: list[TrafficRow] = []

    def append(self, row: TrafficRow) -> None:
        """Take one row; write a file when enough have gathered.

        Raises:
            DiskError: The file system refused; the rows are kept.
        """
        self._rows.append(row)
        if len(self._rows) % self._rotate_rows == 0:
            self.flush()

    def flush(self) -> Path | None:
        """Write what has gathered as one file; return it, or ``None`` when there was nothing.

        Raises:
            DiskError: The file system refused; the rows are kept.
        """
        if not self._rows:
            return None
        excess = max(len(self._rows) - 4 * self._rotate_rows, 0)
        self.n_dropped += excess
        del self._rows[:excess]
        path = self._directory / f"traffic-{self._next_number():06d}-{uuid4().hex[:8]}.parquet"
        write_rows(path, [asdict(row) for row in self._rows], TRAFFIC_COLUMNS, artifact="traffic")
        self._rows.clear()
        return path

    def close(self) -> None:
        """Write what is left; raises as ``flush``."""
        self.flush()

    def _next_number(self) -> int:
        names = [path.name for path in self._directory.glob("traffic-*.parquet")]
        numbers = [int(match[1]) for name in names if (match := re.match(r"traffic-(\d+)-", name))]
        return max(numbers, default=0) + 1


def read_traffic(path: Path) -> list[TrafficRow]:
    """Read a traffic log: one file, or every file of a folder in the order they were written.

    Raises:
        InputFileError: There is none, or a file is malformed.
        SchemaVersionError: A file was written by another generation of llmtier.
    """
    files: Sequence[Path] = traffic_files(path) if path.is_dir() else [path]
    advice = "read it with the llmtier that wrote it"
    return [
        TrafficRow(**row)
        for file in files
        for row in read_rows(file, TRAFFIC_COLUMNS, artifact="traffic", advice=advice)
    ]
