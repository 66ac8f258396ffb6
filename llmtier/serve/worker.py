"""One worker process of a gateway: serves requests, tells its counts, ends when it is told or left alone.

Listens on an address that it shares with its sisters. What the control process knows of the engines is on the board;
a worker asks no engine for anything but answers. It ends with its control process, whose pipe then closes.
"""

import asyncio
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from llmtier.core.errors import LlmtierError
from llmtier.serve.board import Board
from llmtier.serve.control import WorkerSeat
from llmtier.serve.post import Counted, Cut, End, Failed, FromWorker, Page, Post, Ready, Renew, ToWorker, WantPage
from llmtier.serve.run import GRACE_S, Ending, open_port, serve_on
from llmtier.serve.state import AppState

COUNTS_INTERVAL_S = 1.0
"""How old the counts on the metrics page may be."""

PAGE_TIMEOUT_S = 5.0
"""Longest wait for the control process's metrics page."""


class Line:
    """A worker's line to its control process.

    Args:
        connection: The pipe.

    Attributes:
        ending: Asked for when the control process says so, or is gone.
        grace_s: How long open requests may go on then.
    """

    def __init__(self, connection: Connection) -> None:
        self.ending = Ending()
        self.grace_s = GRACE_S
        self._post = Post(connection, ToWorker)
        self._pages: list[asyncio.Future[bytes]] = []

    def open(self) -> None:
        """Listen; must be called inside the event loop."""
        self._post.listen(self._hear, self.ending.ask)

    def tell(self, message: FromWorker) -> None:
        """Send a message; the end of the control process is noticed elsewhere."""
        self._post.send(message)

    async def page(self) -> bytes:
        """Return the metrics page of the whole gateway.

        Raises:
            TimeoutError: The control process keeps silent.
        """
        wanted: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pages.append(wanted)
        self._post.send(WantPage())
        async with asyncio.timeout(PAGE_TIMEOUT_S):
            return await wanted

    def close(self) -> None:
        """Hang up."""
        self._post.close()

    def _hear(self, message: FromWorker | ToWorker) -> None:
        match message:
            case End(grace_s=grace_s):
                self.grace_s = grace_s
                self.ending.asked.set()
            case Cut():
                self.ending.asked.set()
                self.ending.forced.set()
            case Renew():
                self.ending.renew.set()
            case Page(text=text):
                waiting, self._pages = self._pages, []
                for wanted in waiting:
                    if not wanted.done():
                        wanted.set_result(text)
            case _:
                raise TypeError(f"the control process sent {type(message).__name__}, which is for it")


async def work(
    seat: WorkerSeat, number: int, connection: Connection, *, make_state: Callable[[Board, int, Line], AppState]
) -> None:
    """Serve until told to end.

    Args:
        seat: Where.
        number: This worker's.
        connection: The pipe to the control process.
        make_state: Puts the gateway together around a board, a number on it and the line.
    """
    line = Line(connection)
    line.open()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, line.ending.ask)
    for sent_to_all in (signal.SIGINT, signal.SIGHUP):  # by a terminal; the control process decides
        loop.add_signal_handler(sent_to_all, lambda: None)
    try:
        state = make_state(Board(seat.shape, seat.memory), number, line)
        bound = open_port(seat.host, seat.port, is_shared=True)
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(_tell_counts(line, state))
            await serve_on(
                bound,
                state,
                ending=line.ending,
                grace_s=lambda: line.grace_s,
                on_ready=lambda url: line.tell(Ready(url)),
            )
            telling.cancel()
        line.tell(Counted(tally=state.metrics.encode()))
    except LlmtierError as failure:
        line.tell(Failed(reason=str(failure)))
    finally:
        line.close()


async def _tell_counts(line: Line, state: AppState) -> None:
    while True:
        await asyncio.sleep(COUNTS_INTERVAL_S)
        line.tell(Counted(tally=state.metrics.encode()))
