"""The load client and its decoder against recorded bytes, broken servers and the mock engine, over real sockets."""

import asyncio
import time
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtier.core.errors import ConfigError
from llmtier.engine.exchange import decode_exchange
from llmtier.engine.load_client import LoadClient
from llmtier.engine.load_connection import HAS_KERNEL_STAMPS, Exchange
from llmtier.engine.mock import mock_app, running_app, running_mock
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.engine.pacer import Pacer
from llmtier.engine.stream import StreamedAnswer

CHAT = "/v1/chat/completions"
FAST = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0)


def http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


ANSWER = http(b'data: {"choices":[{"delta":{"content":"yes"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')


def body_of(n_tokens=5, text="one two three", **more):
    fields = {"model": "mock", "messages": [{"role": "user", "content": text}], "max_tokens": n_tokens}
    return msgspec.json.encode({**fields, "stream": True, "stream_options": {"include_usage": True}, **more})


@pytest.fixture(autouse=True, params=["kernel's stamps", "the loop's transports"])
def way(request, monkeypatch):
    """Every test holds for both ways that bytes come."""
    if request.param != "kernel's stamps":
        monkeypatch.setattr("llmtier.engine.load_client.HAS_KERNEL_STAMPS", False)
    elif not HAS_KERNEL_STAMPS:
        pytest.skip("this system's sockets carry no stamps")


@asynccontextmanager
async def asking(playback, *scripts, **options):
    async with playback(*scripts) as server, LoadClient(server.base_url, **{"timeout_s": 5, **options}) as client:
        yield server, client


async def ask(client, **options):
    return decode_exchange(await client.send(body_of(**options), path=CHAT))


@pytest.mark.anyio
async def test_recorded_vllm_response_is_read(playback, golden):
    async with asking(playback, (golden / "vllm_0.32.0_chat_stream.http").read_bytes()) as (_, client):
        answer = await ask(client)

    assert answer.failure is None
    assert 8 == len(answer.completion.text) == answer.completion.timing.n_output_tokens
    assert 6 == answer.completion.n_input_tokens


@pytest.mark.anyio
async def test_request_carries_key_host_and_body(playback):
    async with asking(playback, ANSWER, api_key="secret") as (server, client):
        await ask(client)
    head, _, body = server.requests[0].partition(b"\r\n\r\n")

    assert b"POST /v1/chat/completions HTTP/1.1" == head.split(b"\r\n")[0]
    assert b"Authorization: Bearer secret" in head
    assert f"Host: {server.base_url.removeprefix('http://')}".encode() in head
    assert body_of() == body


@pytest.mark.anyio
async def test_instants_are_in_order_and_tokens_counted():
    async with running_mock(FAST) as url, LoadClient(url) as client:
        answer = await ask(client, n_tokens=4)
    timing = answer.completion.timing

    assert 4 == len(timing.content_s) == timing.n_output_tokens
    assert timing.scheduled_s <= timing.sent_s <= timing.content_s[0] <= timing.content_s[-1] <= timing.done_s
    assert 3 == answer.completion.n_input_tokens


@pytest.mark.anyio
async def test_one_connection_serves_one_request_after_another():
    app = mock_app(FAST)
    async with running_app(app) as url, LoadClient(url) as client:
        await client.prepare(1)
        for _ in range(3):
            assert (await ask(client)).failure is None

        assert 3 == app.n_requests
        assert 1 == len(client._open)


@pytest.mark.anyio
async def test_idle_connection_that_the_engine_closed_is_replaced_unseen(playback):
    async with asking(playback, ANSWER, None, ANSWER) as (_, client):
        assert (await ask(client)).failure is None
        assert (await ask(client)).failure is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FaultKind.REFUSE, "HTTP 503: scripted fault"),
        (FaultKind.RATE_LIMIT, "HTTP 429: scripted fault"),
        (FaultKind.ERROR, "HTTP 500: scripted fault"),
        (FaultKind.CUT, "stream cut after 2 chunks"),
        (FaultKind.MALFORMED, "malformed chunk after 2 chunks"),
        (FaultKind.ERROR_CHUNK, "engine error after 2 chunks"),
        (FaultKind.EMPTY_BODY, "it ended after 0 chunks"),
        (FaultKind.HANG, "no complete answer within 0.2 s"),
        (FaultKind.HEADERS_ONLY, "no complete answer within 0.2 s"),
        (FaultKind.STALL, "stream cut after 2 chunks: no complete answer within 0.2 s"),
    ],
)
async def test_faults_become_failures_with_their_reason(kind, expected):
    scripted = MockSettings(alpha_s=0.0, sequence_s=0.0, faults=(Fault(kind=kind, after_tokens=2),))
    async with running_mock(scripted) as url, LoadClient(url, timeout_s=0.2) as client:
        answer = await ask(client)

    assert answer.failure is not None
    assert expected in answer.failure
    assert expected in str(answer.error)


@pytest.mark.anyio
async def test_nobody_listening_is_a_failure_not_an_exception():
    async with LoadClient("http://127.0.0.1:9", timeout_s=2) as client:
        answer = await ask(client)

    assert answer.failure is not None
    assert "127.0.0.1:9" in answer.failure


@pytest.mark.anyio
async def test_bytes_that_are_no_http_are_a_failure(playback):
    async with asking(playback, b"SSH-2.0-OpenSSH_9.6\r\n") as (_, client):
        assert "no HTTP response" in ((await ask(client)).failure or "")


@pytest.mark.anyio
async def test_long_request_is_sent_whole():
    app = mock_app(MockSettings(alpha_s=0.0, context_tokens=10_000_000))
    async with running_app(app) as url, LoadClient(url, timeout_s=15) as client:
        answer = await ask(client, text=" word" * 1_000_000, n_tokens=2)

    assert (None, 1_000_000) == (answer.failure, answer.completion.n_input_tokens)


@pytest.mark.anyio
async def test_many_streams_at_once_are_all_read():
    async with running_mock(MockSettings(alpha_s=0.001)) as url, LoadClient(url) as client:
        await client.prepare(20)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(client, n_tokens=10)) for _ in range(20)]

    assert [10] * 20 == [len(task.result().completion.timing.content_s) for task in tasks]


@pytest.mark.anyio
async def test_cancelled_request_is_aborted_in_the_engine():
    app = mock_app(MockSettings(alpha_s=0.01))
    async with running_app(app) as url, LoadClient(url) as client:
        task = asyncio.create_task(client.send(body_of(n_tokens=1000), path=CHAT))
        while app.engine.n_running == 0:  # noqa: ASYNC110 - the mock tells nobody
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while app.engine.n_running:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)

    assert 1 == app.engine.counters.finished["abort"]


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="is no address"):
        LoadClient("localhost:8000")


@pytest.mark.anyio
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
async def test_streams_of_any_newline_and_comments_are_read(playback, newline):
    lines = [": ping", 'data: {"choices":[{"delta":{"content":"a"}}]}', "", "event: x", "data: [DONE]", "", ""]
    async with asking(playback, http(newline.join(lines).encode())) as (_, client):
        answer = await ask(client)

    assert (None, "a") == (answer.failure, answer.completion.text)


EVENTS = (
    b"".join(b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number for number in range(6))
    + b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":6}}\n\ndata: [DONE]\n\n'
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 40), max_size=30), st.booleans())
def test_answer_does_not_depend_on_how_the_bytes_were_cut(sizes, is_chunked):
    """Cut anywhere, chunked or not: the same text and counts as the whole parser gives."""
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENTS), EVENTS)
    head = b"HTTP/1.1 200 OK\r\n" + (
        b"transfer-encoding: chunked\r\n\r\n" if is_chunked else b"content-length: %d\r\n\r\n" % len(EVENTS)
    )
    whole = head + (framed if is_chunked else EVENTS)
    pieces = []
    for size in [*sizes, len(whole)]:
        pieces.append(whole[:size])
        whole = whole[size:]
    pieces = [piece for piece in pieces if piece]
    exchange = Exchange(scheduled_s=0.0, sent_s=0.0, done_s=99.0, status=200, pieces=pieces)
    exchange.arrived_s = [float(number) for number in range(len(pieces))]
    reference = StreamedAnswer()
    reference.take(EVENTS, 0.0)

    answer = decode_exchange(exchange)

    assert (None, "012345") == (answer.failure, answer.completion.text)
    assert (6, 3) == (answer.completion.timing.n_output_tokens, answer.completion.n_input_tokens)
    assert reference.n_chunks == len(answer.completion.timing.content_s)
    assert list(answer.completion.timing.content_s) == sorted(answer.completion.timing.content_s)


@pytest.mark.anyio
async def test_pacer_never_wakes_early_and_passes_what_is_past():
    with Pacer() as pacer:
        for delay_s in (0.0, 0.0005, 0.01, -1.0):
            instant_s = time.perf_counter() + delay_s
            await pacer.until(instant_s)

            assert time.perf_counter() >= instant_s


@pytest.mark.anyio
async def test_pacer_without_a_kernel_timer_waits_too(monkeypatch):
    monkeypatch.setattr("llmtier.engine.pacer.sys.platform", "darwin")
    with Pacer() as pacer:
        instant_s = time.perf_counter() + 0.005
        await pacer.until(instant_s)

    assert time.perf_counter() >= instant_s - 0.001  # the loop's own timer may round down
