"""An OpenAI-compatible server whose true instants are known: cheap, exact, and a process of its own.

Streams ``--chunks`` content chunks, one at each tick of one clock that all streams share, as the steps of an engine
are; a request gets its first chunk at the next tick. With ``--interval-s 0`` an answer is one write. For every request
it notes when its last byte arrived in the kernel, when the mock had read it and when each content chunk was handed to
the kernel, on ``time.perf_counter``, which on Linux is CLOCK_MONOTONIC and so the same clock in every process.
``GET /mock/requests`` takes those notes away.

Sockets are read and written by their own calls: a transport would hold a chunk until its loop comes round, and only
``recvmsg`` tells when bytes came (socket(7), SO_TIMESTAMPNS).

Example: python benchmarks/support/sse_mock.py --chunks 100 --interval-s 0.004 (prints the URL)
"""

import argparse
import asyncio
import gc
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import httptools
import uvloop

MODEL = "mock"
WORD = "a"
NO_NUMBER = "00000000"
SO_TIMESTAMPNS = 35
"""Of Linux; Python's ``socket`` has no name for it."""
TIMESPEC = struct.Struct("qq")
READ_BYTES, ANCILLARY_BYTES = 65536, 64
SEND_TIMEOUT_S = 60.0
TAG = re.compile(rb"request-(\d+)-of-load")
"""A client that wants to find its own requests again writes this into the prompt."""
STREAMED = re.compile(rb'"stream"\s*:\s*true')


def write_tag(number: int) -> str:
    """Return the words that ``TAG`` finds."""
    return f"request-{number}-of-load"


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def frame(event: dict[str, Any] | str) -> bytes:
    """Return one event in one chunk of the transfer coding, as uvicorn sends it."""
    data = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
    body = f"data: {data}\n\n".encode()
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


class Script:
    """The bytes of every answer of one kind: what goes out first, in between and last.

    All answers are equal but for the number in their id, which is put into the place kept for it.

    Args:
        n_chunks: Content chunks.
        is_chat: Whether it answers ``/chat/completions`` rather than ``/completions``.
    """

    def __init__(self, n_chunks: int, *, is_chat: bool) -> None:
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        base = {"id": f"mock-{NO_NUMBER}", "object": kind, "created": 1, "model": MODEL}
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        end: dict[str, Any] = {
            "index": 0,
            **({"delta": {}} if is_chat else {"text": ""}),
            "logprobs": None,
            "finish_reason": "length",
        }
        opening = frame({**base, "choices": [role]}) if is_chat else b""
        middle = frame({**base, "choices": [content_choice(is_chat=is_chat)]})
        usage = frame({**base, "choices": [], "usage": usage_of(n_chunks)})
        closing = frame({**base, "choices": [end]}) + usage + frame("[DONE]") + b"0\r\n\r\n"
        first = HEAD + opening + middle
        self._first, self._middle, self._last = first, middle, middle + closing
        self._whole = first + middle * (n_chunks - 1) + closing
        self._n_chunks = n_chunks

    def steps(self, number: int) -> Iterator[bytes]:
        """Return what to write at each step."""
        if self._n_chunks == 1:
            return iter([self.whole(number)])
        first, middle, last = (put_number(data, number) for data in (self._first, self._middle, self._last))
        return chain([first], repeat(middle, self._n_chunks - 2), [last])

    def whole(self, number: int) -> bytes:
        """Return the answer as one write."""
        return put_number(self._whole, number)


def put_number(data: bytes, number: int) -> bytes:
    """Return an answer's bytes with its number in the id."""
    return data.replace(NO_NUMBER.encode(), b"%08d" % number)


def content_choice(*, is_chat: bool) -> dict[str, Any]:
    """Return a choice that carries one token of text."""
    text = WORD
    body = {"delta": {"content": text}} if is_chat else {"text": text}
    return {"index": 0, **body, "logprobs": None, "finish_reason": None}


def usage_of(n_chunks: int) -> dict[str, int]:
    """Return the usage of an answer with as many tokens as chunks."""
    return {"prompt_tokens": 50, "completion_tokens": n_chunks, "total_tokens": 50 + n_chunks}


class Engine:
    """The clock that all streams share, and the notes.

    Args:
        n_chunks: Content chunks of an answer.
        interval_s: Between two ticks; 0 answers at once.
    """

    def __init__(self, n_chunks: int, interval_s: float) -> None:
        self.n_chunks = n_chunks
        self.notes: list[dict[str, Any]] = []
        self._interval_s = interval_s
        self._scripts = {is_chat: Script(n_chunks, is_chat=is_chat) for is_chat in (False, True)}
        self._n_answers = 0
        self._streams: list[Stream] = []
        self._due_s = 0.0

    def begin(self, connection: "Connection", note: dict[str, Any], *, is_chat: bool) -> None:
        """Answer at once, or from the next tick on."""
        self.notes.append(note)
        self._n_answers += 1
        script = self._scripts[is_chat]
        if not self._interval_s:
            data = script.whole(self._n_answers)
            note["written_s"].extend([time.perf_counter()] * self.n_chunks)
            note["is_whole"] = connection.write(data)
            return
        self._streams.append(Stream(connection, script.steps(self._n_answers), self.n_chunks, note))
        if len(self._streams) == 1:
            loop = asyncio.get_running_loop()
            self._due_s = loop.time() + self._interval_s
            loop.call_at(self._due_s, self._tick)

    def take_notes(self) -> bytes:
        """Return the notes so far and begin anew."""
        notes, self.notes = self.notes, []
        return json.dumps(notes).encode()

    def _tick(self) -> None:
        self._streams = [stream for stream in self._streams if stream.step()]
        if not self._streams:
            return
        loop = asyncio.get_running_loop()
        self._due_s += self._interval_s
        if self._due_s <= loop.time():  # an engine does not make up for a late step
            self._due_s = loop.time() + self._interval_s
        loop.call_at(self._due_s, self._tick)


class Stream:
    """One answer on its way out, a chunk at each step."""

    __slots__ = ("_connection", "_n_left", "_note", "_steps", "_written_s")

    def __init__(self, connection: "Connection", steps: Iterator[bytes], n_chunks: int, note: dict[str, Any]) -> None:
        self._connection = connection
        self._steps = steps
        self._n_left = n_chunks
        self._note = note
        self._written_s: list[float] = note["written_s"]

    def step(self) -> bool:
        """Write the next chunk; return whether more are to come."""
        self._n_left -= 1
        data = next(self._steps)
        self._written_s.append(time.perf_counter())
        if not self._connection.write(data):
            return False
        if self._n_left:
            return True
        self._note["is_whole"] = True
        return False


class Connection:
    """One client's connection: requests come one after the other.

    Args:
        engine: Answers.
        peer: The accepted socket.
    """

    def __init__(self, engine: Engine, peer: socket.socket) -> None:
        self._engine = engine
        self._socket = peer
        self._parser = httptools.HttpRequestParser(self)
        self._arrived_s = 0.0
        self._url = b""
        self._body: list[bytes] = []
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        asyncio.get_running_loop().add_reader(peer.fileno(), self._receive)

    def close(self) -> None:
        """Leave the connection; a stream on it ends at its next step."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _receive(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.close()
            return
        self._arrived_s = read_stamp(ancillary)
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer one request."""
        path, body = self._url.partition(b"?")[0], b"".join(self._body)
        self._url, self._body = b"", []
        if path.endswith(b"/completions"):
            self._complete(body, is_chat=path.endswith(b"/chat/completions"))
        elif path == b"/mock/requests":
            self._send(200, self._engine.take_notes())
        elif path.endswith(b"/models"):
            self._send(200, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())
        elif path == b"/health":
            self._send(200, b"{}")
        else:
            self._send(404, b'{"error":{"message":"no such path","code":404}}')

    def write(self, data: bytes) -> bool:
        """Hand bytes to the kernel now; return whether it took them."""
        try:
            n_taken = self._socket.send(data)
        except OSError:  # gone, or so slow that the kernel holds megabytes for it
            n_taken = 0
        if n_taken < len(data):
            self.close()
            return False
        return True

    def _complete(self, body: bytes, *, is_chat: bool) -> None:
        if STREAMED.search(body) is None:
            self._send(200, whole_answer(self._engine.n_chunks, is_chat=is_chat))
            return
        tag = TAG.search(body)
        note: dict[str, Any] = {"tag": int(tag[1]) if tag else None, "written_s": [], "is_whole": False}
        note |= {"arrived_s": self._arrived_s, "read_s": time.perf_counter()}
        self._engine.begin(self, note, is_chat=is_chat)

    def _send(self, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.settimeout(SEND_TIMEOUT_S)  # notes are megabytes; nothing is measured while they are taken
        try:
            self._socket.sendall(head.encode() + body)
        finally:
            self._socket.settimeout(0)


def read_stamp(ancillary: list[tuple[int, int, bytes]]) -> float:
    """Return when the kernel took in what was read, on ``time.perf_counter``; now where it does not tell.

    The kernel stamps on the adjustable clock, whose distance from the monotonic one is measured anew each time.
    """
    now_s = time.perf_counter()
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = TIMESPEC.unpack(data)
            age_ns: int = time.time_ns() - seconds * 1_000_000_000 - nanoseconds
            return now_s - max(age_ns, 0) / 1e9
    return now_s


def whole_answer(n_chunks: int, *, is_chat: bool) -> bytes:
    """Return the answer to a request that wants no stream."""
    text = WORD * n_chunks
    body: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    choice = {"index": 0, **body, "finish_reason": "length"}
    kind = "chat.completion" if is_chat else "text_completion"
    answer = {"id": "mock", "object": kind, "created": 1, "model": MODEL, "choices": [choice]}
    return json.dumps({**answer, "usage": usage_of(n_chunks)}).encode()


async def serve(engine: Engine) -> None:
    """Serve on a free loopback port until killed; print the URL first."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    asyncio.get_running_loop().add_reader(listener.fileno(), lambda: Connection(engine, listener.accept()[0]))
    gc.freeze()
    gc.disable()  # nothing here makes cycles worth a pause
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="An SSE server that notes its own instants.")
    parser.add_argument("--chunks", type=int, required=True, help="content chunks of an answer")
    parser.add_argument("--interval-s", type=float, required=True, help="between two chunks; 0 = all at once")
    arguments = parser.parse_args()
    uvloop.run(serve(Engine(arguments.chunks, arguments.interval_s)))


if __name__ == "__main__":
    main()
