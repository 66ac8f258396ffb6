"""Servers that follow a script, for tests of the client of the engines."""

import asyncio
from contextlib import asynccontextmanager

from llmtier.serve.http_client import UpstreamClient

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
HUGE = b"HTTP/1.1 200 OK\r\ncontent-length: 33554432\r\n\r\n"


async def until(condition):
    """Wait for what another end of a socket brings about."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(0)


class Peer:
    """A server whose every connection runs a script.

    Attributes:
        requests: (head, body) of each request, in order.
        n_connections: Accepted so far; likewise ``n_gone``, that have ended.
    """

    def __init__(self, script):
        self.requests = []
        self.n_connections = self.n_gone = 0
        self.url = ""
        self._script = script

    async def read_request(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        self.requests.append((head, await reader.readexactly(length)))

    async def gone(self, n_connections=None):
        """Wait until so many connections have ended; all by default."""
        await until(lambda: self.n_gone >= (self.n_connections if n_connections is None else n_connections))

    async def serve(self, reader, writer):
        self.n_connections += 1
        try:
            await self._script(self, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.n_gone += 1
            writer.transport.abort()


@asynccontextmanager
async def serving(script, *, host="127.0.0.1", **options):
    peer = Peer(script)
    server = await asyncio.start_server(peer.serve, host, 0, **options)
    name = f"[{host}]" if ":" in host else host
    peer.url = f"{'https' if 'ssl' in options else 'http'}://{name}:{server.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        server.close()
        await peer.gone()


@asynccontextmanager
async def asking(peer, **options):
    client = UpstreamClient(options.pop("url", peer.url), **options)
    try:
        yield client
    finally:
        await client.close()
        assert client.n_open == 0


def saying(*pieces, is_closed=False):
    """Return a script that answers each request with ``pieces``, each a write of its own."""

    async def script(peer, reader, writer):
        while True:
            await peer.read_request(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if is_closed:
                return

    return script


async def silence(peer, reader, writer):
    """Read whatever comes, say nothing, leave with the client."""
    while await reader.read(65536):
        pass


async def flood(peer, reader, writer):
    """Answer with 32 MiB, as fast as they are taken."""
    await peer.read_request(reader)
    writer.write(HUGE)
    peer.writer = writer
    for _ in range(512):
        writer.write(b"a" * 65536)
        await writer.drain()
    await reader.read()


async def is_stuck(peer):
    """Wait until the flood has filled the kernel's buffers."""
    await until(lambda: peer.writer.transport.get_write_buffer_size() >= 65536)
    for _ in range(50):
        await asyncio.sleep(0)


async def ask_whole(client, body=b"{}", **options):
    answer = await client.send("/v1/x", body, **options)
    return await answer.read_whole(limit_bytes=1 << 30)
