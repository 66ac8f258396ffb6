"""The board: numbers that the processes of one gateway share, one writer for each slot and no lock.

Holds, per site (one engine of a tier), what the control process found out about it, and, per worker and site, what that
worker has in flight there and when it last lost the engine. Everybody reads everything. A slot is one 8-byte float, which the
processors that Python runs on store whole; two slots may be of different moments, so readers take them as estimates.
Instants are of the monotonic clock, which processes of one machine share. Knows no engine and sends nothing.
"""

import ctypes
import math
import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.context import SpawnContext

from llmtier.serve.site import group_sites

SPAWN: SpawnContext = multiprocessing.get_context("spawn")
"""How the processes of a gateway are made: forking would copy threads' locks and open event loops."""


class EngineSlot(IntEnum):
    """What the control process writes of each site; NaN is unknown."""

    ALIVE = 0  # 1 while its engine answers
    WAS_ALIVE = 1  # 1 once it has answered
    ALIVE_S = 2  # when it last answered
    N_WAITING = 3
    N_RUNNING = 4
    KV_USAGE = 5
    PREEMPTIONS_PER_S = 6
    N_FOREIGN = 7  # requests there that no worker sent
    SIGNS_S = 8  # when the five before were read
    STUCK = 9  # 1 while requests are in its batch and no step ends


class WorkerSlot(IntEnum):
    """What each worker writes of each site."""

    N_DECODING = 0
    N_PREFILLING = 1
    PREFILL_TOKENS = 2
    KV_TOKENS = 3
    ARRIVAL_RPS = 4
    LOST_S = 5  # when it last failed to reach the engine
    OPEN_UNTIL_S = 6  # before when its breaker lets nothing pass; 0 while it is closed


N_COUNTS = int(WorkerSlot.LOST_S)
"""The first slots of a worker: its counts, in the order of ``TierLedger.counts``."""

_N_ENGINE, _N_WORKER = len(EngineSlot), len(WorkerSlot)
_ALIVE, _ALIVE_S = int(EngineSlot.ALIVE), int(EngineSlot.ALIVE_S)
_STUCK = int(EngineSlot.STUCK)
_LOST_S, _OPEN_UNTIL_S = int(WorkerSlot.LOST_S), int(WorkerSlot.OPEN_UNTIL_S)

_UNKNOWN = (
    EngineSlot.N_WAITING,
    EngineSlot.N_RUNNING,
    EngineSlot.KV_USAGE,
    EngineSlot.PREEMPTIONS_PER_S,
    EngineSlot.N_FOREIGN,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardShape:
    """The size of a board.

    Attributes:
        sites: Names, in the order that every process has them.
        n_workers: Processes that serve.
    """

    sites: tuple[str, ...]
    n_workers: int = 1

    @property
    def n_slots(self) -> int:
        """Floats in all."""
        return len(self.sites) * (_N_ENGINE + self.n_workers * _N_WORKER)


class Board:
    """One process's view.

    Args:
        shape: The size.
        memory: ``n_slots`` shared doubles of ``share``; ``None`` keeps them in this process.
    """

    def __init__(self, shape: BoardShape, memory: "ctypes.Array[ctypes.c_double] | None" = None) -> None:
        self.shape = shape
        self._n_workers = shape.n_workers
        self._stride = len(shape.sites) * _N_WORKER  # from a worker to the next
        self._engines = {name: number * _N_ENGINE for number, name in enumerate(shape.sites)}
        first = len(shape.sites) * _N_ENGINE
        self._firsts = {name: first + number * _N_WORKER for number, name in enumerate(shape.sites)}
        raw = memoryview(bytearray(8 * shape.n_slots)) if memory is None else memoryview(memory).cast("B")
        self._slots = raw.cast("d")
        if memory is None:
            self.reset()

    def reset(self) -> None:
        """Forget everything; for the process that made the board, before others look."""
        for name in self.shape.sites:
            for slot in EngineSlot:
                self.set_engine(name, slot, math.nan if slot in _UNKNOWN else 0.0)
        for worker in range(self.shape.n_workers):
            self.clear_worker(worker)

    def engine(self, site: str, slot: EngineSlot) -> float:
        """Return what is known of a site's engine."""
        return self._slots[self._engines[site] + slot]

    def set_engine(self, site: str, slot: EngineSlot, value: float) -> None:
        """Write what is known of a site's engine; for the control process."""
        self._slots[self._engines[site] + slot] = value

    def set_counts(self, worker: int, site: str, counts: Sequence[float]) -> None:
        """Write what a worker has on a site, in the order of ``WorkerSlot``; for that worker."""
        start = self._start(worker, site)
        slots = self._slots
        for offset, value in enumerate(counts):
            slots[start + offset] = value

    def others(self, worker: int, site: str) -> tuple[float, ...] | None:
        """Return the sums of what the other workers have on a site; ``None`` when there are none."""
        if self._n_workers == 1:
            return None
        slots = self._slots
        starts = [self._start(other, site) for other in range(self.shape.n_workers) if other != worker]
        return tuple(sum(slots[start + offset] for start in starts) for offset in range(N_COUNTS))

    def n_in_flight(self, site: str) -> float:
        """Return how many requests all workers have on a site."""
        slots, at, n = self._slots, self._firsts[site], 0.0
        for _ in range(self._n_workers):
            n += slots[at] + slots[at + 1]  # those that decode, and those before
            at += self._stride
        return n

    def note_lost(self, worker: int, site: str, now_s: float) -> None:
        """Write that a worker could not reach a site's engine; for that worker."""
        self._slots[self._start(worker, site) + WorkerSlot.LOST_S] = now_s

    def set_open_until(self, worker: int, site: str, until_s: float) -> None:
        """Write until when a worker's breaker keeps requests off a site; for that worker."""
        self._slots[self._start(worker, site) + WorkerSlot.OPEN_UNTIL_S] = until_s

    def others_open_until_s(self, worker: int, site: str) -> float:
        """Return the latest instant that another worker's breaker names; minus infinity where there is none."""
        if self._n_workers == 1:
            return -math.inf
        slots, at = self._slots, self._firsts[site] + _OPEN_UNTIL_S
        return max(slots[at + other * self._stride] for other in range(self._n_workers) if other != worker) or -math.inf

    def is_alive(self, site: str) -> bool:
        """Return whether a site's engine answered last time and works, and nobody has failed to reach it since."""
        slots, start = self._slots, self._engines[site]
        if not slots[start + _ALIVE] or slots[start + _STUCK]:
            return False
        alive_s = slots[start + _ALIVE_S]
        at = self._firsts[site] + _LOST_S
        for _ in range(self._n_workers):
            if slots[at] > alive_s:
                return False
            at += self._stride
        return True

    def clear_worker(self, worker: int) -> None:
        """Take everything of a worker off the board: it has not started yet, or it is dead."""
        for site in self.shape.sites:
            self.set_counts(worker, site, [0.0] * _N_WORKER)

    def _start(self, worker: int, site: str) -> int:
        return self._firsts[site] + worker * self._stride


def share(shape: BoardShape) -> "ctypes.Array[ctypes.c_double]":
    """Return memory for a board that processes started from ``SPAWN`` can be handed."""
    memory = SPAWN.RawArray(ctypes.c_double, shape.n_slots)
    Board(shape, memory).reset()
    return memory


def board_of(sites: Iterable[str]) -> Board:
    """Return a board of one process."""
    return Board(BoardShape(sites=tuple(sites)))


def has_answered(board: Board) -> bool:
    """Return whether one engine of every tier has answered once."""
    groups = group_sites(board.shape.sites).values()
    return all(any(board.engine(site, EngineSlot.WAS_ALIVE) for site in sites) for sites in groups)


def find_healthy(board: Board) -> dict[str, bool]:
    """Return, of each tier, whether one of its engines answers and works."""
    groups = group_sites(board.shape.sites)
    return {tier: any(map(board.is_alive, sites)) for tier, sites in groups.items()}
