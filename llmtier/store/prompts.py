"""Prompt files: evaluation sets and logs of what was asked.

Reads JSON lines or Parquet with ``messages`` or ``prompt`` per row, the gateway's traffic log,
OpenAI batch files and LiteLLM spend logs; writes the first two.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import Prompt
from llmtier.store.documents import check_schema_version, describe
from llmtier.store.jsonl import read_jsonl, write_jsonl
from llmtier.store.logs import adapt_row, set_arrivals, text_advice
from llmtier.store.parquet import Row, read_any, write_rows
from llmtier.store.prompt_rows import PROMPT_COLUMNS, PromptRow, to_row


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """A row and where it stands, for messages; ``number`` counts from 1."""

    path: Path
    number: int
    values: Row

    def error(self, message: str) -> InputFileError:
        """Return the error that points at this row: a line of text, or a row of Parquet."""
        if is_parquet(self.path):
            return InputFileError(f"row {self.number}: {message}", path=self.path)
        return InputFileError(message, path=self.path, line=self.number)


def read_prompts(path: Path) -> list[Prompt]:
    """Read every prompt of a file, or of a folder of traffic logs.

    A row without ``id`` is named ``<stem>-<n>``. Of a log, rows without text are skipped.

    Raises:
        InputFileError: The file is absent or empty, a row is malformed, an id stands twice, or a log holds no text.
    """
    rows = adapt_rows(read_file_rows(path))
    prompts = [parse_prompt(row) for row in rows]
    check_unique_ids(rows, prompts)
    return prompts


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as Parquet when the name ends so, else as JSON lines.

    Raises:
        DiskError: The file system refused.
    """
    rows = [to_row(prompt) for prompt in prompts]
    if is_parquet(path):
        write_rows(path, rows, PROMPT_COLUMNS, artifact="prompts")
    else:
        write_jsonl(path, [{key: value for key, value in row.items() if value is not None} for row in rows])


def read_file_rows(path: Path) -> list[FileRow]:
    """Read the rows of a file as they are, or of every traffic log in a folder.

    Raises:
        InputFileError: The file is absent, malformed or empty.
    """
    if path.is_dir():
        return [row for file in traffic_files(path) for row in read_file_rows(file)]
    numbered = enumerate(_read_parquet(path), start=1) if is_parquet(path) else read_jsonl(path)
    rows = [FileRow(path=path, number=number, values=values) for number, values in numbered]
    if not rows:
        raise InputFileError("holds no rows", path=path)
    return rows


def adapt_rows(rows: Sequence[FileRow]) -> list[FileRow]:
    """Bring the rows of logs into the shape of prompt files.

    Raises:
        InputFileError: A row is malformed, or no row holds text.
    """
    adapted = list(_adapt(rows))
    if not adapted:
        raise InputFileError(text_advice(rows[0].values), path=rows[0].path)
    values = set_arrivals([row.values for row in adapted])
    return [FileRow(path=row.path, number=row.number, values=new) for row, new in zip(adapted, values, strict=True)]


def parse_prompt(row: FileRow) -> Prompt:
    """Return the prompt of one row.

    Raises:
        InputFileError: The row is malformed; says where.
    """
    try:
        return PromptRow.model_validate(row.values).to_prompt(default_id=f"{row.path.stem}-{row.number}")
    except ValidationError as exc:
        raise row.error(describe(exc)) from exc
    except ValueError as exc:
        raise row.error(str(exc)) from exc


def check_unique_ids(rows: Iterable[FileRow], prompts: Iterable[Prompt]) -> None:
    """Refuse an id that stands twice.

    Raises:
        InputFileError: Names the second row and the first.
    """
    seen: dict[str, FileRow] = {}
    for row, prompt in zip(rows, prompts, strict=True):
        first = seen.setdefault(prompt.id, row)
        if first is not row:
            raise row.error(f"id {prompt.id!r} is already that of {first.path.name}:{first.number}; ids must be unique")


def traffic_files(folder: Path) -> list[Path]:
    """Return the traffic logs of a folder in the order they were written.

    Raises:
        InputFileError: There is none.
    """
    files = sorted(folder.glob("traffic-*.parquet"))
    if not files:
        raise InputFileError("holds no traffic log (traffic-*.parquet)", path=folder)
    return files


def is_parquet(path: Path) -> bool:
    """Tell whether the name says Parquet; everything else is JSON lines."""
    return path.suffix.lower() in {".parquet", ".pq"}


def _read_parquet(path: Path) -> list[Row]:
    """Read a user's Parquet, which states no version, or our own, which must state ours."""
    found = read_any(path)
    if "schema_version" in found.metadata:
        advice = "write it again, or read it with the llmtier that wrote it"
        check_schema_version(found.metadata["schema_version"], path=path, artifact="table", advice=advice)
    return found.rows


def _adapt(rows: Iterable[FileRow]) -> Iterator[FileRow]:
    for row in rows:
        try:
            values = adapt_row(row.values)
        except ValueError as exc:
            raise row.error(f"cannot be read as a log's row: {exc}") from exc
        if values is not None:
            yield FileRow(path=row.path, number=row.number, values=values)
