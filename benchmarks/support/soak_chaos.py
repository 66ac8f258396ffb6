"""What is done to engines and workers while the soak runs: SIGKILL, SIGSTOP, hanging with good health, reloads.

Keeps the engines' processes and starts killed ones anew on their ports; watches the gateway's memory and pages.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from support.gateway_peers import free_port
from support.soak_gateway import Gateway

BENCHMARKS = Path(__file__).resolve().parent.parent
WATCH_S = 1.0
BROKEN_S = 1.0
"""How long the file stays broken after such a reload; a worker that is started meanwhile has to wait."""

DOWN_S = (0.3, 3.0)
"""How long a killed engine is away; likewise a stopped one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """How often, on average, in seconds."""

    engine_kill_s: float = 20.0
    engine_stop_s: float = 40.0
    engine_hang_s: float = 25.0
    worker_kill_s: float = 45.0
    reload_s: float = 60.0


class EngineHost:
    """The engines' processes.

    Args:
        tiers: Their names.
        folder: For the journal.
        fault_share: Share of requests that go wrong.
    """

    def __init__(self, tiers: Sequence[str], folder: Path, fault_share: float) -> None:
        self.journal = folder / "faults.txt"
        self._fault_share = fault_share
        self._ports = {tier: free_port() for tier in tiers}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._n_started = 0
        for tier in tiers:
            self.start(tier)

    @property
    def urls(self) -> dict[str, str]:
        """Tier name to URL."""
        return {tier: f"http://127.0.0.1:{port}" for tier, port in self._ports.items()}

    @property
    def tiers(self) -> list[str]:
        """Names."""
        return list(self._ports)

    def start(self, tier: str) -> None:
        """Start an engine that does not run."""
        self._n_started += 1
        command = [sys.executable, "-m", "support.soak_engine", "--port", str(self._ports[tier])]
        command += ["--seed", str(self._n_started), "--journal", str(self.journal)]
        command += ["--fault-share", str(self._fault_share)]
        self._processes[tier] = subprocess.Popen(command, cwd=BENCHMARKS, start_new_session=True)

    def send(self, tier: str, number: signal.Signals) -> None:
        """Send a signal; one that ends it is waited for."""
        process = self._processes[tier]
        process.send_signal(number)
        if number is signal.SIGKILL:
            process.wait()

    def close(self) -> None:
        """End all."""
        for process in self._processes.values():
            process.kill()
            process.wait()


@dataclass(slots=True)
class Watched:
    """What was seen of the gateway's processes.

    Attributes:
        rss: Instant and resident memory by process id, about each second.
        n_pages: Metrics pages that came; likewise ``n_pages_lost`` that did not.
    """

    rss: list[tuple[float, dict[int, int]]] = field(default_factory=list)
    n_pages: int = 0
    n_pages_lost: int = 0


class Chaos:
    """Does it, until cancelled.

    Args:
        engines: To hurt.
        gateway: To hurt and to watch.
        rng: For instants and victims.

    Attributes:
        kills_s: Instants at which a worker was killed; likewise ``stops_s`` from which to which an engine was stopped.
        done: How often what was done.
        watched: Meanwhile.
    """

    def __init__(self, engines: EngineHost, gateway: Gateway, rng: Random) -> None:
        self.kills_s: list[float] = []
        self.stops_s: list[tuple[float, float]] = []
        self.done: Counter[str] = Counter()
        self.watched = Watched()
        self._engines = engines
        self._gateway = gateway
        self._rng = rng
        self._busy: set[str] = set()

    async def run(self, intervals: Intervals) -> None:
        """Go on until cancelled; every engine is up again afterwards."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._each(intervals.engine_kill_s, self._kill_engine))
            tasks.create_task(self._each(intervals.engine_stop_s, self._stop_engine))
            tasks.create_task(self._each(intervals.engine_hang_s, self._hang_engine))
            tasks.create_task(self._each(intervals.worker_kill_s, self._kill_worker))
            if self._gateway.takes_hangup():
                tasks.create_task(self._each(intervals.reload_s, self._reload))

    async def watch(self) -> None:
        """Read memory and metrics until cancelled."""
        while True:
            self.watched.rss.append((time.monotonic(), self._gateway.rss_bytes()))
            try:
                await asyncio.to_thread(self._gateway.metrics, "llmtier_")
                self.watched.n_pages += 1
            except (OSError, ValueError):
                self.watched.n_pages_lost += 1
            await asyncio.sleep(WATCH_S)

    async def _each(self, mean_s: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * mean_s)
            await act()

    def _take_engine(self) -> str | None:
        """Return an engine to which nothing is done as yet."""
        free = [tier for tier in self._engines.tiers if tier not in self._busy]
        return self._rng.choice(free) if free else None

    async def _away(self, down: signal.Signals, up: Callable[[str], None], name: str) -> None:
        tier = self._take_engine()
        if tier is None:
            return
        self._busy.add(tier)
        self._engines.send(tier, down)
        self.done[name] += 1
        try:
            await asyncio.sleep(self._rng.uniform(*DOWN_S))
        finally:
            up(tier)
            self._busy.discard(tier)

    async def _kill_engine(self) -> None:
        await self._away(signal.SIGKILL, self._engines.start, "engine killed")

    async def _stop_engine(self) -> None:
        begun_s = time.monotonic()
        await self._away(signal.SIGSTOP, lambda tier: self._engines.send(tier, signal.SIGCONT), "engine stopped")
        self.stops_s.append((begun_s, time.monotonic()))

    async def _hang_engine(self) -> None:
        tier = self._take_engine()
        if tier is not None:
            self._engines.send(tier, signal.SIGUSR1)
            self.done["engine hung, health good"] += 1

    async def _kill_worker(self) -> None:
        """Kill the last worker, never the first: its memory is then that of one life, and somebody always listens."""
        with suppress(OSError, LookupError):
            _, *others = await asyncio.to_thread(self._gateway.worker_pids)
            victim = others[-1]  # none while the last one killed has no successor yet
            self.kills_s.append(time.monotonic())
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                self.done["worker killed"] += 1

    async def _reload(self) -> None:
        """Have the configuration read again: changed, or broken for a moment, and then the old one must hold."""
        config = self._gateway.config
        valid = config.read_text(encoding="utf-8")
        is_broken = self.done["reload"] % 3 == 2
        config.write_text("{" if is_broken else swap_rule_name(valid), encoding="utf-8")
        with suppress(psutil.Error):
            self._gateway.process.send_signal(signal.SIGHUP)
            self.done["reload"] += 1
        try:
            await asyncio.sleep(BROKEN_S if is_broken else 0.0)
        finally:
            if is_broken:
                config.write_text(valid, encoding="utf-8")


def swap_rule_name(text: str) -> str:
    """Return a configuration that means the same, with its rules called otherwise."""
    document = json.loads(text)
    for rule in document["routing"]["rules"]:
        rule["name"] = rule["pin"] if rule["name"].endswith("'") else f"{rule['pin']}'"
    return json.dumps(document, indent=1)
