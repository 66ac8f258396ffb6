"""CPU time of a command with every process it starts, those that outlive it or their parent included.

The command runs under a small process of its own, which asks Linux to be the parent of all orphans below it
(prctl(2), PR_SET_CHILD_SUBREAPER) and waits for every one; what it has waited for is what it reports.

Example: python benchmarks/support/cpu_time.py report.json 60 sleep 1
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 5.0
"""What a command's children may take to end after it; then they are killed."""
END_OF_OUTPUT = 2000
EXIT_LATE = 124


@dataclass(frozen=True)
class CountedRun:
    """One finished command.

    Attributes:
        seconds: From start to exit.
        cpu_s: User and system time of all its processes.
    """

    seconds: float
    cpu_s: float


def run_counted(
    command: Sequence[str], *, limit_s: float, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> CountedRun:
    """Run a command to its end and count its processes' time.

    Raises:
        RuntimeError: It failed or took longer than ``limit_s``; holds the end of its output.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [sys.executable, __file__, str(report), str(limit_s), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
            cwd=cwd,
            check=False,
        )
        if done.returncode:
            why = f"took longer than {limit_s:g} s" if done.returncode == EXIT_LATE else f"exit {done.returncode}"
            raise RuntimeError(
                f"{Path(command[0]).name}: {why}: {done.stdout.decode(errors='replace')[-END_OF_OUTPUT:]}"
            )
        return CountedRun(**json.loads(report.read_text(encoding="utf-8")))


def supervise(report: Path, limit_s: float, command: Sequence[str]) -> int:
    """Run ``command`` below this process, reap all it leaves, write the report; return its exit status."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    begun_s = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_LATE))
    process = subprocess.Popen(command)
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        status = EXIT_LATE
    except SystemExit:
        end_rest(0.0)
        raise
    seconds = time.perf_counter() - begun_s
    end_rest(GRACE_S if status != EXIT_LATE else 0.0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report.write_text(json.dumps({"seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime}), encoding="utf-8")
    return status


def end_rest(grace_s: float) -> None:
    """Wait for every process below this one; kill those that are there after ``grace_s``."""
    ends_s = time.perf_counter() + grace_s
    while children := psutil.Process().children(recursive=True):
        if time.perf_counter() >= ends_s:
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(supervise(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
