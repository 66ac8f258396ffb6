"""Outcomes: prompts with their score on each tier, what ``fit-thresholds`` learns from.

Reads Parquet, JSON lines or CSV (``prompt`` or ``messages``, ``scores`` by tier, optional ``output_tokens_by_tier``,
``weight``, ``rating``, ``confidences``) and the logs that ``prompts`` knows, writes Parquet, and keeps a journal
``<path>.partial.jsonl`` so that an interrupted replay loses nothing it has paid for.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from llmtier.core.errors import InputFileError, UsageError
from llmtier.core.prompt import LabelledPrompt, Outcome
from llmtier.core.provenance import Provenance
from llmtier.store.atomic import disk_errors, write_all
from llmtier.store.columns import ColumnMap
from llmtier.store.documents import Decoder
from llmtier.store.jsonl import format_line, parse_line
from llmtier.store.outcome_loader import OutcomeLoader, describe_rows
from llmtier.store.outcome_rows import OUTCOME_COLUMNS, to_outcome_row
from llmtier.store.parquet import read_file, write_rows
from llmtier.store.prompts import is_parquet

__all__ = [
    "OUTCOME_COLUMNS",
    "OutcomeSet",
    "append_outcomes_part",
    "discard_outcomes_parts",
    "journal_path",
    "load_outcomes",
    "read_outcomes",
    "read_outcomes_parts",
    "write_outcomes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeSet:
    """What was read of outcomes.

    Attributes:
        rows: One a prompt, in the order they came; a sample of them when a bound was asked for.
        n_read: Rows that the files held.
        warnings: A sentence each, with counts: rows left out, duplicates, tiers of one score only.
    """

    rows: tuple[LabelledPrompt, ...]
    n_read: int
    warnings: tuple[str, ...]


def write_outcomes(path: Path, labelled: Sequence[LabelledPrompt], *, provenance: Provenance) -> None:
    """Write labelled prompts as Parquet.

    Raises:
        UsageError: ``path`` does not end in ``.parquet``.
        ValueError: A score is outside [0, 1], or a confidence is no finite number.
        DiskError: The file system refused.
    """
    if not is_parquet(path):
        raise UsageError(f"{path}: outcomes are written as Parquet; let the name end in .parquet")
    rows = [to_outcome_row(row) for row in labelled]
    write_rows(path, rows, OUTCOME_COLUMNS, artifact="outcomes", provenance=provenance)


def load_outcomes(
    paths: Sequence[Path],
    *,
    columns: Mapping[str, str] | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    known_tiers: Collection[str] | None = None,
) -> OutcomeSet:
    """Read labelled prompts; the same id in several files becomes one row with all its scores.

    Files are streamed. Without ``max_rows`` every prompt is held, for a later file may add to it; with it, that many
    and 8 bytes for each row of the file being read. Rows that state no id are never joined.

    Args:
        paths: Files, or folders of traffic logs.
        columns: Our name of a column to the files', where they differ: ``prompt``, ``domain``, ``id``, ``answer``,
            ``arrival_s``, ``score:<tier>``, ``output_tokens:<tier>`` and the like.
        max_rows: How many prompts to keep. Which depends on their ids and the seed, not on order or files; of rows
            without ids, on their contents.
        seed: Of that choice.
        known_tiers: The tiers that scores may be of; ``None`` for any.

    Raises:
        InputFileError: A file is absent, empty, malformed or holds no prompt with text; an id stands twice in one;
            two files disagree on an id; a tier is not known; a mapped column is nowhere.
        UsageError: ``columns`` has a name that is none of ours, or ``max_rows`` is less than one.
    """
    names = ColumnMap(columns)
    loader = OutcomeLoader(columns=names, max_rows=max_rows, seed=seed, known_tiers=known_tiers)
    n_of_stem = Counter(path.stem for path in paths)
    for path in paths:
        loader.read(path, stem=None if n_of_stem[path.stem] == 1 else str(path.with_suffix("")))
    names.check_seen()
    rows = loader.rows()
    if not rows:
        raise InputFileError("no row holds a prompt with text", path=paths[0] if len(paths) == 1 else None)
    return OutcomeSet(rows=rows, n_read=loader.n_read, warnings=(*loader.left_out(), *describe_rows(rows)))


def read_outcomes(paths: Sequence[Path]) -> list[LabelledPrompt]:
    """Read labelled prompts as ``load_outcomes`` does, for callers that want no more than the rows."""
    return list(load_outcomes(paths).rows)


def journal_path(path: Path) -> Path:
    """Return the journal that belongs to an outcomes file."""
    return path.with_name(f"{path.name}.partial.jsonl")


def append_outcomes_part(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Add finished outcomes to the journal of ``path``, durably; a torn last line is cut off first.

    Raises:
        DiskError: The file system refused; the journal is as it was.
    """
    data = "".join(format_line(asdict(outcome)) for outcome in outcomes).encode()
    journal = journal_path(path)
    with disk_errors(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a+b", buffering=0) as stream:
            _append_synced(stream.fileno(), data, size=_whole_bytes(stream))


def read_outcomes_parts(path: Path) -> list[Outcome]:
    """Read the journal of ``path``; empty when there is none. A torn last line is left out.

    Raises:
        InputFileError: A whole line is malformed.
    """
    journal = journal_path(path)
    if not journal.exists():
        return []
    *lines, _torn = read_file(journal).split(b"\n")
    decoder = Decoder(Outcome)
    return [
        decoder.decode(parse_line(line, path=journal, number=number), path=journal, line=number)
        for number, line in enumerate(lines, start=1)
    ]


def discard_outcomes_parts(path: Path) -> None:
    """Remove the journal once the outcomes themselves are written.

    Raises:
        DiskError: The file system refused.
    """
    journal = journal_path(path)
    with disk_errors(journal):
        journal.unlink(missing_ok=True)


def _whole_bytes(stream: BinaryIO) -> int:
    """Return how many bytes of the journal are whole lines; looks from the end, for journals grow long."""
    end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(end - 65_536, 0)
        stream.seek(start)
        newline = stream.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _append_synced(descriptor: int, data: bytes, *, size: int) -> None:
    os.ftruncate(descriptor, size)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
