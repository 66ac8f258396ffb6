"""A closed-loop client that notes the latency of every answer.

One process, one thread: each connection sends its next request as soon as its answer is whole. A latency runs from the
request's hand-over to the transport until the answer's last byte (of a stream: its first content) was parsed, so the
client's own time is in it; it is the same for every gateway and for none, and goes out of the difference.

Example: python benchmarks/support/gateway_client.py URL --bodies FOLDER --kind m-0.6KB --connections 16 --seconds 5
"""

import argparse
import asyncio
import gc
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop
from gateway_bodies import Bodies
from typing_extensions import override

CONTENT = re.compile(rb'"content"\s*:\s*"[^"]')
DATA = b"data: "
DONE = b"data: [DONE]"
TAIL_BYTES = 16


@dataclass
class Tally:
    """What all connections of a run have seen.

    Attributes:
        latencies_s: Of whole answers, or of first contents.
        n_answers: Whole and good ones, the warm-up's too.
        n_chunks: Events of streams, without ``[DONE]``; the warm-up's too.
        n_errors: Answers without status 200, streams without an end, connections lost in an answer.
        first_error: What the first was.
    """

    latencies_s: list[float]
    n_answers: int = 0
    n_chunks: int = 0
    n_errors: int = 0
    first_error: str | None = None

    def fail(self, why: str) -> None:
        """Count an error."""
        self.n_errors += 1
        self.first_error = self.first_error or why


class Connection(asyncio.Protocol):
    """One connection of the loop.

    Args:
        write: Makes the next request.
        tally: Counts.
        is_stream: Whether answers are streams.
    """

    def __init__(self, write: Callable[[], bytes], tally: Tally, *, is_stream: bool) -> None:
        self._next = write
        self._tally = tally
        self._is_stream = is_stream
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._is_waiting, self._is_stopped = False, False
        self._sent_s = 0.0
        self._seen: bytes | None = b""
        self._rest = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop(self) -> None:
        """Send nothing more; an answer that is under way is read to its end."""
        self._is_stopped = True
        if not self._is_waiting and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Leave an answer that does not end."""
        if self._transport is not None:
            self._transport.abort()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    @override
    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._tally.fail(f"{type(error).__name__}: {error}")
            self._is_waiting = False
            self.abort()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._is_waiting:
            self._tally.fail("connection lost inside an answer")
        if not self.ended.done():
            self.ended.set_result(None)

    def on_body(self, body: bytes) -> None:
        """Count a piece of an answer."""
        if not self._is_stream:
            return
        data = self._rest + body
        self._rest = data[-TAIL_BYTES:]
        self._tally.n_chunks += data.count(DATA) - self._rest.count(DATA)
        if self._seen is not None:
            self._seen += body
            if CONTENT.search(self._seen):
                self._tally.latencies_s.append(time.perf_counter() - self._sent_s)
                self._seen = None

    def on_message_complete(self) -> None:
        """Take an answer's end and send the next request."""
        now_s = time.perf_counter()
        self._is_waiting = False
        status = self._parser.get_status_code()
        if status != 200:
            self._tally.fail(f"status {status}")
        elif self._is_stream:
            self._end_stream()
        else:
            self._tally.latencies_s.append(now_s - self._sent_s)
            self._tally.n_answers += 1
        keeps = self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        if self._transport is None:
            return
        if self._is_stopped or not keeps:
            self._transport.close()
        else:
            self._send()

    def _end_stream(self) -> None:
        if DONE[-TAIL_BYTES:] not in self._rest or self._seen is not None:
            self._tally.fail("a stream without content or without its end")
            return
        self._tally.n_answers += 1
        self._tally.n_chunks += self._rest.count(DATA) - 1

    def _send(self) -> None:
        if self._transport is None or self._is_stopped:
            return
        request = self._next()
        self._seen, self._rest, self._is_waiting = b"", b"", True
        self._sent_s = time.perf_counter()
        self._transport.write(request)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Put the load on; return what was seen after the warm-up."""
    write = Bodies.read(arguments.bodies, arguments.kind).writer(arguments.url, time.monotonic_ns() // 1000 % 10**11)
    tally = Tally([])
    loop, parts = asyncio.get_running_loop(), urlsplit(arguments.url)
    connections: list[Connection] = []
    for _ in range(arguments.connections):
        make = lambda: Connection(write, tally, is_stream=arguments.stream)  # noqa: E731
        _, connection = await loop.create_connection(make, parts.hostname, parts.port)
        connections.append(connection)
        await asyncio.sleep(arguments.ramp_s / arguments.connections)
    await asyncio.sleep(arguments.warm_up_s)
    tally.latencies_s.clear()
    n_before, begun_s = tally.n_answers, time.perf_counter()
    await asyncio.sleep(arguments.seconds)
    n_answers, seconds = tally.n_answers - n_before, time.perf_counter() - begun_s
    latencies_s = np.array(tally.latencies_s)
    await finish(connections, arguments.patience_s)
    quantiles = np.quantile(latencies_s, [0.5, 0.99]).tolist() if latencies_s.size else [None, None]
    seen = {"n_latencies": latencies_s.size, "p50_s": quantiles[0], "p99_s": quantiles[1], "seconds": seconds}
    counts = {name: value for name, value in asdict(tally).items() if name != "latencies_s"}
    return {**counts, **seen, "rps": n_answers / seconds}


async def finish(connections: list[Connection], patience_s: float) -> None:
    """Let answers under way end; what takes longer than ``patience_s`` is an error."""
    for connection in connections:
        connection.stop()
    await asyncio.wait([connection.ended for connection in connections], timeout=patience_s)
    for connection in connections:
        connection.abort()
    await asyncio.wait([connection.ended for connection in connections], timeout=1.0)


def main() -> None:
    """Read the arguments, run and print one JSON document."""
    parser = argparse.ArgumentParser(description="A closed loop that notes every latency.")
    parser.add_argument("url", help="of the endpoint")
    parser.add_argument("--bodies", type=Path, required=True, help="folder of bodies")
    parser.add_argument("--kind", required=True, help="which of them")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured, after the warm-up")
    parser.add_argument("--warm-up-s", type=float, default=0.5)
    parser.add_argument("--ramp-s", type=float, default=0.1, help="over which connections begin")
    parser.add_argument("--patience-s", type=float, default=10.0, help="for the last answers")
    parser.add_argument("--stream", action="store_true")
    arguments = parser.parse_args()
    gc.freeze()
    gc.disable()
    print(json.dumps(uvloop.run(run(arguments))))


if __name__ == "__main__":
    main()
