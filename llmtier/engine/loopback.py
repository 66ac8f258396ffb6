"""An ASGI application served on an ephemeral loopback port, inside the running event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from typing_extensions import override

_GRACE_S = 1.0

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]


class _GuestServer(uvicorn.Server):
    """A server without signals and without polling: it stops when told, not at the next tick of 0.1 s."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()
        self.is_stopping = asyncio.Event()

    @contextlib.contextmanager
    @override
    def capture_signals(self) -> Iterator[None]:
        yield

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()

    @override
    async def main_loop(self) -> None:
        await self.on_tick(0)  # fills in the default headers
        await self.is_stopping.wait()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            _, late = await asyncio.wait(self.server_state.tasks, timeout=_GRACE_S)
            for task in late:
                task.cancel()


@asynccontextmanager
async def serving(app: AsgiApp) -> AsyncIterator[str]:
    """Serve ``app`` while the context lasts; lends the base URL."""
    # The protocol is named because asyncio sets TCP_NODELAY only on sockets that name it;
    # without that each first token waits 40 ms for a delayed acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, ws="none")
    server = _GuestServer(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))  # no task group: it would wrap the caller's error
    try:
        await server.is_listening.wait()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.is_stopping.set()
        await running
        listener.close()
