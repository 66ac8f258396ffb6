"""An engine of the soak: tells the tale that a prompt orders, and goes wrong at random.

Takes no model's place but in its HTTP: four endpoints, ``/v1/models``, ``/health`` and ``/metrics`` (now and then
garbage, or no answer). On SIGUSR1 it hangs for a while with its health good. Appends to the journal, a line each, every
fault it plays and every client that left: ``fault|gone <id> <name> <monotonic seconds>``.

Example: python -m support.soak_engine --port 9001 --seed 1 --journal faults.txt
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import struct
import time
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import uvloop
from typing_extensions import override

from support.soak_answers import (
    CHAT,
    EMBEDDINGS,
    ERROR_EVENT,
    MALFORMED,
    write_error,
    write_events,
    write_whole,
)
from support.soak_faults import EngineFault, draw_fault
from support.soak_text import Tale, numbers_in, read_order

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
GAP_S = (0.0, 0.02)
"""Between two writes of a stream, the same for all of one stream."""

FREEZE_S, PAUSE_S = 2.0, 1.0
CARD = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"soak","max_model_len":1000000}]}'
PAGES = {"/v1/models": CARD, "/version": b'{"version":"soak"}'}
METRICS = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\nvllm:num_requests_waiting 0\n"
NO_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST
_STATUSES = {
    EngineFault.STATUS_500: 500,
    EngineFault.STATUS_502: 502,
    EngineFault.STATUS_503: 503,
    EngineFault.STATUS_429: 429,
}
_BEFORE = frozenset({EngineFault.CLOSE, EngineFault.RESET, EngineFault.HANG, EngineFault.HEAD_ONLY, *_STATUSES})
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def write_head(n_bytes: int, *, status: int = 200, kind: str = "application/json", more: str = "") -> bytes:
    """Return the head of an answer of known length."""
    head = f"HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\n{more}content-length: {n_bytes}\r\n\r\n"
    return head.encode()


def as_chunk(data: bytes) -> bytes:
    """Return one chunk of the transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked.

    Attributes:
        path: The endpoint.
        tale: What is to be told.
        start: Its first piece that is still wanted; not 0 when an answer is to be continued.
        is_stream: Whether as events; likewise ``wants_usage``.
    """

    path: str
    tale: Tale
    start: int
    is_stream: bool
    wants_usage: bool


def read_request(path: str, body: bytes) -> Request | None:
    """Return what was asked; ``None`` when nothing was ordered."""
    fields: dict[str, Any] = json.loads(body)
    asked = json.dumps(fields.get("messages") or fields.get("prompt") or fields.get("input"), ensure_ascii=False)
    tale = read_order(asked)
    if tale is None:
        return None
    numbers, _ = numbers_in(asked, tale)
    options = fields.get("stream_options") or {}
    is_stream = bool(fields.get("stream")) and path != EMBEDDINGS
    return Request(path, tale, len(numbers), is_stream, bool(options.get("include_usage")))


class Engine:
    """What all connections share.

    Args:
        rng: For faults and speeds.
        fault_share: Share of requests that go wrong.
        journal: File descriptor.
    """

    def __init__(self, rng: Random, fault_share: float, journal: int) -> None:
        self.rng = rng
        self._fault_share = fault_share
        self._journal = journal
        self._frozen_until_s = 0.0

    def draw(self, request: Request) -> EngineFault:
        """Return what goes wrong, and write it down."""
        fault = draw_fault(
            self.rng,
            self._fault_share,
            is_stream=request.is_stream,
            is_generated=request.path != EMBEDDINGS,
            is_chat=request.path == CHAT,
        )
        if fault is not EngineFault.NONE:
            self.note("fault", request.tale, fault.value)
        return fault

    def note(self, kind: str, tale: Tale, name: str) -> None:
        """Write a line that survives a SIGKILL."""
        os.write(self._journal, f"{kind} {tale.id} {name} {time.monotonic():.4f}\n".encode())

    def freeze(self) -> None:
        """Begin to hang."""
        self._frozen_until_s = time.monotonic() + FREEZE_S

    async def thaw(self) -> None:
        """Wait while it hangs."""
        await asyncio.sleep(max(self._frozen_until_s - time.monotonic(), 0.0))


class Connection(asyncio.Protocol):
    """One client's connection: requests come one after the other.

    Args:
        engine: Whose.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._transport = cast("asyncio.Transport", None)
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._request: Request | None = None
        self._is_writable = asyncio.Event()
        self._is_writable.set()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def pause_writing(self) -> None:
        self._is_writable.clear()

    @override
    def resume_writing(self) -> None:
        self._is_writable.set()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()
            if self._request is not None:
                self._engine.note("gone", self._request.tale, "client")

    @override
    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._begin()

    def _begin(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[: end + 2])
        length = LENGTH.search(head)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) >= whole:
            body = bytes(self._buffer[end + 4 : whole])
            del self._buffer[:whole]
            path = head.split(b" ", 2)[1].decode()
            self._task = asyncio.get_running_loop().create_task(self._serve(path, body))
            self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.result()
            self._begin()

    async def _serve(self, path: str, body: bytes) -> None:
        if not body:
            await self._send_page(path)
            return
        self._request = request = read_request(path, body)
        if request is None:
            self._transport.write(write_head(0, status=400))
            return
        await self._engine.thaw()
        fault = self._engine.draw(request)
        if fault in _BEFORE:
            await self._fail(fault)
        elif request.is_stream:
            await self._send_events(request, fault)
        else:
            await self._send_whole(request, fault)
        self._request = None

    async def _send_page(self, path: str) -> None:
        page, kind = PAGES.get(path, b"{}"), "application/json"
        if path == "/metrics":
            luck = self._engine.rng.random()
            if luck < 0.05:
                await asyncio.Event().wait()
            page, kind = (METRICS if luck > 0.2 else os.urandom(300)), "text/plain"
        self._transport.write(write_head(len(page), kind=kind) + page)

    async def _fail(self, fault: EngineFault) -> None:
        if fault in _STATUSES:
            status = _STATUSES[fault]
            body = write_error(status)
            more = "retry-after: 1\r\n" if status in {429, 503} else ""
            self._transport.write(write_head(len(body), status=status, more=more) + body)
            return
        if fault is EngineFault.HEAD_ONLY:
            is_stream = self._request is not None and self._request.is_stream
            self._transport.write(_STREAM_HEAD if is_stream else write_head(500))
        if fault in {EngineFault.HANG, EngineFault.HEAD_ONLY}:
            await asyncio.Event().wait()
        self._leave(is_reset=fault is EngineFault.RESET)

    def _leave(self, *, is_reset: bool) -> None:
        self._request = None  # it is not the client who leaves
        if is_reset:
            found = self._transport.get_extra_info("socket")
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self._transport.abort()
        else:
            self._transport.close()

    def _pieces(self, request: Request, fault: EngineFault) -> list[str]:
        if fault is EngineFault.EMPTY_ANSWER:
            return []
        return ["!"] * 100 if fault is EngineFault.REPETITION else request.tale.pieces(request.start)

    async def _send_whole(self, request: Request, fault: EngineFault) -> None:
        rng = self._engine.rng
        await asyncio.sleep(rng.uniform(0.0, 0.3))
        body = b""
        if fault is not EngineFault.EMPTY_BODY:
            pieces = self._pieces(request, fault)
            body = write_whole(request.path, request.tale, pieces, logprobs=_logprobs(fault))
        data = write_head(len(body)) + body
        cut = rng.randrange(1, len(data))
        match fault:
            case EngineFault.CUT | EngineFault.CUT_RESET:
                self._transport.write(data[:cut])
                self._leave(is_reset=fault is EngineFault.CUT_RESET)
            case EngineFault.STALL:
                self._transport.write(data[:cut])
                await asyncio.Event().wait()
            case EngineFault.DRIBBLE:
                await self._dribble(data)
            case _:
                await self._write(data)

    async def _send_events(self, request: Request, fault: EngineFault) -> None:
        rng = self._engine.rng
        pieces = self._pieces(request, fault)
        events = write_events(
            request.path, request.tale, pieces, wants_usage=request.wants_usage, logprobs=_logprobs(fault)
        )
        if fault is EngineFault.EMPTY_BODY:
            events = []
        at = rng.randrange(len(events)) if events else 0
        gap_s = rng.uniform(*GAP_S)
        self._transport.write(_STREAM_HEAD)
        if fault in {EngineFault.ONE_CHUNK, EngineFault.DRIBBLE}:
            data = b"".join(events)
            await (self._write(as_chunk(data)) if fault is EngineFault.ONE_CHUNK else self._dribble(data, gap_s=gap_s))
            events = []
        for number, event in enumerate(events):
            if number == at and not await self._break(fault, event):
                return
            if not (fault is EngineFault.NO_DONE and number == len(events) - 1):
                await self._write(as_chunk(event))
            await asyncio.sleep(gap_s)
        self._transport.write(b"0\r\n\r\n")

    async def _break(self, fault: EngineFault, event: bytes) -> bool:
        """Do what goes wrong in the midst of a stream; return whether it goes on."""
        match fault:
            case EngineFault.STALL:
                await asyncio.Event().wait()
            case EngineFault.PAUSE:
                await asyncio.sleep(PAUSE_S)
            case EngineFault.MALFORMED:
                await self._write(as_chunk(MALFORMED))
            case EngineFault.ERROR_CHUNK:
                await self._write(as_chunk(ERROR_EVENT) + b"0\r\n\r\n")
                return False
            case _ if fault in _CUTS:
                await self._write(_cut(fault, event))
                self._leave(is_reset=fault is EngineFault.CUT_RESET)
                return False
            case _:
                pass
        return True

    async def _dribble(self, data: bytes, *, gap_s: float | None = None) -> None:
        """Send in pieces that end anywhere, as chunks where ``gap_s`` is given."""
        rng = self._engine.rng
        at, longest = 0, max(len(data) // 40, 8)
        while at < len(data):
            part = data[at : at + rng.randint(1, longest)]
            at += len(part)
            await self._write(part if gap_s is None else as_chunk(part))
            await asyncio.sleep(gap_s or 0.0)

    async def _write(self, data: bytes) -> None:
        await self._is_writable.wait()
        self._transport.write(data)


_CUTS = frozenset(
    {
        EngineFault.CUT,
        EngineFault.CUT_RESET,
        EngineFault.CUT_EVENT,
        EngineFault.CUT_CHARACTER,
        EngineFault.BAD_CHUNK,
    }
)


def _cut(fault: EngineFault, event: bytes) -> bytes:
    """Return the last bytes before a cut."""
    match fault:
        case EngineFault.CUT_EVENT:
            return as_chunk(event[: len(event) // 2])
        case EngineFault.CUT_CHARACTER:
            return as_chunk(event[: max(event.find("🙂".encode()) + 2, 1)])
        case EngineFault.BAD_CHUNK:
            return b"banana\r\n" + event
        case _:
            return b""


def _logprobs(fault: EngineFault) -> object:
    nan = {"token": "a", "logprob": float("nan"), "bytes": None, "top_logprobs": []}
    return {"content": [nan], "token_logprobs": [float("nan")], "tokens": ["a"]} if fault is EngineFault.NAN else None


async def serve(engine: Engine, port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, engine.freeze)
    await loop.create_server(lambda: Connection(engine), "127.0.0.1", port, backlog=1024)
    await asyncio.Event().wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="An engine of the soak.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault-share", type=float, default=0.1)
    parser.add_argument("--journal", required=True)
    arguments = parser.parse_args()
    journal = os.open(arguments.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    uvloop.run(serve(Engine(Random(arguments.seed), arguments.fault_share, journal), arguments.port))


if __name__ == "__main__":
    main()
