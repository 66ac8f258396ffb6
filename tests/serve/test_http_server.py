"""The server over real sockets: answers, order, who leaves, faults, and what handlers may do."""

import asyncio
import json
import logging
import socket

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtier.serve.refusal import RequestRefusedError
from tests.serve.http_serving import GET, Hanging, ask, echo, read_answer, serving, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request):
    """Run each test on both loops: they differ in when they write and in how they close."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_an_answer_has_a_length_a_type_and_a_date():
    async with serving(echo) as (_, connect):
        status, headers, body = await ask(connect, GET % b"a?b")

    assert (200, b"/a ") == (status, body)
    assert {b"date", b"content-type", b"content-length"} == set(headers)
    assert headers[b"date"].endswith(b"GMT")


async def test_a_connection_is_kept_for_many_requests():
    async with serving(echo) as (server, connect):
        reader, writer = await connect()
        for number in range(20):
            writer.write(b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" % number)
            assert b"/%d ab" % number == (await read_answer(reader))[2]

        assert 1 == server.n_connections
        assert 0 == server.n_open


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("piece_bytes", [10, 1 << 20])
async def test_pipelined_requests_are_answered_in_order(is_slow, piece_bytes):
    n_running = 0

    async def handler(request, reply):
        nonlocal n_running
        n_running += 1
        assert 1 == n_running
        if is_slow:
            await asyncio.sleep(0)
        await echo(request, reply)
        n_running -= 1

    data = b"".join(GET % b"%d" % number for number in range(500))
    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        for start in range(0, len(data), piece_bytes):
            writer.write(data[start : start + piece_bytes])
            await asyncio.sleep(0)
        bodies = [(await read_answer(reader))[2] for _ in range(500)]

    assert [b"/%d " % number for number in range(500)] == bodies


async def test_much_sent_ahead_is_not_read_until_its_turn():
    hanging = Hanging()
    async with serving(hanging) as (_, connect):
        _, writer = await connect()
        writer.write(GET % b"a" + b"x" * 20_000_000)
        await until(lambda: hanging.replies)
        session = hanging.replies[0]._channel
        await until(lambda: not session.transport.is_reading())

        assert len(session._ahead) < 1_000_000


async def test_a_fault_behind_requests_is_answered_after_them():
    async with serving(echo) as (server, connect):
        reader, writer = await connect()
        writer.write(GET % b"a" + GET % b"b" + b"\x00\x00")
        answers = [await read_answer(reader) for _ in range(3)]

        assert b"" == await reader.read()
        assert {400: 1} == server.refused
    assert [200, 200, 400] == [status for status, _, _ in answers]
    assert b"close" == answers[2][1][b"connection"]
    assert "bad_request" == json.loads(answers[2][2])["error"]["code"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    noise=st.binary(min_size=1, max_size=80)
    | st.text("GET/ HTP1.\r\n:Host x0\x00", min_size=1, max_size=80).map(str.encode)
)
def test_noise_is_answered_with_4xx_or_an_end(anyio_backend, noise):
    problems = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with serving(echo) as (_, connect):
            reader, writer = await connect()
            writer.write(noise)
            writer.write_eof()
            return await reader.read()

    answer = anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1])

    assert [] == problems
    assert answer == b"" or answer.split()[1][:1] in {b"2", b"4", b"5"}


async def test_a_refused_client_that_still_sends_can_read_why():
    async with serving(echo, body_bytes=1_000) as (_, connect):
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
        status, headers, _ = await read_answer(reader)

        assert (413, b"close") == (status, headers[b"connection"])
        assert b"" == await reader.read()
        await writer.drain()


async def test_a_chunked_body_is_asked_for_and_joined():
    async with serving(echo) as (_, connect):
        reader, writer = await connect()
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == await reader.readuntil(b"\r\n\r\n")
        writer.write(b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n")

        assert b"/a abc" == (await read_answer(reader))[2]


async def test_continue_waits_for_the_answers_before_it():
    async with serving(echo) as (_, connect):
        reader, writer = await connect()
        writer.write(GET % b"a" + b"POST /b HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")

        assert b"/a " == (await read_answer(reader))[2]
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x")
        assert b"/b x" == (await read_answer(reader))[2]


async def test_an_upgrade_stays_http11():
    async with serving(echo) as (_, connect):
        reader, writer = await connect()
        writer.write(
            b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab"
            + GET % b"b"
        )

        assert b"/a ab" == (await read_answer(reader))[2]
        assert b"/b " == (await read_answer(reader))[2]


async def test_head_has_the_length_of_a_body_it_does_not_send():
    async with serving(echo) as (_, connect):
        reader, writer = await connect()
        writer.write(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n" + GET % b"b")
        _, headers, _ = await read_answer(reader, is_head=True)

        assert b"3" == headers[b"content-length"]
        assert b"/b " == (await read_answer(reader))[2]


async def stream(request, reply):
    reply.start(200, content_type=b"text/event-stream", headers=[(b"x-a", b"b")])
    for piece in (b"one ", b"", b"t" * 100_000):
        reply.write(piece)
    reply.finish(b" end")


STREAMED = b"one " + b"t" * 100_000 + b" end"


async def test_a_stream_is_sent_in_chunks_and_the_connection_kept():
    async with serving(stream) as (_, connect):
        reader, writer = await connect()
        for _ in range(2):
            writer.write(GET % b"")
            status, headers, body = await read_answer(reader)

            assert (200, b"b", STREAMED) == (status, headers[b"x-a"], body)


async def test_a_streamed_head_has_no_body():
    async with serving(stream) as (_, connect):
        reader, writer = await connect()
        writer.write(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(2):
            assert 200 == (await read_answer(reader, is_head=True))[0]


async def test_http10_gets_a_stream_without_chunks_until_the_end():
    async with serving(stream) as (_, connect):
        status, headers, body = await ask(connect, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")

    assert (200, STREAMED, b"close") == (status, body, headers[b"connection"])
    assert b"transfer-encoding" not in headers


async def test_http10_is_kept_where_it_asks():
    async with serving(echo) as (_, connect):
        reader, writer = await connect()
        for _ in range(2):
            writer.write(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            _, headers, body = await read_answer(reader)
            assert (b"/a ", b"keep-alive") == (body, headers[b"connection"])
        writer.write(b"GET /a HTTP/1.0\r\n\r\n")
        assert b"close" == (await read_answer(reader))[1][b"connection"]
        assert b"" == await reader.read()


async def test_a_client_that_asks_for_the_end_gets_it():
    async with serving(echo) as (_, connect):
        reader, writer = await connect()
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET % b"b")

        assert b"close" == (await read_answer(reader))[1][b"connection"]
        assert b"" == await reader.read()


async def test_an_answer_without_content_has_no_length():
    async def handler(request, reply):
        reply.send_whole(204, b"")

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        for _ in range(2):
            writer.write(GET % b"")
            status, headers, _ = await read_answer(reader)
            assert 204 == status
            assert b"content-length" not in headers


@pytest.mark.parametrize("body_bytes", [65_535, 65_536, 3_000_000])
async def test_large_answers_arrive_whole(body_bytes):
    async def handler(request, reply):
        reply.headers[b"x-a"] = b"1"
        reply.send_whole(299, b"z" * body_bytes, content_type=b"text/plain", headers=[(b"x-b", b"2")])

    async with serving(handler) as (_, connect):
        status, headers, body = await ask(connect, GET % b"")

    assert (299, b"1", b"2") == (status, headers[b"x-a"], headers[b"x-b"])
    assert b"z" * body_bytes == body


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (RequestRefusedError("no", status=429, code="busy", retry_after_s=7), 429, "busy"),
        (LookupError("secret"), 500, "internal_error"),
        (None, 500, "internal_error"),
    ],
)
async def test_what_a_handler_does_not_answer_is_refused(raised, status, code, caplog):
    async def handler(request, reply):
        if raised is not None:
            raise raised

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        for _ in range(2):
            writer.write(GET % b"some/path")
            got, headers, body = await read_answer(reader)
            assert (status, code) == (got, json.loads(body)["error"]["code"])
            assert b"secret" not in body

    assert (b"7" if status == 429 else None) == headers.get(b"retry-after")
    paths = [record.path for record in caplog.records if record.levelno == logging.ERROR]
    assert ([] if status == 429 else ["/some/path"] * 2) == paths


@pytest.mark.parametrize("raised", [RequestRefusedError("no"), LookupError("no"), None])
async def test_an_answer_left_open_is_cut(raised):
    async def handler(request, reply):
        reply.start(200, content_type=b"text/plain")
        reply.write(b"abc")
        if raised is not None:
            raise raised

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(GET % b"")
        await reader.readuntil(b"\r\n\r\n")

        assert b"3\r\nabc\r\n" == await reader.read()


async def test_a_cut_answer_until_the_end_is_reset():
    async def handler(request, reply):
        reply.start(200, content_type=b"text/plain")
        reply.cut()
        reply.cut()

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.0\r\n\r\n")

        with pytest.raises(ConnectionResetError):
            await reader.read()


@pytest.mark.parametrize(
    "field", [(b"x-a", b"b\r\nx-c: d"), (b"x-a", b"b\n"), (b"x-a\r", b"b"), (b"x-a", b"\0"), (b"content-length", b"5")]
)
@pytest.mark.parametrize("way", ["headers", "argument", "start"])
async def test_headers_cannot_break_out(field, way):
    caught = []

    async def handler(request, reply):
        try:
            if way == "headers":
                reply.headers[field[0]] = field[1]
                reply.send_whole(200, b"")
            elif way == "argument":
                reply.send_whole(200, b"", headers=[field])
            else:
                reply.start(200, content_type=b"text/plain", headers=[field])
        except ValueError as exc:
            caught.append(str(exc))
            reply.headers.clear()
            reply.send_whole(500, b"")

    async with serving(handler) as (_, connect):
        assert 500 == (await ask(connect, GET % b""))[0]

    assert repr(field[0]) in caught[0]


async def test_a_content_type_cannot_break_out():
    async def handler(request, reply):
        with pytest.raises(ValueError, match="content-type"):
            reply.send_whole(200, b"", content_type=b"a\r\nb: c")
        reply.send_whole(200, b"")

    async with serving(handler) as (_, connect):
        assert 200 == (await ask(connect, GET % b""))[0]


async def test_an_answer_is_given_once():
    errors = []

    async def handler(request, reply):
        for use in (lambda: reply.write(b"a"), reply.finish):
            with pytest.raises(RuntimeError):
                use()
        reply.send_whole(200, b"ok")
        reply.refuse(RequestRefusedError("late"))
        for use in (lambda: reply.send_whole(200, b""), lambda: reply.write(b"a"), reply.finish):
            with pytest.raises(RuntimeError):
                use()
        errors.append(None)

    async with serving(handler) as (_, connect):
        reader, writer = await connect()
        for _ in range(2):
            writer.write(GET % b"")
            assert b"ok" == (await read_answer(reader))[2]

    assert [None, None] == errors


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("way", ["close", "half-close", "reset"])
async def test_a_client_that_leaves_cancels_its_request(starts, way):
    hanging = Hanging(starts=starts)
    async with serving(hanging) as (server, connect):
        _, writer = await connect()
        writer.write(GET % b"")
        await until(lambda: hanging.replies)
        if way == "half-close":
            writer.write_eof()
        elif way == "close":
            writer.close()
        else:
            writer.transport.abort()
        await until(lambda: not server.n_open)

        assert hanging.replies[0].is_client_gone
        assert 1 == hanging.n_cancelled
        with pytest.raises(ConnectionResetError):
            await hanging.replies[0].drain()
        if starts:
            hanging.replies[0].write(b"ignored")
        await until(lambda: not server.n_connections)


async def test_a_client_that_leaves_before_its_handler_runs_is_forgotten():
    hanging = Hanging()
    async with serving(hanging) as (server, connect):
        for _ in range(10):
            _, writer = await connect()
            writer.write(GET % b"")
            writer.close()
        await until(lambda: not server.n_connections)

        assert 0 == server.n_open
        assert 0 == server._shared.budget.n_bytes


async def test_work_after_a_finished_answer_is_not_cancelled():
    ended = asyncio.Event()
    may_end = asyncio.Event()

    async def handler(request, reply):
        reply.send_whole(200, b"")
        await may_end.wait()
        assert not reply.is_client_gone
        ended.set()

    async with serving(handler) as (server, connect):
        reader, writer = await connect()
        writer.write(GET % b"")
        await read_answer(reader)
        writer.close()
        await until(lambda: not server.n_connections)
        may_end.set()
        await ended.wait()


async def test_bodies_are_counted_until_their_answers_end():
    hanging = Hanging()
    async with serving(hanging, buffered_bytes=150) as (server, connect):
        post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + b"x" * 100
        _, first = await connect()
        first.write(post)
        await until(lambda: hanging.replies)

        status, headers, _ = await ask(connect, post)
        first.close()
        await until(lambda: not server.n_open)

        assert (503, b"1") == (status, headers[b"retry-after"])
        assert 0 == server._shared.budget.n_bytes


async def test_accepted_sockets_send_at_once():
    async def handler(request, reply):
        sock = reply._channel.transport.get_extra_info("socket")
        reply.send_whole(200, b"%d" % sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    async with serving(handler) as (_, connect):
        assert b"0" != (await ask(connect, GET % b""))[2]
