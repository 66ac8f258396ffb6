"""The upstream of the gateway benchmark: an OpenAI-compatible server that costs little and reads what it is sent.

Every port is one tier. An answer goes out after the last byte of its request has come, never before; its usage counts a
token for four bytes. A stream's first chunk goes out at once, so that a client's TTFT is the way there and back; the
others go out at the ticks of one clock that all streams share, as the steps of an engine do. The usage chunk comes only
when it was asked for. Without ``max_tokens`` a stream has ``--chunks`` content chunks.

Only the first and last bytes of a body are looked at: what a client may set beside its messages stands there.

Example: python benchmarks/support/gateway_mock.py --ports 2 --chunks 100 --interval-s 0.004 (prints the URLs)
"""

import argparse
import asyncio
import gc
import json
import re
from collections.abc import Iterator
from itertools import cycle
from typing import Any, cast

import uvloop
from typing_extensions import override

MODEL = "m"
CONTEXT_TOKENS = 1_000_000
WORDS = ("The ", "cat ", "sat ", "on ", "my ", "old ", "hat ", "and ", "I ", "left ", "it ", "be ", ". ")
END_BYTES = 2048
BYTES_PER_TOKEN = 4
NO_TOKENS, NO_TOTAL = b"77777777", b"88888888"
"""Hold the places of counts in a prepared answer."""
N_WORDS = 20
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CODED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
LAST_CHUNK = b"\r\n0\r\n\r\n"
STREAMED = re.compile(rb'"stream"\s*:\s*true')
WANTS_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')
PAGES = {b"/health": b"{}", b"/metrics": b"", b"/version": b'{"version":"mock"}'}
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_buffer = bytearray(262_144)
"""All connections read into it: what came is taken out before the next read."""


def as_page(body: bytes, *, status: int = 200) -> bytes:
    """Return an answer with its head."""
    head = (
        f"HTTP/1.1 {status} OK\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def as_chunk(event: dict[str, Any] | str) -> bytes:
    """Return one event in one chunk of the transfer coding, as uvicorn sends it."""
    data = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
    body = f"data: {data}\n\n".encode()
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


class Script:
    """The bytes of all answers, made once.

    Args:
        n_chunks: Content chunks of a stream whose request does not say.
    """

    def __init__(self, n_chunks: int) -> None:
        self.n_chunks = n_chunks
        base = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
        self.first = SSE_HEAD + as_chunk({**base, "choices": [choice({"role": "assistant", "content": ""})]})
        # Not one word over and over: a gateway may take that for a broken engine.
        self.middles = [as_chunk({**base, "choices": [choice({"content": word})]}) for word in WORDS]
        self.finish = as_chunk({**base, "choices": [choice({}, end="stop")]})
        self.end = as_chunk("[DONE]") + b"0\r\n\r\n"
        self._base = base
        usage = {"prompt_tokens": int(NO_TOKENS), "completion_tokens": N_WORDS, "total_tokens": int(NO_TOTAL)}
        message = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(WORDS * 2)[: N_WORDS * 5]},
            "finish_reason": "stop",
        }
        answer = {**base, "object": "chat.completion", "choices": [message], "usage": usage}
        self._whole = as_page(json.dumps(answer).encode())
        card = {"id": MODEL, "object": "model", "owned_by": "mock", "max_model_len": CONTEXT_TOKENS}
        self.models = as_page(json.dumps({"object": "list", "data": [card]}).encode())

    def whole(self, n_prompt: int) -> bytes:
        """Return the answer to a request that wants no stream."""
        return self._whole.replace(NO_TOKENS, b"%8d" % n_prompt).replace(NO_TOTAL, b"%8d" % (n_prompt + N_WORDS))

    def usage(self, n_prompt: int, n_chunks: int) -> bytes:
        """Return the usage chunk."""
        counts = {"prompt_tokens": n_prompt, "completion_tokens": n_chunks, "total_tokens": n_prompt + n_chunks}
        return as_chunk({**self._base, "choices": [], "usage": counts})


def choice(delta: dict[str, str], *, end: str | None = None) -> dict[str, Any]:
    """Return the one choice of a chunk."""
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}


class Clock:
    """Writes a chunk of every stream at each tick.

    Args:
        script: What to write.
        interval_s: Between two ticks.
    """

    def __init__(self, script: Script, interval_s: float) -> None:
        self.script = script
        self._interval_s = interval_s
        self._streams: list[Iterator[None]] = []
        self._due_s = 0.0

    def begin(self, stream: Iterator[None]) -> None:
        """Write the first chunk now and the rest at the ticks to come."""
        if next(stream, self) is self:
            return
        self._streams.append(stream)
        if len(self._streams) == 1:
            loop = asyncio.get_running_loop()
            self._due_s = loop.time() + self._interval_s
            loop.call_at(self._due_s, self._tick)

    def _tick(self) -> None:
        self._streams = [stream for stream in self._streams if next(stream, self) is None]
        if self._streams:
            loop = asyncio.get_running_loop()
            self._due_s = max(self._due_s + self._interval_s, loop.time())  # an engine makes up for no late step
            loop.call_at(self._due_s, self._tick)


class Connection(asyncio.BufferedProtocol):
    """One client's connection: requests come one after the other.

    Args:
        clock: Paces its streams.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._head = b""
        self._start, self._end = b"", b""
        self._path = b""
        self._n_left: int | None = None
        self._n_bytes = 0

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    @override
    def get_buffer(self, sizehint: int) -> bytearray:
        return _buffer

    @override
    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(memoryview(_buffer)[:nbytes])
        if self._path:
            self._take_body(data)
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end >= 0:
            head, rest, self._head = self._head[:end], self._head[end + 4 :], b""
            self._open(head, rest)

    def _open(self, head: bytes, body: bytes) -> None:
        self._path = head.split(b" ", 2)[1]
        self._start, self._end, self._n_bytes = b"", b"\r\n", 0
        length = LENGTH.search(head)
        self._n_left = int(length[1]) if length else None if CODED.search(head) else 0
        self._take_body(body)

    def _take_body(self, data: bytes) -> None:
        self._n_bytes += len(data)
        if len(self._start) < END_BYTES:
            self._start += data[:END_BYTES]
        self._end = data[-END_BYTES:] if len(data) >= END_BYTES else (self._end + data)[-END_BYTES:]
        if self._n_left is not None:
            self._n_left -= len(data)
        is_whole = self._end.endswith(LAST_CHUNK) if self._n_left is None else self._n_left <= 0
        if is_whole:
            path, self._path = self._path, b""
            self._answer(path.partition(b"?")[0])

    def _answer(self, path: bytes) -> None:
        script = self._clock.script
        if path.endswith(b"/chat/completions"):
            seen = self._start + self._end if self._n_bytes > END_BYTES else self._start
            if STREAMED.search(seen) is None:
                self._write(script.whole(self._n_bytes // BYTES_PER_TOKEN))
            else:
                self._clock.begin(self._stream(seen, self._n_bytes // BYTES_PER_TOKEN))
        elif path.endswith(b"/models"):
            self._write(script.models)
        elif path in PAGES:
            self._write(as_page(PAGES[path]))
        else:
            self._write(as_page(b'{"error":{"message":"no such path"}}', status=404))

    def _stream(self, seen: bytes, n_prompt: int) -> Iterator[None]:
        """Write one chunk at each step, until the last or the client's end."""
        script, limit = self._clock.script, MAX_TOKENS.search(seen)
        n_chunks = int(limit[1]) if limit else script.n_chunks
        usage = script.usage(n_prompt, n_chunks) if WANTS_USAGE.search(seen) else b""
        ending = script.finish + usage + script.end
        middles = cycle(script.middles)
        self._write(script.first + next(middles) + (ending if n_chunks == 1 else b""))
        for _ in range(n_chunks - 2):
            yield
            if not self._write(next(middles)):
                return
        if n_chunks > 1:
            yield
            self._write(next(middles) + ending)

    def _write(self, data: bytes) -> bool:
        if self._transport is None:
            return False
        self._transport.write(data)
        return True


async def serve(clock: Clock, n_ports: int) -> None:
    """Serve on free loopback ports until killed; print the URLs first."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: Connection(clock), "127.0.0.1", 0, backlog=1024) for _ in range(n_ports)
    ]
    gc.freeze()
    gc.disable()  # nothing here makes cycles worth a pause
    print(*(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="The upstream of the gateway benchmark.")
    parser.add_argument("--ports", type=int, default=2, help="how many tiers it plays")
    parser.add_argument("--chunks", type=int, default=100, help="content chunks of a stream")
    parser.add_argument("--interval-s", type=float, default=0.004, help="between two chunks")
    arguments = parser.parse_args()
    uvloop.run(serve(Clock(Script(arguments.chunks), arguments.interval_s), arguments.ports))


if __name__ == "__main__":
    main()
