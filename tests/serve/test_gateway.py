"""The gateway over real sockets: mock engines behind it, the official client before it."""

import asyncio
import io
import json
import logging
from dataclasses import replace

import aiohttp
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtier.core.decision import Fallback
from llmtier.core.errors import PlanError
from llmtier.engine.loopback import serving
from llmtier.engine.mock import running_mock
from llmtier.engine.mock_settings import MockSettings
from llmtier.serve.app import build_gateway
from llmtier.serve.http_reply import Heads, ReplyChannel
from llmtier.serve.http_server import HttpRequest, Reply
from llmtier.serve.log import TrafficLog
from llmtier.serve.pool import ServedTier, TierPool
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.relay import Deadlines
from llmtier.store.traffic import TrafficWriter, read_traffic

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


def ask(text="easy question", *, model="auto", **more):
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}


@pytest.fixture
async def engines():
    small = MockSettings(model_name="engine-small", answers={"easy question": "small answer"})
    large = MockSettings(model_name="engine-large", answers={"hard question": "large answer"})
    async with running_mock(small) as small_url, running_mock(large) as large_url:
        yield {"small": small_url, "large": large_url}


@pytest.fixture
def routed(engines, make_state, make_policy, word_scorer):
    """Return a maker of states with a policy over the two mock engines."""

    def make(**changes):
        return make_state(engines, policy=make_policy("small", "large"), scorer=word_scorer, **changes)

    return make


async def test_official_client_is_routed_by_the_policy(routed, running_gateway):
    async with (
        running_gateway(routed()) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        easy = await client.chat.completions.with_raw_response.create(**ask())
        hard = await client.chat.completions.with_raw_response.create(**ask("hard question"))

        assert ("small", "cheapest_feasible") == (easy.headers["x-llmtier-tier"], easy.headers["x-llmtier-reason"])
        assert "large" == hard.headers["x-llmtier-tier"]
        assert "small answer" == easy.parse().choices[0].message.content
        assert "large answer" == hard.parse().choices[0].message.content
        assert "100.0" == easy.headers["x-llmtier-predicted-ttft-ms"]
        assert "x-llmtier-predicted-e2el-ms" in easy.headers
        assert easy.headers["x-llmtier-request-id"] != hard.headers["x-llmtier-request-id"]


@pytest.mark.parametrize("asked", [True, False])
async def test_official_client_streams_with_usage_only_when_asked(routed, running_gateway, asked):
    options = {"stream_options": {"include_usage": True}} if asked else {}
    async with (
        running_gateway(routed()) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(**ask(stream=True, **options))
        chunks = [chunk async for chunk in stream]

    assert "small answer" == "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert [2] * asked == [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert asked == any(not chunk.choices for chunk in chunks)


async def test_completions_stream_too(routed, running_gateway):
    async with (
        running_gateway(routed()) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.completions.create(model="small", prompt="easy question", stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])

    assert "small answer" == text


async def test_pin_default_and_unknown_model(make_state, engines, running_gateway):
    async with running_gateway(make_state(engines, default_tier="large")) as url, aiohttp.ClientSession(url) as client:
        async with client.post(CHAT, json=ask(model="small")) as pinned, client.post(CHAT, json=ask()) as by_default:
            assert ("small", "pinned") == (pinned.headers["x-llmtier-tier"], pinned.headers["x-llmtier-reason"])
            assert "large" == by_default.headers["x-llmtier-tier"]
        async with client.post(CHAT, json=ask(model="gpt-4o")) as unknown:
            error = (await unknown.json())["error"]

    assert 404 == unknown.status
    assert "model 'gpt-4o' is not served here; served: auto, small, large" == error["message"]
    assert ("invalid_request_error", "model", "model_not_found") == (error["type"], error["param"], error["code"])


async def test_a_default_tier_that_is_not_served_is_refused(make_state):
    with pytest.raises(PlanError, match="'tiny' is not served; served: small"):
        build_gateway(make_state({"small": "http://127.0.0.1:1"}, default_tier="tiny"))


async def test_headers_state_the_need(routed, running_gateway):
    async with running_gateway(routed()) as url, aiohttp.ClientSession(url) as client:
        async with client.post(CHAT, json=ask(), headers={"x-llmtier-accuracy": "0.93"}) as strict:
            assert "large" == strict.headers["x-llmtier-tier"]
        async with client.post(CHAT, json=ask(), headers={"x-llmtier-ttft-ms": "1"}) as too_fast:
            assert ("large", "fallback") == (too_fast.headers["x-llmtier-tier"], too_fast.headers["x-llmtier-reason"])
        async with client.post(CHAT, json=ask(), headers={"x-llmtier-ttft-ms": "soon"}) as junk:
            assert 400 == junk.status
            assert "x-llmtier-request-id" in junk.headers


async def test_rejection_names_the_misses(make_state, engines, make_policy, word_scorer, running_gateway):
    policy = make_policy("small", "large", fallback=Fallback.REJECT)
    state = make_state(engines, policy=policy, scorer=word_scorer)
    async with (
        running_gateway(state) as url,
        aiohttp.ClientSession(url) as client,
        client.post(CHAT, json=ask(), headers={"x-llmtier-e2el-ms": "1"}) as rejected,
    ):
        error = (await rejected.json())["error"]

    assert (503, "1") == (rejected.status, rejected.headers["Retry-After"])
    assert "no_feasible_tier" == error["code"]
    assert "small: e2el 0.13, needs 0.001" in error["message"]


async def test_too_long_for_every_tier_is_the_clients_fault(make_state, engines, make_profile, running_gateway):
    profile = make_profile("small", context_tokens=100)
    tier = ServedTier(name="small", base_url=engines["small"], model_name="engine-small", profile=profile)
    state = make_state({}, pool=TierPool([tier]))
    async with (
        running_gateway(state) as url,
        aiohttp.ClientSession(url) as client,
        client.post(CHAT, json={**ask(), "max_tokens": 200}) as refused,
    ):
        assert (400, "context_length_exceeded") == (refused.status, (await refused.json())["error"]["code"])


async def test_engines_own_refusal_is_passed_on(make_state, engines, running_gateway):
    async with (
        running_gateway(make_state(engines)) as url,
        aiohttp.ClientSession(url) as client,
        client.post(CHAT, json=ask(model="small", n=2, stream=True)) as refused,
    ):
        document = await refused.json()

    assert (400, "application/json") == (refused.status, refused.content_type)
    assert "n must be 1" in document["error"]["message"]


async def test_bodies_are_limited(routed, running_gateway):
    async def endless():
        for _ in range(200):
            yield b" " * 100_000

    async with running_gateway(routed()) as url, aiohttp.ClientSession(url) as client:
        async with client.post(CHAT, data=io.BytesIO(b" " * 10_000_001)) as declared:
            assert 413 == declared.status
        try:
            async with client.post(CHAT, data=endless()) as counted:
                assert 413 == counted.status
        except aiohttp.ClientError:
            pass  # the server hung up while the client was still sending, as it may


async def test_everything_else_is_refused(routed, running_gateway):
    async with running_gateway(routed()) as url, aiohttp.ClientSession(url) as client:
        for method, path, status in (
            ("GET", CHAT, 405),
            ("POST", "/v1/models", 405),
            ("POST", "/v1/audio/speech", 404),
            ("GET", "/v1/chat/completions/", 404),
            ("GET", "/", 404),
        ):
            async with client.request(method, path) as refused:
                assert status == refused.status
                assert "invalid_request_error" == (await refused.json())["error"]["type"]


async def test_models_lists_the_tiers_and_auto(routed, running_gateway):
    async with (
        running_gateway(routed()) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        names = [model.id async for model in client.models.list()]

    assert ["auto", "small", "large"] == names


async def test_ready_only_when_every_engine_has_answered(make_state, scripted_engine, running_gateway, eventually):
    engine = scripted_engine()
    engine.is_healthy = False
    async with (
        serving(engine) as engine_url,
        running_gateway(make_state({"small": engine_url})) as url,
        aiohttp.ClientSession(url) as client,
    ):
        async with client.get("/health") as health, client.get("/ready") as early:
            assert (200, 503) == (health.status, early.status)
            assert {"ready": False, "healthy": {"small": False}} == await early.json()
        engine.is_healthy = True

        async def is_ready():
            async with client.get("/ready") as late:
                return late.status == 200

        await eventually(is_ready)


async def test_metrics_count_requests_decisions_and_cost(routed, running_gateway):
    async with running_gateway(routed()) as url, aiohttp.ClientSession(url) as client:
        for body in (ask(), ask(stream=True), ask("hard question"), ask(model="none")):
            async with client.post(CHAT, json=body) as answer:
                await answer.read()
        async with client.get("/metrics") as page:
            text = await page.text()

    for line in (
        'llmtier_requests_total{outcome="ok",tier="small"} 2.0',
        'llmtier_requests_total{outcome="ok",tier="large"} 1.0',
        'llmtier_requests_total{outcome="refused",tier="none"} 1.0',
        'llmtier_route_decisions_total{reason="cheapest_feasible",tier="small"} 2.0',
        "llmtier_gateway_overhead_seconds_count 3.0",
        'llmtier_ttft_seconds_count{tier="small"} 1.0',
        'llmtier_e2el_seconds_count{tier="small"} 2.0',
        'llmtier_tier_inflight{tier="small"} 0.0',
        'llmtier_tier_healthy{tier="small"} 1.0',
        "llmtier_log_dropped_total 0.0",
        'llmtier_cost_usd_total{tier="small"} 0.04',  # 2 requests x 2 tokens x 0.01 USD
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize("log_text", [True, False])
async def test_traffic_log_has_a_row_for_each_decision(routed, running_gateway, tmp_path, log_text):
    log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail)
    async with running_gateway(routed(traffic=log, log_text=log_text)) as url, aiohttp.ClientSession(url) as client:
        for body in (ask(), ask("hard question", stream=True), {"model": "auto"}):
            async with client.post(CHAT, json=body, headers={"x-llmtier-domain": "quiz"}) as answer:
                await answer.read()
    easy, hard = read_traffic(tmp_path)

    assert ("small", "auto", "quiz", 200, False) == (easy.tier, easy.alias, easy.domain, easy.status, easy.stream)
    assert (2, 2) == (easy.n_input_tokens, easy.n_output_tokens)
    assert 0.02 == pytest.approx(easy.usd)
    assert (0.9, 0.85) == (easy.predicted_accuracy, pytest.approx(easy.need_accuracy))
    assert (None, True) == (easy.ttft_s, (easy.e2el_s or 0) > 0)
    assert "large" == hard.tier
    assert 0 < (hard.ttft_s or 0) <= (hard.e2el_s or 0)
    assert "small: accuracy 0.2, needs 0.85" in hard.misses
    expected = [{"role": "user", "content": "hard question"}] if log_text else None
    assert expected == (None if hard.messages_json is None else json.loads(hard.messages_json))


async def test_one_line_per_request_and_no_prompt_in_the_log(routed, running_gateway, caplog):
    caplog.set_level(logging.DEBUG, logger="llmtier")
    async with (
        running_gateway(routed()) as url,
        aiohttp.ClientSession(url) as client,
        client.post(CHAT, json=ask()) as answer,
    ):
        await answer.read()
    lines = [record for record in caplog.records if record.name == "llmtier.serve.record"]

    assert ["request"] == [record.getMessage() for record in lines]
    facts = vars(lines[0])
    assert ("small", "ok", 200) == (facts["tier"], facts["outcome"], facts["status"])
    assert not [record for record in caplog.records if "easy question" in str(vars(record))]


class FailingScorer:
    def probabilities(self, *_, **__):
        raise RuntimeError("a bug")


async def test_a_bug_of_ours_is_a_500_that_tells_no_secrets(make_state, engines, running_gateway, caplog, monkeypatch):
    state = make_state(engines)
    monkeypatch.setattr("llmtier.serve.planner.NeedsReader.read", FailingScorer().probabilities)
    async with running_gateway(state) as url, aiohttp.ClientSession(url) as client:
        async with client.post(CHAT, json=ask()) as failed:
            error = (await failed.json())["error"]
        async with client.get("/health") as alive:
            assert 200 == alive.status

    assert (500, "internal_error", "server_error") == (failed.status, error["code"], error["type"])
    assert "a bug" not in error["message"]
    assert "a bug" in caplog.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=80)
    | st.fixed_dictionaries(
        {},
        optional={
            name: st.sampled_from(
                ["auto", "small", None, 1, -1, [], {}, [{"role": "user", "content": "x"}], 1e30, True]
            )
            for name in ("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "n")
        },
    ).map(lambda document: json.dumps(document).encode()),
    path=st.sampled_from([CHAT, "/v1/completions"]),
    header=st.binary(max_size=10),
)
def test_no_body_and_no_header_makes_a_500(make_state, body, path, header):
    """Driven without a client's socket: a dead engine answers 502, everything else is the client's fault."""
    headers = [(b"x-llmtier-ttft-ms", header)] if header else []

    async def drive():
        gateway = build_gateway(make_state({"small": "http://127.0.0.1:1"}))
        request = HttpRequest(
            method="POST", path=path, query="", headers=headers, body=body, received_s=0.0, complete_s=0.0
        )
        reply = Reply(ReplyChannel(Heads()), request)
        async with gateway.running():
            with pytest.raises(RequestRefusedError) as refused:
                await gateway(request, reply)
        return refused.value.status

    assert asyncio.run(drive()) in {400, 404, 502, 503}


async def test_the_next_request_is_predicted_from_what_streams_now(
    make_state, make_profile, make_model, scripted_engine, running_gateway, eventually
):
    """One stream hangs after two pieces: the next request sees it decoding, and nothing once its client has left."""
    token = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
    role = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    engine = scripted_engine([role, token, token], hangs_after=3)
    profile = replace(make_profile("small"), latency=make_model())
    async with serving(engine) as engine_url:
        tier = ServedTier(name="small", base_url=engine_url, model_name="m", profile=profile)
        pool = TierPool([tier])
        state = make_state({}, pool=pool, deadlines=Deadlines(total_s=60))

        async def has(**expected):
            load = pool.states()["small"].load
            return all(value == getattr(load, name) for name, value in expected.items())

        async with running_gateway(state) as url, aiohttp.ClientSession(url) as client:
            answer = await client.post(CHAT, json=ask("x" * 400, stream=True))
            await eventually(lambda: has(n_decoding=1, n_prefilling=0, prefill_tokens=0))
            load = pool.states()["small"].load
            assert load.kv_tokens in {101, 102}  # both tokens may arrive as one piece
            assert load.step_age_s >= 0

            answer.close()
            await eventually(lambda: has(n_decoding=0, n_prefilling=0, kv_tokens=0, step_age_s=None))


async def test_the_ledger_learns_from_answers_and_not_from_failures(routed, engines, running_gateway):
    state = routed()
    async with running_gateway(state) as url, aiohttp.ClientSession(url) as client:
        for _ in range(8):
            async with client.post(CHAT, json=ask()) as answer:
                assert 200 == answer.status
        async with client.post(CHAT, json=ask(model="large", stream=True)) as answer:
            await answer.read()

    small, large = (state.pool.states()[name] for name in ("small", "large"))
    assert 2.0 == small.load.mean_output_tokens
    assert small.load.arrival_rps > 0
    assert 0.25 != small.tokens_per_character
    assert 0.25 != large.tokens_per_character
    assert (0, 0) == (small.load.n_in_flight, large.load.n_in_flight)
