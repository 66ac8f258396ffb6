"""An HTTP/1.1 server for one handler: the listener, the sweep, the graceful end.

What happens on a connection is in ``http_session``. Routes nothing and knows no TLS. All time limits are watched by one
sweep a second, so that requests need no timers.
"""

import asyncio
import socket
from collections.abc import Callable
from time import perf_counter

from llmtier.serve.http_reply import Reply
from llmtier.serve.http_request import HttpRequest, ServerLimits
from llmtier.serve.http_session import Handler, Session, Shared

__all__ = ["Handler", "HttpRequest", "HttpServer", "Reply", "ServerLimits"]

_BACKLOG = 4_096  # connections that wait for accept(); Linux caps it at net.core.somaxconn, 4,096 since 5.4
_SWEEP_S = 1.0
_LAST_WORDS_S = 1.0  # for handlers that were cancelled to end their answers, and for those to leave


class HttpServer:
    """A server of one socket.

    Args:
        handler: Called with each request and its reply, in a task of its own.
        limits: What clients are granted.
        clock: Seconds that only grow.
    """

    def __init__(
        self, handler: Handler, *, limits: ServerLimits | None = None, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._shared = Shared(handler, limits or ServerLimits(), clock)
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def n_open(self) -> int:
        """Requests whose handlers run."""
        return self._shared.n_open

    @property
    def n_connections(self) -> int:
        """Connections, idle ones included."""
        return len(self._shared.connections)

    @property
    def refused(self) -> dict[int, int]:
        """How many requests never reached the handler, by the status of their refusal."""
        return dict(self._shared.refused)

    async def start(self, sock: socket.socket) -> None:
        """Accept connections of a bound socket, which is closed with the server."""
        shared = self._shared
        shared.loop = asyncio.get_running_loop()
        self._listener = await shared.loop.create_server(lambda: Session(shared), sock=sock, backlog=_BACKLOG)
        self._sweep_again()

    def sweep(self) -> None:
        """End what took too long; runs by itself each second."""
        shared = self._shared
        shared.heads.refresh()
        now_s = shared.clock()
        for connection in list(shared.connections):
            connection.check(now_s)

    def stop_accepting(self) -> None:
        """Close the listener and idle connections; each answer from now on is its connection's last."""
        self._shared.heads.is_leaving = True
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self._shared.connections):
            connection.close_if_idle()

    async def drain(self, grace_s: float) -> int:
        """Stop accepting, wait for the requests under way, cancel the rest; return how many that were.

        A cancelled handler finds ``is_client_gone`` False and may still end its answer.
        """
        self.stop_accepting()
        await self._wait_until_empty(grace_s)
        n_cancelled = sum(connection.cancel() for connection in list(self._shared.connections))
        if n_cancelled:
            await self._wait_until_empty(_LAST_WORDS_S)
        return n_cancelled

    def close(self) -> None:
        """End everything at once; requests that are still under way are cancelled."""
        self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._shared.connections):
            connection.cancel()
            connection.transport.abort()

    async def _wait_until_empty(self, limit_s: float) -> None:
        shared = self._shared
        if not shared.connections:
            return
        shared.is_empty.clear()
        try:
            async with asyncio.timeout(limit_s):
                await shared.is_empty.wait()
        except TimeoutError:
            return

    def _sweep_again(self) -> None:
        self._sweeper = self._shared.loop.call_later(_SWEEP_S, self._sweep_again)
        self.sweep()
