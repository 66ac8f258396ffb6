"""The fault matrix, second part: what goes wrong once an answer is under way. The table is in ``docs/faults.md``."""

import asyncio
import importlib.util
import json
import socket
from functools import partial

import openai
import psutil
import pytest

from llmtier.serve.http_request import ServerLimits
from llmtier.serve.relay import Deadlines
from llmtier.serve.state import Limits
from tests.serve.scripted_server import (
    DONE,
    END,
    EVENTS,
    STREAM,
    Step,
    ask,
    chunk,
    document,
    event,
    in_flight,
    leave,
    requests,
    rigged,
    token,
)

pytestmark = pytest.mark.anyio

TOKENS = b"".join(map(token, "abc"))
EIGHT_MB = token("x" * 8_000_000)
PATIENT = Deadlines(first_byte_s=10, stall_s=10, total_s=15)
MB = 1_000_000


@pytest.fixture
def anyio_backend():
    """Run on the loop that the gateway runs on."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


@pytest.fixture
def rig(make_state, running_gateway):
    return partial(rigged, make_state, running_gateway, names=["small"], deadlines=PATIENT)


def error_after(prefix, body):
    """Return the error that a body ends with, after ``prefix`` and nothing else."""
    assert body.startswith(prefix + b"data: ")
    assert body.endswith(b"}\n\n")
    return json.loads(body[len(prefix) + 6 :])["error"]


SHORT_S = 0.2
CUTS = {
    "closed": ([Step.CLOSE], "dropped the connection"),
    "reset": ([Step.RESET], "dropped the connection"),
    "half an event, then closed": ([chunk(token("d")[:20]), Step.CLOSE], "dropped the connection"),
    "half a chunk, then closed": ([b"ff\r\ndata: {", Step.CLOSE], "dropped the connection"),
    "no number for a chunk": ([b"banana\r\n", Step.HANG], "dropped the connection"),
    "more than its chunk": ([b"2\r\n: lies\r\n", Step.HANG], "dropped the connection"),
    "half a character, then closed": ([chunk(token("🙂")[:-12]), Step.CLOSE], "dropped the connection"),
    "the end without [DONE]": ([END], "ended its answer early"),
    "half an event, then the end": ([chunk(token("d")[:20]), END], "ended its answer early"),
    "silence": ([Step.HANG], f"sent nothing for {SHORT_S:g} s"),
    "half an event, then silence": ([chunk(token("d")[:20]), Step.HANG], f"sent nothing for {SHORT_S:g} s"),
}


@pytest.mark.parametrize(("steps", "words"), CUTS.values(), ids=CUTS)
async def test_a_stream_that_breaks_ends_with_an_error_event(rig, steps, words):
    """The engine goes on only when the client has its tokens: RST may overtake what is still unread."""
    is_silent = "nothing" in words
    limits = Deadlines(stall_s=SHORT_S, total_s=15) if is_silent else PATIENT
    async with rig(deadlines=limits) as ground:
        ground.small.say(EVENTS, *map(chunk, map(token, "abc")), go := asyncio.Event(), *steps)
        async with asyncio.timeout(10), ground.post(stream=True) as answer:  # silence is not left to the total limit
            body = await answer.content.readexactly(len(TOKENS))
            go.set()
            body += await answer.read()
        counts = await ground.counts()

        error = error_after(TOKENS, body)
        assert (200, "upstream_interrupted", "server_error") == (answer.status, error["code"], error["type"])
        assert words in error["message"]
        assert body.decode()
        assert (1, 0) == (counts[requests("small", "interrupted")], counts[in_flight("small")])
        assert 1 == len(ground.small.requests)
        if steps[-1] is Step.HANG:
            await ground.small.left()


async def test_a_stream_shorter_than_its_length_is_told_too(rig):
    async with rig() as ground:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n"
        ground.small.say(head, TOKENS, Step.CLOSE)
        _, _, body = await ground.ask(stream=True)

        assert "upstream_interrupted" == error_after(TOKENS, body)["code"]


async def test_a_stream_that_drips_for_too_long_is_ended(rig):
    async with rig(deadlines=Deadlines(stall_s=10, total_s=0.3)) as ground:
        ground.small.say(EVENTS, *[chunk(token("a"))] * 3, Step.HANG)
        _, _, body = await ground.ask(stream=True)
        await ground.small.left()

        assert "longer than the gateway allows" in error_after(token("a") * 3, body)["message"]


@pytest.mark.parametrize("step", [Step.CLOSE, Step.RESET])
async def test_the_official_client_raises_when_a_stream_breaks(rig, step):
    async with (
        rig() as ground,
        openai.AsyncOpenAI(base_url=f"{ground.url}/v1", api_key="none", max_retries=0) as client,
    ):
        ground.small.say(EVENTS, chunk(token("a")), go := asyncio.Event(), step)
        stream = await client.chat.completions.create(**ask(stream=True))
        assert "a" == (await anext(stream)).choices[0].delta.content
        go.set()
        with pytest.raises(openai.APIError, match="dropped the connection"):
            await anext(stream)


ERROR = event({"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}})


@pytest.mark.parametrize("said", [ERROR + DONE, ERROR, ERROR.replace(b'{"error"', b'{ "id": 1, "error"') + DONE])
async def test_an_error_inside_a_stream_is_relayed_and_counted_as_a_failure(rig, said):
    async with rig() as ground:
        ground.small.say(EVENTS, chunk(TOKENS), chunk(said), END)
        _, _, body = await ground.ask(stream=True)
        counts = await ground.counts()

        assert body.startswith(TOKENS + said)
        assert (said == ERROR) == (b"upstream_interrupted" in body)
        assert (1, 0) == (counts[requests("small", "interrupted")], counts.get(requests("small", "ok"), 0))


async def test_an_error_that_is_null_or_quoted_is_none(rig):
    said = event({"choices": [], "error": None}) + token('say "error": {"message": "no"}') + DONE
    async with rig() as ground:
        ground.small.say(EVENTS, chunk(said), END)
        _, _, body = await ground.ask(stream=True)

        assert said == body
        assert 1 == (await ground.counts())[requests("small", "ok")]


MALFORMED = [
    b"data: {not json}\n\n",
    b"data: \xff\xfe\n\n",
    b"no field at all\n\n",
    b"\x00\x01\n\n",
    b": a comment\n\n",
    b"event: ping\nid: 1\nretry: 5\n\n",
    b'data: {"usage": \n\n',
    b'data: {"choices": [], "usage": 7}\n\n',
    b'data: {"error" \n\n',
    b"data: [DONE\n\n",
    b"\n\n\n\n",
    b"data: " + b"[" * 100_000 + b'"usage"\n\n',
]


@pytest.mark.parametrize("line", MALFORMED, ids=range(len(MALFORMED)))
@pytest.mark.parametrize("is_done", [True, False])
async def test_lines_that_are_none_are_relayed_as_they_are(rig, line, is_done):
    said = token("a") + line + token("b")
    async with rig() as ground:
        ground.small.say(EVENTS, *(chunk(piece) for piece in (token("a"), line, token("b") + DONE * is_done)), END)
        _, _, body = await ground.ask(stream=True)
        counts = await ground.counts()

        if is_done:
            assert said + DONE == body
        else:
            assert "upstream_interrupted" == error_after(said, body)["code"]
        assert 1 == counts[requests("small", "ok" if is_done else "interrupted")]


@pytest.mark.parametrize("n_bytes", [1, 2, 3])
async def test_characters_cut_across_chunks_arrive_whole(rig, n_bytes):
    said = token("é🙂漢字") + DONE
    pieces = [chunk(said[start : start + n_bytes]) for start in range(0, len(said), n_bytes)]
    async with (
        rig() as ground,
        openai.AsyncOpenAI(base_url=f"{ground.url}/v1", api_key="none", max_retries=0) as client,
    ):
        ground.small.say(EVENTS, *pieces, END)
        assert said == (await ground.ask(stream=True))[2]
        stream = await client.chat.completions.create(**ask(stream=True))
        assert "é🙂漢字" == "".join([piece.choices[0].delta.content async for piece in stream])


async def test_a_chunk_of_8_mb_arrives_whole(rig):
    whole = document("x" * 8_000_000)
    async with rig() as ground:
        ground.small.say(EVENTS, chunk(EIGHT_MB + DONE), END)
        assert EIGHT_MB + DONE == (await ground.ask(stream=True))[2]
        ground.small.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", chunk(whole), END)
        assert whole == (await ground.ask())[2]


async def test_a_chunk_of_8_mb_that_breaks_is_told(rig):
    async with rig() as ground:
        ground.small.say(EVENTS, chunk(TOKENS), chunk(EIGHT_MB[:4_000_000]), Step.CLOSE)
        _, _, body = await ground.ask(stream=True)

        relayed, _, error = body.rpartition(b"data: {")
        assert (TOKENS + EIGHT_MB).startswith(relayed.removesuffix(b"\n\n"))
        assert relayed.endswith(b"\n\n")  # which ends the half event: the error is one of its own
        assert "upstream_interrupted" == error_after(b"", b"data: {" + error)["code"]


@pytest.mark.parametrize("is_reset", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("n_tokens", [None, 0, 1], ids=["before the head", "after the head", "mid-stream"])
@pytest.mark.parametrize("stream", [True, False])
async def test_the_engine_is_told_when_the_client_leaves(rig, eventually, is_reset, n_tokens, stream):
    async with rig() as ground:
        ground.small.say(*([] if n_tokens is None else [EVENTS]), *[chunk(token("a"))] * (n_tokens or 0), Step.HANG)
        reader, writer = await ground.connect(stream=stream)
        await ground.small.asked()
        if stream and n_tokens:
            await reader.readuntil(b"\n\n")
        leave(writer, is_reset=is_reset)
        await ground.small.left(within_s=1.0)

        async def is_counted():
            return requests("small", "client_gone") in await ground.counts()

        await eventually(is_counted)
        assert 0 == (await ground.counts())[in_flight("small")]


async def test_clients_that_leave_say_nothing_against_the_engine(rig):
    async with rig() as ground:
        ground.small.say(Step.HANG)
        for number in range(1, 8):
            _, writer = await ground.connect(stream=True)
            await ground.small.asked(number)
            leave(writer, is_reset=False)
            await ground.small.left(number)
        ground.small.say(STREAM)

        assert 200 == (await ground.ask(stream=True))[0]
        assert 0 == (await ground.counts())['llmtier_breaker_state{tier="small"}']


async def read_slowly(ground):
    """Ask over a socket with small buffers; return it once nothing moves any more."""
    host, port = ground.url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.connect((host, int(port)))
    body = json.dumps(ask(stream=True)).encode()
    client.sendall(b"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    client.setblocking(False)
    n_before = -1
    while n_before != ground.small.n_sent_bytes:
        n_before = ground.small.n_sent_bytes
        await asyncio.sleep(0.15)
    return client


async def test_a_slow_reader_holds_the_engine_back_and_loses_nothing(rig):
    said = token("x" * 32_000) + token("y" * 32_000)
    n_events = 96 * MB // len(said)
    async with rig(deadlines=Deadlines(stall_s=0.1, total_s=15)) as ground:
        ground.small.say(EVENTS, *[chunk(said)] * n_events, chunk(DONE), END)
        rss_before_bytes = psutil.Process().memory_info().rss
        client = await read_slowly(ground)

        assert 0 < ground.small.n_sent_bytes < 32 * MB
        assert psutil.Process().memory_info().rss - rss_before_bytes < 32 * MB
        await asyncio.sleep(0.2)  # beyond the limit that an engine's silence has
        reader, writer = await asyncio.open_connection(sock=client)
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        writer.close()
        assert said * n_events + DONE == body  # not one stall was counted against the engine


async def test_a_client_that_never_reads_is_given_up(rig, monkeypatch):
    monkeypatch.setattr("llmtier.serve.http_server._SWEEP_S", 0.02)
    limits = Limits(server=ServerLimits(stall_s=0.2))
    async with rig(limits=limits) as ground:
        ground.small.say(EVENTS, *[chunk(token("x" * 65_000))] * 1000, Step.HANG)
        client = await read_slowly(ground)
        await ground.small.left(within_s=5)
        client.close()

        assert 1 == (await ground.counts())[requests("small", "client_gone")]
