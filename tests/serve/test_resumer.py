"""Streams that break are carried on by another engine, or by their own: seen from the client's side of the gateway."""

import asyncio
import contextlib
import importlib.util
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import aiohttp
import openai
import pytest

from llmtier.engine.sse import SseParser
from llmtier.serve.pool import ServedTier, TierPool
from llmtier.serve.relay import Deadlines
from llmtier.serve.resume import Origin, ResumeMode
from llmtier.serve.retry import RetryBudget
from llmtier.serve.wire import Endpoint
from tests.serve.greedy_server import GreedyServer
from tests.serve.scripted_server import (
    CHAT,
    DONE,
    END,
    EVENTS,
    SELDOM,
    Rig,
    Step,
    chunk,
    event,
    in_flight,
    requests,
    token,
    whole,
)

pytestmark = pytest.mark.anyio

WORDS = ["word0", *(f" word{number}" for number in range(1, 80))]
VLLM = Origin(engine_kind="vllm", engine_version="0.32.0", checkpoint_digest="d" * 64)
PATIENT = Deadlines(connect_s=0.3, first_byte_s=5, stall_s=5, total_s=10)


@pytest.fixture
def anyio_backend():
    """Run on the loop that the gateway runs on."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


@pytest.fixture(autouse=True)
def brisk_tries(monkeypatch):
    monkeypatch.setattr("llmtier.serve.resumer.RETRY_S", 0.02)


def ask(**more):
    body = {"model": "first", "messages": [{"role": "user", "content": "x"}], "max_tokens": 100, "temperature": 0}
    return {**body, "stream": True, **more}


def resumes(result, reason):
    return f'llmtier_resumes_total{{reason="{reason}",result="{result}"}}'


@asynccontextmanager
async def running(server):
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture
def rig(make_state, running_gateway):
    """Return what runs a gateway before engines that generate ``WORDS``; requests go to the first."""

    @asynccontextmanager
    async def run(*, mode=ResumeMode.IDS, sites=(VLLM, VLLM), deadlines=PATIENT, is_one_tier=False):
        async with AsyncExitStack() as stack:
            names = ("first", "second")[: len(sites)]
            engines = {name: await stack.enter_async_context(running(GreedyServer(WORDS, name=name))) for name in names}
            tiers = [
                ServedTier(name=name, base_url=engines[name].url, model_name=f"engine-{name}", origin=site)
                for name, site in zip(names, sites, strict=True)
            ]
            if is_one_tier:
                tiers = [replace(tiers[0], more_urls=tuple(tier.base_url for tier in tiers[1:]))]
            state = make_state({}, pool=TierPool(tiers), resume=mode, deadlines=deadlines, watch=SELDOM)
            url = await stack.enter_async_context(running_gateway(state))
            client = await stack.enter_async_context(aiohttp.ClientSession(url))
            engines["small"] = engines["first"]
            yield Rig(engines, url, client, state)

    return run


async def read(ground, *, n_sent, endpoint=CHAT, refuses=False, **more):
    """Ask; let the first engine break once ``n_sent`` events are here, and perhaps stop listening; return the body."""
    first = ground.engines["first"]
    async with asyncio.timeout(10), ground.client.post(endpoint, json=ask(**more)) as answer:
        body = b""
        while body.count(b"\n\n") < n_sent:
            body += await answer.content.readuntil(b"\n\n")
        if refuses:
            await shut(first)
        first.go.set()
        return body + await answer.read()


async def shut(server):
    """Have a server refuse connections; the loop takes its time to close the listener."""
    server.refuse()
    port = int(server.url.rsplit(":", 1)[1])
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()


def understand(body):
    """Return what a client makes of a stream."""
    events = [one.data for one in SseParser().feed(body)]
    chunks = [json.loads(data) for data in events if data != "[DONE]"]
    choices = [choice for one in chunks for choice in one.get("choices", [])]
    deltas = [choice.get("delta", {}) for choice in choices]
    texts = [c.get("text") or d.get("content") or "" for c, d in zip(choices, deltas, strict=True)]
    return {
        "text": "".join(texts),
        "frames": {(one.get("id"), one.get("created"), one.get("model")) for one in chunks},
        "finish": [choice["finish_reason"] for choice in choices if choice.get("finish_reason")],
        "n_roles": sum("role" in delta for delta in deltas),
        "usage": [one["usage"]["completion_tokens"] for one in chunks if one.get("usage")],
        "n_done": events.count("[DONE]"),
        "end": events[-1],
        "ids": [choice["token_ids"] for choice in choices if choice.get("token_ids")],
    }


FAULTS = {"FIN": [Step.CLOSE], "RST": [Step.RESET], "half an event": [chunk(b"data: {"), Step.CLOSE], "the end": [END]}


@pytest.mark.parametrize("mode", ResumeMode)
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
@pytest.mark.parametrize("n_sent", [2, 3, 40, 79])  # the first is the role, which waits for a text
async def test_the_client_reads_one_whole_stream_wherever_it_broke(rig, mode, endpoint, n_sent):
    fields = {"messages": None, "prompt": "P:"} if endpoint is Endpoint.COMPLETIONS else {}
    fields["stream_options"] = {"include_usage": True}
    async with rig(mode=mode) as ground:
        uncut = understand(await read(ground, n_sent=1, endpoint=endpoint, **fields))
        first = ground.engines["first"]
        first.cut_after, first.faults = n_sent, [Step.CLOSE]
        found = understand(await read(ground, n_sent=n_sent, endpoint=endpoint, **fields))
        counts = await ground.counts()

        assert {**uncut, "frames": {("first-2", 2, "first")}} == found
        assert ("".join(WORDS), 1, []) == (found["text"], found["n_done"], found["ids"])
        assert (2, 0) == (counts[requests("first", "ok")], counts[in_flight("second")])
        assert 1 == sum(value for name, value in counts.items() if name.startswith("llmtier_resumes_total"))
        assert 1 == len(ground.engines["second"].requests)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_any_kind_of_break_is_carried_on(rig, fault):
    async with rig() as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, fault

        assert "".join(WORDS) == understand(await read(ground, n_sent=5))["text"]
        assert 1 == (await ground.counts())[resumes("done", "ids")]


async def test_a_stall_is_carried_on_elsewhere(rig):
    async with rig(deadlines=replace(PATIENT, stall_s=0.2)) as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, [Step.HANG]

        assert "".join(WORDS) == understand(await read(ground, n_sent=5))["text"]
        await first.left()


ERROR = chunk(event({"error": {"message": "EngineCore encountered an issue", "code": 500}}))


@pytest.mark.parametrize("said", [[ERROR, chunk(DONE), END], [ERROR, END]])
async def test_an_error_of_the_engine_is_withheld_and_the_stream_carried_on(rig, said):
    async with rig() as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, said
        body = await read(ground, n_sent=5)

        assert "".join(WORDS) == understand(body)["text"]
        assert b"EngineCore" not in body


async def test_an_error_of_the_engine_is_passed_on_where_nobody_carries_on(rig):
    async with rig(sites=(VLLM,)) as ground:
        ground.small.say(EVENTS, chunk(token("a")), ERROR, chunk(DONE), END)
        body = await read(ground, n_sent=1, logit_bias={}, n=2)

        assert body.endswith(event({"error": {"message": "EngineCore encountered an issue", "code": 500}}) + DONE)
        assert 1 == (await ground.counts())[requests("first", "interrupted")]


async def test_the_official_client_sees_nothing(rig):
    async with (
        rig() as ground,
        openai.AsyncOpenAI(base_url=f"{ground.url}/v1", api_key="none", max_retries=0) as client,
    ):
        first = ground.engines["first"]
        first.cut_after, first.faults = 9, [Step.RESET]
        stream = await client.chat.completions.create(**ask())
        texts = []
        async for piece in stream:
            texts.append(piece.choices[0].delta.content or "")
            if len(texts) == 9:
                first.go.set()

        assert "".join(WORDS) == "".join(texts)


@pytest.fixture
def tries(monkeypatch):
    """Count the tries to connect that were in vain."""
    counted = asyncio.Semaphore(0)

    async def sleep(_):
        counted.release()
        await asyncio.sleep(0.01)

    monkeypatch.setattr("llmtier.serve.resumer.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    return counted


async def test_the_engine_itself_carries_on_once_it_is_back(rig, tries):
    """Its connection is refused at first, and nobody else serves the model."""
    async with rig(sites=(VLLM,)) as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        reading = asyncio.create_task(read(ground, n_sent=5, refuses=True))
        async with asyncio.timeout(10):
            for _ in range(3):
                await tries.acquire()
        first.cut_after = None
        await first.start()

        assert "".join(WORDS) == understand(await reading)["text"]
        assert 2 == len(first.requests)


async def test_an_engine_that_stays_away_is_told_at_the_deadline(rig, tries):
    async with rig(sites=(VLLM,), deadlines=replace(PATIENT, total_s=0.4)) as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        reading = asyncio.create_task(read(ground, n_sent=5, refuses=True))
        end = understand(await reading)

        assert ("upstream_interrupted", 0) == (json.loads(end["end"])["error"]["code"], end["n_done"])
        assert 1 == (await ground.counts())[resumes("failed", "no_engine")]


async def test_a_client_that_leaves_ends_the_waiting(rig, tries, eventually):
    async with rig(sites=(VLLM,)) as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        async with ground.client.post(CHAT, json=ask()) as answer:
            for _ in range(5):
                await answer.content.readuntil(b"\n\n")
            await shut(first)
            first.go.set()
            await tries.acquire()
            answer.close()

        async def is_counted():
            return requests("first", "client_gone") in await ground.counts()

        await eventually(is_counted)
        assert 0 == (await ground.counts())[in_flight("first")]


async def test_a_client_that_leaves_later_ends_the_second_engines_work(rig, eventually):
    async with rig() as ground:
        first, second = ground.engines["first"], ground.engines["second"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        second.cut_after, second.faults = 2, [Step.HANG]
        second.go.set()
        async with ground.client.post(CHAT, json=ask()) as answer:
            for _ in range(5):
                await answer.content.readuntil(b"\n\n")
            first.go.set()
            await answer.content.readuntil(b"\n\n")
            answer.close()
        await second.left()

        async def is_counted():
            return requests("first", "client_gone") in await ground.counts()

        await eventually(is_counted)
        counts = await ground.counts()
        assert (0, 0) == (counts[in_flight("first")], counts[in_flight("second")])


REFUSED = {
    "several_answers": {"n": 2},
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "logprobs": {"logprobs": True},
    "grammar": {"response_format": {"type": "json_object"}},
    "stop": {"stop": "word4 word5"},
    "field": {"unknown": 1},
}


@pytest.mark.parametrize(("reason", "fields"), REFUSED.items(), ids=REFUSED)
async def test_what_cannot_be_carried_on_ends_with_the_error_event(rig, reason, fields):
    async with rig() as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 6, [Step.CLOSE]
        end = understand(await read(ground, n_sent=6, **fields))
        counts = await ground.counts()

        assert ("upstream_interrupted", 0) == (json.loads(end["end"])["error"]["code"], end["n_done"])
        assert (1, 1) == (counts[resumes("refused", reason)], counts[requests("first", "interrupted")])
        assert [] == ground.engines["second"].requests


SECOND = {
    "breaks too": ((3, [Step.CLOSE]), None, ("failed", "broken")),
    "sends an error": ((3, [ERROR, chunk(DONE), END]), None, ("failed", "differs")),
    "ends too soon": ((3, [END]), None, ("failed", "broken")),
    "answers 500": (None, [whole(500)], ("failed", "engine")),
    "answers 400": (None, [whole(400)], ("failed", "engine")),
    "streams nothing": (None, [Step.CLOSE], ("failed", "engine")),
    "sends what is no chunk": (None, [EVENTS, chunk(b"data: no\n\n"), Step.HANG], ("failed", "differs")),
}


@pytest.mark.parametrize(("cut", "script", "counted"), SECOND.values(), ids=SECOND)
async def test_a_second_engine_that_fails_too_is_told_once(rig, cut, script, counted):
    async with rig() as ground:
        first, second = ground.engines["first"], ground.engines["second"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        second.go.set()
        if script is None:
            second.cut_after, second.faults = cut
        else:
            second.say(*script, path=Endpoint.COMPLETIONS.value)
        body = await read(ground, n_sent=5)
        counts = await ground.counts()

        assert (1, 0) == (body.count(b"upstream_interrupted"), body.count(b"[DONE]"))
        assert "".join(WORDS).startswith(understand(body)["text"])
        assert (1, 1) == (counts[resumes(*counted)], counts[requests("first", "interrupted")])
        assert (0, 0) == (counts[in_flight("first")], counts[in_flight("second")])
        assert (1, 1) == (len(first.requests), len(second.requests))


async def test_text_that_differs_before_the_cut_is_not_joined(rig):
    """Few tokens without ids are generated again; the second engine has other ones."""
    async with rig(mode=ResumeMode.TEXT) as ground:
        first, second = ground.engines["first"], ground.engines["second"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        second.tokens = [*WORDS[:2], " other", *WORDS[3:]]
        body = await read(ground, n_sent=5)

        assert "".join(WORDS[:4]) == understand(body)["text"]
        assert 1 == (await ground.counts())[resumes("failed", "differs")]


OTHERS = {
    "another quantization": replace(VLLM, checkpoint_digest="e" * 64),
    "another version": replace(VLLM, engine_version="0.33.0"),
    "another KV cache": replace(VLLM, engine_flags=("--kv-cache-dtype=fp8",)),
    "a URL": Origin(engine_kind="openai", engine_version="0.32.0", checkpoint_digest=None),
    "unknown": None,
}


@pytest.mark.parametrize("site", OTHERS.values(), ids=OTHERS)
async def test_another_model_never_carries_on(rig, site):
    async with rig(sites=(VLLM, site), deadlines=replace(PATIENT, stall_s=0.2)) as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, [Step.HANG]
        body = await read(ground, n_sent=5)

        assert body.count(b"upstream_interrupted") == 1
        assert [] == ground.engines["second"].requests
        assert 1 == (await ground.counts())[resumes("failed", "no_engine")]


@pytest.mark.parametrize("version", ["0.32.0", None])
async def test_an_engine_behind_a_url_carries_its_own_streams_on_where_that_is_exact(rig, version):
    site = Origin(engine_kind="openai", engine_version=version, checkpoint_digest=None)
    async with rig(sites=(site,)) as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 70, [Step.CLOSE]
        first.cuts_once = True
        body = await read(ground, n_sent=70)
        counts = await ground.counts()

        assert (version is not None) == ("return_token_ids" in json.loads(first.requests[0][1]))
        if version is None:
            assert 1 == counts[resumes("refused", "inexact")]
        else:
            assert "".join(WORDS) == understand(body)["text"]


async def test_second_tries_beyond_the_budget_are_not_made(rig, monkeypatch):
    monkeypatch.setattr("llmtier.serve.guard.RetryBudget", partial(RetryBudget, share=0.01, burst=1))
    async with rig() as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        bodies = [await read(ground, n_sent=5) for _ in range(2)]

        assert [False, True] == [b"upstream_interrupted" in body for body in bodies]
        assert 1 == (await ground.counts())[resumes("failed", "budget")]
        assert 1 == len(ground.engines["second"].requests)


async def test_breaks_count_against_their_engine_all_the_same(rig):
    async with rig() as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        for _ in range(5):
            await read(ground, n_sent=5)
        counts = await ground.counts()

        states = [counts[f'llmtier_breaker_state{{tier="{tier}"}}'] for tier in ("first", "second")]
        assert ([2, 0], 5) == (states, counts[requests("first", "ok")])


async def test_more_than_the_log_keeps_is_not_carried_on(rig, monkeypatch):
    monkeypatch.setattr("llmtier.serve.resume_relay.LIMIT_BYTES", 500)
    async with rig() as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 9, [Step.CLOSE]
        await read(ground, n_sent=9)

        assert 1 == (await ground.counts())[resumes("refused", "too_long")]


async def test_token_ids_that_the_client_did_not_want_stay_here(rig):
    async with rig() as ground:
        body = await read(ground, n_sent=1)
        plain = ground.engines["first"].generate(ask(), is_chat=True)

        assert True is json.loads(ground.engines["first"].requests[0][1])["return_token_ids"]
        assert b"".join(plain) == body.replace(b":null", b": null")


async def test_the_line_says_how(rig, caplog):
    caplog.set_level("INFO", logger="llmtier.serve.record")
    async with rig() as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        await read(ground, n_sent=5)
        (line,) = [record for record in caplog.records if record.message == "request"]

        assert ("ids", "ok", 2, len(WORDS)) == (line.resumed, line.outcome, line.n_attempts, line.n_output_tokens)


async def test_off_keeps_nothing_and_adds_nothing(rig, monkeypatch):
    monkeypatch.setattr("llmtier.serve.attempt.KeptRelay.__init__", None)
    monkeypatch.setattr("llmtier.serve.attempt.Resumer.__init__", None)
    async with rig(mode=None) as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 5, [Step.CLOSE]
        body = await read(ground, n_sent=5)

        assert b"upstream_interrupted" in body
        assert "return_token_ids" not in json.loads(first.requests[0][1])


async def test_another_engine_of_the_tier_carries_on_behind_urls_too(rig):
    site = Origin(engine_kind="openai", engine_version="0.32.0", checkpoint_digest=None)
    async with rig(sites=(site, site), is_one_tier=True) as ground:
        first = ground.engines["first"]
        first.cut_after, first.faults = 70, [Step.CLOSE]
        body = await read(ground, n_sent=70)
        counts = await ground.counts()

        assert "".join(WORDS) == understand(body)["text"]
        assert 1 == counts[resumes("done", "ids")]
        assert [1, 1] == [len(ground.engines[name].requests) for name in ("first", "second")]
        assert 0 == counts[in_flight("first")]
