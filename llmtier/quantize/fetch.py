"""Where the model to be quantized lies: a local folder as it is, or a hub id that is downloaded first.

Reads the file system to tell the two apart; the worker ``fetch_model`` downloads into the hub library's own cache, so
that nothing is fetched twice and other programs find it. Turns each way to fail into an error that says what to do.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llmtier.core.errors import DiskError, InputFileError, LlmtierError, MachineError, UsageError
from llmtier.quantize.process import Event, running_worker, worker_command
from llmtier.quantize.progress import Progress, Step
from llmtier.quantize.run import OnProgress

FETCH_MODEL = worker_command("fetch_model")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
HUB_ID = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}")
N_NEAR = 3


class Failure(StrEnum):
    """Why the hub gave no model; the values are the worker's."""

    MISSING = "missing"
    HIDDEN = "hidden"
    GATED = "gated"
    DENIED = "denied"
    NO_REVISION = "no_revision"
    NO_WEIGHTS = "no_weights"
    NO_CONFIG = "no_config"
    UNREACHABLE = "unreachable"
    HUB_ERROR = "hub_error"
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model that lies on this machine.

    Attributes:
        path: Folder with ``config.json`` and the weights; of a downloaded model its name is the commit.
        name: What tiers of it are called: the last part of the hub id, or the folder's name.
        revision: Commit of a downloaded model; ``None`` for a local folder.
    """

    path: Path
    name: str
    revision: str | None


def resolve_model(
    text: str, *, revision: str | None, python_of: Callable[[], Path], on_progress: OnProgress = lambda _progress: None
) -> ResolvedModel:
    """Return the model that ``text`` names, downloaded if it must be.

    Args:
        text: A folder, or a hub id ``org/name``; a folder of that name goes first.
        revision: Branch, tag or commit on the hub; ``None`` takes the default branch.
        python_of: Returns the interpreter of the ``quantize`` environment; not called for a folder.
        on_progress: Called with a line for people now and then, in this thread.

    Raises:
        UsageError: ``text`` is neither, or a folder was given a revision.
        InputFileError: The hub has no such model or revision, or it holds no safetensors.
        MachineError: The hub is out of reach, or lets nobody in without a licence or a token.
        DiskError: There is no room for it.
    """
    path = path_of(text)
    if path.is_dir():
        if revision is not None:
            raise UsageError(f"{text}: is a local folder and has no revision; leave --revision out")
        return ResolvedModel(path=path, name=path.absolute().name, revision=None)
    if path.exists():
        raise InputFileError("is a file; give the folder that holds config.json and the weights", path=text)
    check_is_hub_id(text, revision=revision)
    return fetch(text, revision=revision, python=python_of(), on_progress=on_progress)


def path_of(text: str) -> Path:
    """Return the path that ``text`` spells, ``~`` replaced where it stands for a home.

    Raises:
        InputFileError: The file system cannot look it up: too long, or a folder on the way that may not be read.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # no such user
        path = Path(text)
    try:
        path.exists()
    except OSError as exc:
        raise InputFileError(f"cannot be read as a folder: {exc.strerror or exc}", path=text[:80]) from exc
    return path


def check_is_hub_id(text: str, *, revision: str | None) -> None:
    """Refuse what can only be a folder that is not there.

    ``models/lama`` could be either: where ``models/llama`` exists it is taken for a slip, unless a revision is given.

    Raises:
        UsageError: Naming folders that are called nearly so.
    """
    near = near_folders(path_of(text))
    if HUB_ID.fullmatch(text) and (revision is not None or not near):
        return
    hint = f"; did you mean {' or '.join(near)}?" if near else "; give a folder, or a hub id such as org/name"
    if HUB_ID.fullmatch(text):
        hint += " (for the hub's model of this name add --revision main)"
    raise UsageError(f"{text}: no such folder{hint}")


def near_folders(path: Path) -> list[str]:
    """Return the folders beside ``path`` whose names are close to its own, the closest first."""
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return []
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, beside, n=N_NEAR)]


def fetch(hub_id: str, *, revision: str | None, python: Path, on_progress: OnProgress) -> ResolvedModel:
    """Run the worker to its end.

    Raises:
        LlmtierError: As ``resolve_model``.
    """
    job = {"hub_id": hub_id, "revision": revision}
    with running_worker(job, python=python, worker=FETCH_MODEL) as events:
        for event in events:
            match event["event"]:
                case "fetched":
                    name = hub_id.rpartition("/")[2]
                    return ResolvedModel(path=Path(event["path"]), name=name, revision=event["revision"])
                case "failed":
                    raise error_of(event, hub_id=hub_id, revision=revision)
                case _:
                    on_progress(Progress(event=Step.NOTE, message=describe(event, hub_id=hub_id)))
    raise MachineError(f"{hub_id}: the download ended without a result; try again")


def describe(event: Event, *, hub_id: str) -> str:
    """Return a line for people on what the worker does."""
    match event["event"]:
        case "found":
            size = f"{event['n_bytes'] / 1e9:.2f} GB in {event['n_files']} files"
            return f"{hub_id}: revision {event['revision'][:12]}, {size}; downloading what the cache lacks"
        case "bytes":
            return f"{hub_id}: {event['n_done'] / 1e9:.2f} of {event['n_total'] / 1e9:.2f} GB"
        case "cached":
            return f"{hub_id}: the hub cannot be reached; using the copy in the cache ({event['detail']})"
        case other:
            raise MachineError(f"download: unknown progress {other!r}")


def error_of(event: Event, *, hub_id: str, revision: str | None) -> LlmtierError:
    """Return the error that a worker's ``failed`` event is to people.

    Raises:
        MachineError: The worker gives a reason that is none.
    """
    detail, page = event["detail"], f"{event['endpoint']}/{hub_id}"
    try:
        failure = Failure(event["reason"])
    except ValueError as exc:
        raise MachineError(f"download: unknown reason {event['reason']!r}") from exc
    if failure in {Failure.MISSING, Failure.NO_REVISION, Failure.NO_WEIGHTS, Failure.NO_CONFIG}:
        return InputFileError(bad_model(failure, hub_id=hub_id, revision=revision, detail=detail), path=page)
    if failure is Failure.DISK:
        return DiskError(f"{hub_id}: {detail}; free some space, or set HF_HOME to a folder on a larger disk")
    return MachineError(f"{page}: {closed_hub(failure, page=page, detail=detail)}")


def bad_model(failure: Failure, *, hub_id: str, revision: str | None, detail: str) -> str:
    """Say what is wrong with the model that was asked for."""
    match failure:
        case Failure.MISSING:
            return f"no such folder here and no such model there; check the spelling of {hub_id}"
        case Failure.NO_REVISION:
            return f"has no revision {revision}; give a branch, a tag or a commit"
        case Failure.NO_CONFIG:
            return f"holds no config.json, so it is no transformers model (it holds: {detail})"
        case _:
            return f"holds no safetensors; convert the model, or choose one that has them (it holds: {detail})"


def closed_hub(failure: Failure, *, page: str, detail: str) -> str:
    """Say why the hub does not hand the model out, and what opens it."""
    match failure:
        case Failure.GATED:
            return f"is gated: accept the licence at {page} and set HF_TOKEN"
        case Failure.HIDDEN:
            return "does not exist, or is private: check the spelling, or set HF_TOKEN to a token that may read it"
        case Failure.DENIED:
            return f"is refused to you: accept the licence at {page} and set HF_TOKEN to a token that may read it"
        case Failure.UNREACHABLE:
            return f"cannot be reached ({detail}); check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give a folder"
        case _:
            return f"the hub failed ({detail}); try again, what has been downloaded is kept"
