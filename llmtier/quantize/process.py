"""The quantizer's process: started in its own environment and process group, followed, and always ended.

Reads the worker's standard output (progress) and, when it fails, the end of its standard error. Knows
nothing of checkpoints: ``run.py`` does.
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from llmtier.core.errors import MachineError, UsageError
from llmtier.quantize.progress import Progress, Step, parse_progress

WORKER = Path(__file__).with_name("worker.py")
N_LAST_LINES = 15
LAST_BYTES = 16_384


@contextmanager
def running_worker(job: Mapping[str, object], *, python: Path, worker: Path = WORKER) -> Iterator[Iterator[Progress]]:
    """Run the worker on ``job`` and give its progress; leaving the block ends it, whatever happened.

    Its standard input stays open as long as this process lives: the worker ends when it closes.

    Raises:
        MachineError: The interpreter cannot be started, or the worker failed; holds its last lines.
        UsageError: The worker refused the job.
    """
    with tempfile.TemporaryFile() as errors:
        process = start(job, python=python, worker=worker, errors=errors)
        try:
            yield follow(process, errors=errors)
        finally:
            end(process)


def start(job: Mapping[str, object], *, python: Path, worker: Path, errors: IO[bytes]) -> "subprocess.Popen[str]":
    """Start the worker as the leader of a process group of its own.

    Raises:
        MachineError: The interpreter cannot be started.
    """
    try:
        return subprocess.Popen(
            [str(python), "-I", str(worker), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            start_new_session=True,
        )
    except OSError as exc:
        raise MachineError(
            f"{python}: cannot be started ({exc.strerror or exc}); run 'llmtier env install quantize'"
        ) from exc


def follow(process: "subprocess.Popen[str]", *, errors: IO[bytes]) -> Iterator[Progress]:
    """Yield the worker's progress until it ends.

    Raises:
        MachineError: It failed; holds its last lines.
        UsageError: It refused the job.
    """
    for line in process.stdout or ():
        progress = parse_progress(line)
        if progress.event is Step.REFUSED:
            raise UsageError(progress.message or "the quantizer refused the job")
        yield progress
    code = process.wait()
    if code != 0:
        tail = "".join(f"\n    {line}" for line in last_lines(errors))
        raise MachineError(f"quantizer {describe_exit(code)}; its last lines:{tail}")


def end(process: "subprocess.Popen[str]") -> None:
    """Kill the worker's group if it still runs, and close its pipes. It holds nothing worth a gentle end."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def describe_exit(code: int) -> str:
    """Say how a process ended; the kernel's out-of-memory killer sends signal 9."""
    if code == -signal.SIGKILL:
        return "was killed (signal 9): this machine may lack memory for the model"
    return f"ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def last_lines(errors: IO[bytes]) -> tuple[str, ...]:
    """Return the last lines written to ``errors``, oldest first, progress bars left out."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - LAST_BYTES))
    lines = errors.read().decode(errors="replace").split("\n")
    final = (line.rsplit("\r", 1)[-1].rstrip() for line in lines)  # a bar redraws its line after each \r
    return tuple(line for line in final if line)[-N_LAST_LINES:]
