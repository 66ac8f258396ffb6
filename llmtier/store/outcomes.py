"""Outcomes: prompts with their score on each tier, what ``fit-thresholds`` learns from.

Reads Parquet or JSON lines (``prompt`` or ``messages``, ``scores`` by tier, optional
``output_tokens_by_tier``), writes Parquet, and keeps a journal ``<path>.partial.jsonl`` so that
an interrupted replay loses nothing it has paid for.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llmtier.core.errors import InputFileError, UsageError
from llmtier.core.prompt import LabelledPrompt, Outcome
from llmtier.core.provenance import Provenance
from llmtier.store.atomic import disk_errors, write_all
from llmtier.store.documents import Decoder, describe
from llmtier.store.jsonl import format_line, parse_line
from llmtier.store.parquet import Column, Row, read_file, write_rows
from llmtier.store.prompt_rows import PROMPT_COLUMNS, to_row
from llmtier.store.prompts import FileRow, adapt_rows, check_unique_ids, is_parquet, parse_prompt, read_file_rows

OUTCOME_COLUMNS = (
    *PROMPT_COLUMNS,
    Column("scores", "scores", unit="1"),
    Column("output_tokens_by_tier", "counts", unit="tokens"),
)


class _Labels(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    scores: dict[str, float]
    output_tokens_by_tier: dict[str, int] = Field(default_factory=dict)

    @field_validator("scores", "output_tokens_by_tier", mode="before")
    @classmethod
    def _drop_absent(cls, value: object) -> object:
        """Accept a map as pairs and a struct with nulls, the two forms Parquet has."""
        if value is None:
            return {}
        if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
            value = dict(value)
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value

    @field_validator("scores")
    @classmethod
    def _in_range(cls, scores: dict[str, float]) -> dict[str, float]:
        check_scores(scores)
        return scores


def check_scores(scores: dict[str, float]) -> None:
    """Refuse a score outside [0, 1], NaN included.

    Raises:
        ValueError: Names tier and score.
    """
    for tier, score in scores.items():
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score of {tier} must lie in [0, 1], got {score}")


def write_outcomes(path: Path, labelled: Sequence[LabelledPrompt], *, provenance: Provenance) -> None:
    """Write labelled prompts as Parquet.

    Raises:
        UsageError: ``path`` does not end in ``.parquet``.
        ValueError: A score is outside [0, 1].
        DiskError: The file system refused.
    """
    if not is_parquet(path):
        raise UsageError(f"{path}: outcomes are written as Parquet; let the name end in .parquet")
    write_rows(path, [_to_row(row) for row in labelled], OUTCOME_COLUMNS, artifact="outcomes", provenance=provenance)


def read_outcomes(paths: Sequence[Path]) -> list[LabelledPrompt]:
    """Read labelled prompts; the same prompt in several files becomes one row with all its scores.

    Raises:
        InputFileError: A file is absent, empty or malformed, or two files disagree on an id or a score.
    """
    merged: dict[str, LabelledPrompt] = {}
    for path in paths:
        for labelled in _read_file(path):
            known = merged.get(labelled.prompt.id)
            merged[labelled.prompt.id] = labelled if known is None else _merge(known, labelled, path=path)
    return list(merged.values())


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


def _to_row(labelled: LabelledPrompt) -> Row:
    check_scores(dict(labelled.scores))
    return {
        **to_row(labelled.prompt),
        "scores": list(labelled.scores.items()),
        "output_tokens_by_tier": list(labelled.output_tokens.items()),
    }


def _read_file(path: Path) -> list[LabelledPrompt]:
    rows = adapt_rows(read_file_rows(path))
    labelled = [_parse(row) for row in rows]
    check_unique_ids(rows, [row.prompt for row in labelled])
    return labelled


def _parse(row: FileRow) -> LabelledPrompt:
    try:
        labels = _Labels.model_validate(row.values)
    except ValidationError as exc:
        raise row.error(describe(exc)) from exc
    return LabelledPrompt(prompt=parse_prompt(row), scores=labels.scores, output_tokens=labels.output_tokens_by_tier)


def _merge(first: LabelledPrompt, second: LabelledPrompt, *, path: Path) -> LabelledPrompt:
    name = first.prompt.id
    if first.prompt.messages != second.prompt.messages:
        raise InputFileError(
            f"id {name!r} is another prompt in an earlier file; make ids unique over the files", path=path
        )
    for tier in first.scores.keys() & second.scores.keys():
        if first.scores[tier] != second.scores[tier]:
            raise InputFileError(
                f"id {name!r} has another score of {tier} in an earlier file; leave one out", path=path
            )
    return replace(
        first,
        scores={**first.scores, **second.scores},
        output_tokens={**first.output_tokens, **second.output_tokens},
    )
