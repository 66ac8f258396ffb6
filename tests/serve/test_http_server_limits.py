"""The server against slow, absent and too many clients, and its graceful end; the sweep is called by hand."""

import asyncio
import json
from contextlib import suppress

import pytest

from llmtier.serve.http_server import HttpServer
from llmtier.serve.http_session import Session
from tests.serve.http_serving import GET, Clock, Hanging, ask, echo, read_answer, serving, until

pytestmark = pytest.mark.anyio

MANY_BYTES = 4_000_000


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request):
    """Run each test on both loops: they differ in when they write and in how they close."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.mark.parametrize(
    ("data", "limit_s"),
    [
        (b"GET / HTTP/1.1\r\nX-A: b", 10.0),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", 30.0),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 30.0),
    ],
    ids=["head", "body", "chunks"],
)
async def test_a_slow_request_is_answered_408_however_it_drips(data, limit_s):
    clock = Clock()
    async with serving(echo, clock=clock) as (server, connect):
        reader, writer = await connect()
        writer.write(data)
        await until(lambda: any(session._reader.phase != "idle" for session in server._shared.connections))
        clock.now_s += limit_s
        server.sweep()
        assert {} == server.refused
        clock.now_s += 0.1
        server.sweep()

        status, headers, body = await read_answer(reader)
        assert (408, b"close") == (status, headers[b"connection"])
        assert "request_timeout" == json.loads(body)["error"]["code"]
        assert b"" == await reader.read()
        clock.now_s += 2.1
        server.sweep()
        await until(lambda: not server.n_connections)


async def test_an_idle_connection_is_closed_after_a_while():
    clock = Clock()
    async with serving(echo, clock=clock) as (server, connect):
        fresh, _ = await connect()
        used, writer = await connect()
        clock.now_s += 50
        writer.write(GET % b"a")
        await read_answer(used)
        clock.now_s += 50
        server.sweep()

        assert b"" == await fresh.read()
        await until(lambda: 1 == server.n_connections)
        clock.now_s += 50
        server.sweep()
        assert b"" == await used.read()


async def test_a_long_answer_is_not_idleness():
    clock = Clock()
    hanging = Hanging(starts=True)
    async with serving(hanging, clock=clock) as (server, connect):
        reader, writer = await connect()
        writer.write(GET % b"a" + b"GET /behind")
        await reader.readuntil(b"data: 1\n\n\r\n")
        clock.now_s += 1_000
        server.sweep()
        await asyncio.sleep(0)

        assert 1 == server.n_open
        assert not hanging.replies[0].is_client_gone


async def test_the_sweep_runs_by_itself(monkeypatch):
    monkeypatch.setattr("llmtier.serve.http_server._SWEEP_S", 0.01)
    clock = Clock()
    async with serving(echo, clock=clock) as (_, connect):
        reader, _ = await connect()
        clock.now_s += 80

        assert b"" == await reader.read()


class Flood:
    """A handler that writes far more than sockets hold, and notes how its reply fares."""

    def __init__(self, *, drains):
        self.drains = drains
        self.calls = []
        self.reply = None
        self.n_written = 0
        self.is_done = asyncio.Event()

    async def __call__(self, request, reply):
        self.reply = reply
        reply.on_unwritable = lambda: self.calls.append("unwritable")
        reply.on_writable = lambda: self.calls.append("writable")
        reply.start(200, content_type=b"text/plain")
        for _ in range(MANY_BYTES // 10_000):
            reply.write(b"x" * 10_000)
            self.n_written += 10_000
            if self.drains:
                await reply.drain()
            elif not reply.is_writable:
                await asyncio.get_running_loop().create_future()
        reply.finish()
        self.is_done.set()


async def test_a_slow_reader_holds_its_handler_and_not_memory():
    flood = Flood(drains=True)
    async with serving(flood) as (_, connect):
        reader, writer = await connect(receive_bytes=4_096)
        writer.write(GET % b"")
        await until(lambda: flood.reply and not flood.reply.is_writable)
        transport = flood.reply._channel.transport
        most_bytes = 0
        while not flood.is_done.is_set():
            most_bytes = max(most_bytes, transport.get_write_buffer_size())
            assert await reader.read(65_536)

    assert 65_536 < most_bytes < 65_536 + 2 * 10_100
    assert {"unwritable", "writable"} == set(flood.calls)
    assert ["unwritable", "writable"] == flood.calls[:2]


async def test_a_reader_that_stands_still_is_dropped():
    clock = Clock()
    flood = Flood(drains=False)
    async with serving(flood, clock=clock) as (server, connect):
        reader, writer = await connect(receive_bytes=4_096)
        reader._transport.pause_reading()
        writer.write(GET % b"")
        await until(lambda: flood.reply and not flood.reply.is_writable)
        server.sweep()
        clock.now_s += 60
        server.sweep()
        assert 1 == server.n_open
        clock.now_s += 0.1
        server.sweep()
        await until(lambda: not server.n_connections and not server.n_open)

    assert flood.reply.is_client_gone


async def test_a_reader_that_moves_is_not_dropped():
    clock = Clock()
    flood = Flood(drains=True)
    async with serving(flood, clock=clock) as (server, connect):
        reader, writer = await connect(receive_bytes=4_096)
        writer.write(GET % b"")
        while not flood.is_done.is_set():
            assert await reader.read(200_000)
            clock.now_s += 20
            server.sweep()
        assert not flood.reply.is_client_gone


async def test_answers_do_not_pile_up_for_a_client_that_only_sends():
    n_answers = 0

    async def handler(request, reply):
        nonlocal n_answers
        n_answers += 1
        reply.send_whole(200, b"z" * 1_000_000)

    async with serving(handler) as (server, connect):
        reader, writer = await connect(receive_bytes=4_096)
        reader._transport.pause_reading()
        writer.write((GET % b"a") * 100)
        await until(lambda: n_answers and not next(iter(server._shared.connections)).is_writable)
        for _ in range(50):
            await asyncio.sleep(0)
        assert n_answers < 20

        reader._transport.resume_reading()
        for _ in range(100):
            await read_answer(reader)
    assert 100 == n_answers


async def test_too_many_connections_are_refused():
    async with serving(echo, n_connections=16) as (server, connect):
        kept = [await connect() for _ in range(16)]
        await until(lambda: 16 == server.n_connections)
        refused = [(await read_answer((await connect())[0]))[:2] for _ in range(2)]
        dropped, _ = await connect()

        assert [(503, b"1")] * 2 == [(status, headers[b"retry-after"]) for status, headers in refused]
        with suppress(ConnectionResetError):
            assert b"" == await dropped.read()
        reader, writer = kept[0]
        writer.write(GET % b"a")
        assert 200 == (await read_answer(reader))[0]


async def test_leaving_closes_what_is_idle_and_lets_the_rest_finish():
    may_end = asyncio.Event()

    async def handler(request, reply):
        await may_end.wait()
        await echo(request, reply)

    async with serving(handler) as (server, connect):
        idle, _ = await connect()
        busy, busy_writer = await connect()
        partial, partial_writer = await connect()
        busy_writer.write(GET % b"busy")
        partial_writer.write(b"POST /partial HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        await until(lambda: server.n_open and any(s._reader.phase == "body" for s in server._shared.connections))
        draining = asyncio.create_task(server.drain(30))

        assert b"" == await idle.read()
        with pytest.raises(ConnectionRefusedError):
            await connect()
        partial_writer.write(b"x")
        may_end.set()
        for reader in (busy, partial):
            status, headers, _ = await read_answer(reader)
            assert (200, b"close") == (status, headers[b"connection"])
            assert b"" == await reader.read()
        assert 0 == await draining


@pytest.mark.parametrize("starts", [False, True])
async def test_requests_that_outlast_the_grace_are_cancelled_and_can_say_so(starts):
    hanging = Hanging(starts=starts)
    async with serving(hanging) as (server, connect):
        reader, writer = await connect()
        writer.write(GET % b"a")
        await until(lambda: hanging.replies)

        assert 1 == await server.drain(0)
        status, headers, body = await read_answer(reader)
        assert (200, b"data: 1\n\ndata: error\n\n") == (status, body) if starts else 503 == status
        assert b"" == await reader.read()
        assert not hanging.replies[0].is_client_gone
        assert 1 == hanging.n_cancelled
        assert 0 == server.n_open
        assert 0 == await server.drain(0)
    if not starts:
        assert b"close" == headers[b"connection"]
        assert "shutting_down" == json.loads(body)["error"]["code"]


async def test_an_answer_under_way_when_leaving_begins_ends_its_connection():
    started, may_end = asyncio.Event(), asyncio.Event()

    async def handler(request, reply):
        reply.start(200, content_type=b"text/plain")
        started.set()
        await may_end.wait()
        reply.finish(b"ok")

    async with serving(handler) as (server, connect):
        reader, writer = await connect()
        writer.write((GET % b"a") * 2)
        await started.wait()
        server.stop_accepting()
        may_end.set()

        assert b"ok" == (await read_answer(reader))[2]
        assert b"" == await reader.read()


async def test_closing_ends_everything_at_once():
    hanging = Hanging()
    async with serving(hanging) as (server, connect):
        reader, writer = await connect()
        writer.write(GET % b"a")
        await until(lambda: hanging.replies)
        server.close()
        await until(lambda: not server.n_connections and not server.n_open)

        assert 1 == hanging.n_cancelled
        assert b"" == await reader.read()


async def test_a_dropped_client_frees_its_place():
    async with serving(echo, n_connections=1) as (server, connect):
        _, writer = await connect()
        await until(lambda: server.n_connections)
        writer.close()
        await until(lambda: not server.n_connections)

        assert 200 == (await ask(connect, GET % b"a"))[0]


async def test_a_request_whose_client_leaves_before_it_begins_is_forgotten():
    hanging = Hanging()
    async with serving(hanging) as (server, connect):
        await connect()
        await until(lambda: server.n_connections)
        (session,) = server._shared.connections
        session.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na")
        session.eof_received()
        await until(lambda: not server.n_open)

        assert 0 == server._shared.budget.n_bytes
        assert len(hanging.replies) == hanging.n_cancelled


async def test_a_request_sent_ahead_is_timed_from_its_turn():
    clock = Clock()

    async def handler(request, reply):
        if request.path == "/first":
            await asyncio.sleep(0)
            clock.now_s += 1_000
        await echo(request, reply)

    async with serving(handler, clock=clock) as (server, connect):
        reader, writer = await connect()
        writer.write(GET % b"first" + b"GET /second HTTP/1.1\r\n")
        await read_answer(reader)
        server.sweep()
        writer.write(b"Host: x\r\n\r\n")

        assert b"/second " == (await read_answer(reader))[2]


class Congested:
    """A transport whose buffer always holds as much as before."""

    is_aborted = False

    def set_write_buffer_limits(self, high):
        pass

    def get_extra_info(self, name):
        return None

    def get_write_buffer_size(self):
        return 70_000

    def write(self, data):
        pass

    def abort(self):
        self.is_aborted = True

    def close(self):
        pass


@pytest.mark.parametrize("moves", [False, True])
async def test_a_buffer_filled_anew_is_no_standstill(moves, monkeypatch):
    monkeypatch.setattr("llmtier.serve.http_session._n_unacknowledged_bytes", lambda _: 0)
    clock = Clock()
    server = HttpServer(echo, clock=clock)
    session = Session(server._shared)
    transport = Congested()
    session.connection_made(transport)
    for _ in range(10):
        session.pause_writing()
        server.sweep()
        clock.now_s += 10
        if moves:
            session.resume_writing()

    assert moves is not transport.is_aborted
