"""A stream of the real vLLM that is cut anywhere goes on as it would have, by each recipe."""

import json
import os
import random
from collections import Counter
from pathlib import Path

import aiohttp
import msgspec
import pytest

from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.engine.launch import EngineSpec, running_engine
from llmtier.engine.sse import SseParser
from llmtier.serve.resume import Recipe, ResumeAsk, ResumePlan, plan
from llmtier.serve.resume_log import ResumeLog
from llmtier.serve.wire import Endpoint

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300), pytest.mark.anyio]

NANO = Path(__file__).parents[2] / "examples" / "demo" / "models" / "nano"
N_CUTS = 12
QUESTION = "As JSON: Paul (Helsinki) ordered 70"
MAX_TOKENS = 40


@pytest.fixture
def spec():
    environment = find_environment(EnvironmentName.ENGINE_CPU, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install engine-cpu'")
    args = {"max_model_len": 256, "enforce_eager": True}
    return EngineSpec(tier="nano@bf16", model_path=str(NANO), python=environment.python, args=args)


def make_request(endpoint, recipe):
    prompt = {"messages": [{"role": "user", "content": QUESTION}]}
    if endpoint is Endpoint.COMPLETIONS:
        prompt = {"prompt": f"<|bos|><|user|>{QUESTION}<|assistant|>"}
    request = {"stream": True, "temperature": 0, "max_tokens": MAX_TOKENS, **prompt}
    raw = msgspec.json.decode(json.dumps({"model": "auto", **request}), type=dict[str, msgspec.Raw])
    ask = ResumeAsk(
        endpoint=endpoint,
        fields=raw,
        max_tokens=MAX_TOKENS,
        wants_usage=True,
        max_repeated_tokens=MAX_TOKENS if recipe is Recipe.REPEAT else 0,
    )
    asked = {"stream_options": {"include_usage": True}, "return_token_ids": recipe is Recipe.IDS}
    return ask, json.dumps({**request, **asked, "model": "nano@bf16"}).encode()


def read(stream):
    """Return text, finish reasons, usage, roles and frames."""
    events = [event.data for event in SseParser().feed(stream)]
    chunks = [json.loads(data) for data in events if data != "[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    deltas = [choice.get("delta", {}) for choice in choices]
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return {
        "text": "".join(
            choice.get("text") or delta.get("content") or "" for choice, delta in zip(choices, deltas, strict=True)
        ),
        "finish": [choice["finish_reason"] for choice in choices if choice.get("finish_reason")],
        "usage": [(one["prompt_tokens"], one["completion_tokens"], one["total_tokens"]) for one in usage],
        "n_roles": sum("role" in delta for delta in deltas),
        "n_frames": len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}),
        "end": events[-1],
        "n_done": events.count("[DONE]"),
    }


async def post(session, url, body):
    async with session.post(url, data=body, headers={"content-type": "application/json"}) as answer:
        data = await answer.read()

    assert 200 == answer.status, data
    return data


async def test_stream_that_was_cut_anywhere_ends_as_the_uncut_one(spec, tmp_path):
    rng = random.Random(0)
    planned = Counter()
    async with running_engine(spec, log_path=tmp_path / "engine.log") as engine, aiohttp.ClientSession() as session:
        for endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS):
            for recipe in Recipe:
                ask, body = make_request(endpoint, recipe)
                uncut = await post(session, engine.base_url + endpoint.value, body)
                events = uncut.split(b"\n\n")
                for _ in range(N_CUTS):
                    log = ResumeLog()
                    log.note(b"\n\n".join([*events[: rng.randrange(3, len(events) - 4)], b""]))
                    resumed = plan(ask, log)
                    if not isinstance(resumed, ResumePlan):
                        continue  # text that ends in a space
                    planned[endpoint, resumed.recipe] += 1
                    url = engine.base_url + resumed.endpoint.value
                    splicer = resumed.splicer()
                    log.note(splicer.feed(await post(session, url, resumed.body("nano@bf16"))))

                    assert splicer.error is None
                    expected, found = read(uncut), read(log.data)
                    if recipe is Recipe.TEXT:  # an event may hold two tokens: only their sum with the prompt is known
                        expected["usage"], found["usage"] = ([u[2] for u in one["usage"]] for one in (expected, found))
                    assert expected == found

    assert all(
        planned[endpoint, recipe] >= 6 for endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS) for recipe in Recipe
    )
