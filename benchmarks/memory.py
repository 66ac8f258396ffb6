"""Does the gateway's memory grow with the requests that it has served? One process, a mock engine, no faults.

Three kinds of traffic, each in blocks: answers whole, answers streamed, and streams whose client leaves after the head.
Every block ends at rest, and resident memory is read then.

- ``growth_bytes_per_request``: of the median of a kind's last half of blocks over that of its first block.
- ``rss_bytes``: before, and after each block.

What is needed once comes in a warm-up: with a traffic log (``--log``) that is its first file, after 10,000 rows.

Example: python benchmarks/memory.py --log --json benchmarks/results/memory.json
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import uvloop
from support.machine import describe_machine, publish
from support.soak_gateway import Gateway, GatewayError, running_gateway, write_config

MOCK = Path(__file__).parent / "support" / "gateway_mock.py"
EXIT_NO_GATEWAY = 4
REST_S = 1.5
N_CONNECTIONS = 32
PATH = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is put on.

    Attributes:
        n_warm: Requests of each kind before the first reading.
        n_plain: Answers whole, in all blocks together; likewise ``n_streams`` and ``n_left``.
        n_blocks: Of each kind.
        n_chunks: Of a stream.
        has_log: Whether a traffic log is written.
        seed: Of the prompts' lengths.
    """

    n_warm: int = 6000
    n_plain: int = 50_000
    n_streams: int = 10_000
    n_left: int = 5000
    n_blocks: int = 5
    n_chunks: int = 20
    has_log: bool = False
    seed: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Requests of each kind."""
        return {"plain": self.n_plain, "stream": self.n_streams, "left": self.n_left}


QUICK = Plan(n_warm=500, n_plain=2000, n_streams=1000, n_left=500, n_blocks=2)


def write_request(rng: Random, *, is_stream: bool) -> bytes:
    """Return a request with a prompt of some length."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "x" * rng.randint(10, 1200)}], "max_tokens": 20}
    data = json.dumps({**body, "stream": True} if is_stream else body).encode()
    return PATH % len(data) + data


class Load:
    """Clients that ask one after the other until so many requests are done.

    Args:
        url: The gateway's.
        kind: ``plain``, ``stream`` or ``left``.
        n_requests: Of all together.
        rng: For prompts.
    """

    def __init__(self, url: str, kind: str, n_requests: int, rng: Random) -> None:
        address = urlsplit(url)
        self._host, self._port = str(address.hostname), address.port
        self._kind = kind
        self._n_left = n_requests
        self._rng = rng

    async def run(self) -> None:
        """Ask all."""
        async with asyncio.TaskGroup() as group:
            for _ in range(N_CONNECTIONS):
                group.create_task(self._ask())

    async def _ask(self) -> None:
        writer: asyncio.StreamWriter | None = None
        while self._n_left > 0:
            self._n_left -= 1
            if writer is None:
                reader, writer = await asyncio.open_connection(self._host, self._port)
            writer.write(write_request(self._rng, is_stream=self._kind != "plain"))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 200 "):
                raise GatewayError(f"a request was not answered: {head[:60]!r}")
            if self._kind == "stream":
                await reader.readuntil(b"\r\n0\r\n\r\n")
            elif self._kind == "plain":
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            else:
                writer.transport.abort()
                writer = None
        if writer is not None:
            writer.close()


def measure(plan: Plan, gateway: Gateway) -> dict[str, Any]:
    """Put every kind on; return what memory did."""
    rng = Random(plan.seed)
    for kind in plan.counts:
        uvloop.run(Load(gateway.url, kind, plan.n_warm, rng).run())
    return {kind: _measure_kind(plan, gateway, kind, n, rng) for kind, n in plan.counts.items()}


def _measure_kind(plan: Plan, gateway: Gateway, kind: str, n_requests: int, rng: Random) -> dict[str, Any]:
    n_each = n_requests // plan.n_blocks
    rss = [_rest(gateway)]
    for _ in range(plan.n_blocks):
        uvloop.run(Load(gateway.url, kind, n_each, rng).run())
        rss.append(_rest(gateway))
    n_late = max(plan.n_blocks // 2, 1)
    n_between = n_each * (plan.n_blocks - 1 - (n_late - 1) / 2)
    growth_bytes = statistics.median(rss[-n_late:]) - rss[1]
    return {"n_requests": n_requests, "growth_bytes_per_request": round(growth_bytes / n_between, 1), "rss_bytes": rss}


def _rest(gateway: Gateway) -> int:
    asyncio.run(asyncio.sleep(REST_S))
    return sum(gateway.rss_bytes().values())


@contextmanager
def running_mock(n_chunks: int) -> Iterator[str]:
    """Run the mock engine; yield its URL."""
    command = [sys.executable, str(MOCK), "--ports", "1", "--chunks", str(n_chunks), "--interval-s", "0.001"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise GatewayError("the mock engine has no output")
        yield process.stdout.readline().split()[0]
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description="Does the gateway's memory grow with the requests it has served?")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--quick", action="store_true", help="some seconds: to see that it runs")
    parser.add_argument("--log", action="store_true", help="with a traffic log")
    arguments = parser.parse_args()
    plan = Plan(**{**asdict(QUICK if arguments.quick else Plan()), "has_log": arguments.log})
    log = {} if plan.has_log else {"log_dir": None}
    with tempfile.TemporaryDirectory(prefix="llmtier-memory-") as scratch, running_mock(plan.n_chunks) as engine:
        config = write_config(Path(scratch), {"only": engine}, gateway={"default_tier": "only", **log})
        try:
            with running_gateway(config, n_workers=1) as gateway:
                found = measure(plan, gateway)
        except GatewayError as error:
            print(error, file=sys.stderr)
            return EXIT_NO_GATEWAY
    machine = describe_machine({"uvloop": uvloop.__version__})
    publish({"benchmark": "memory", "machine": machine, "plan": asdict(plan), "kinds": found}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
