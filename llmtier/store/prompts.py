"""Prompt files: evaluation sets and logs of what was asked.

Reads JSON lines, Parquet or CSV with ``messages`` or ``prompt`` per row, the gateway's traffic log,
OpenAI batch files and LiteLLM spend logs; writes the first two. ``stream_rows`` holds one row at a time, or one batch
of a Parquet file.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import Prompt
from llmtier.store.columns import TEXT_COLUMNS, ColumnMap
from llmtier.store.csv_rows import is_csv, parse_cells, read_csv_rows
from llmtier.store.documents import describe, shorten
from llmtier.store.jsonl import write_jsonl
from llmtier.store.logs import adapt_row, set_arrivals, text_advice
from llmtier.store.parquet import Row, write_rows
from llmtier.store.parquet_batches import read_parquet_rows
from llmtier.store.prompt_rows import PROMPT_COLUMNS, PromptRow, plain_prompt, to_row
from llmtier.store.text_rows import read_json_rows


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


def read_prompts(path: Path, *, columns: Mapping[str, str] | None = None) -> list[Prompt]:
    """Read every prompt of a file, or of a folder of traffic logs.

    A row without ``id`` is named ``<stem>-<n>``. Of a log, rows without text are skipped.

    Args:
        path: The file or folder.
        columns: Our name of a column to the file's, where they differ.

    Raises:
        InputFileError: The file is absent or empty, a row is malformed, an id stands twice, or a log holds no text.
        UsageError: ``columns`` has a name that is none of ours.
    """
    names = ColumnMap(columns)
    found = list(stream_rows(path, columns=names))
    names.check_seen()
    rows = adapt_rows(found)
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


def stream_rows(path: Path, *, columns: ColumnMap) -> Iterator[FileRow]:
    """Yield the rows of a file under our names, or of every traffic log in a folder; logs keep their form.

    Raises:
        InputFileError: The file is absent, malformed or empty.
    """
    if path.is_dir():
        for file in traffic_files(path):
            yield from stream_rows(file, columns=columns)
        return
    is_text = is_csv(path)
    is_empty = True
    for number, found in _numbered_rows(path, columns):
        try:
            named = columns.apply(found)
        except ValueError as exc:
            raise FileRow(path=path, number=number, values=found).error(str(exc)) from exc
        is_empty = False
        yield FileRow(path=path, number=number, values=parse_cells(named) if is_text else named)
    if is_empty:
        raise InputFileError("holds no rows", path=path)


def adapt_rows(rows: Sequence[FileRow]) -> list[FileRow]:
    """Bring the rows of logs into the shape of prompt files.

    Raises:
        InputFileError: A row is malformed, or no row holds text.
    """
    adapted = [new for row in rows if (new := adapt(row)) is not None]
    if not adapted:
        raise InputFileError(text_advice(rows[0].values), path=rows[0].path)
    values = set_arrivals([row.values for row in adapted])
    return [FileRow(path=row.path, number=row.number, values=new) for row, new in zip(adapted, values, strict=True)]


def adapt(row: FileRow) -> FileRow | None:
    """Bring one row of a log into the shape of prompt files; ``None`` when the log kept no text of it.

    Raises:
        InputFileError: The row is malformed; says where.
    """
    try:
        values = adapt_row(row.values)
    except (ValueError, AttributeError, KeyError) as exc:
        raise row.error(f"cannot be read as a log's row: {exc}") from exc
    if values is row.values:
        return row
    return None if values is None else FileRow(path=row.path, number=row.number, values=values)


def parse_prompt(row: FileRow, *, default_id: str | None = None) -> Prompt:
    """Return the prompt of one row.

    Args:
        row: Of any file, a log's row adapted.
        default_id: The name of a row that states none; ``None`` for ``<stem>-<n>``.

    Raises:
        InputFileError: The row is malformed; says where.
    """
    name = default_id or f"{row.path.stem}-{row.number}"
    prompt = plain_prompt(row.values, default_id=name)
    return parse_unusual(row, default_id=name) if prompt is None else prompt


def parse_unusual(row: FileRow, *, default_id: str) -> Prompt:
    """Do the work of ``parse_prompt`` by Pydantic: coerce what can be, refuse the rest by name."""
    try:
        return PromptRow.model_validate(row.values).to_prompt(default_id=default_id)
    except ValidationError as exc:
        raise row.error(describe(exc)) from exc
    except ValueError as exc:
        hint = "" if TEXT_COLUMNS & row.values.keys() else f"; found {shorten(sorted(row.values), limit=120)}"
        raise row.error(f"{exc}{hint}") from exc


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
    """Tell whether the name says Parquet; of the others, those that do not say CSV are JSON lines."""
    return path.suffix.lower() in {".parquet", ".pq"}


def _numbered_rows(path: Path, columns: ColumnMap) -> Iterator[tuple[int, Row]]:
    if is_parquet(path):
        return read_parquet_rows(path, reads=columns.reads)
    return read_csv_rows(path) if is_csv(path) else read_json_rows(path)


def stream_prompts(path: Path, *, columns: Mapping[str, str] | None = None) -> Iterator[Prompt]:
    """Yield the prompts of a file of any length, one at a time; rows of a log without text are left out.

    Raises:
        InputFileError: The file is absent or empty, a row is malformed, or a log holds no text at all.
    """
    first: FileRow | None = None
    is_empty = True
    for row in stream_rows(path, columns=ColumnMap(columns or {})):
        first = first or row
        adapted = adapt(row)
        if adapted is None:
            continue
        is_empty = False
        yield parse_prompt(adapted)
    if is_empty and first is not None:
        raise InputFileError(text_advice(first.values), path=path)
