"""A stream that its engine calls a success and that is none, and one that is whole though its connection is not.

A part of the fault matrix; the table is in ``docs/faults.md``.
"""

import asyncio
import importlib.util
import json
from functools import partial

import pytest

from llmtier.serve.relay import Deadlines
from tests.serve.scripted_server import DONE, END, EVENTS, Step, chunk, event, in_flight, requests, rigged, token

pytestmark = pytest.mark.anyio

PATIENT = Deadlines(first_byte_s=10, stall_s=10, total_s=15)
ROLE = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
STOP = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
NAN = event(
    {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"token": "a", "logprob": 0.5}]}}]}
).replace(b"0.5", b"NaN")
SAVED = token("saved") + DONE
NOTHING = {
    "no text": [ROLE, STOP, DONE],
    "no text, in one piece": [ROLE + STOP + DONE],
    "NaN": [ROLE, NAN, STOP, DONE],
    "NaN, in one piece": [ROLE + NAN + STOP + DONE],
    "a role, then the end": [ROLE],
}


@pytest.fixture
def anyio_backend():
    """Run on the loop that the gateway runs on."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


@pytest.fixture
def rig(make_state, running_gateway):
    return partial(rigged, make_state, running_gateway, deadlines=PATIENT)


@pytest.mark.parametrize("pieces", NOTHING.values(), ids=NOTHING)
async def test_another_tier_answers_when_a_stream_brings_nothing(rig, pieces):
    async with rig() as ground:
        ground.small.say(EVENTS, *map(chunk, pieces), END)
        _, headers, body = await ground.ask(stream=True, logprobs=True)
        counts = await ground.counts()

        assert ("large", "failover", SAVED) == (headers["x-llmtier-tier"], headers["x-llmtier-reason"], body)
        assert (1, 0) == (counts[requests("large", "ok")], counts[in_flight("small")])


@pytest.mark.parametrize("code", [500, 503, 429, None, "internal_error"])
@pytest.mark.parametrize("before", [[], [ROLE]])
async def test_another_tier_answers_when_a_stream_begins_with_an_error_of_its_engine(rig, before, code):
    failed = event({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": code}})
    async with rig() as ground:
        ground.small.say(EVENTS, *map(chunk, [*before, failed, DONE]), END)
        _, headers, body = await ground.ask(stream=True)
        counts = await ground.counts()

        assert ("large", "failover", SAVED) == (headers["x-llmtier-tier"], headers["x-llmtier-reason"], body)
        assert (1, 0) == (counts[requests("large", "ok")], counts[in_flight("small")])


async def test_an_error_about_the_request_is_the_clients(rig):
    refused = event({"error": {"message": "too long", "code": 400}})
    async with rig() as ground:
        ground.small.say(EVENTS, *map(chunk, [refused, DONE]), END)
        _, headers, body = await ground.ask(stream=True)

        assert ("small", refused + DONE) == (headers["x-llmtier-tier"], body)


async def test_nan_is_not_waited_out(rig):
    async with rig() as ground:
        ground.small.say(EVENTS, chunk(ROLE), chunk(NAN), Step.HANG)
        async with asyncio.timeout(5):
            _, headers, body = await ground.ask(stream=True, logprobs=True)
        await ground.small.left()

        assert ("large", SAVED) == (headers["x-llmtier-tier"], body)


async def test_silence_after_the_role_is_a_failure_before_the_first_byte(rig):
    async with rig(deadlines=Deadlines(stall_s=0.2, total_s=15)) as ground:
        ground.small.say(EVENTS, chunk(ROLE), Step.HANG)
        _, headers, body = await ground.ask(stream=True)
        await ground.small.left()

        assert ("large", SAVED) == (headers["x-llmtier-tier"], body)


@pytest.mark.parametrize("pieces", [NOTHING["no text"], NOTHING["NaN"]])
async def test_the_client_is_told_when_no_tier_brings_anything(rig, pieces):
    async with rig(names=["small"]) as ground:
        ground.small.say(EVENTS, *map(chunk, pieces), END)
        status, _, body = await ground.ask(stream=True, logprobs=True)

        assert (502, "upstream_error") == (status, json.loads(body)["error"]["code"])


async def test_what_may_be_empty_arrives_as_it_is(rig):
    async with rig() as ground:
        said = ROLE + event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}) + DONE
        ground.small.say(EVENTS, chunk(said), END)

        assert said == (await ground.ask(stream=True))[2]


async def test_a_sign_of_life_is_not_held_back(rig):
    async with rig() as ground:
        ground.small.say(EVENTS, chunk(b": wait\n\n"), go := asyncio.Event(), chunk(SAVED), END)
        async with asyncio.timeout(5), ground.post(stream=True) as answer:
            assert b": wait\n\n" == await answer.content.readexactly(8)
            go.set()
            assert SAVED == await answer.read()


@pytest.mark.parametrize("last", [[DONE], [token("!") + DONE]], ids=["alone", "with text"])
async def test_a_run_of_one_token_arrives_and_is_not_called_complete(rig, last):
    async with rig(names=["small"]) as ground:
        ground.small.say(EVENTS, chunk(ROLE), *[chunk(token("!"))] * 100, go := asyncio.Event(), *map(chunk, last), END)
        async with asyncio.timeout(5), ground.post(stream=True) as answer:
            text = ROLE + token("!") * 100
            body = await answer.content.readexactly(len(text))
            go.set()
            body += await answer.read()
        counts = await ground.counts()

        text += last[0].removesuffix(DONE)
        assert body.startswith(text + b"data: ")
        error = json.loads(body[len(text) + 6 :])["error"]
        assert "upstream_interrupted" == error["code"]
        assert "repetition" in error["message"]
        assert 1 == counts[requests("small", "worthless")]


@pytest.mark.parametrize("step", [Step.HANG, Step.CLOSE, Step.RESET, b"banana\r\n"])
async def test_a_whole_answer_is_whole_whatever_becomes_of_its_connection(rig, step):
    async with rig(names=["small"], deadlines=Deadlines(stall_s=0.2, total_s=15)) as ground:
        ground.small.say(EVENTS, chunk(SAVED), go := asyncio.Event(), step)
        async with asyncio.timeout(5), ground.post(stream=True) as answer:
            body = await answer.content.readexactly(len(SAVED))
            go.set()
            body += await answer.read()
        counts = await ground.counts()

        assert (200, SAVED) == (answer.status, body)
        assert (1, 0) == (counts[requests("small", "ok")], counts[in_flight("small")])
