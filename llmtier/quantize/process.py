"""A worker's process: started in its own environment and process group, followed, and always ended.

Reads the worker's standard output (JSON lines) and, when it fails, the end of its standard error. Knows
nothing of checkpoints or calibration sets.
"""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llmtier.core.errors import DiskError, InputFileError, LlmtierError, MachineError, UsageError
from llmtier.quantize.worker.report import JOB_FOLLOWS

BOOTSTRAP = Path(__file__).with_name("worker") / "bootstrap.py"
REFUSALS: Mapping[str, type[LlmtierError]] = {
    "usage": UsageError,
    "input": InputFileError,
    "machine": MachineError,
    "disk": DiskError,
}
"""The error that a worker's refusal becomes, by the ``kind`` of its line."""

Event = dict[str, Any]
"""One line of a worker: ``event`` and its facts."""
N_LAST_LINES = 15
LAST_BYTES = 16_384


def worker_command(module: str) -> tuple[str, ...]:
    """Return what an interpreter is given to run ``llmtier.quantize.worker.<module>``."""
    return (str(BOOTSTRAP), f"llmtier.quantize.worker.{module}")


@contextmanager
def running_worker(
    job: Mapping[str, object],
    *,
    python: Path,
    worker: Sequence[str],
    env: Mapping[str, str] | None = None,
    lock: int | None = None,
) -> Iterator[Iterator[Event]]:
    """Run a worker on ``job`` and give its events; leaving the block ends it, whatever happened.

    Its standard input stays open as long as this process lives: the worker ends when it closes.

    Args:
        job: What its first argument holds, as JSON.
        python: Interpreter of its environment.
        worker: What the interpreter runs: ``worker_command(...)``.
        env: Its environment variables; ``None`` hands on this process's.
        lock: File descriptor that it inherits, and with it the lock.

    Raises:
        MachineError: The interpreter cannot be started, or the worker failed; holds its last lines.
        LlmtierError: The worker refused the job, by a class of ``REFUSALS``.
    """
    command = [str(python), "-I", *worker, json.dumps(job)]
    with tempfile.TemporaryFile() as errors, started(command, errors=errors, env=env, lock=lock) as process:
        yield follow(process, errors=errors)


@dataclass(frozen=True, slots=True)
class WaitingWorker:
    """A worker that loads its libraries while its job is still being made out.

    Attributes:
        process: Runs ``worker_command(...)`` with ``JOB_FOLLOWS``.
        errors: Its standard error.
    """

    process: "subprocess.Popen[str]"
    errors: IO[bytes]

    @contextmanager
    def working_on(self, job: Mapping[str, object]) -> Iterator[Iterator[Event]]:
        """Hand it its one job and give its events; leaving the block ends it, whatever happened.

        Raises:
            MachineError: It failed, now or before; holds its last lines.
            LlmtierError: It refused the job, by a class of ``REFUSALS``.
        """
        try:
            with suppress(BrokenPipeError):  # it is gone; ``follow`` says how
                self.send(json.dumps(job))
            yield follow(self.process, errors=self.errors)
        finally:
            end(self.process)

    def send(self, line: str) -> None:
        """Write a line to its standard input."""
        if self.process.stdin is not None:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()


@contextmanager
def waiting_worker(*, python: Path, worker: Sequence[str], lock: int | None = None) -> Iterator[WaitingWorker]:
    """Start a worker whose job follows, and give it; leaving the block ends it. Arguments as of ``running_worker``.

    Raises:
        MachineError: The interpreter cannot be started.
    """
    command = [str(python), "-I", *worker, JOB_FOLLOWS]
    with tempfile.TemporaryFile() as errors, started(command, errors=errors, lock=lock) as process:
        yield WaitingWorker(process, errors)


@contextmanager
def started(
    command: Sequence[str], *, errors: IO[bytes], env: Mapping[str, str] | None = None, lock: int | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """Start the worker for the block.

    Raises:
        MachineError: The interpreter cannot be started.
    """
    process = start(command, errors=errors, env=env, lock=lock)
    try:
        yield process
    finally:
        end(process)


def start(
    command: Sequence[str], *, errors: IO[bytes], env: Mapping[str, str] | None = None, lock: int | None = None
) -> "subprocess.Popen[str]":
    """Start the worker as the leader of a process group of its own.

    Raises:
        MachineError: The interpreter cannot be started.
    """
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            start_new_session=True,
            env=env,
            pass_fds=() if lock is None else (lock,),
        )
    except OSError as exc:
        raise MachineError(
            f"{command[0]}: cannot be started ({exc.strerror or exc}); run 'llmtier env install quantize'"
        ) from exc


def follow(process: "subprocess.Popen[str]", *, errors: IO[bytes]) -> Iterator[Event]:
    """Yield the worker's events until it ends.

    Raises:
        MachineError: It failed, or wrote something else; holds its last lines.
        LlmtierError: It refused the job.
    """
    for line in process.stdout or ():
        event = parse_event(line)
        if event["event"] == "refused":
            raise REFUSALS[event.get("kind", "usage")](event["message"])
        yield event
    code = process.wait()
    if code != 0:
        tail = "".join(f"\n    {line}" for line in last_lines(errors))
        raise MachineError(f"quantizer {describe_exit(code)}; its last lines:{tail}")


def parse_event(line: str) -> Event:
    """Decode one line of a worker.

    Raises:
        MachineError: It is not what a worker writes: the interpreter runs something else.
    """
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "event" not in event:
        raise MachineError(f"quantizer: expected a JSON line of progress, got {line.strip()[:200]!r}")
    return event


def end(process: "subprocess.Popen[str]") -> None:
    """Kill the worker's group if it still runs, and close its pipes. It holds nothing worth a gentle end."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # a job that it did not live to read
                pipe.close()


def describe_exit(code: int) -> str:
    """Say how a process ended; the kernel's out-of-memory killer sends signal 9."""
    if code == -signal.SIGKILL:
        return (
            "was killed (signal 9), as the kernel does when memory runs out; if so, lower --samples or --max-seq-tokens. "
            "The same command goes on where this one stopped"
        )
    return f"ended by signal {-code}" if code < 0 else f"failed with exit code {code}"


def last_lines(errors: IO[bytes]) -> tuple[str, ...]:
    """Return the last lines written to ``errors``, oldest first, progress bars left out."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - LAST_BYTES))
    lines = errors.read().decode(errors="replace").split("\n")
    final = (line.rsplit("\r", 1)[-1].rstrip() for line in lines)  # a bar redraws its line after each \r
    return tuple(line for line in final if line)[-N_LAST_LINES:]
