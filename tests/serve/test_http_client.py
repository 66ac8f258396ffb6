"""The client of the engines against servers that follow a script."""

import asyncio

import pytest

from llmtier.serve.http_client import UpstreamBrokenError
from tests.serve.http_peers import OK, STREAM, ask_whole, asking, flood, is_stuck, saying, serving, silence, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_a_request_arrives_with_its_headers_and_body():
    async with serving(saying(OK)) as peer, asking(peer, url=peer.url + "/prefix/") as client:
        answer = await client.send("/v1/x", b'{"a": 1}', headers=b"authorization: Bearer k\r\nx-request-id: 7\r\n")

        assert (answer.status, answer.content_type, answer.retry_after) == (200, b"text/plain", b"")
        assert await answer.read_whole(limit_bytes=2) == b"ok"
        head, body = peer.requests[0]
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST /prefix/v1/x HTTP/1.1"
        host = peer.url.removeprefix("http://").encode()
        expected = {
            b"host: " + host,
            b"user-agent: llmtier",
            b"accept-encoding: identity",
            b"content-type: application/json",
            b"content-length: 8",
            b"authorization: Bearer k",
            b"x-request-id: 7",
            b"",
        }
        assert expected == set(lines[1:])
        assert body == b'{"a": 1}'


async def test_get_has_no_body():
    async with serving(saying(OK)) as peer, asking(peer) as client:
        answer = await client.get("/health", headers=b"x-a: b\r\n")

        assert await answer.read_whole(limit_bytes=2) == b"ok"
        head, _ = peer.requests[0]
        assert head.startswith(b"GET /health HTTP/1.1\r\n")
        assert b"content-" not in head
        assert b"x-a: b\r\n" in head


@pytest.mark.parametrize("n_bytes", [0, 65_535, 65_536, 1_048_575, 1_048_576, 9_000_001])
async def test_bodies_of_any_length_arrive(n_bytes):
    body = bytes(range(251)) * (n_bytes // 251 + 1)
    body = body[:n_bytes]
    async with serving(saying(OK), limit=1 << 20) as peer, asking(peer) as client:
        assert await ask_whole(client, body) == b"ok"
        assert await ask_whole(client, body) == b"ok"

        assert [body, body] == [taken for _, taken in peer.requests]
        assert peer.n_connections == 1


@pytest.mark.parametrize(
    ("pieces", "body"),
    [
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK), b"ok"),
        ((b"HTTP/1.1 200 OK\r\n\r\nto the ", b"end"), b"to the end"),
        ((b"HTTP/1.0 200 OK\r\n\r\nold",), b"old"),
        ((b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",), b"ok"),
        ((STREAM, b"2\r\nab\r\n", b"1;x=y\r\nc\r\n0\r\nx-sum: 1\r\n\r\n"), b"abc"),
        ((b"HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n",), b""),
        ((b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8bzz",), b"\x1f\x8bzz"),
    ],
    ids=["interim", "end of file", "1.0", "close", "chunks", "redirect", "compressed"],
)
async def test_every_kind_of_answer_is_read(pieces, body):
    async with serving(saying(*pieces, is_closed=True)) as peer, asking(peer) as client:
        assert body == await ask_whole(client)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",),
        (STREAM, b"2\r\nab\r\n"),
        (STREAM, b"zz\r\nab\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\ncontent-",),
        (b"SSH-2.0-OpenSSH\r\n",),
    ],
)
async def test_a_cut_or_foreign_answer_is_broken(pieces):
    async with serving(saying(*pieces, is_closed=True)) as peer, asking(peer) as client:
        with pytest.raises(UpstreamBrokenError) as caught:
            await ask_whole(client)

        assert caught.value.had_bytes
        assert peer.n_connections == 1


async def test_an_answer_longer_than_the_limit_is_broken():
    async with serving(flood) as peer, asking(peer) as client:
        answer = await client.send("/", b"{}")

        with pytest.raises(UpstreamBrokenError, match="longer than 1000 bytes"):
            await answer.read_whole(limit_bytes=1000)
        await peer.gone()


async def test_pieces_come_as_they_are_sent_and_in_order():
    go = asyncio.Queue()

    async def script(peer, reader, writer):
        await peer.read_request(reader)
        writer.write(STREAM + b"1\r\na\r\n")
        while piece := await go.get():
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")
        await reader.read()

    came = asyncio.Queue()
    async with serving(script) as peer, asking(peer) as client:
        answer = await client.send("/", b"{}")
        ended = answer.pipe(came.put_nowait)
        seen = [await came.get()]
        for piece in (b"bc", b"def"):
            go.put_nowait(piece)
            seen.append(await came.get())
        assert not ended.done()
        go.put_nowait(b"")
        await ended

        assert seen == [b"a", b"bc", b"def"]
        assert client.n_idle == 1


async def test_a_paused_answer_takes_no_memory():
    async with serving(flood) as peer, asking(peer) as client:
        answer = await client.send("/", b"{}")
        sizes = []
        ended = answer.pipe(lambda piece: sizes.append(len(piece)))
        answer.pause()
        await is_stuck(peer)
        n_paused_bytes = sum(sizes)

        assert n_paused_bytes <= 512 * 1024
        answer.resume()
        await ended
        assert sum(sizes) == 33_554_432


async def test_an_answer_that_nobody_reads_takes_little_memory():
    async with serving(flood) as peer, asking(peer) as client:
        answer = await client.send("/", b"{}")
        await is_stuck(peer)

        assert answer._n_backlog_bytes <= 512 * 1024
        assert len(await answer.read_whole(limit_bytes=1 << 26)) == 33_554_432


async def test_an_error_of_the_taker_closes_the_connection():
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def refuse(_):
        raise ZeroDivisionError

    async with serving(flood) as peer, asking(peer) as client:
        answer = await client.send("/", b"{}")
        answer._backlog.clear()
        with pytest.raises(UpstreamBrokenError):
            await answer.pipe(refuse)
        await peer.gone()

    assert [ZeroDivisionError] == [type(error) for error in told]


async def test_closing_an_unfinished_answer_is_seen_by_the_engine():
    async with serving(flood) as peer, asking(peer) as client:
        answer = await client.send("/", b"{}")
        ended = answer.pipe(lambda _: None)

        answer.close()

        with pytest.raises(UpstreamBrokenError, match="closed"):
            await ended
        await peer.gone()


async def hold(client, body):
    """Send, and wait for an answer that ends only with the connection."""
    answer = await client.send("/", body)
    try:
        await answer.pipe(lambda _: None)
    finally:
        answer.close()


@pytest.mark.parametrize("n_body_bytes", [10, 8_000_000])
@pytest.mark.parametrize("script", [silence, saying(STREAM, b"1\r\na\r\n"), flood])
async def test_cancelling_anywhere_leaves_no_connection(script, n_body_bytes):
    async with serving(script, limit=1 << 20) as peer, asking(peer) as client:
        for n_steps in range(12):
            task = asyncio.create_task(hold(client, b"a" * n_body_bytes))
            for _ in range(n_steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            await peer.gone()
            assert client.n_idle == 0
        await client.close()

    assert peer.n_connections == peer.n_gone


async def test_cancelling_a_whole_read_closes_the_connection():
    async with serving(saying(STREAM, b"1\r\na\r\n")) as peer, asking(peer) as client:
        answer = await client.send("/", b"{}")
        task = asyncio.create_task(answer.read_whole(limit_bytes=100))
        await asyncio.sleep(0)

        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        await peer.gone(1)


async def test_cancelling_after_the_end_keeps_the_connection():
    async with serving(saying(OK)) as peer, asking(peer) as client:
        task = asyncio.create_task(client.send("/", b"{}"))
        await until(lambda: client.n_idle)
        task.cancel()
        await asyncio.wait([task])

        assert await ask_whole(client) == b"ok"
        assert peer.n_connections == 1
