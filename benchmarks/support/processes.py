"""Wall time and peak memory of a command with all its children, and commands killed half-way."""

import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import psutil

SAMPLE_S = 0.02
END_OF_ERRORS = 2000


@dataclass(frozen=True)
class Run:
    """One finished command.

    Attributes:
        seconds: From start to exit.
        peak_bytes: Highest sum, over the processes alive at one moment, of resident memory, sampled every 20 ms.
            Pages that several processes share count several times: an upper bound.
    """

    seconds: float
    peak_bytes: int


def measure(command: Sequence[str], *, cwd: Path | None = None) -> Run:
    """Run a command to its end.

    Raises:
        RuntimeError: It failed; holds the end of its standard error.
    """
    with TemporaryFile() as errors:
        begun_s = time.perf_counter()
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, cwd=cwd)
        peak_bytes = 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, tree_bytes(process))
            time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - begun_s
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"{command[0]} failed: {errors.read().decode(errors='replace')[-END_OF_ERRORS:]}")
    return Run(seconds, peak_bytes)


def tree_bytes(process: psutil.Process) -> int:
    """Return the resident memory of a process and its descendants; those that end meanwhile count nothing."""
    total = 0
    with suppress(psutil.Error):
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):
                total += member.memory_info().rss
    return total


def kill_after(command: Sequence[str], delay_s: float) -> bool:
    """Start a command and SIGKILL it after ``delay_s``; return whether it still ran."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False
