"""The isolated environments that engines and the quantizer run in.

Holds which exist, what each is locked to and where it lies: ``<home>/envs/<name>-<digest>``.
Reads the lock files beside this module and the markers on disk; writes environments through
``environment_build.py``, which knows the steps.

A folder counts only once its marker ``llmtier-env.json`` names the lock's digest; the marker is
written last, so an installation that was killed never looks finished.
"""

import fcntl
import hashlib
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Literal

import platformdirs

from llmtier.core.errors import DiskError, EnvInstallError
from llmtier.engine.environment_build import Builder, Runner, installed_versions, run_streaming
from llmtier.store.atomic import write_json

logger = logging.getLogger(__name__)

MARKER = "llmtier-env.json"
MARKER_SCHEMA_VERSION = 1

PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)(\s*;.*)?")


class EnvironmentName(StrEnum):
    """An isolated environment; the value is what users type and the lock's file name."""

    ENGINE_CPU = "engine-cpu"
    ENGINE_CUDA = "engine-cuda"
    QUANTIZE = "quantize"
    AUTOAWQ = "autoawq"
    EMBED = "embed"


TRIAL_IMPORTS = {
    EnvironmentName.ENGINE_CPU: "vllm.entrypoints.openai.api_server",
    EnvironmentName.ENGINE_CUDA: "vllm",
    EnvironmentName.QUANTIZE: "llmcompressor.modifiers.awq, llmcompressor.modifiers.quantization",
    EnvironmentName.AUTOAWQ: "awq",
    EnvironmentName.EMBED: "onnx, transformers, onnxruntime.quantization",
}
"""What a fresh environment must be able to import before it counts as finished; CUDA may lack a driver meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What an environment must hold.

    Attributes:
        name: Which environment.
        pins: Requirement lines in the lock's order, ``name==version`` with an optional marker.
        digest: sha256 over the pins and the Python version, hex; comments do not change it.
    """

    name: EnvironmentName
    pins: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A finished environment.

    Attributes:
        name: Which environment.
        path: Its folder.
        python: Its interpreter.
        digest: ``Lock.digest`` it was made from.
        versions: Package name (lower case, hyphens) to installed version.
        seconds: How long the installation took.
    """

    name: EnvironmentName
    path: Path
    python: Path
    digest: str
    versions: dict[str, str]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentStatus:
    """One environment's folder as found on disk.

    Attributes:
        name: Which environment.
        path: The folder.
        state: ``ready``; ``outdated`` (finished, from another lock or Python); ``incomplete`` (no valid marker:
            being installed now, or cut short).
        environment: ``None`` when incomplete.
    """

    name: EnvironmentName
    path: Path
    state: Literal["ready", "outdated", "incomplete"]
    environment: Environment | None


def home_path(environ: Mapping[str, str]) -> Path:
    """Return where llmtier keeps its own things: ``$LLMTIER_HOME``, else the user's data folder."""
    chosen = environ.get("LLMTIER_HOME")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_data_path("llmtier")


def lock_of(name: EnvironmentName, *, python_tag: str | None = None) -> Lock:
    """Return the lock that this llmtier carries for ``name``.

    Args:
        name: Which environment.
        python_tag: Python it is for, such as ``cpython-311``; the running one when absent.
    """
    text = files("llmtier.engine").joinpath("locks", f"{name.value}.txt").read_text(encoding="utf-8")
    return parse_lock(name, text, python_tag=python_tag or sys.implementation.cache_tag)


def parse_lock(name: EnvironmentName, text: str, *, python_tag: str) -> Lock:
    """Return the pins of a lock file's text.

    Raises:
        EnvInstallError: A line is neither a comment nor ``name==version``.
    """
    stripped = ((number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1))
    pins = []
    for number, line in stripped:
        if not line:
            continue
        if not PIN.fullmatch(line):
            raise EnvInstallError(f"locks/{name.value}.txt:{number}: expected name==version, got {line!r}")
        pins.append(line)
    digest = hashlib.sha256("\n".join([python_tag, *pins]).encode()).hexdigest()
    return Lock(name=name, pins=tuple(pins), digest=digest)


def environment_path(lock: Lock, *, home: Path) -> Path:
    """Return the folder for ``lock``: virtual environments cannot be moved, so it is final from the start."""
    return home / "envs" / f"{lock.name.value}-{lock.digest[:12]}"


def python_path(path: Path) -> Path:
    """Return the interpreter of the environment at ``path``."""
    return path / "bin" / "python"


def find_environment(name: EnvironmentName, *, home: Path) -> Environment | None:
    """Return the finished environment for the current lock, or ``None``."""
    lock = lock_of(name)
    environment = read_marker(environment_path(lock, home=home))
    return environment if environment is not None and environment.digest == lock.digest else None


def list_environments(home: Path) -> list[EnvironmentStatus]:
    """Return every environment folder under ``home``, by name; outdated and unfinished ones too."""
    root = home / "envs"
    found = [(name, path) for name in EnvironmentName for path in sorted(root.glob(f"{name.value}-*/"))]
    return [status_of(name, path) for name, path in found]


def status_of(name: EnvironmentName, path: Path) -> EnvironmentStatus:
    """Return what the folder ``path`` is, against the current lock."""
    environment = read_marker(path)
    if environment is None:
        return EnvironmentStatus(name=name, path=path, state="incomplete", environment=None)
    state: Literal["ready", "outdated"] = "ready" if environment.digest == lock_of(name).digest else "outdated"
    return EnvironmentStatus(name=name, path=path, state=state, environment=environment)


def read_marker(path: Path) -> Environment | None:
    """Return the environment that the marker in ``path`` describes; ``None`` when it is absent, torn or foreign."""
    try:
        document = json.loads((path / MARKER).read_text(encoding="utf-8"))
        if document["schema_version"] != MARKER_SCHEMA_VERSION or not python_path(path).exists():
            return None
        return Environment(
            name=EnvironmentName(document["name"]),
            path=path,
            python=python_path(path),
            digest=document["digest"],
            versions=dict(document["versions"]),
            seconds=float(document["seconds"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def install_environment(
    name: EnvironmentName,
    *,
    home: Path,
    on_line: Callable[[str], None],
    force: bool = False,
    run: Runner = run_streaming,
) -> Environment:
    """Return the environment for the current lock, made now if it is not there.

    Only one process makes it; another waits and takes what was made. What an interrupted
    installation left behind is deleted and made anew.

    Args:
        name: Which environment.
        home: As ``home_path`` returns.
        on_line: Gets each line of progress.
        force: Make it again even when it is there.
        run: What runs venv and pip.

    Raises:
        EnvInstallError: A step failed.
        DiskError: The folder cannot be written or deleted.
    """
    lock = lock_of(name)
    path = environment_path(lock, home=home)
    with one_installer(path, on_line=on_line) as descriptor:
        found = read_marker(path)
        if found is not None and found.digest == lock.digest and not force:
            return found
        remove(path)
        builder = Builder(path, base_python=Path(sys.executable), run=run, on_line=on_line, keep_open=(descriptor,))
        return build(lock, builder)


def build(lock: Lock, builder: Builder) -> Environment:
    """Make the environment and, last, its marker; on any failure or interruption leave no folder."""
    started_s = time.perf_counter()
    is_finished = False
    try:
        builder.build(lock.pins, trial_import=TRIAL_IMPORTS[lock.name])
        environment = Environment(
            name=lock.name,
            path=builder.path,
            python=builder.python,
            digest=lock.digest,
            versions=installed_versions(builder.path),
            seconds=round(time.perf_counter() - started_s, 3),
        )
        write_marker(environment)
        is_finished = True
    finally:
        if not is_finished:
            remove(builder.path)
    logger.info("environment installed", extra={"environment": lock.name.value, "seconds": environment.seconds})
    return environment


def write_marker(environment: Environment) -> None:
    """Declare an environment finished."""
    write_json(
        environment.path / MARKER,
        {
            "schema_version": MARKER_SCHEMA_VERSION,
            "name": environment.name.value,
            "digest": environment.digest,
            "seconds": environment.seconds,
            "versions": dict(sorted(environment.versions.items())),
        },
    )


@contextmanager
def one_installer(path: Path, *, on_line: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock file beside ``path`` while inside; wait when another process holds it.

    The lock's descriptor is yielded: a step that inherits it keeps the lock while it runs on after
    its parent was killed, so nobody deletes the folder under it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = path.with_name(f"{path.name}.lock").open("a")
    except OSError as error:
        raise DiskError(f"{path.parent}: {error.strerror}; set LLMTIER_HOME to a folder you may write") from error
    with lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_line(f"another process is installing {path.name}; waiting for it")
            fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield lock_file.fileno()


def remove(path: Path) -> None:
    """Delete an environment's folder, its marker first, so that half of it never looks finished."""
    if not path.exists():
        return
    try:
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)
    except OSError as error:
        raise DiskError(f"{path}: cannot be deleted: {error.strerror}; delete it by hand") from error
