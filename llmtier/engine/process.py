"""One engine process and everything it starts: begun, watched and always stopped.

Starts reaper.py, which runs the command; writes standard output and error to one
log file. Knows nothing of HTTP or of what the command is.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from llmtier.core.errors import DiskError

logger = logging.getLogger(__name__)

_REAPER = Path(__file__).with_name("reaper.py")
_KILL_MARGIN_S = 5.0
_TAIL_BYTES = 64 * 1024


class EngineProcess:
    """A command that runs under the reaper; made by ``running_process``.

    Attributes:
        pid: Leader of the session and process group of all its processes.
        log_path: Where its output goes.
    """

    def __init__(self, process: asyncio.subprocess.Process, *, log_path: Path, log_start_bytes: int) -> None:
        self.pid = process.pid
        self.log_path = log_path
        self._process = process
        self._log_start_bytes = log_start_bytes

    @property
    def returncode(self) -> int | None:
        """Exit code; minus the signal when one killed it, ``None`` while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        return await self._process.wait()

    async def stop(self, *, grace_s: float) -> None:
        """End it and everything it started; when this is cancelled, the reaper goes on alone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(grace_s + _KILL_MARGIN_S):
                await self._process.wait()
        except TimeoutError:
            logger.warning("engine processes resisted; killing the group", extra={"pid": self.pid})
            _kill_group(self.pid)
            await self._process.wait()

    def last_lines(self, n_lines: int = 20) -> tuple[str, ...]:
        """Return the end of what it wrote, oldest line first."""
        with self.log_path.open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start_bytes, size_bytes - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
        return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-n_lines:]


@asynccontextmanager
async def running_process(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    cores: Sequence[int] | None,
    log_path: Path,
    stop_grace_s: float,
) -> AsyncIterator[EngineProcess]:
    """Run a command while the context lasts; none of its processes outlives it.

    Stopping is SIGTERM to all, ``stop_grace_s`` of patience, SIGKILL to the rest.
    It happens even when this process is killed: see reaper.py.

    Args:
        command: Program and arguments.
        environment: All of its variables.
        cores: Cores that its processes may use; ``None`` for all.
        log_path: Appended to; the folder is made.
        stop_grace_s: See above.

    Raises:
        DiskError: The log cannot be written.
    """
    process = await _start(command, environment=environment, cores=cores, log_path=log_path, stop_grace_s=stop_grace_s)
    try:
        yield process
    finally:
        await process.stop(grace_s=stop_grace_s)


async def _start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    cores: Sequence[int] | None,
    log_path: Path,
    stop_grace_s: float,
) -> EngineProcess:
    # -I -S: no user code and no site packages, so that it starts in 20 ms.
    reaper = (sys.executable, "-I", "-S", str(_REAPER), str(stop_grace_s), ",".join(map(str, cores or ())))
    log = _open_log(log_path)
    try:
        log_start_bytes = os.fstat(log).st_size
        process = await asyncio.create_subprocess_exec(
            *reaper,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(log)
    logger.debug("engine process started", extra={"pid": process.pid, "command": list(command), "log": str(log_path)})
    return EngineProcess(process, log_path=log_path, log_start_bytes=log_start_bytes)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        logger.debug("engine group had ended", extra={"pid": pid})


def _open_log(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DiskError(f"{path}: cannot write the engine's log: {error.strerror}; choose another folder") from error
