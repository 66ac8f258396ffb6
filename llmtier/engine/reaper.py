"""Runs one command and lets no process of it outlive whoever asked for it.

A stand-alone script (standard library, Linux): it is started as the leader of
its own session with standard input on a pipe whose other end the asker holds.
End of that input means stop, whether the asker closed it or was killed; nothing
is ever read from it. SIGTERM, SIGINT and SIGHUP mean the same. Everything the command started, however it detached, falls
to this process as its subreaper.

    reaper.py GRACE_S CORES COMMAND...

Stopping is SIGTERM to the group, up to GRACE_S seconds of patience, then SIGKILL
to all that is left. CORES is a comma-separated list, empty for no pinning. The
exit status is the command's, death by signal included; 0 when it was told to stop.
"""

import ctypes
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from types import FrameType

_STDIN = 0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: list[str]) -> None:
    """Run the command to its end, or to the end of standard input."""
    grace_s, cores, command = float(arguments[0]), arguments[1], arguments[2:]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    wakeup = _wake_on_signals()
    child = _spawn(command)
    status = _wait(child, wakeup)
    if status is None:
        os.killpg(0, signal.SIGTERM)  # reaches this process too, which only takes note
        _wait_for_all(wakeup, grace_s)
    _kill_the_rest()
    _exit_like(status)


def _wake_on_signals() -> int:
    """Return a descriptor that gives one byte per signal, its number."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_STOP_SIGNALS):
        signal.signal(number, _take_note)
    return reader


def _take_note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the wake-up descriptor tells, and a handler is reset in the command while SIG_IGN is not."""


def _spawn(command: list[str]) -> int:
    try:
        return os.posix_spawnp(
            command[0],
            command,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, _STDIN, os.devnull, os.O_RDONLY, 0)],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these two, and exec would pass that on
        )
    except OSError as error:
        sys.stderr.write(f"cannot run {command[0]}: {error}\n")
        sys.exit(127)


def _wait(child: int, wakeup: int) -> int | None:
    """Return the wait status of ``child``, or ``None`` when we were told to stop first."""
    while True:
        readable, _, _ = select.select([_STDIN, wakeup], [], [])
        numbers = os.read(wakeup, 4096) if wakeup in readable else b""
        status = _reap().get(child)
        if status is not None:
            return status
        has_ended = _STDIN in readable and not os.read(_STDIN, 4096)
        if has_ended or any(number in numbers for number in _STOP_SIGNALS):
            return None


def _wait_for_all(wakeup: int, grace_s: float) -> None:
    """Wait until no child is left, at most ``grace_s``."""
    deadline_s = time.monotonic() + grace_s
    while _has_children() and (left_s := deadline_s - time.monotonic()) > 0:
        if select.select([wakeup], [], [], left_s)[0]:
            os.read(wakeup, 4096)


def _kill_the_rest() -> None:
    """Kill until no child is left; the children of each become ours as it dies."""
    while _has_children():
        for pid in _child_pids():
            os.kill(pid, signal.SIGKILL)  # ours and not yet reaped: the number cannot belong to another
        os.waitpid(-1, 0)


def _has_children() -> bool:
    """Reap whoever is dead; return whether anybody is alive."""
    _reap()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _reap() -> dict[int, int]:
    """Collect every dead child: pid to wait status."""
    statuses: dict[int, int] = {}
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            statuses[found[0]] = found[1]
    except ChildProcessError:
        pass
    return statuses


def _child_pids() -> list[int]:
    """Return the direct children, from /proc/<pid>/stat: ``pid (name) state ppid ...``."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = folder.joinpath("stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it has just ended
        if int(status.rpartition(")")[2].split()[1]) == os.getpid():
            pids.append(int(folder.name))
    return pids


def _exit_like(status: int | None) -> None:
    if status is None:
        sys.exit(0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one core file is enough
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1:])
