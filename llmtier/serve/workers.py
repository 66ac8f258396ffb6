"""The worker processes of one gateway: start them, hear what they tell, start the dead again, end them all.

Runs in the control process. Each worker listens on the same address (``SO_REUSEPORT``) and the kernel spreads
connections over them. A worker that dies takes its open requests with it and nothing else: its counts stay in the sums,
its place on the board is cleared, and another one takes its number after a pause that grows while they keep dying.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from llmtier.core.errors import MachineError
from llmtier.serve.board import SPAWN, Board
from llmtier.serve.post import Counted, Cut, End, Failed, FromWorker, Page, Post, Ready, Renew, ToWorker, WantPage

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
"""Longest wait for a worker to listen: it loads a scorer and a profile, no model."""

_STEADY_S = 30.0  # a worker that lived as long starts the count of its deaths anew
_LONGEST_PAUSE_S = 10.0
_FIRST_PAUSE_S = 0.2
_LAST_WORD_S = 5.0  # for a worker to leave by itself after its grace

Target = Callable[[int, Connection], None]


@dataclass(slots=True, eq=False)
class _Worker:
    """One process and its pipe."""

    number: int
    process: SpawnProcess
    post: Post
    born_s: float
    is_ready: asyncio.Future[None] = field(repr=False)


class Workers:
    """All workers of one gateway.

    Args:
        target: Runs a worker, given its number and its pipe; must be picklable.
        board: Where dead workers are cleared.
        n_workers: How many.
        on_counts: Told a worker's number and counts, about once a second.
        on_death: Told the number of a worker that died.
        make_page: Returns the metrics page for a worker that asks.

    Attributes:
        n_restarts: Workers that were started in place of dead ones.
    """

    def __init__(
        self,
        target: Target,
        board: Board,
        *,
        n_workers: int,
        on_counts: Callable[[int, bytes], None],
        on_death: Callable[[int], None],
        make_page: Callable[[], bytes],
    ) -> None:
        self._target = target
        self._board = board
        self._n_workers = n_workers
        self._on_counts = on_counts
        self._on_death = on_death
        self._make_page = make_page
        self.n_restarts = 0
        self._workers: dict[int, _Worker] = {}
        self._n_deaths = dict.fromkeys(range(n_workers), 0)
        self._is_ending = False
        self._restarts: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()

    @property
    def pids(self) -> list[int]:
        """Process ids of those alive, by number."""
        return [worker.process.pid or 0 for _, worker in sorted(self._workers.items())]

    async def start(self) -> None:
        """Start every worker and wait until each listens.

        Raises:
            MachineError: One cannot.
        """
        started = [self._spawn(number) for number in range(self._n_workers)]
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                for worker in started:
                    await worker.is_ready
        except TimeoutError as exc:
            raise MachineError(f"a gateway worker did not start within {START_TIMEOUT_S:g} s") from exc

    async def end(self, grace_s: float, forced: asyncio.Event) -> None:
        """End every worker: gracefully for ``grace_s`` or until ``forced``, then by force."""
        self._is_ending = True
        for restart in self._restarts:
            restart.cancel()
        self._tell(End(grace_s=grace_s))
        gone = asyncio.ensure_future(self._all_gone())
        cut = asyncio.ensure_future(forced.wait())
        await asyncio.wait((gone, cut), timeout=grace_s + _LAST_WORD_S, return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        if not gone.done():
            self._tell(Cut())
            await asyncio.wait((gone,), timeout=_LAST_WORD_S)
        if not gone.done():
            for worker in list(self._workers.values()):
                logger.error("gateway worker had to be killed", extra={"worker": worker.number})
                worker.process.kill()
            await gone

    def renew(self) -> None:
        """Let every worker read the configuration anew."""
        self._tell(Renew())

    def _tell(self, message: ToWorker) -> None:
        for worker in self._workers.values():
            worker.post.send(message)

    async def _all_gone(self) -> None:
        while self._workers:
            self._gone.clear()
            await self._gone.wait()

    def _spawn(self, number: int) -> _Worker:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=self._target, args=(number, theirs), name=f"llmtier-worker-{number}")
        process.start()
        theirs.close()
        worker = _Worker(
            number=number,
            process=process,
            post=Post(ours, FromWorker),
            born_s=time.monotonic(),
            is_ready=asyncio.get_running_loop().create_future(),
        )
        self._workers[number] = worker
        worker.post.listen(lambda message: self._hear(worker, message), lambda: self._bury(worker))
        return worker

    def _hear(self, worker: _Worker, message: FromWorker | ToWorker) -> None:
        match message:
            case Ready():
                if not worker.is_ready.done():
                    worker.is_ready.set_result(None)
            case Failed(reason=reason):
                if not worker.is_ready.done():
                    worker.is_ready.set_exception(MachineError(reason))
            case Counted(tally=tally):
                self._on_counts(worker.number, tally)
            case WantPage():
                worker.post.send(Page(text=self._make_page()))
            case _:
                raise TypeError(f"a worker sent {type(message).__name__}, which is for workers")

    def _bury(self, worker: _Worker) -> None:
        """Take a worker whose pipe closed off the books, and start another one unless all are to end."""
        worker.post.close()
        worker.process.join(_LAST_WORD_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        del self._workers[worker.number]
        self._board.clear_worker(worker.number)
        self._on_death(worker.number)
        self._gone.set()
        if not worker.is_ready.done():
            reason = f"a gateway worker ended while starting (exit code {worker.process.exitcode})"
            worker.is_ready.set_exception(MachineError(reason))
        elif not self._is_ending and worker.is_ready.exception() is None:
            task = asyncio.ensure_future(self._revive(worker))
            self._restarts.add(task)
            task.add_done_callback(self._restarts.discard)

    async def _revive(self, dead: _Worker) -> None:
        """Start a worker in place of a dead one; again until one serves."""
        if time.monotonic() - dead.born_s >= _STEADY_S:
            self._n_deaths[dead.number] = 0
        is_serving = False
        while not is_serving:
            pause_s = min(_FIRST_PAUSE_S * 2.0 ** self._n_deaths[dead.number], _LONGEST_PAUSE_S)
            self._n_deaths[dead.number] += 1
            facts = {"worker": dead.number, "exit_code": dead.process.exitcode, "pause_s": pause_s}
            logger.error("gateway worker died; starting another", extra=facts)
            await asyncio.sleep(pause_s)
            self.n_restarts += 1
            dead = self._spawn(dead.number)
            try:
                await dead.is_ready
                is_serving = True
            except MachineError:
                logger.exception("gateway worker could not start")
