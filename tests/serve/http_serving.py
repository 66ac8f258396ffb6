"""Clients and handlers for tests of the server: real sockets on a free port, a clock that stands still."""

import asyncio
import socket
from contextlib import asynccontextmanager

from llmtier.serve.http_server import HttpServer, ServerLimits

GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"


class Clock:
    """A clock that stands still."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def listen(family=socket.AF_INET):
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    return sock


@asynccontextmanager
async def serving(handler, *, clock=None, **limits):
    """Serve ``handler`` on a free port; lend the server and a function that connects."""
    server = HttpServer(handler, limits=ServerLimits(**limits), clock=clock or Clock())
    sock = listen()
    address = sock.getsockname()
    await server.start(sock)
    writers = []

    async def connect(*, receive_bytes=None):
        client = socket.socket()
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(client, address)
        except OSError:
            client.close()
            raise
        reader, writer = await asyncio.open_connection(sock=client)
        writers.append(writer)
        return reader, writer

    try:
        yield server, connect
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await until(lambda: not server.n_connections and not server.n_open)


async def read_answer(reader, *, is_head=False):
    """Return status, headers and body of one answer; the body is what its framing says."""
    head = await reader.readuntil(b"\r\n\r\n")
    status_line, *lines = head[:-4].split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    body = b""
    if is_head:
        pass
    elif headers.get(b"transfer-encoding") == b"chunked":
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        assert b"\r\n" == await reader.readexactly(2)
    elif b"content-length" in headers:
        body = await reader.readexactly(int(headers[b"content-length"]))
    elif b" 204 " not in status_line:
        body = await reader.read()
    return int(status_line.split()[1]), headers, body


async def ask(connect, data, **reading):
    reader, writer = await connect()
    writer.write(data)
    return await read_answer(reader, **reading)


async def until(condition):
    """Let the loop run until ``condition`` holds, which some callback of it brings about."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is awaited lies behind a socket
            await asyncio.sleep(0.001)


async def echo(request, reply):
    reply.send_whole(200, request.path.encode() + b" " + request.body)


class Hanging:
    """A handler that waits for ever, and remembers how it ended."""

    def __init__(self, *, starts=False):
        self.starts = starts
        self.replies = []
        self.n_cancelled = 0

    async def __call__(self, request, reply):
        self.replies.append(reply)
        if self.starts:
            reply.start(200, content_type=b"text/event-stream")
            reply.write(b"data: 1\n\n")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            if self.starts and not reply.is_client_gone:
                reply.finish(b"data: error\n\n")
            raise
