"""Datasets of the Hugging Face hub: their rows written to a file of JSON lines by the worker ``hub_rows``.

The worker streams, so that ``limit`` rows cost no more than these; a finished file is used again by the next build. A
folder in the place of an id is read the same way, without network. Each way to fail becomes an error that says what to do.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llmtier.core.errors import DiskError, InputFileError, LlmtierError, MachineError
from llmtier.quantize.process import Event, running_worker, worker_command
from llmtier.store.atomic import disk_errors, write_json
from llmtier.store.calibration_recipe import Source, template_columns
from llmtier.store.documents import Decoder, parse_json

HUB_ROWS = worker_command("hub_rows")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedRows:
    """A dataset's rows on this machine.

    Attributes:
        path: JSON lines.
        revision: Commit; ``None`` for a folder.
        n_rows: Their number.
    """

    path: Path
    revision: str | None
    n_rows: int


def is_pinned(source: Source) -> bool:
    """Tell whether a recipe names the very commit of a dataset."""
    return source.revision is not None and COMMIT.fullmatch(source.revision) is not None


def fetch_rows(
    source: Source,
    *,
    folder: Path | None,
    out: Path,
    python: Callable[[], Path],
    on_rows: Callable[[int], None] = lambda _n_rows: None,
) -> FetchedRows:
    """Return the rows of a dataset, fetched unless an earlier build has finished that.

    Args:
        source: What the recipe says of it.
        folder: The local folder that it is; ``None`` for a hub id.
        out: File to write; beside it lies ``<out>.done`` once it is whole.
        python: Gives the interpreter of the ``quantize`` environment; called only when there is something to fetch.
        on_rows: Called with the number of rows so far.

    Raises:
        InputFileError: There is no such dataset, revision, configuration or split, or it holds no rows.
        MachineError: The hub is out of reach, or lets nobody in without a licence or a token.
        DiskError: There is no room for it.
    """
    done = out.with_name(f"{out.name}.done")
    finished = _find_finished(out, done)
    if finished is not None:
        return finished
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
    fetched = _run(source, folder=folder, out=out, python=python(), on_rows=on_rows)
    if not fetched.n_rows:
        raise InputFileError(f"its split {source.split!r} holds no rows", path=source.label)
    write_json(done, {**asdict(fetched), "path": str(fetched.path)})
    return fetched


def _find_finished(out: Path, done: Path) -> FetchedRows | None:
    """Return what an earlier build fetched; ``None`` when there is nothing, or its note cannot be read."""
    try:
        found = Decoder(FetchedRows).decode(parse_json(done.read_text(encoding="utf-8")), path=done)
        is_there = out.is_file()
    except (OSError, ValueError, InputFileError):
        return None
    return replace(found, path=out) if is_there else None  # the work folder may have been moved since


def _run(
    source: Source, *, folder: Path | None, out: Path, python: Path, on_rows: Callable[[int], None]
) -> FetchedRows:
    columns = template_columns(source.template) if source.template else source.fields and source.fields.columns
    job = {
        "dataset": source.dataset if folder is None else str(folder.absolute()),
        "is_folder": folder is not None,
        "revision": source.revision,
        "config": source.config,
        "split": source.split,
        "limit": source.limit,
        "columns": list(columns or ()),
        "out": str(out),
    }
    with running_worker(job, python=python, worker=HUB_ROWS) as events:
        for event in events:
            match event["event"]:
                case "fetched":
                    return FetchedRows(path=out, revision=event["revision"], n_rows=event["n_rows"])
                case "failed":
                    raise error_of(event, source)
                case "rows":
                    on_rows(event["n_rows"])
    raise MachineError(f"{source.label}: reading the dataset ended without a result; try again")


def error_of(event: Event, source: Source) -> LlmtierError:
    """Return the error that a worker's ``failed`` event is to people."""
    hub_id, detail = source.label, event["detail"]
    page = f"{event['endpoint']}/datasets/{hub_id}"
    match event["reason"]:
        case "missing":
            return InputFileError(f"no such dataset; check the spelling of {hub_id}", path=page)
        case "no_revision":
            return InputFileError(f"has no revision {source.revision}; give a branch, a tag or a commit", path=page)
        case "bad_dataset":
            return InputFileError(detail, path=hub_id)
        case "disk":
            return DiskError(f"{hub_id}: {detail}; free some space, or lower 'limit'")
        case reason:
            return MachineError(f"{page}: {closed_hub(reason, page=page, detail=detail)}")


def closed_hub(reason: str, *, page: str, detail: str) -> str:
    """Say why the hub does not hand a dataset out, and what opens it."""
    match reason:
        case "gated" | "denied":
            return f"is gated: accept the licence at {page} and set HF_TOKEN to a token that may read it"
        case "hidden":
            return "does not exist, or is private: check the spelling, or set HF_TOKEN to a token that may read it"
        case "unreachable":
            return f"cannot be reached ({detail}); check the network and HF_ENDPOINT, or download it and use 'path'"
        case _:
            return f"the hub failed ({detail}); try again, finished sources are kept"
