"""Run a gateway under uvicorn until a signal: the port, the server, the graceful end.

Reads nothing from disk. Signals only ask the server to stop, so that the caller's own clean-up
(engines, files) still runs; a second signal cuts open requests.
"""

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn
from typing_extensions import override

from llmtier.core.errors import MachineError, PortInUseError
from llmtier.serve.app import build_gateway
from llmtier.serve.state import AppState

GRACE_S = 30.0
"""How long open requests may go on after the first signal."""

KEEPALIVE_S = 75
"""Longer than client pools keep idle connections, so that none is reused while it closes; nginx's default."""

T = TypeVar("T")


class _Server(uvicorn.Server):
    """A server that leaves signals to ``serve_forever``: uvicorn would raise them again and end the process."""

    def __init__(self, config: uvicorn.Config, *, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def ask_to_stop(self) -> None:
        """Stop gracefully; at once when asked again."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def check_port(host: str, port: int) -> None:
    """Check that ``host:port`` can be listened on; call it before engines take minutes to start.

    Raises:
        PortInUseError: Another process listens there.
        MachineError: The host is not this machine's, or the port is not permitted.
    """
    open_port(host, port).close()


def open_port(host: str, port: int) -> socket.socket:
    """Return a socket bound to ``host:port``; port 0 takes a free one.

    Raises:
        PortInUseError: Another process listens there.
        MachineError: The host is not this machine's, or the port is not permitted.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that name TCP; without it each first token waits 40 ms for an ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()  # on Linux two sockets may share a bound port until one of them listens
    except OSError as exc:
        bound.close()
        if exc.errno == errno.EADDRINUSE:
            message = f"{host}:{port} is in use by another process; stop it or choose another with --port"
            raise PortInUseError(message) from exc
        raise MachineError(f"{host}:{port}: cannot listen there: {exc.strerror}") from exc
    return bound


async def serve_forever(
    state: AppState,
    *,
    host: str,
    port: int,
    grace_s: float = GRACE_S,
    on_ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until ``stop`` is set; open requests get ``grace_s`` to end.

    Args:
        state: What the gateway is made of.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        grace_s: Longest wait for open requests at the end.
        on_ready: Told the gateway's URL once it listens.
        stop: Ends the server from inside the process.

    Raises:
        PortInUseError: Another process listens there.
        MachineError: Listening or starting failed.
    """
    bound = open_port(host, port)
    url = _url_of(bound)
    try:
        server = _Server(_make_config(state, grace_s), on_started=lambda: on_ready(url) if on_ready else None)
        with _signals_to(server):
            async with asyncio.TaskGroup() as group:
                stopper = group.create_task(_stop_on(stop or asyncio.Event(), server))
                await server.serve(sockets=[bound])
                stopper.cancel()
    finally:
        bound.close()
    if not server.started:
        raise MachineError(f"the gateway could not start on {url}; its log has the reason")


def run_in_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` to its end on uvloop where it is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:  # uvicorn[standard] leaves it out on Windows and PyPy
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _make_config(state: AppState, grace_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        build_gateway(state),
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEPALIVE_S,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )


@contextmanager
def _signals_to(server: _Server) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, server.ask_to_stop)
        except (ValueError, RuntimeError, NotImplementedError):  # not the main thread, or Windows
            continue
        taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


async def _stop_on(stop: asyncio.Event, server: _Server) -> None:
    await stop.wait()
    server.ask_to_stop()


def _url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
