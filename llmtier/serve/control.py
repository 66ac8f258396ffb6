"""The control process of a gateway with several workers: it watches, supervises and tells, and serves no request.

Reads the engines' health and metrics pages and the workers' counts; writes the board. Serves the metrics page and the
gateway's state on an address of its own, so that a scrape never waits behind traffic. See ``workers.py`` for how
workers come and go, and ``worker.py`` for what one does.
"""

import asyncio
import ctypes
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Protocol

import msgspec

from llmtier.serve.board import Board, BoardShape, find_healthy, has_answered, share
from llmtier.serve.http_server import HttpRequest, HttpServer, Reply, ServerLimits
from llmtier.serve.metrics import Metrics
from llmtier.serve.pool import ServedTier
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.run import ADMIN_HOST, GRACE_S, Ending, open_port, reserve_port, signals_to, url_of
from llmtier.serve.watch import Watcher, WatchPlan
from llmtier.serve.workers import Workers

logger = logging.getLogger(__name__)

FIRST_PROBE_S = 1.0
"""As in ``app.py``."""


class CountBook(Protocol):
    """The sums over all workers, the dead ones included."""

    def take(self, worker: int, tally: bytes) -> None:
        """Keep the newest counts of a worker."""

    def bury(self, worker: int) -> None:
        """Add a dead worker's last counts to what stays."""

    def page(self) -> bytes:
        """Return the metrics page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSeat:
    """What a worker is given beside its number and its pipe; picklable while it is started.

    Attributes:
        host: Address to listen on, with others.
        port: Port; never 0.
        shape: Of the board.
        memory: Of the board.
    """

    host: str
    port: int
    shape: BoardShape
    memory: "ctypes.Array[ctypes.c_double]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlan:
    """How a gateway of several processes runs.

    Attributes:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        n_workers: Processes that serve.
        admin_port: Port of the control process's own pages, on the loopback address; 0 takes a free one.
        grace_s: Longest wait for open requests at the end.
        watch: How often engines are asked.
    """

    host: str
    port: int
    n_workers: int
    admin_port: int = 0
    grace_s: float = GRACE_S
    watch: WatchPlan = field(default_factory=WatchPlan)


async def control_forever(
    tiers: Sequence[ServedTier],
    plan: ControlPlan,
    *,
    make_target: Callable[[WorkerSeat], Callable[[int, Connection], None]],
    make_book: Callable[[Board], CountBook],
    on_ready: Callable[[str, str], None],
) -> None:
    """Run every worker until SIGINT or SIGTERM.

    Args:
        tiers: What is served.
        plan: How.
        make_target: Returns what runs in a worker; must be picklable.
        make_book: Returns where workers' counts go.
        on_ready: Told the gateway's URL and the control process's own.

    Raises:
        PortInUseError: Another process listens there.
        MachineError: A worker cannot start, or the address is not this machine's.
    """
    ending = Ending()
    reserved = reserve_port(plan.host, plan.port)
    try:
        sites = tuple(site.name for tier in tiers for site in tier.sites)
        shape = BoardShape(sites=sites, n_workers=plan.n_workers)
        seat = WorkerSeat(host=plan.host, port=reserved.getsockname()[1], shape=shape, memory=share(shape))
        board = Board(shape, seat.memory)
        book = make_book(board)
        workers = Workers(
            make_target(seat),
            board,
            n_workers=plan.n_workers,
            on_counts=book.take,
            on_death=book.bury,
            make_page=book.page,
        )
        with signals_to(ending):
            async with _watching(tiers, board, plan.watch), _admin(plan, board, book, workers, ending) as admin_url:
                await _serve(workers, ending, plan.grace_s, on_started=lambda: on_ready(url_of(reserved), admin_url))
    finally:
        reserved.close()


async def _serve(workers: Workers, ending: Ending, grace_s: float, *, on_started: Callable[[], None]) -> None:
    try:
        await workers.start()
        on_started()
        async with asyncio.TaskGroup() as group:
            renewing = group.create_task(_pass_on(ending.renew, workers))
            await ending.asked.wait()
            renewing.cancel()
    finally:
        await workers.end(grace_s, ending.forced)


async def _pass_on(wish: asyncio.Event, workers: Workers) -> None:
    """Tell the workers whenever the configuration is to be read anew; each checks it before it takes it."""
    while True:
        await wish.wait()
        wish.clear()
        workers.renew()


@asynccontextmanager
async def _watching(tiers: Sequence[ServedTier], board: Board, plan: WatchPlan) -> AsyncIterator[None]:
    watcher = Watcher(tiers, board, plan)
    try:
        await watcher.probe(timeout_s=FIRST_PROBE_S)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(watcher.run())
            try:
                yield
            finally:
                running.cancel()
    finally:
        await watcher.close()


@asynccontextmanager
async def _admin(
    plan: ControlPlan, board: Board, book: CountBook, workers: Workers, ending: Ending
) -> AsyncIterator[str]:
    bound = open_port(ADMIN_HOST, plan.admin_port)
    server = HttpServer(AdminPages(board, book, workers, ending), limits=ServerLimits(body_bytes=65_536))
    try:
        await server.start(bound)
        yield url_of(bound)
    finally:
        server.close()
        bound.close()


class AdminPages:
    """The control process's own pages.

    GET /metrics   every worker's counts, added up       GET /workers   process ids and restarts
    GET /health    the control process answers           GET /ready     engines have answered, and nothing ends
    """

    def __init__(self, board: Board, book: CountBook, workers: Workers, ending: Ending) -> None:
        self._board = board
        self._book = book
        self._workers = workers
        self._ending = ending
        self._pages: dict[str, Callable[[Reply], None]] = {
            "/metrics": self._send_metrics,
            "/health": lambda reply: reply.send_whole(200, b'{"status":"ok"}'),
            "/ready": self._send_ready,
            "/workers": self._send_workers,
        }

    async def __call__(self, request: HttpRequest, reply: Reply) -> None:
        """Serve one request.

        Raises:
            RequestRefusedError: 404 or 405.
        """
        page = self._pages.get(request.path)
        if page is None:
            message = f"no such page; known: {', '.join(self._pages)}"
            raise RequestRefusedError(message, status=404, code="not_found")
        if request.method not in {"GET", "HEAD"}:
            reply.headers[b"allow"] = b"GET, HEAD"
            raise RequestRefusedError(f"{request.path} takes GET", status=405, code="method_not_allowed")
        page(reply)

    def _send_metrics(self, reply: Reply) -> None:
        reply.send_whole(200, self._book.page(), content_type=Metrics.content_type)

    def _send_ready(self, reply: Reply) -> None:
        healthy = find_healthy(self._board)
        is_ready = has_answered(self._board) and any(healthy.values()) and not self._ending.asked.is_set()
        reply.send_whole(200 if is_ready else 503, msgspec.json.encode({"ready": is_ready, "healthy": healthy}))

    def _send_workers(self, reply: Reply) -> None:
        document = {"pids": self._workers.pids, "n_restarts": self._workers.n_restarts}
        reply.send_whole(200, msgspec.json.encode(document))
