"""The client against recorded bytes, broken servers and the mock engine, over real sockets."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmtier.core.errors import EngineRequestError
from llmtier.core.prompt import Message
from llmtier.engine.client import EngineClient, ServedModel
from llmtier.engine.mock import mock_app, running_app, running_mock
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings

pytestmark = pytest.mark.anyio

HELLO = (Message(role="user", content="hello"),)
FAST = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0)


def http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


@asynccontextmanager
async def asking(playback, *scripts: bytes | None):
    """Lend a server that plays the scripts and a client of it."""
    async with (
        playback(*scripts) as server,
        EngineClient(f"{server.base_url}/v1/", model_name="m", api_key="secret", timeout_s=5) as client,
    ):
        yield server, client


ANSWER = http(b'data: {"choices":[{"delta":{"content":"yes"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')


async def test_recorded_vllm_response_is_read(playback, golden: Path) -> None:
    recorded = (golden / "vllm_0.32.0_chat_stream.http").read_bytes()
    async with playback(recorded) as server, EngineClient(server.base_url, model_name="nano@bf16") as client:
        completion = await client.stream_chat(HELLO, max_tokens=8)

    assert 8 == len(completion.text) == completion.timing.n_output_tokens
    assert 6 == completion.n_input_tokens


async def test_request_carries_what_was_asked(playback) -> None:
    async with asking(playback, ANSWER) as (server, client):
        await client.stream_chat(HELLO, max_tokens=8, temperature=0.5, extra={"seed": 1, "ignore_eos": True})
    head, _, body = server.requests[0].partition(b"\r\n\r\n")

    assert b"POST /v1/chat/completions HTTP/1.1" == head.split(b"\r\n")[0]
    assert b"Authorization: Bearer secret" in head
    assert {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 1,
        "ignore_eos": True,
    } == json.loads(body)


async def test_instants_ascend_and_begin_at_the_schedule() -> None:
    scheduled_s = time.perf_counter() - 1.0
    async with running_mock(FAST) as base_url, EngineClient(base_url, model_name="mock") as client:
        completion = await client.stream_chat(HELLO, max_tokens=5, scheduled_s=scheduled_s)
    timing = completion.timing
    instants = [timing.scheduled_s, timing.sent_s, *timing.content_s, timing.done_s]

    assert scheduled_s == timing.scheduled_s
    assert sorted(instants) == instants
    assert timing.ttft_s is not None
    assert timing.ttft_s > 1.0


async def test_raw_completion_is_answered() -> None:
    async with running_mock(FAST) as base_url, EngineClient(base_url, model_name="mock") as client:
        completion = await client.stream_completion("one two", max_tokens=3)

    assert "one two one" == completion.text


async def test_models_version_and_health_are_read(playback, golden: Path) -> None:
    models = http((golden / "vllm_0.32.0_models.json").read_bytes())
    async with asking(playback, models, http(b'{"version":"0.32.0"}'), http(b"")) as (_, client):
        assert [ServedModel(name="nano@bf16", context_tokens=512)] == await client.list_models()
        assert "0.32.0" == await client.version()
        assert await client.health()


async def test_server_without_version_page_has_none(playback) -> None:
    async with asking(playback, http(b"", status="404 Not Found")) as (_, client):
        assert await client.version() is None


async def test_unexpected_document_is_refused(playback) -> None:
    async with asking(playback, http(b"<html>")) as (_, client):
        with pytest.raises(EngineRequestError, match="unexpected document"):
            await client.list_models()


async def test_nobody_listening_is_an_error_and_unhealthy(playback) -> None:
    async with playback() as server:
        base_url = server.base_url
    async with EngineClient(base_url, model_name="m") as client:
        assert not await client.health()
        with pytest.raises(EngineRequestError, match="Cannot connect") as caught:
            await client.stream_chat(HELLO, max_tokens=1)

    assert caught.value.status is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error":{"message":"no such model","type":"NotFoundError"}}', "no such model"),
        (b'{"error":"plain"}', "plain"),
        (b'{"object":"error","message":"older vLLM"}', "older vLLM"),
        (b'{"detail":"fastapi"}', "fastapi"),
        (b"<html>\n bad gateway</html>", "<html> bad gateway</html>"),
        (b"", "empty body"),
    ],
)
async def test_error_status_carries_the_server_words(playback, body: bytes, words: str) -> None:
    async with asking(playback, http(body, status="404 Not Found")) as (_, client):
        with pytest.raises(EngineRequestError, match=f"HTTP 404: {words}") as caught:
            await client.stream_chat(HELLO, max_tokens=1)

    assert 404 == caught.value.status


async def test_redirect_is_refused_so_the_key_stays_here(playback) -> None:
    redirect = http(b"", status="307 Temporary Redirect", headers="location: http://127.0.0.1:9/v1\r\n")
    async with asking(playback, redirect) as (_, client):
        with pytest.raises(EngineRequestError, match="HTTP 307"):
            await client.stream_chat(HELLO, max_tokens=1)


@pytest.mark.parametrize(
    ("kind", "words", "status"),
    [
        (FaultKind.REFUSE, "HTTP 503", 503),
        (FaultKind.RATE_LIMIT, "HTTP 429", 429),
        (FaultKind.ERROR, "HTTP 500", 500),
        (FaultKind.HANG, "no complete answer within 1 s", None),
        (FaultKind.HEADERS_ONLY, "no complete answer within 1 s", None),
        (FaultKind.STALL, "no complete answer within 1 s", None),
        (FaultKind.EMPTY_BODY, "stream cut", 200),
        (FaultKind.CUT, "stream cut after 2 chunks", 200),
        (FaultKind.MALFORMED, "malformed chunk after 2 chunks", 200),
        (FaultKind.ERROR_CHUNK, "engine error after 2 chunks: EngineCore", 200),
    ],
)
async def test_every_fault_becomes_an_error_and_the_next_request_is_fine(kind, words: str, status: int | None) -> None:
    settings = MockSettings(faults=(Fault(kind=kind, on_nth_request=1, after_tokens=2),))
    async with running_mock(settings) as base_url, EngineClient(base_url, model_name="mock", timeout_s=1.0) as client:
        with pytest.raises(EngineRequestError, match=words) as caught:
            await client.stream_chat(HELLO, max_tokens=4)
        after = await client.stream_chat(HELLO, max_tokens=4)

    assert status == caught.value.status
    assert "hello hello hello hello" == after.text


async def test_end_without_done_or_finish_reason_is_a_cut(playback) -> None:
    async with asking(playback, http(b'data: {"choices":[{"delta":{"content":"yes"}}]}\n\n')) as (_, client):
        with pytest.raises(EngineRequestError, match="stream cut: it ended after 1 chunks"):
            await client.stream_chat(HELLO, max_tokens=1)


async def test_connection_that_breaks_after_the_last_word_is_no_failure(playback) -> None:
    body = b'data: {"choices":[{"delta":{"content":"yes"},"finish_reason":"stop"}]}\n\n'
    torn = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9999\r\n\r\n" + body
    async with asking(playback, torn) as (_, client):
        assert "yes" == (await client.stream_chat(HELLO, max_tokens=1)).text


async def test_idle_connection_that_the_engine_closed_is_replaced_once(playback) -> None:
    async with asking(playback, ANSWER, None, ANSWER) as (server, client):
        await client.stream_chat(HELLO, max_tokens=1)
        completion = await client.stream_chat(HELLO, max_tokens=1)

    assert "yes" == completion.text
    assert 3 == len(server.requests)
    assert 2 == server.n_connections


async def test_fresh_connection_that_hangs_up_is_not_tried_again(playback) -> None:
    async with asking(playback, None, ANSWER) as (server, client):
        with pytest.raises(EngineRequestError, match="disconnected"):
            await client.stream_chat(HELLO, max_tokens=1)

    assert 1 == len(server.requests)


async def test_cancelling_closes_the_connection_and_frees_the_engine() -> None:
    app = mock_app(MockSettings(alpha_s=0.01))
    async with running_app(app) as base_url, EngineClient(base_url, model_name="mock") as client:
        task = asyncio.create_task(client.stream_chat(HELLO, max_tokens=1000))
        async with asyncio.timeout(20):
            await until(lambda: app.engine.n_running == 1)
            task.cancel()
            await until(lambda: app.engine.n_running == 0)

    assert task.cancelled()
    assert 1 == app.engine.counters.finished["abort"]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the engine under test tells nobody
        await asyncio.sleep(0.005)


async def test_client_outside_its_context_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await EngineClient("http://127.0.0.1:9", model_name="m").list_models()
