"""A stream of the real vLLM that is killed in the middle is carried on by another one of the same model."""

import asyncio
import json
import os
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import psutil
import pytest

from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.engine.launch import EngineSpec, running_engine
from llmtier.engine.sse import SseParser
from llmtier.serve.metrics import Metrics
from llmtier.serve.pool import ServedTier, TierPool
from llmtier.serve.relay import Deadlines
from llmtier.serve.resume import Origin, ResumeMode
from llmtier.serve.run import serve_forever
from llmtier.serve.state import AppState
from llmtier.serve.watch import WatchPlan

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600), pytest.mark.anyio]

MINI = Path(__file__).parents[2] / "examples" / "demo" / "models" / "mini"
CONTEXT_TOKENS = 2048
ARGS = {
    "max_model_len": CONTEXT_TOKENS,
    "enforce_eager": True,
    "hf_overrides": {"max_position_embeddings": CONTEXT_TOKENS},
}
N_TOKENS = 600
CHAT = "/v1/chat/completions"
SITE = Origin(engine_kind="vllm", engine_version="0.32.0", checkpoint_digest="d" * 64)


def ask(**more):
    body = {"model": "first", "messages": [{"role": "user", "content": "What is 2 + 2?"}], "max_tokens": N_TOKENS}
    return {**body, "temperature": 0, "ignore_eos": True, "stream": True, **more}


def text_of(body):
    """Return the text of a stream that must be whole and of one piece."""
    events = [one.data for one in SseParser().feed(body)]
    chunks = [json.loads(data) for data in events[:-1]]
    assert "[DONE]" == events[-1], events[-1]
    assert 1 == len({(one["id"], one["created"], one["model"]) for one in chunks})
    assert not any(choice.get("token_ids") for one in chunks for choice in one["choices"])
    assert b'prompt_token_ids":[' not in body
    return "".join(choice["delta"].get("content") or "" for one in chunks for choice in one["choices"])


def kill(engine):
    """Kill the engine and all its children at once."""
    leader = psutil.Process(engine.pid)
    for process in [*leader.children(recursive=True), leader]:
        process.kill()


async def test_a_killed_engines_stream_is_carried_on_by_its_like(tmp_path):
    environment = find_environment(EnvironmentName.ENGINE_CPU, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install engine-cpu'")

    def engine(name):
        spec = EngineSpec(tier=name, model_path=str(MINI), python=environment.python, args=ARGS)
        return running_engine(spec, log_path=tmp_path / f"{name}.log")

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(engine("first"))
        second = await stack.enter_async_context(engine("second"))
        tiers = [
            ServedTier(name=name, base_url=one.base_url, model_name=one.model_name, origin=SITE)
            for name, one in (("first", first), ("second", second))
        ]
        pool = TierPool(tiers)
        state = AppState(
            pool=pool,
            metrics=Metrics(pool),
            default_tier="first",
            resume=ResumeMode.IDS,
            deadlines=Deadlines(first_byte_s=30, stall_s=10, total_s=100),
            watch=WatchPlan(health_interval_s=60, metrics_interval_s=60),
        )
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        group = await stack.enter_async_context(asyncio.TaskGroup())
        serving = serve_forever(state, host="127.0.0.1", port=0, grace_s=1, on_ready=ready.set_result, stop=stop)
        group.create_task(serving)
        stack.callback(stop.set)
        client = await stack.enter_async_context(aiohttp.ClientSession(await ready))
        async with client.post(CHAT, json=ask()) as answer:
            uncut = text_of(await answer.read())
        async with client.post(CHAT, json=ask()) as answer:
            body = b"".join([await answer.content.readuntil(b"\n\n") for _ in range(40)])
            kill(first)
            body += await answer.read()
        async with client.get("/metrics") as page:
            counts = await page.text()

        assert uncut == text_of(body)
        assert 'llmtier_resumes_total{reason="ids",result="done"} 1.0' in counts
        assert 'llmtier_requests_total{outcome="ok",tier="first"} 2.0' in counts
