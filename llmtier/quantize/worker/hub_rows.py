"""The worker that writes the rows of a Hugging Face dataset to a file of JSON lines, as they stream in.

    python -I bootstrap.py llmtier.quantize.worker.hub_rows '{"dataset": "org/name", "is_folder": false, ...}'

Reads ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` as every user of the hub expects, or a local
folder without any network. A revision is resolved to its commit first. Reports ``rows`` now and then and ends with
``fetched``, or with ``failed`` and a reason: ``calibration/hub.py`` says it to people.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

from llmtier.quantize.worker.fetch_model import FetchError, translating
from llmtier.quantize.worker.report import Report, run_worker

REPORT_EVERY_S = 1.0
TIMEOUT_S = 20.0
BAD_DATASET, UNREACHABLE, DISK = "bad_dataset", "unreachable", "disk"
"""Reasons of our own, beside those of ``fetch_model``."""


def find_commit(dataset: str, revision: str | None) -> str:
    """Ask the hub which commit a revision is.

    Raises:
        FetchError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        with translating():
            info = HfApi().dataset_info(dataset, revision=revision, timeout=TIMEOUT_S)
    except HFValidationError as error:
        raise FetchError(BAD_DATASET, f"is neither a folder nor the id of a dataset: {first_line(error)}") from error
    return info.sha or revision or ""


@contextmanager
def translating_datasets() -> Iterator[None]:
    """Raise what ``datasets`` raises for an unfit dataset, split or configuration as ``FetchError``."""
    from datasets import exceptions

    try:
        with translating():
            yield
    except ConnectionError as error:
        raise FetchError(UNREACHABLE, first_line(error)) from error
    except (exceptions.DatasetsError, ValueError, RuntimeError, FileNotFoundError) as error:
        raise FetchError(BAD_DATASET, first_line(error)) from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), repr(error))


def open_rows(job: dict[str, Any], commit: str | None) -> Iterable[dict[str, Any]]:
    """Return the dataset's rows, which stream in as they are asked for."""
    from datasets import load_dataset

    rows = load_dataset(job["dataset"], name=job["config"], split=job["split"], revision=commit, streaming=True)
    columns = job["columns"]
    known = rows.column_names  # None where only the rows themselves tell
    has_all = bool(columns and known) and set(columns) <= set(known)
    chosen: Iterable[dict[str, Any]] = rows.select_columns(columns) if has_all else rows
    return chosen


def write_rows(rows: Iterable[dict[str, Any]], path: Path, *, report: Report) -> int:
    """Write rows as they come and return their number.

    Raises:
        FetchError: The disk refuses.
    """
    n_rows, said_s = 0, monotonic()
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(format_row(row))
            n_rows += 1
            if monotonic() - said_s >= REPORT_EVERY_S:
                said_s = monotonic()
                report("rows", n_rows=n_rows)
        file.flush()
        os.fsync(file.fileno())
    return n_rows


def format_row(row: dict[str, Any]) -> str:
    """Return a row as a line of JSON, with null for what is no text: images, sounds, bytes, NaN and infinities."""
    try:
        line = json.dumps(row, default=lambda _value: None, allow_nan=False)
    except ValueError:  # a float that JSON lacks
        line = json.dumps(plain(row), default=lambda _value: None)
    if "\\ud" in line:  # half of a surrogate pair, or a whole one
        line = json.dumps(plain(row), default=lambda _value: None)
    return line + "\n"


def plain(value: Any) -> Any:  # noqa: ANN401 - walks a row of any shape
    """Return a value with ``None`` for floats that JSON lacks, and with U+FFFD for lone halves of surrogate pairs."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def fetch(job: dict[str, Any], *, report: Report) -> tuple[int, str | None]:
    """Write the rows and return their number and the commit.

    Raises:
        FetchError: They cannot be had.
    """
    commit = None if job["is_folder"] else find_commit(job["dataset"], job["revision"])
    if commit is not None:
        report("found", revision=commit)
    with translating_datasets():
        rows = islice(open_rows(job, commit), job["limit"])
        return write_rows(rows, Path(job["out"]), report=report), commit


def run(job: dict[str, Any], report: Report) -> None:
    """Do the job; a failure is an event, not an exit code: the command decides what it means."""
    from huggingface_hub import constants

    try:
        n_rows, commit = fetch(job, report=report)
    except FetchError as error:
        report("failed", reason=error.reason, detail=error.detail, endpoint=constants.ENDPOINT)
        return
    report("fetched", n_rows=n_rows, revision=commit)


if __name__ == "__main__":
    run_worker(run)
