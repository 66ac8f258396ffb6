"""Run a gateway until a signal: the port, the server, the graceful end.

Reads nothing from disk. Signals only ask the server to stop, so that the caller's own clean-up
(engines, files) still runs; a second signal cuts open requests.
"""

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from llmtier.core.errors import MachineError, PortInUseError
from llmtier.serve.app import Gateway, build_gateway
from llmtier.serve.http_server import HttpServer
from llmtier.serve.memory import settle_memory
from llmtier.serve.state import AppState

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that may wait to be accepted; the kernel's own limit is often 4,096."""

ADMIN_HOST = "127.0.0.1"
"""Pages ask for no key, so only this machine may see them."""

GRACE_S = 30.0
"""How long open requests may go on after the first signal."""

T = TypeVar("T")


def check_port(host: str, port: int) -> None:
    """Check that ``host:port`` can be listened on; call it before engines take minutes to start.

    Raises:
        PortInUseError: Another process listens there.
        MachineError: The host is not this machine's, or the port is not permitted.
    """
    open_port(host, port).close()


def open_port(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Return a socket that listens on ``host:port``; port 0 takes a free one.

    Args:
        host: Address.
        port: Port.
        is_shared: Whether other processes of this gateway listen there as well.

    Raises:
        PortInUseError: Another process listens there.
        MachineError: The host is not this machine's, or the port is not permitted.
    """
    bound = _bind(host, port, is_shared=is_shared)
    with _translating(bound, host, port):
        bound.listen(BACKLOG)  # on Linux two sockets may share a bound port until one of them listens
    return bound


def reserve_port(host: str, port: int) -> socket.socket:
    """Return a socket that keeps ``host:port`` for the workers of this gateway; it takes no connection itself.

    Raises:
        PortInUseError: Another process listens there, another gateway of the same user included.
        MachineError: The host is not this machine's, or the port is not permitted.
    """
    with open_port(host, port) as alone:
        number = alone.getsockname()[1]
    return _bind(host, number, is_shared=True)


def _bind(host: str, port: int, *, is_shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets that name TCP; without it each first token waits 40 ms for an ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with _translating(bound, host, port):
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
    return bound


@contextmanager
def _translating(bound: socket.socket, host: str, port: int) -> Iterator[None]:
    """Close the socket and say what is wrong when the system refuses it an address."""
    try:
        yield
    except OSError as exc:
        bound.close()
        if exc.errno == errno.EADDRINUSE:
            message = f"{host}:{port} is in use by another process; stop it or choose another with --port"
            raise PortInUseError(message) from exc
        raise MachineError(f"{host}:{port}: cannot listen there: {exc.strerror}") from exc


async def serve_forever(  # noqa: PLR0913  # a server is told everything once
    state: AppState,
    *,
    host: str,
    port: int,
    admin_port: int | None = None,
    grace_s: float = GRACE_S,
    on_ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until ``stop`` is set; open requests get ``grace_s`` to end.

    Args:
        state: What the gateway is made of.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        admin_port: Port of the pages alone, on the loopback address; ``None`` opens none.
        grace_s: Longest wait for open requests at the end.
        on_ready: Told the gateway's URL once it listens.
        stop: Ends the server from inside the process; cleared by nobody.

    Raises:
        PortInUseError: Another process listens there.
        MachineError: The host is not this machine's, or the port is not permitted.
    """
    bound = open_port(host, port)
    ending = Ending(stop)
    try:
        admin = None if admin_port is None else open_port(ADMIN_HOST, admin_port)
    except MachineError:
        bound.close()
        raise
    with signals_to(ending):
        await serve_on(bound, state, ending=ending, grace_s=lambda: grace_s, admin=admin, on_ready=on_ready)


async def serve_on(
    bound: socket.socket,
    state: AppState,
    *,
    ending: "Ending",
    grace_s: Callable[[], float],
    admin: socket.socket | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve on a listening socket, which it closes, until ``ending`` is asked for.

    Args:
        bound: The socket.
        state: What the gateway is made of.
        ending: When to end.
        grace_s: Asked at the end for the longest wait for open requests.
        admin: A socket for the pages alone.
        on_ready: Told the gateway's URL once it accepts.
    """
    gateway = build_gateway(state)
    server = HttpServer(gateway, limits=state.limits.server, clock=state.clock)
    pages = HttpServer(gateway.serve_page, limits=state.limits.server)
    try:
        async with gateway.running():
            await server.start(bound)
            if admin is not None:
                await pages.start(admin)
            if on_ready is not None:
                on_ready(url_of(bound))
            await _until_asked(gateway, ending)
            gateway.leave()
            await _end(server, ending, grace_s())
    finally:
        server.close()
        pages.close()
        bound.close()


class Ending:
    """The wish that a server ends.

    Args:
        asked: Set when it is to end; ``None`` makes an event of its own.

    Attributes:
        asked: Set when it is to end, and open requests may finish.
        forced: Set when open requests are to be cut.
        renew: Set when its configuration is to be read anew, which is no end.
    """

    def __init__(self, asked: asyncio.Event | None = None) -> None:
        self.asked = asyncio.Event() if asked is None else asked
        self.forced = asyncio.Event()
        self.renew = asyncio.Event()

    def ask(self) -> None:
        """End gracefully; at once when asked again."""
        if self.asked.is_set():
            self.forced.set()
        self.asked.set()


def run_in_loop(main: Coroutine[Any, Any, T]) -> T:
    """Settle this process's memory and run ``main`` to its end: on uvloop where that is, else on asyncio's own loop."""
    settle_memory()
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def _until_asked(gateway: Gateway, ending: Ending) -> None:
    async with asyncio.TaskGroup() as group:
        renewing = group.create_task(gateway.renew_on(ending.renew))
        await ending.asked.wait()
        renewing.cancel()


async def _end(server: HttpServer, ending: Ending, grace_s: float) -> None:
    """Stop accepting, let open requests finish for ``grace_s`` or until that is cut short, then cancel them."""
    server.stop_accepting()
    async with asyncio.TaskGroup() as group:
        draining = group.create_task(server.drain(grace_s))
        forced = group.create_task(ending.forced.wait())
        await asyncio.wait((draining, forced), return_when=asyncio.FIRST_COMPLETED)
        n_cut = draining.result() if draining.done() else 0
        draining.cancel()
        forced.cancel()
    n_cut += await server.drain(0.0)
    if n_cut:
        logger.warning("requests were cut at the end", extra={"n_requests": n_cut})


@contextmanager
def signals_to(ending: Ending) -> Iterator[None]:
    """Let SIGINT and SIGTERM ask for the end, and SIGHUP for a new configuration, while the context lasts."""
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []
    for number, wish in ((signal.SIGINT, ending.ask), (signal.SIGTERM, ending.ask), (signal.SIGHUP, ending.renew.set)):
        try:
            loop.add_signal_handler(number, wish)
        except (ValueError, RuntimeError, NotImplementedError):  # not the main thread, or Windows
            continue
        taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)


def url_of(bound: socket.socket) -> str:
    """Return the address of a bound socket as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
