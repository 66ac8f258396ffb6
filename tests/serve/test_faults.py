"""What happens when an engine fails or a client leaves."""

import asyncio
import json
from contextlib import AsyncExitStack

import aiohttp
import openai
import pytest

from llmtier.engine.loopback import serving
from llmtier.engine.mock import mock_app, running_app, running_mock
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.serve.log import TrafficLog
from llmtier.serve.relay import Deadlines
from llmtier.serve.watch import WatchPlan
from llmtier.store.traffic import TrafficWriter, read_traffic

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


def ask(*, model="auto", **more):
    return {"model": model, "messages": [{"role": "user", "content": "x"}], **more}


async def count_requests(client, *, tier, outcome):
    async with client.get("/metrics") as page:
        lines = (await page.text()).splitlines()
    name = f'llmtier_requests_total{{outcome="{outcome}",tier="{tier}"}} '
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def is_asked(engine):
    return bool(engine.requests)


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
    engine = scripted_engine([b'{"choices":[]}'], content_type=b"application/json")
    async with serving(engine) as engine_url, running_gateway(make_state({"small": engine_url})) as url:
        headers = {"Authorization": "Bearer secret", "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4"}
        async with aiohttp.ClientSession(url) as client, client.post(CHAT, json=ask(), headers=headers) as answer:
            request_id = answer.headers["x-llmtier-request-id"]
            assert 200 == answer.status
    sent = engine.requests[0][1]

    assert request_id.encode() == sent[b"x-request-id"]
    assert not {b"authorization", b"cookie", b"x-forwarded-for"} & set(sent)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n_pieces", [0, 1])
async def test_a_client_that_leaves_cancels_the_engines_work(
    make_state, running_gateway, scripted_engine, eventually, stream, n_pieces
):
    engine = scripted_engine([TOKEN], hangs_after=n_pieces)
    async with serving(engine) as engine_url, running_gateway(make_state({"small": engine_url})) as url:
        async with aiohttp.ClientSession(url) as client:
            asking = asyncio.create_task(client.post(CHAT, json=ask(stream=stream)))
            await eventually(lambda: is_asked(engine))
            if stream and n_pieces:
                answer = await asking
                assert TOKEN == await answer.content.readany()
                answer.close()
            else:
                asking.cancel()
            async with asyncio.timeout(1.0):
                await engine.gone.wait()
        async with aiohttp.ClientSession(url) as client:
            await eventually(lambda: count_requests(client, tier="small", outcome="client_gone"))


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


EARLY_FAULTS = [
    FaultKind.REFUSE,
    FaultKind.ERROR,
    FaultKind.HANG,
    FaultKind.HEADERS_ONLY,
    FaultKind.EMPTY_BODY,
    None,  # nobody listens
]


@pytest.mark.parametrize("kind", EARLY_FAULTS)
async def test_a_failure_before_the_first_byte_goes_to_the_next_tier(make_state, running_gateway, kind):
    faults = (Fault(kind=kind),) if kind is not None else ()
    small = MockSettings(model_name="engine-small", faults=faults)
    large = MockSettings(model_name="engine-large", answers={"x": "saved"})
    async with AsyncExitStack() as dying, running_mock(large) as large_url:
        small_url = await dying.enter_async_context(running_mock(small))
        state = make_state({"small": small_url, "large": large_url}, watch=WatchPlan(health_interval_s=60))
        async with running_gateway(state) as url, aiohttp.ClientSession(url) as client:
            if kind is None:  # it dies between two health probes
                await dying.aclose()
            async with client.post(CHAT, json=ask(stream=True, max_tokens=4)) as answer:
                text = await answer.text()
            async with client.get("/metrics") as page:
                metrics = await page.text()

    assert (200, "large", "failover") == (
        answer.status,
        answer.headers["x-llmtier-tier"],
        answer.headers["x-llmtier-reason"],
    )
    assert '"saved"' in text
    assert 'llmtier_route_decisions_total{reason="failover",tier="large"} 1.0' in metrics


async def test_an_empty_or_cut_document_goes_to_the_next_tier_too(make_state, running_gateway):
    faults = (Fault(kind=FaultKind.EMPTY_BODY, on_nth_request=1), Fault(kind=FaultKind.CUT, on_nth_request=2))
    small = MockSettings(model_name="engine-small", faults=faults)
    async with (
        running_mock(small) as small_url,
        running_mock(MockSettings(model_name="engine-large")) as large_url,
        running_gateway(make_state({"small": small_url, "large": large_url})) as url,
        aiohttp.ClientSession(url) as client,
    ):
        for _ in faults:
            async with client.post(CHAT, json=ask(max_tokens=4)) as answer:
                assert (200, "large") == (answer.status, answer.headers["x-llmtier-tier"])
                assert "choices" in await answer.json()


async def test_an_engines_rate_limit_is_passed_on_with_its_delay(make_state, running_gateway):
    settings = MockSettings(model_name="engine-small", faults=(Fault(kind=FaultKind.RATE_LIMIT, delay_s=7),))
    async with (
        running_mock(settings) as engine_url,
        running_gateway(make_state({"small": engine_url})) as url,
        aiohttp.ClientSession(url) as client,
        client.post(CHAT, json=ask(max_tokens=4)) as limited,
    ):
        assert (429, "7") == (limited.status, limited.headers["Retry-After"])


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


@pytest.mark.parametrize(
    ("kind", "delay_s", "words"),
    [(FaultKind.CUT, None, "dropped the connection"), (FaultKind.STALL, None, "longer than the gateway allows")],
)
async def test_a_failure_mid_stream_is_told_inside_the_stream(make_state, running_gateway, kind, delay_s, words):
    fault = Fault(kind=kind, after_tokens=2, delay_s=delay_s)
    settings = MockSettings(model_name="engine-small", faults=(fault,), alpha_s=0.01)
    async with (
        running_mock(settings) as engine_url,
        running_gateway(make_state({"small": engine_url})) as url,
        aiohttp.ClientSession(url) as client,
    ):
        async with client.post(CHAT, json=ask(stream=True, max_tokens=8)) as answer:
            events = (await answer.read()).split(b"\n\n")
        assert 1 == await count_requests(client, tier="small", outcome="interrupted")

    error = json.loads(events[-2].removeprefix(b"data: "))["error"]
    assert (200, "upstream_interrupted") == (answer.status, error["code"])
    assert words in error["message"]
    assert b"[DONE]" not in b"".join(events)
    assert 3 == sum(b"delta" in event for event in events)  # the role and two tokens, each whole


async def test_a_stream_that_ends_early_without_a_cut_is_told_too(make_state, running_gateway, scripted_engine):
    engine = scripted_engine([TOKEN, TOKEN[:20]])
    async with (
        serving(engine) as engine_url,
        running_gateway(make_state({"small": engine_url})) as url,
        aiohttp.ClientSession(url) as client,
        client.post(CHAT, json=ask(stream=True)) as answer,
    ):
        data = await answer.read()

    assert data.startswith(TOKEN + b'data: {"error"')
    assert TOKEN[:20] + b"data:" not in data


async def test_official_client_raises_on_an_interrupted_stream(make_state, running_gateway):
    fault = Fault(kind=FaultKind.CUT, after_tokens=2)
    settings = MockSettings(model_name="engine-small", faults=(fault,))
    async with (
        running_mock(settings) as engine_url,
        running_gateway(make_state({"small": engine_url})) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(**ask(stream=True, max_tokens=8))
        with pytest.raises(openai.APIError, match="dropped the connection"):
            async for _ in stream:
                pass


async def test_an_engines_error_event_counts_as_interrupted(make_state, running_gateway):
    fault = Fault(kind=FaultKind.ERROR_CHUNK, after_tokens=1)
    settings = MockSettings(model_name="engine-small", faults=(fault,))
    async with (
        running_mock(settings) as engine_url,
        running_gateway(make_state({"small": engine_url})) as url,
        aiohttp.ClientSession(url) as client,
    ):
        async with client.post(CHAT, json=ask(stream=True, max_tokens=8)) as answer:
            assert b"EngineCore" in await answer.read()
        assert 1 == await count_requests(client, tier="small", outcome="interrupted")


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


async def test_a_slow_reader_slows_the_engine(make_state, running_gateway, scripted_engine):
    """Neither side of the gateway buffers without end: the engine's writes stall until the client reads."""
    n_pieces = 0
    piece = b"data: " + b"x" * 65_000 + b"\n\n"

    async def engine(scope, receive, send):
        nonlocal n_pieces
        if scope["path"] == "/health":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for _ in range(2000):  # 130 MB
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            n_pieces += 1
        await send({"type": "http.response.body", "body": b""})

    async with serving(engine) as engine_url, running_gateway(make_state({"small": engine_url})) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]), limit=1 << 16)
        body = json.dumps(ask(stream=True)).encode()
        writer.write(b"POST %s HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
        await reader.readline()
        seen = -1
        while seen != n_pieces:  # until nothing moves any more
            seen = n_pieces
            await asyncio.sleep(0.15)
        writer.close()

    assert 0 < seen < 1000
