"""Putting load on a gateway and reading what it cost: wrk and the own client, pinned; CPU and memory of a process tree.

wrk counts answers; latencies are noted by ``gateway_client.py``, as wrk fills up its histogram with answers that it
would have sent (its correction for coordinated omission) and so does not show those that it did.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from support.gateway_bodies import name_kind

HERE = Path(__file__).parent
WRK_SCRIPT = HERE / "gateway_wrk.lua"
CLIENT = HERE / "gateway_client.py"
MOCK = HERE / "gateway_mock.py"
N_STREAMS = 64
STOP_LIMIT_S = 20.0
LIMIT_S = 60.0
"""What a load may take beyond its own seconds."""
_run_numbers = count(1)


class LoadError(Exception):
    """A gateway or a client failed; says how."""


@dataclass(frozen=True)
class Cores:
    """Which core runs what.

    Attributes:
        gateway: Of the gateway alone.
        load: Of clients, upstream and this process.
    """

    gateway: int
    load: int


@dataclass(frozen=True)
class Target:
    """What is under load.

    Attributes:
        url: Without path.
        model: What requests ask for.
        bodies: Folder of bodies.
    """

    url: str
    model: str
    bodies: Path

    @property
    def endpoint(self) -> str:
        """URL of the endpoint."""
        return f"{self.url}/v1/chat/completions"


@contextmanager
def running_process(
    command: Sequence[str], *, core: int, log: Path, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[psutil.Popen]:
    """Run a server on one core until the block is left; its output goes to ``log``."""
    with log.open("ab") as output:
        process = psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    try:
        yield process
    finally:
        stop_tree(process)


def stop_tree(process: psutil.Popen) -> None:
    """Ask a process to end, then kill what is left of its tree."""
    members = family(process)
    with suppress(psutil.Error):
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(members, timeout=STOP_LIMIT_S)
    for member in alive:
        with suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(alive, timeout=STOP_LIMIT_S)


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def tree_cpu_s(process: psutil.Process) -> float:
    """Return user and system time of a process tree, children that were waited for included."""
    total_s = 0.0
    for member in family(process):
        with suppress(psutil.Error):
            times = member.cpu_times()
            total_s += times.user + times.system + times.children_user + times.children_system
    return total_s


def tree_rss_bytes(process: psutil.Process) -> int:
    """Return resident memory of a process tree; shared pages count for each process."""
    total_bytes = 0
    for member in family(process):
        with suppress(psutil.Error):
            total_bytes += member.memory_info().rss
    return total_bytes


def run_wrk(target: Target, size: str, *, connections: int, seconds: float) -> dict[str, Any]:
    """Put a closed loop of whole answers on a target; return the counts of answers and errors.

    wrk knows whole seconds only.

    Raises:
        LoadError: wrk failed.
    """
    number = next(_run_numbers) * 10**9  # so that no prompt comes twice from one gateway's sight
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(round(seconds), 1)}s",
        "--timeout",
        "30s",
        "-s",
        str(WRK_SCRIPT),
    ]
    command += [target.endpoint, "--", str(target.bodies), name_kind(target.model, size), str(number)]
    done = _run_to_end(command, seconds)
    found: dict[str, Any] = json.loads(done.splitlines()[-1])
    n_errors = found["n_status_errors"] + found["n_socket_errors"]
    return {**found, "n_errors": n_errors, "rps": found["n_answers"] / found["seconds"]}


def run_client(
    target: Target, *, connections: int, seconds: float, is_stream: bool = False, warm_up_s: float = 0.5
) -> dict[str, Any]:
    """Put a closed loop of small requests on a target; return counts and quantiles.

    Raises:
        LoadError: The client failed.
    """
    command = [sys.executable, str(CLIENT), target.endpoint, "--bodies", str(target.bodies)]
    command += ["--kind", name_kind(target.model, "0.6KB", is_stream=is_stream), "--connections", str(connections)]
    command += ["--seconds", f"{seconds:g}", "--warm-up-s", f"{warm_up_s:g}"]
    command += ["--stream", "--ramp-s", "0.4"] if is_stream else []
    found: dict[str, Any] = json.loads(_run_to_end(command, seconds))
    return found


def _run_to_end(command: Sequence[str], seconds: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LoadError(f"{Path(command[0]).name}: {error}") from error
    if done.returncode or not done.stdout.strip():
        raise LoadError(f"{Path(command[0]).name}: exit {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout


@dataclass(frozen=True)
class Cost:
    """What a short and a long load cost a gateway.

    Attributes:
        cpu_s: Of the long one less that of the short one.
        n: Answers, or chunks, of the long one less those of the short one.
        long: What the client said of the long one.
    """

    cpu_s: float
    n: int
    long: dict[str, Any]

    @property
    def each_s(self) -> float:
        """CPU time of one.

        Raises:
            LoadError: The long load has not done more than the short one.
        """
        if self.n <= 0:
            raise LoadError(f"a long load has not done more than a short one: {self.long}")
        return self.cpu_s / self.n


def measure_cost(
    process: psutil.Process,
    load: Callable[[float], dict[str, Any]],
    *,
    counted: str,
    spans_s: tuple[float, float],
    settle_s: float,
) -> Cost:
    """Run a load short, then long, and take the difference; what is written late belongs to its load.

    Raises:
        LoadError: A client failed.
    """
    runs = []
    for span_s in spans_s:
        before_s = tree_cpu_s(process)
        found = load(span_s)
        time.sleep(settle_s)
        runs.append((tree_cpu_s(process) - before_s, found))
    (short_s, short), (long_s, long) = runs
    return Cost(long_s - short_s, long[counted] - short[counted], long)


@dataclass(frozen=True)
class Rate:
    """One load.

    Attributes:
        busy: Share of its core that the gateway used.
        found: What the client said.
    """

    busy: float
    found: dict[str, Any]


def measure_rate(process: psutil.Process, load: Callable[[float], dict[str, Any]], seconds: float) -> Rate:
    """Run a load and see how busy the gateway is.

    Raises:
        LoadError: The client failed.
    """
    before_s, begun_s = tree_cpu_s(process), time.perf_counter()
    found = load(seconds)
    return Rate((tree_cpu_s(process) - before_s) / (time.perf_counter() - begun_s), found)


class Watch:
    """Sees who else uses the gateway's core: what is measured beside others is worth less.

    Args:
        process: The gateway.
        core: Its core.
    """

    def __init__(self, process: psutil.Process, core: int) -> None:
        self._process = process
        self._core = core
        self._begun = self._read()

    def foreign(self) -> float:
        """Return the share of the core that went to others since the start, interrupts and stolen time included."""
        (core_s, tree_s, now_s), (core_then_s, tree_then_s, then_s) = self._read(), self._begun
        return max((core_s - core_then_s - tree_s + tree_then_s) / (now_s - then_s), 0.0)

    def _read(self) -> tuple[float, float, float]:
        times = psutil.cpu_times(percpu=True)[self._core]
        core_s = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        return core_s, tree_cpu_s(self._process), time.perf_counter()


@contextmanager
def running_upstream(folder: Path, *, core: int) -> Iterator[list[str]]:
    """Run the mock; yield the URLs of its tiers."""
    log = folder / "upstream.log"
    log.unlink(missing_ok=True)
    with running_process([sys.executable, str(MOCK)], core=core, log=log) as process:
        deadline_s = time.perf_counter() + LIMIT_S
        while not (text := log.read_text(encoding="utf-8")).endswith("\n"):
            if time.perf_counter() > deadline_s or not process.is_running():
                raise LoadError("the upstream did not start")
            time.sleep(0.05)
        yield text.split()
