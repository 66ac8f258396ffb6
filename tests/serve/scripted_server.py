"""An engine whose every byte is the test's choice, and a gateway in front of such engines.

A raw TCP server: what it says on a path is a script of steps, each a piece of bytes, a fault or an event to wait for.
It answers ``/health`` with 200 and everything else with 404 unless told otherwise, so that a fault stays where it was put.
"""

import asyncio
import json
import socket
import struct
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum, auto

import aiohttp

from llmtier.serve.watch import WatchPlan

CHAT = "/v1/chat/completions"
SELDOM = WatchPlan(health_interval_s=60, metrics_interval_s=60)
"""Engines are asked once, at the start: what they do later is for requests to find out."""

DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST


class Step(Enum):
    """What a script does beside sending bytes."""

    HANG = auto()
    """Say no more until the client leaves."""
    CLOSE = auto()
    """Send FIN."""
    RESET = auto()
    """Send RST."""


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(document):
    return b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"


def token(text):
    return event({"choices": [{"index": 0, "delta": {"content": text}}]})


def whole(status=200, body=b"", *, headers=b"", content_type=b"application/json"):
    """Return a complete answer."""
    head = b"HTTP/1.1 %d x\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n"
    return head % (status, content_type, headers, len(body)) + body


def document(text="saved", **more):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **more}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 5}}).encode()


STREAM = b"".join([EVENTS, chunk(token("saved") + DONE), END])


class ScriptedServer:
    """An engine.

    Attributes:
        url: Where it is.
        scripts: Path to steps; ``None`` for the paths that no script names.
        turns: Steps for the next generation requests, before ``scripts`` holds again.
        at_accept: What happens to every new connection; ``None`` serves it.
        requests: (path, body) of each request that is not for health or metrics.
        n_connections: Accepted so far.
        n_gone: Clients that left before the end of their answer, or while it hung.
        n_sent_bytes: Bytes of answers that the kernel or the client has taken.
    """

    def __init__(self):
        self.url = ""
        self.scripts = {"/health": [whole()], None: [whole(404)]}
        self.turns = deque()
        self.at_accept = None
        self.requests = []
        self.n_connections = self.n_gone = self.n_sent_bytes = 0
        self._server = None
        self._tasks = set()

    def say(self, *steps, path=CHAT):
        self.scripts[path] = steps

    def refuse(self):
        """Stop listening; connections that are open stay so."""
        self._server.close()

    async def left(self, n_clients=1, *, within_s=1.0):
        """Wait until so many clients have left early."""
        async with asyncio.timeout(within_s):
            while self.n_gone < n_clients:  # noqa: ASYNC110  # what is awaited lies behind a socket
                await asyncio.sleep(0.005)

    async def asked(self, n_requests=1):
        """Wait until so many requests have come."""
        async with asyncio.timeout(30):
            while len(self.requests) < n_requests:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def start(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader, writer):
        self._tasks.add(task := asyncio.current_task())
        self.n_connections += 1
        try:
            is_open = await self._play([self.at_accept], reader, writer) if self.at_accept else True
            while is_open:
                path, body = await _read_request(reader)
                if path not in {"/health", "/metrics"}:
                    self.requests.append((path, body))
                is_open = await self._answer(path, body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, path, body, reader, writer):
        if path == CHAT and self.turns:
            steps = self.turns.popleft()
        elif path == CHAT and CHAT not in self.scripts:
            steps = [STREAM if json.loads(body).get("stream") else whole(body=document())]
        else:
            steps = self.scripts.get(path, self.scripts[None])
        try:
            return await self._play(steps, reader, writer)
        except ConnectionError:
            self.n_gone += 1
            raise

    async def _play(self, steps, reader, writer):
        """Follow a script; return whether the connection is still open."""
        for step in steps:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
                await asyncio.sleep(0)
                self.n_sent_bytes += len(step)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif step is Step.HANG:
                await self._hang(reader)
                return False
            else:
                _hang_up(writer, is_reset=step is Step.RESET)
                return False
        return True

    async def _hang(self, reader):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.n_gone += 1


def _hang_up(writer, *, is_reset):
    if is_reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()
    else:
        writer.close()


async def _read_request(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    n_bytes = sum(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
    return lines[0].split(b" ")[1].decode(), await reader.readexactly(n_bytes)


class Rig:
    """A gateway before scripted engines.

    Attributes:
        engines: By tier.
        url: The gateway's.
        client: Asks it.
        state: What it is made of.
    """

    def __init__(self, engines, url, client, state):
        self.engines, self.url, self.client, self.state = engines, url, client, state
        self.small = engines["small"]

    def post(self, **more):
        return self.client.post(CHAT, json=ask(**more))

    async def ask(self, **more):
        """Ask; return status, headers and all of the body, whose end must be a clean one."""
        async with self.post(**more) as answer:
            return answer.status, answer.headers, await answer.read()

    async def counts(self):
        """Return what the metrics page shows, by name and labels."""
        async with self.client.get("/metrics") as page:
            lines = [line.rpartition(" ") for line in (await page.text()).splitlines() if line[:1] != "#"]
        return {name: float(value) for name, _, value in lines}

    async def connect(self, **more):
        """Ask over a bare socket; return its reader and writer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.url.rsplit(":", 1)[1]), limit=1 << 16)
        body = json.dumps(ask(**more)).encode()
        writer.write(b"POST %b HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        return reader, writer


def ask(**more):
    return {"model": "auto", "messages": [{"role": "user", "content": "x"}], **more}


def requests(tier, outcome):
    """Return the name on the metrics page of requests that ended so."""
    return f'llmtier_requests_total{{outcome="{outcome}",tier="{tier}"}}'


def decisions(tier, reason):
    return f'llmtier_route_decisions_total{{reason="{reason}",tier="{tier}"}}'


def in_flight(tier):
    return f'llmtier_tier_inflight{{tier="{tier}"}}'


def leave(writer, *, is_reset):
    """Leave as a client, by FIN or by RST."""
    _hang_up(writer, is_reset=is_reset)


@asynccontextmanager
async def scripted_server():
    server = ScriptedServer()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def rigged(make_state, running_gateway, *, names=("small", "large"), **changes):
    """Run a gateway before one scripted engine for each name."""
    async with AsyncExitStack() as stack:
        engines = {name: await stack.enter_async_context(scripted_server()) for name in names}
        changes.setdefault("watch", SELDOM)
        state = make_state({name: engine.url for name, engine in engines.items()}, **changes)
        state.pool._clock = state.clock
        url = await stack.enter_async_context(running_gateway(state))
        client = await stack.enter_async_context(aiohttp.ClientSession(url))
        yield Rig(engines, url, client, state)
