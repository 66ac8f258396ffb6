"""What happens when an engine fails or a client leaves, with the mock engine; the matrix of faults is on bare sockets."""

import asyncio
import json

import aiohttp
import pytest

from llmtier.engine.loopback import serving
from llmtier.engine.mock import mock_app, running_app, running_mock
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.serve.log import TrafficLog
from llmtier.serve.relay import Deadlines
from llmtier.store.traffic import TrafficWriter, read_traffic

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


def ask(*, model="auto", **more):
    return {"model": model, "messages": [{"role": "user", "content": "x"}], **more}


async def test_stream_bytes_are_relayed_identically_however_they_are_cut(make_state, running_gateway, scripted_engine):
    stream = b": hello\n\n" + TOKEN * 3 + DONE
    engine = scripted_engine()
    async with (
        serving(engine) as engine_url,
        running_gateway(make_state({"small": engine_url})) as url,
        aiohttp.ClientSession(url) as client,
    ):
        for size in (1, 5, 1000):
            engine.pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
            async with client.post(CHAT, json=ask(stream=True)) as answer:
                assert stream == await answer.read()
                assert "text/event-stream" == answer.content_type


@pytest.mark.parametrize("asked", [True, False])
async def test_usage_chunk_reaches_only_those_who_asked(make_state, running_gateway, scripted_engine, asked):
    engine = scripted_engine([TOKEN, USAGE + DONE])
    body = ask(stream=True, **({"stream_options": {"include_usage": True}} if asked else {}))
    async with (
        serving(engine) as engine_url,
        running_gateway(make_state({"small": engine_url})) as url,
        aiohttp.ClientSession(url) as client,
        client.post(CHAT, json=body) as answer,
    ):
        assert TOKEN + (USAGE if asked else b"") + DONE == await answer.read()
    forwarded = json.loads(engine.requests[0][2])

    assert "engine-small" == forwarded["model"]
    assert {"include_usage": True} == forwarded["stream_options"]


async def test_client_headers_do_not_reach_the_engine(make_state, running_gateway, scripted_engine):
    engine = scripted_engine([b'{"choices":[{"message":{"content":"hi"}}]}'], content_type=b"application/json")
    async with serving(engine) as engine_url, running_gateway(make_state({"small": engine_url})) as url:
        headers = {"Authorization": "Bearer secret", "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4"}
        async with aiohttp.ClientSession(url) as client, client.post(CHAT, json=ask(), headers=headers) as answer:
            request_id = answer.headers["x-llmtier-request-id"]
            assert 200 == answer.status
    sent = engine.requests[0][1]

    assert request_id.encode() == sent[b"x-request-id"]
    assert not {b"authorization", b"cookie", b"x-forwarded-for"} & set(sent)


async def test_mock_engine_counts_the_abort(make_state, running_gateway, eventually):
    app = mock_app(MockSettings(model_name="engine-small", alpha_s=0.05))
    async with running_app(app) as engine_url, running_gateway(make_state({"small": engine_url})) as url:
        async with aiohttp.ClientSession(url) as client:
            answer = await client.post(CHAT, json=ask(stream=True, max_tokens=100))
            await answer.content.readany()
            answer.close()

        async def is_aborted():
            return app.engine.counters.finished["abort"]

        await eventually(is_aborted, within_s=1.0)


async def test_an_open_stream_ends_well_when_the_gateway_is_stopped(make_state, running_gateway):
    settings = MockSettings(model_name="engine-small", alpha_s=0.02)
    async with running_mock(settings) as engine_url, aiohttp.ClientSession() as client:
        async with running_gateway(make_state({"small": engine_url})) as url:
            answer = await client.post(url + CHAT, json=ask(stream=True, max_tokens=8))
            first = await answer.content.readany()
            reading = asyncio.create_task(answer.read())

        assert (first + await reading).endswith(DONE)


async def test_a_stream_that_outlasts_the_grace_is_aborted_and_recorded(
    make_state, running_gateway, scripted_engine, tmp_path
):
    engine = scripted_engine([TOKEN], hangs_after=1)
    log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail)
    async with serving(engine) as engine_url, aiohttp.ClientSession() as client:
        state = make_state({"small": engine_url}, traffic=log, deadlines=Deadlines(total_s=60))
        async with running_gateway(state) as url:
            answer = await client.post(url + CHAT, json=ask(stream=True))
            await answer.content.readany()
        rest = await answer.read()

    assert b"shutting_down" in rest
    assert b"[DONE]" not in rest
    assert ["small"] == [row.tier for row in read_traffic(tmp_path)]


async def test_fail_over_happens_once(make_state, running_gateway):
    broken = MockSettings(model_name="engine-a", faults=(Fault(kind=FaultKind.ERROR),))
    apps = {name: mock_app(MockSettings(model_name=f"engine-{name}", faults=broken.faults)) for name in "abc"}
    async with (
        running_app(apps["a"]) as a,
        running_app(apps["b"]) as b,
        running_app(apps["c"]) as c,
        running_gateway(make_state({"a": a, "b": b, "c": c})) as url,
        aiohttp.ClientSession(url) as client,
        client.post(CHAT, json=ask(max_tokens=4)) as failed,
    ):
        error = (await failed.json())["error"]

    assert (502, "upstream_error") == (failed.status, error["code"])
    assert "answered 500: scripted fault" in error["message"]
    assert 2 == sum(app.n_requests for app in apps.values())


async def test_a_pinned_tier_that_is_late_is_a_504(make_state, running_gateway):
    small = MockSettings(model_name="engine-small", faults=(Fault(kind=FaultKind.HANG),))
    async with running_mock(small) as small_url, running_mock(MockSettings(model_name="engine-large")) as large_url:
        state = make_state({"small": small_url, "large": large_url})
        async with (
            running_gateway(state) as url,
            aiohttp.ClientSession(url) as client,
            client.post(CHAT, json=ask(model="small", stream=True, max_tokens=4)) as late,
        ):
            assert (504, "upstream_timeout") == (late.status, (await late.json())["error"]["code"])


async def test_a_dead_tier_is_avoided_and_comes_back(make_state, running_gateway, scripted_engine, eventually):
    engine = scripted_engine([b"{}"], content_type=b"application/json")
    async with serving(engine) as small_url, running_mock(MockSettings(model_name="engine-large")) as large_url:
        state = make_state({"small": small_url, "large": large_url})
        async with running_gateway(state) as url, aiohttp.ClientSession(url) as client:

            async def is_served_by(tier):
                async with client.post(CHAT, json=ask(max_tokens=1)) as answer:
                    assert "cheapest_feasible" == answer.headers["x-llmtier-reason"]
                    return answer.headers["x-llmtier-tier"] == tier

            engine.is_healthy = False
            await eventually(lambda: is_served_by("large"))
            engine.is_healthy = True
            await eventually(lambda: is_served_by("small"))
