"""The traffic log: one row per request that the gateway served, as Parquet files in a folder.

The gateway appends from one writer thread a process; several processes may share a folder. Each flush makes one whole
file, so a reader never sees half of one. Texts are there only when the user opted in; the files are their owner's alone.
Rows on their way to a file are ``traffic_buffer``'s, files and their names ``traffic_folder``'s; what an abrupt end
leaves behind is ``traffic_mark``'s.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from llmtier.store.atomic import disk_errors
from llmtier.store.parquet import Column, read_rows
from llmtier.store.prompts import traffic_files
from llmtier.store.traffic_buffer import Cells, RowBuffer
from llmtier.store.traffic_folder import next_path, remove_oldest, write_private
from llmtier.store.traffic_mark import OpenMark, collect_lost

TRAFFIC_VERSION = 2
"""Version 1 ended with ``key_sha256``. The columns since then may be null, so either llmtier reads the other's files."""

ROTATE_ROWS = 10_000
ROTATE_S = 300.0
ROTATE_BYTES = 64 * 1024 * 1024

_KEPT_FILES = 4
"""Files' worth of rows that wait for a disk that refuses."""


def _null(name: str, kind: str = "float64", unit: str | None = None) -> Column:
    return Column(name, kind, unit=unit, nullable=True)


TRAFFIC_COLUMNS = (
    Column("request_id", "string"),
    Column("received_at", "string", unit="ISO 8601, UTC"),
    _null("tier", "string"),
    Column("reason", "string"),
    Column("alias", "string"),
    _null("domain", "string"),
    _null("predicted_accuracy", unit="1"),
    _null("need_accuracy", unit="1"),
    Column("n_in_flight", "int64", unit="requests"),
    _null("ttft_s", unit="s"),
    _null("e2el_s", unit="s"),
    _null("n_input_tokens", "int64", unit="tokens"),
    _null("n_output_tokens", "int64", unit="tokens"),
    _null("usd", unit="usd"),
    Column("status", "int64", unit="HTTP status"),
    Column("stream", "bool"),
    Column("misses", "string"),
    Column("prompt_sha256", "string"),
    _null("messages_json", "string"),
    _null("key_sha256", "string"),
    _null("outcome", "string"),
    _null("finish_reason", "string"),
    _null("n_attempts", "int64", unit="1"),
    _null("retry_after_s", unit="s"),
    _null("overhead_s", unit="s"),
    _null("queued_s", unit="s"),
    _null("tpot_s", unit="s"),
    _null("is_met", "bool"),
    _null("miss_cause", "string"),
    _null("decided_tier", "string"),
    _null("rule", "string"),
    _null("slo_class", "string"),
    _null("need_ttft_s", unit="s"),
    _null("need_tpot_s", unit="s"),
    _null("need_e2el_s", unit="s"),
    _null("need_usd", unit="usd"),
    _null("predicted_ttft_s", unit="s"),
    _null("predicted_tpot_s", unit="s"),
    _null("predicted_e2el_s", unit="s"),
    _null("predicted_usd", unit="usd"),
    _null("probabilities", "scores", unit="1"),
    _null("propensity", unit="1"),
    _null("policy_digest", "string"),
    _null("is_deviation", "bool"),
    _null("n_messages", "int64", unit="1"),
    _null("n_characters", "int64", unit="1"),
    _null("n_system_characters", "int64", unit="1"),
    _null("max_tokens", "int64", unit="tokens"),
    _null("session_sha256", "string"),
    _null("replica", "int64", unit="1"),
    _null("hedged", "string"),
    _null("resumed", "string"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRow:
    """One request as the gateway saw it; the fields are in the order of ``TRAFFIC_COLUMNS``.

    Those after ``key_sha256`` are ``None`` in files of version 1. Text is cut nowhere but in ``alias``.

    Attributes:
        request_id: The gateway's own.
        received_at: UTC instant, ISO 8601.
        tier: Who answered, or was asked last; ``None`` when nobody was.
        reason: ``Reason`` of the decision, or ``sticky``, ``upgrade``, ``wait``, ``hedge`` or ``failover``.
        alias: The ``model`` that was asked for.
        domain: The client's label; ``None`` when absent.
        predicted_accuracy: P(correct) on ``tier``; ``None`` when unknown.
        need_accuracy: What the decision asked for; ``None`` when nothing.
        n_in_flight: Requests on the tier when it was chosen.
        ttft_s: Measured at the gateway; likewise ``tpot_s`` and ``e2el_s``.
        n_input_tokens: As the engine reports; likewise ``n_output_tokens``.
        usd: Cost of the answer.
        status: HTTP status sent.
        stream: Whether the client asked for a stream.
        misses: Why the other tiers were refused, one after the other.
        prompt_sha256: Of the messages.
        messages_json: The messages as JSON text; ``None`` unless the user opted in.
        key_sha256: First 16 hex digits of the sha256 of the client's bearer token; ``None`` without one.
        outcome: How it ended: ``ok``, ``rejected``, ``client_gone`` and so on.
        finish_reason: Why the engine ended its answer, of the first choice.
        n_attempts: Times that an engine was asked.
        retry_after_s: What the client was told, or an engine told the gateway.
        overhead_s: Time the gateway itself took before it handed the request on.
        queued_s: Time it waited in the gateway.
        is_met: Whether the limits of time held; ``None`` without limits, or where nobody can tell.
        miss_cause: What cost a limit that did not hold.
        decided_tier: Who was decided on; ``tier`` differs after a fail-over.
        rule: Name of the user's rule that held.
        slo_class: The class whose limits applied.
        need_ttft_s: Limit; likewise ``need_tpot_s``, ``need_e2el_s`` and ``need_usd``.
        predicted_ttft_s: Of ``tier``, an upper quantile; likewise ``predicted_tpot_s`` and ``predicted_e2el_s``.
        predicted_usd: Of ``tier``, before the answer.
        probabilities: Tier name to P(correct) as the scorer said; ``None`` when it was not asked.
        propensity: Probability with which the gateway takes ``tier`` for such a request in such a moment: 1 for a
            decision without chance; ``None`` after a fail-over, or without a tier.
        policy_digest: Of the policy that decided.
        is_deviation: Whether ``tier`` is less accurate than what the policy chooses without load.
        n_messages: Turns of the prompt.
        n_characters: Of all of them; ``n_system_characters`` of the system's.
        max_tokens: Longest answer asked for.
        session_sha256: First digits of a digest of the conversation.
        replica: Number of the engine that was asked last; ``None`` where the tier has one.
        hedged: How asking a second tier for a late first byte went: ``won``, ``lost`` or ``failed``.
        resumed: How a stream that broke was carried on: ``ids``, ``repeat``, ``text`` or ``closed``.
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
    outcome: str | None = None
    finish_reason: str | None = None
    n_attempts: int | None = None
    retry_after_s: float | None = None
    overhead_s: float | None = None
    queued_s: float | None = None
    tpot_s: float | None = None
    is_met: bool | None = None
    miss_cause: str | None = None
    decided_tier: str | None = None
    rule: str | None = None
    slo_class: str | None = None
    need_ttft_s: float | None = None
    need_tpot_s: float | None = None
    need_e2el_s: float | None = None
    need_usd: float | None = None
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    predicted_e2el_s: float | None = None
    predicted_usd: float | None = None
    probabilities: Mapping[str, float] | None = None
    propensity: float | None = None
    policy_digest: str | None = None
    is_deviation: bool | None = None
    n_messages: int | None = None
    n_characters: int | None = None
    n_system_characters: int | None = None
    max_tokens: int | None = None
    session_sha256: str | None = None
    replica: int | None = None
    hedged: str | None = None
    resumed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """When a file is full, whichever comes first, and how much is kept.

    Attributes:
        rows: Rows of a full file.
        age_s: Longest time that a row waits for its file.
        size_bytes: Of the rows in memory; the file is smaller.
        keep_bytes: Size that the log's files may have together, the oldest going first; ``None`` keeps all.
    """

    rows: int = ROTATE_ROWS
    age_s: float = ROTATE_S
    size_bytes: int = ROTATE_BYTES
    keep_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows must be >= 1, got {self.rows}")
        if not (self.age_s > 0 and self.size_bytes > 0 and (self.keep_bytes is None or self.keep_bytes > 0)):
            raise ValueError("age_s, size_bytes and keep_bytes must be > 0")


class TrafficWriter:
    """Gathers rows and writes them as ``traffic-<n>-<hex>.parquet``; for one thread, ``note_taken`` apart.

    When the disk refuses, rows wait in memory for the next try, at most four files' worth: beyond that the oldest are
    dropped and counted.

    Args:
        directory: The log's folder; made when it is first needed, and then its owner's alone.
        rotation: When a file is written, and when one is removed.
        clock: Monotonic seconds.

    Attributes:
        n_dropped: Rows lost: the disk refused for too long, or the row was none that a column can hold.
        n_files_removed: Files removed to keep the log's size.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rotation: Rotation | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.n_dropped = 0
        self.n_files_removed = 0
        self._directory = directory
        self._rotation = rotation or Rotation()
        self._clock = clock
        self._buffer = RowBuffer(TRAFFIC_COLUMNS)
        self._mark: OpenMark | None = None
        self._n_settled = 0
        self._n_bytes_tried = self._n_rows_tried = 0
        self._waiting_since_s: float | None = None

    def open(self) -> int:
        """Mark the log as open; return how many rows gateways before this one lost by ending abruptly.

        Raises:
            DiskError: The file system refused; the log works without the mark.
        """
        with disk_errors(self._directory):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        n_lost = collect_lost(self._directory)
        self._mark = OpenMark(self._directory)
        self._buffer.warm()
        return n_lost

    def note_taken(self, n_rows: int) -> None:
        """Write into the mark how many rows have been promised to this log; from one thread, which may be another."""
        if self._mark is not None:
            self._mark.note_taken(n_rows)

    def note_skipped(self, n_rows: int) -> None:
        """Write into the mark that so many of the promised rows will not come, and are no loss."""
        self._settle(n_rows)

    def append(self, row: TrafficRow) -> None:
        """Take one row; raises as ``extend``."""
        self.extend([astuple(row)])

    def extend(self, rows: Sequence[Cells]) -> None:
        """Take rows, each with a cell a column; write a file when one is full.

        Raises:
            DiskError: The file system refused; the rows are kept.
        """
        if self._waiting_since_s is None:
            self._waiting_since_s = self._clock()
        for row in rows:
            self._give_up(self._buffer.append(row))
        if self._is_full():
            self.flush()

    def flush_if_due(self) -> None:
        """Write what has waited long enough; raises as ``flush``."""
        since_s = self._waiting_since_s
        if since_s is not None and self._clock() - since_s >= self._rotation.age_s:
            self.flush()

    def flush(self) -> Path | None:
        """Write what has gathered as one file; return it, or ``None`` when there was nothing.

        Raises:
            DiskError: The file system refused; the rows are kept.
        """
        self._give_up(self._buffer.settle())
        if self._n_rows_tried:  # the disk has refused before
            self._give_up(self._buffer.drop_oldest(keep=_KEPT_FILES * self._rotation.rows))
        n_rows = self._n_rows_tried = self._buffer.n_rows
        self._n_bytes_tried = self._buffer.n_bytes
        self._waiting_since_s = self._clock() if n_rows else None
        if not n_rows:
            return None
        path = next_path(self._directory)
        stated = {"traffic_version": str(TRAFFIC_VERSION)}
        write_private(path, self._buffer.encode(artifact="traffic", metadata=stated))
        self._forget(n_rows)
        if self._rotation.keep_bytes is not None:
            self.n_files_removed += remove_oldest(self._directory, path, keep_bytes=self._rotation.keep_bytes)
        return path

    def close(self) -> None:
        """Write what is left and take the mark away.

        Raises:
            DiskError: The file system refused; the rows are lost, and counted in ``n_dropped``.
        """
        try:
            self.flush()
        finally:
            self.n_dropped += self._buffer.n_rows
            if self._mark is not None:
                self._mark.close()
                self._mark = None

    def _is_full(self) -> bool:
        rotation, buffer = self._rotation, self._buffer
        return (
            buffer.n_rows - self._n_rows_tried >= rotation.rows
            or buffer.n_bytes - self._n_bytes_tried >= rotation.size_bytes
        )

    def _forget(self, n_rows: int) -> None:
        self._buffer.clear()
        self._n_rows_tried = self._n_bytes_tried = 0
        self._waiting_since_s = None
        self._settle(n_rows)

    def _give_up(self, n_rows: int) -> None:
        if n_rows:
            self.n_dropped += n_rows
            self._settle(n_rows)

    def _settle(self, n_rows: int) -> None:
        self._n_settled += n_rows
        if self._mark is not None:
            self._mark.note_settled(self._n_settled)


def read_traffic(path: Path) -> list[TrafficRow]:
    """Read a traffic log: one file, or every file of a folder in the order they were written.

    Raises:
        InputFileError: There is none, or a file is malformed.
        SchemaVersionError: A file was written by another generation of llmtier.
    """
    files: Sequence[Path] = traffic_files(path) if path.is_dir() else [path]
    advice = "read it with the llmtier that wrote it"
    rows = [row for file in files for row in read_rows(file, TRAFFIC_COLUMNS, artifact="traffic", advice=advice)]
    for row in rows:
        if row["probabilities"] is not None:
            row["probabilities"] = dict(row["probabilities"])
    return [TrafficRow(**row) for row in rows]
