"""The worker that downloads a model from the hub into the hub library's own cache.

    python -I bootstrap.py llmtier.quantize.worker.fetch_model '{"hub_id": "org/name", "revision": null}'

Reads ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` as every user of the hub expects. Takes the
weights (safetensors), ``config.json`` and the tokenizer's files at the top of the repository, nothing else. What an
interrupted download has brought is used again. Where the hub cannot be reached, a snapshot in the cache will do.

Ends with ``fetched``, or with ``failed`` and one of the reasons of ``FAILURES``: ``fetch.py`` says it to people.
"""

import errno
import fnmatch
import glob
import io
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from llmtier.quantize.worker.report import Report, run_worker

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

WANTED = (
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model", "chat_template*", "*processor_config.json", "LICENSE*", "NOTICE*"),
)
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
"""As transformers names them; where a repository has none of these, every safetensors file at its top is taken."""

REPORT_EVERY_S = 5.0
TIMEOUT_S = 20.0

MISSING, HIDDEN, GATED, DENIED = "missing", "hidden", "gated", "denied"
NO_REVISION, NO_WEIGHTS, NO_CONFIG = "no_revision", "no_weights", "no_config"
UNREACHABLE, HUB_ERROR, DISK = "unreachable", "hub_error", "disk"
FAILURES = (MISSING, HIDDEN, GATED, DENIED, NO_REVISION, NO_WEIGHTS, NO_CONFIG, UNREACHABLE, HUB_ERROR, DISK)


class FetchError(Exception):
    """The model cannot be had.

    Attributes:
        reason: One of ``FAILURES``.
        detail: What the hub or the system said.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def choose_files(names: Iterable[str]) -> list[str]:
    """Return the files of a repository that quantizing needs.

    Raises:
        FetchError: There is no ``config.json``, or there are no safetensors.
    """
    top = sorted(name for name in names if "/" not in name)
    weights = matching(top, WEIGHTS)
    if not any(name.endswith(".safetensors") for name in weights):
        weights = matching(top, ("*.safetensors",))
    if not weights:
        raise FetchError(NO_WEIGHTS, ", ".join(top[:20]))
    if "config.json" not in top:
        raise FetchError(NO_CONFIG, ", ".join(top[:20]))
    return sorted({*weights, *matching(top, WANTED)})


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that match any of the patterns."""
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def reason_of(error: Exception) -> str | None:
    """Return why the hub library failed, as one of ``FAILURES``; ``None`` where it is no failure of hub or disk."""
    import httpx
    from huggingface_hub import errors

    reason = None
    match error:
        case errors.GatedRepoError():
            reason = GATED
        case errors.RevisionNotFoundError():
            reason = NO_REVISION
        case errors.RepositoryNotFoundError():  # without a token the hub says 401 to what is absent, too
            reason = MISSING if error.response.status_code == 404 else HIDDEN
        case errors.HfHubHTTPError():
            reason = DENIED if error.response.status_code in {401, 403} else HUB_ERROR
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() | httpx.HTTPError():
            reason = UNREACHABLE
        case OSError() if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}:
            reason = DISK
    return reason


@contextmanager
def translating() -> Iterator[None]:
    """Raise the hub library's errors as ``FetchError``; what is none of its failures passes."""
    import httpx

    try:
        yield
    except (OSError, httpx.HTTPError) as error:  # the library's own errors are both
        reason = reason_of(error)
        if reason is None:
            raise
        raise FetchError(reason, next(iter(str(error).strip().splitlines()), repr(error))) from error


def look_up(hub_id: str, revision: str | None) -> "ModelInfo":
    """Ask the hub which commit the revision is and which files it has.

    Raises:
        FetchError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with translating():
        return HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=TIMEOUT_S)


def download(hub_id: str, revision: str | None, *, commit: str | None, files: list[str], report: Report) -> Path:
    """Download the files of a revision and return the snapshot's folder, which is named after the commit.

    Asked for by the revision's name, not its commit: the cache then knows the name when the hub is out of reach.

    Raises:
        FetchError: The hub refuses or goes away, the disk does, or the revision has moved on.
    """
    from huggingface_hub import snapshot_download

    exact = [glob.escape(name) for name in files]
    with translating():
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=exact, tqdm_class=make_bar(report)))
    if folder.name != commit:
        raise FetchError(HUB_ERROR, f"the revision moved from {commit} to {folder.name} meanwhile")
    return folder


def find_cached(hub_id: str, revision: str | None) -> Path | None:
    """Return the folder of a snapshot that an earlier run has completed; ``None`` when there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                hub_id, revision=revision, local_files_only=True, allow_patterns=["config.json", *WEIGHTS]
            )
        )
    except LocalEntryNotFoundError:
        return None
    try:
        choose_files(path.name for path in folder.iterdir())
    except FetchError:
        return None
    return folder


def make_bar(report: Report, *, clock: Callable[[], float] = monotonic) -> Any:  # noqa: ANN401 - a class without types
    """Return a class in the place of a progress bar that reports bytes now and then, and draws nothing."""
    from tqdm import tqdm

    said_s = clock()

    class ByteCounter(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        """Counts what lands on disk."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def display(self, *_args: object, **_kwargs: object) -> None:
            """Draw nothing."""

        def update(self, n: float | None = 1) -> bool | None:
            """Count ``n`` more."""
            nonlocal said_s
            drawn: bool | None = super().update(n)
            if self.unit == "B" and self.total and clock() - said_s >= REPORT_EVERY_S:
                said_s = clock()
                report("bytes", n_done=int(self.n), n_total=int(self.total))
            return drawn

    return ByteCounter


def check_space(hub_id: str, *, n_bytes: int) -> None:
    """Refuse a download that cannot fit, before it fills the disk.

    Raises:
        FetchError: The cache's disk has less room than what is still to come.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    blobs = (cache / repo_folder_name(repo_id=hub_id, repo_type="model") / "blobs").glob("*")
    present_bytes = sum(path.stat().st_blocks * 512 for path in blobs)  # blocks: a file begun may be laid out already
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    free_bytes, needed_bytes = shutil.disk_usage(folder).free, n_bytes - present_bytes
    if needed_bytes > free_bytes:
        raise FetchError(DISK, f"{needed_bytes / 1e9:.1f} GB to come, {free_bytes / 1e9:.1f} GB free in {folder}")


def fetch(hub_id: str, revision: str | None, *, report: Report) -> tuple[Path, str]:
    """Return the folder that holds the model, and its commit.

    Raises:
        FetchError: It cannot be had.
    """
    try:
        info = look_up(hub_id, revision)
    except FetchError as error:
        cached = find_cached(hub_id, revision) if error.reason in {UNREACHABLE, HUB_ERROR} else None
        if cached is None:
            raise
        report("cached", detail=error.detail)
        return cached, cached.name
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files = choose_files(sizes)
    n_bytes = sum(sizes[name] for name in files)
    check_space(hub_id, n_bytes=n_bytes)
    report("found", revision=info.sha, n_files=len(files), n_bytes=n_bytes)
    folder = download(hub_id, revision, commit=info.sha, files=files, report=report)
    return folder, folder.name


def run(job: dict[str, Any], report: Report) -> None:
    """Do the job; a failure is an event, not an exit code: the command decides what it means."""
    from huggingface_hub import constants

    try:
        path, commit = fetch(job["hub_id"], job["revision"], report=report)
    except FetchError as error:
        report("failed", reason=error.reason, detail=error.detail, endpoint=constants.ENDPOINT)
        return
    report("fetched", path=str(path), revision=commit)


if __name__ == "__main__":
    run_worker(run)
