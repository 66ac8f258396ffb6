"""Ask each engine whether it lives and how full it is, for ever, and write the answers on the board.

Reads ``GET <health_path>`` and ``GET /metrics`` of every site. Runs in the control process, or beside the gateway where
there is only one process. One slow engine delays no other; a page that cannot be read leaves what is on the board to
grow old.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from llmtier.serve.board import Board, EngineSlot
from llmtier.serve.http_client import UpstreamBrokenError, UpstreamClient, UpstreamConnectError
from llmtier.serve.pool import ServedTier
from llmtier.serve.scrape import SignsReader
from llmtier.serve.site import Site

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 10.0
"""An engine that computes a long prefill answers late; a shorter limit would call it dead."""

TIMEOUTS_UNTIL_DEAD = 3
"""A busy engine may miss one probe; three in a row is no load peak any more."""

_PAGE_BYTES = 16 * 1024 * 1024
_NO_PAGE = frozenset({401, 403, 404, 405, 501})  # as in ``engine.metrics_page``


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchPlan:
    """How often engines are asked.

    Attributes:
        health_interval_s: Time between two probes of a tier.
        metrics_interval_s: Time between two reads of its metrics page.
        stuck_s: Time without the end of a step, while requests are in the batch, after which an engine counts as dead
            whatever its health page says: vLLM's does not look at the engine's core.
    """

    health_interval_s: float = 2.0
    metrics_interval_s: float = 1.0
    stuck_s: float = 30.0


class Watcher:
    """Watches the engines of one gateway.

    Args:
        tiers: Whose engines.
        board: Where the answers go.
        plan: How often.
        clock: Monotonic seconds, the same as the gateway's.
    """

    def __init__(
        self,
        tiers: Iterable[ServedTier],
        board: Board,
        plan: WatchPlan,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._watched = [_Watched(site, board, clock, plan.stuck_s) for tier in tiers for site in tier.sites]
        self._plan = plan

    async def probe(self, *, timeout_s: float = PROBE_TIMEOUT_S) -> None:
        """Ask every engine once whether it lives."""
        async with asyncio.TaskGroup() as group:
            for watched in self._watched:
                group.create_task(watched.probe(timeout_s))

    async def run(self) -> None:
        """Ask until cancelled."""
        async with asyncio.TaskGroup() as group:
            for watched in self._watched:
                group.create_task(watched.probe_forever(self._plan.health_interval_s))
                group.create_task(watched.read_forever(self._plan.metrics_interval_s))

    async def close(self) -> None:
        """Close the connections to the engines."""
        for watched in self._watched:
            await watched.close()


class _Watched:
    """One site under watch."""

    def __init__(self, site: Site, board: Board, clock: Callable[[], float], stuck_s: float) -> None:
        self._site = site
        self._board = board
        self._clock = clock
        self._client = UpstreamClient(site.base_url)
        self._signs = SignsReader()
        self._n_timeouts = 0
        self._stuck_s = stuck_s
        self._still_since_s: float | None = None

    async def close(self) -> None:
        await self._client.close()

    async def probe_forever(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            was_alive = self._board.is_alive(self._site.name)
            await self.probe(PROBE_TIMEOUT_S)
            if self._board.is_alive(self._site.name) != was_alive:
                logger.warning(
                    "engine health changed",
                    extra={"tier": self._site.tier, "site": self._site.name, "is_healthy": not was_alive},
                )

    async def probe(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                status, _ = await self._get(self._site.health_path)
        except TimeoutError:
            self._n_timeouts += 1
            if self._n_timeouts >= TIMEOUTS_UNTIL_DEAD:
                self._set_alive(is_alive=False)
        except (UpstreamConnectError, UpstreamBrokenError):
            self._set_alive(is_alive=False)
        else:
            self._n_timeouts = 0
            self._set_alive(is_alive=status < 500)

    async def read_forever(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            with suppress(TimeoutError, UpstreamConnectError, UpstreamBrokenError):
                n_own = self._board.n_in_flight(self._site.name)
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    status, page = await self._get("/metrics")
                if status in _NO_PAGE:
                    return
                self._write_signs(page, n_own)

    def _write_signs(self, page: bytes, n_before: float) -> None:
        """Read a page; of what is on its engine, the gateway's own is the most that it was around the moment."""
        now_s = self._clock()
        n_own = max(n_before, self._board.n_in_flight(self._site.name))
        signs = self._signs.read(page, now_s=now_s, n_own=n_own)
        for slot, value in (
            (EngineSlot.N_FOREIGN, signs.n_foreign),
            (EngineSlot.N_WAITING, signs.n_waiting),
            (EngineSlot.N_RUNNING, signs.n_running),
            (EngineSlot.KV_USAGE, signs.kv_usage),
            (EngineSlot.PREEMPTIONS_PER_S, signs.preemptions_per_s),
        ):
            self._board.set_engine(self._site.name, slot, math.nan if value is None else value)
        self._board.set_engine(self._site.name, EngineSlot.SIGNS_S, now_s)
        self._note_steps(now_s, is_still=bool(signs.is_stuck))

    def _note_steps(self, now_s: float, *, is_still: bool) -> None:
        """Call an engine stuck that has stood still for long enough; a step that ends makes it work again."""
        if not is_still:
            self._still_since_s = None
        elif self._still_since_s is None:
            self._still_since_s = now_s
        is_stuck = self._still_since_s is not None and now_s - self._still_since_s >= self._stuck_s
        if is_stuck != bool(self._board.engine(self._site.name, EngineSlot.STUCK)):
            logger.warning(
                "engine stands still" if is_stuck else "engine works again",
                extra={"tier": self._site.tier, "site": self._site.name},
            )
            self._board.set_engine(self._site.name, EngineSlot.STUCK, float(is_stuck))

    def _set_alive(self, *, is_alive: bool) -> None:
        board, name = self._board, self._site.name
        if is_alive:
            board.set_engine(name, EngineSlot.ALIVE_S, self._clock())
            board.set_engine(name, EngineSlot.WAS_ALIVE, 1.0)
        board.set_engine(name, EngineSlot.ALIVE, float(is_alive))

    async def _get(self, path: str) -> tuple[int, bytes]:
        answer = await self._client.get(path, headers=authorization(self._site))
        try:
            return answer.status, await answer.read_whole(limit_bytes=_PAGE_BYTES)
        finally:
            answer.close()


def authorization(engine: ServedTier | Site) -> bytes:
    """Return the header line that an engine's key goes in; empty without a key."""
    return b"" if engine.api_key is None else b"authorization: Bearer " + engine.api_key.encode() + b"\r\n"
