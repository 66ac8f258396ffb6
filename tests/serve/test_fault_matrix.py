"""The fault matrix, first part: engines that fail before the first byte. The table is in ``docs/faults.md``."""

import asyncio
import importlib.util
import json
from functools import partial
from time import perf_counter

import pytest

from llmtier.serve.relay import Deadlines
from tests.serve.scripted_server import (
    DONE,
    END,
    EVENTS,
    STREAM,
    Step,
    chunk,
    decisions,
    document,
    in_flight,
    requests,
    rigged,
    token,
    whole,
)

pytestmark = pytest.mark.anyio

SAVED = token("saved") + DONE
HALF = b"HTTP/1.1 200 OK\r\ncontent-ty"
OF_LENGTH = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: 9999\r\n\r\n"
BROKEN, LATE = (502, "upstream_error"), (504, "upstream_timeout")
PATIENT = Deadlines(first_byte_s=10, stall_s=10, total_s=15)
LIMITS = {BROKEN: PATIENT, LATE: Deadlines(first_byte_s=0.4, stall_s=0.4, total_s=15)}


@pytest.fixture
def anyio_backend():
    """Run on the loop that the gateway runs on."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


@pytest.fixture
def rig(make_state, running_gateway):
    return partial(rigged, make_state, running_gateway, deadlines=PATIENT)


def saying(*steps):
    return lambda engine: engine.say(*steps)


def accepting(step):
    return lambda engine: setattr(engine, "at_accept", step)


ANYWAY = {
    "refused": (lambda engine: engine.refuse(), BROKEN),
    "reset when accepted": (accepting(Step.RESET), BROKEN),
    "closed when accepted": (accepting(Step.CLOSE), BROKEN),
    "reset when asked": (saying(Step.RESET), BROKEN),
    "closed when asked": (saying(Step.CLOSE), BROKEN),
    "half a head, then closed": (saying(HALF, Step.CLOSE), BROKEN),
    "half a head, then reset": (saying(HALF, Step.RESET), BROKEN),
    "no HTTP": (saying(b"SSH-2.0-OpenSSH_9.6\r\n", Step.HANG), BROKEN),
    "a TLS alert": (saying(b"\x15\x03\x01\x00\x02\x02\x46", Step.CLOSE), BROKEN),
    "an endless head": (saying(HALF, *[b"x" * 16384] * 8, Step.HANG), BROKEN),
    "two lengths": (saying(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!"), BROKEN),
    "length and chunks": (saying(EVENTS[:-2] + b"content-length: 3\r\n\r\n" + chunk(SAVED) + END), BROKEN),
    "500": (saying(whole(500, b'{"error":{"message":"boom"}}')), BROKEN),
    "502": (saying(whole(502, b"<html>Bad Gateway</html>", content_type=b"text/html")), BROKEN),
    "503": (saying(whole(503)), BROKEN),
    "504": (saying(whole(504)), BROKEN),
    "500 and half a body": (saying(b"HTTP/1.1 500 x\r\ncontent-length: 9\r\n\r\nx", Step.RESET), BROKEN),
    "a redirect": (saying(whole(307, headers=b"location: /other\r\n")), BROKEN),
    "200 without a body": (saying(whole()), BROKEN),
    "200 with an empty stream": (saying(EVENTS, END), BROKEN),
    "head, then closed": (saying(EVENTS, Step.CLOSE), BROKEN),
    "head, then reset": (saying(EVENTS, Step.RESET), BROKEN),
    "no number for a chunk": (saying(EVENTS, b"banana\r\n", Step.HANG), BROKEN),
    "shorter than its length": (saying(OF_LENGTH % b"application/json", document()[:30], Step.CLOSE), BROKEN),
    "half an event, then closed": (saying(EVENTS, chunk(SAVED[:20]), Step.CLOSE), BROKEN),
    "half an event, then the end": (saying(EVENTS, chunk(b"data: {"), Step.RESET), BROKEN),
}
STREAMS_ONLY = {
    "silent": (saying(Step.HANG), LATE),
    "half a head, then silent": (saying(HALF, Step.HANG), LATE),
    "head, then silent": (saying(EVENTS, Step.HANG), LATE),
    "500, whose body hangs": (saying(b"HTTP/1.1 500 x\r\ncontent-length: 9\r\n\r\nx", Step.HANG), LATE),
    "half an event, then silent": (saying(EVENTS, chunk(SAVED[:20]), Step.HANG), LATE),
    "events shorter than their length": (saying(OF_LENGTH % b"text/event-stream", SAVED[:9], Step.CLOSE), BROKEN),
}
CASES = [
    *(
        pytest.param(*case, stream, id=f"{name}, {stream=}")
        for name, case in ANYWAY.items()
        for stream in (True, False)
    ),
    *(pytest.param(*case, True, id=name) for name, case in STREAMS_ONLY.items()),
]


@pytest.mark.parametrize(("break_it", "refusal", "stream"), CASES)
async def test_another_tier_answers_when_one_fails_before_the_first_byte(rig, break_it, refusal, stream):
    async with rig(deadlines=LIMITS[refusal]) as ground:
        break_it(ground.small)
        status, headers, body = await ground.ask(stream=stream)
        counts = await ground.counts()

        assert (200, "large", "failover") == (status, headers["x-llmtier-tier"], headers["x-llmtier-reason"])
        assert (SAVED if stream else document()) == body
        assert 1 == counts[requests("large", "ok")] == counts[decisions("large", "failover")]
        assert {0} == {counts[in_flight(name)] for name in ground.engines}
        assert len(ground.small.requests) <= 1 == len(ground.engines["large"].requests)


@pytest.mark.parametrize(("break_it", "refusal", "stream"), CASES)
async def test_the_client_is_told_when_no_tier_is_left(rig, break_it, refusal, stream):
    async with rig(names=["small"], deadlines=LIMITS[refusal]) as ground:
        break_it(ground.small)
        status, headers, body = await ground.ask(stream=stream)
        counts = await ground.counts()

        error = json.loads(body)["error"]
        assert refusal == (status, error["code"])
        assert ("server_error", None) == (error["type"], error["param"])
        assert "tier small" in error["message"]
        assert "application/json" == headers["content-type"]
        assert headers["x-llmtier-request-id"]
        assert (1, 0) == (counts[requests("small", "upstream_error")], counts[in_flight("small")])


async def test_a_whole_answer_that_never_comes_is_a_504(rig):
    """Of an answer that is not streamed nothing can come before all of it has: only the total limit holds."""
    async with rig(names=["small"], deadlines=Deadlines(total_s=0.3)) as ground:
        for steps in ([Step.HANG], [OF_LENGTH % b"application/json", document()[:30], Step.HANG]):
            ground.small.say(*steps)
            status, _, body = await ground.ask()
            assert LATE == (status, json.loads(body)["error"]["code"])
        await ground.small.left(2)


async def test_a_late_engine_is_told_to_stop(rig):
    async with rig(deadlines=LIMITS[LATE]) as ground:
        ground.small.say(EVENTS, Step.HANG)
        assert 200 == (await ground.ask(stream=True))[0]
        await ground.small.left()


@pytest.mark.parametrize("step", [Step.CLOSE, Step.RESET])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_kept_connection_that_died_is_no_failure_of_the_tier(rig, step, stream):
    async with rig() as ground:
        await ground.ask(stream=stream)
        ground.small.turns.append([step])
        status, headers, body = await ground.ask(stream=stream)

        assert (200, "small") == (status, headers["x-llmtier-tier"])
        assert (SAVED if stream else document()) == body
        assert 3 == len(ground.small.requests)
        assert decisions("large", "failover") not in await ground.counts()


async def test_a_fresh_connection_that_dies_is_not_tried_again(rig):
    async with rig() as ground:
        await ground.ask()
        ground.small.turns.extend([[Step.CLOSE], [Step.CLOSE]])
        _, headers, _ = await ground.ask()

        assert "failover" == headers["x-llmtier-reason"]
        assert 3 == len(ground.small.requests)


async def test_a_pinned_request_stays_on_its_tier(rig):
    async with rig() as ground:
        ground.small.say(whole(500))
        status, _, body = await ground.ask(model="small")

        assert BROKEN == (status, json.loads(body)["error"]["code"])
        assert [] == ground.engines["large"].requests


async def test_both_tiers_failing_is_one_error(rig):
    async with rig() as ground:
        for engine in ground.engines.values():
            engine.say(Step.CLOSE)
        status, _, body = await ground.ask(stream=True)
        counts = await ground.counts()

        assert BROKEN == (status, json.loads(body)["error"]["code"])
        assert "tier large" in json.loads(body)["error"]["message"]
        assert (1, 1) == (counts[requests("large", "upstream_error")], counts[decisions("large", "failover")])


LIMITED = {
    status: whole(status, b'{"error":{"message":"full"}}', headers=b"retry-after: 7\r\n") for status in (429, 503)
}


@pytest.mark.parametrize(("status", "code"), [(429, "upstream_busy"), (503, "upstream_error")])
async def test_an_engines_retry_after_reaches_the_client(rig, status, code):
    async with rig(names=["small"]) as ground:
        ground.small.say(LIMITED[status])
        told, headers, body = await ground.ask(stream=True)

        assert (status, "7", code) == (told, headers["retry-after"], json.loads(body)["error"]["code"])


@pytest.mark.parametrize("status", [429, 503])
async def test_an_engine_that_is_full_is_relieved_and_gets_its_pause(rig, status):
    offset_s = 0.0
    async with rig(clock=lambda: perf_counter() + offset_s) as ground:
        ground.small.turns.append([LIMITED[status]])
        for _ in range(3):
            told, headers, _ = await ground.ask(stream=True)
            assert (200, "large") == (told, headers["x-llmtier-tier"])
        assert 1 == len(ground.small.requests)
        offset_s = 7.1
        assert "small" == (await ground.ask())[1]["x-llmtier-tier"]


FAILING = {
    "500": [whole(500)],
    "reset": [Step.RESET],
    "mid-stream": [EVENTS, chunk(token("a")), Step.CLOSE],
    "an error inside 200": [EVENTS, chunk(token("a") + b'data: {"error": {"message": "dead"}}\n\n' + DONE), END],
    "worthless": [EVENTS, *[chunk(token("!"))] * 200, chunk(DONE), END],
}


@pytest.mark.parametrize("steps", FAILING.values(), ids=FAILING.keys())
async def test_a_tier_that_keeps_failing_is_left_alone_and_tried_with_one_request(rig, steps):
    """Five failures in a row open the breaker for five seconds; then the first of many probes, and opens it again."""
    offset_s = 0.0
    async with rig(clock=lambda: perf_counter() + offset_s) as ground:
        ground.small.say(*steps)
        for _ in range(12):
            assert 200 == (await ground.ask(stream=True))[0]
        counts = await ground.counts()
        assert 5 == len(ground.small.requests)
        assert 2 == counts['llmtier_breaker_state{tier="small"}']
        offset_s = 5.5
        ground.small.say(go := asyncio.Event(), STREAM)
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ground.ask(stream=True)) for _ in range(8)]
            done, _ = await asyncio.wait(asking, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            while len(done) < 7:
                done, _ = await asyncio.wait(asking, timeout=0.05)
            assert 6 == len(ground.small.requests)
            assert 1 == (await ground.counts())['llmtier_breaker_state{tier="small"}']
            go.set()

        assert {200} == {task.result()[0] for task in asking}
        assert 0 == (await ground.counts())['llmtier_breaker_state{tier="small"}']


async def test_a_tier_without_another_says_when_to_come_back(rig):
    async with rig(names=["small"]) as ground:
        ground.small.say(whole(500))
        answers = [await ground.ask(model="small") for _ in range(6)]
        status, headers, body = answers[-1]

        assert {502} == {status for status, _, _ in answers[:5]}
        assert (503, "tier_unavailable") == (status, json.loads(body)["error"]["code"])
        assert 1 <= int(headers["retry-after"]) <= 5


async def test_second_tries_are_a_fifth_of_the_requests(rig):
    """Two of five requests fail, which is too few for the breaker: ten second tries are saved up, the rest is earned."""
    async with rig() as ground:
        for number in range(100):
            ground.small.turns.append([whole(500) if number % 5 < 2 else whole(body=document())])
        answers = [await ground.ask() for _ in range(100)]
        n_refused = sum(status == 502 for status, _, _ in answers)

        assert 100 == len(ground.small.requests)
        assert 40 == n_refused + len(ground.engines["large"].requests)
        assert 27 <= len(ground.engines["large"].requests) <= 30
        assert n_refused == (await ground.counts())[requests("small", "upstream_error")]


WORTHLESS = {
    "NaN": document("a", logprobs={"content": [{"token": "a", "logprob": 0.5}]}).replace(b"0.5", b"NaN"),
    "nothing": document(""),
    "repetition": document("!" * 400).replace(b'"completion_tokens": 5', b'"completion_tokens": 400'),
    "an error": b'{"error": {"message": "EngineCore encountered an issue", "code": 500}}',
}


@pytest.mark.parametrize("said", WORTHLESS.values(), ids=WORTHLESS)
async def test_an_answer_that_is_none_is_a_failure_of_the_tier(rig, said):
    async with rig() as ground:
        ground.small.say(whole(body=said))
        _, headers, body = await ground.ask(logprobs=True)

        assert ("large", "failover", document()) == (headers["x-llmtier-tier"], headers["x-llmtier-reason"], body)
