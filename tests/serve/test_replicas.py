"""A tier of several engines: the fault matrix's rows of replicas, and how requests are dealt out. See ``docs/faults.md``."""

import asyncio
import json
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from time import perf_counter
from types import SimpleNamespace

import aiohttp
import pytest

from llmtier.core.requirement import Requirement
from llmtier.serve.admission import PlaceState
from llmtier.serve.admission_plan import AdmissionHooks, AdmissionSettings, TierLimit
from llmtier.serve.board import EngineSlot
from llmtier.serve.breaker import Failure
from llmtier.serve.guard import Guard
from llmtier.serve.ledger import PromptSize
from llmtier.serve.pool import ServedTier, TierPool
from llmtier.serve.relay import Deadlines
from llmtier.serve.state import utc_now
from llmtier.serve.trail import Trail
from llmtier.serve.watch import WatchPlan
from tests.serve.scripted_server import (
    DONE,
    EVENTS,
    SELDOM,
    Rig,
    Step,
    chunk,
    decisions,
    document,
    in_flight,
    requests,
    scripted_server,
    token,
    whole,
)

pytestmark = pytest.mark.anyio

SAVED = token("saved") + DONE
BRIEF = Deadlines(connect_s=1, first_byte_s=0.4, stall_s=0.4, total_s=15)
SMALL = {"small": 2}
BOTH = {"small": 2, "large": 1}

BROKEN = {
    "refused": lambda engine: engine.refuse(),
    "reset when accepted": lambda engine: setattr(engine, "at_accept", Step.RESET),
    "closed when asked": lambda engine: engine.say(Step.CLOSE),
    "500": lambda engine: engine.say(whole(500)),
    "429": lambda engine: engine.say(whole(429)),
    "worthless": lambda engine: engine.say(whole(body=document(""))),
    "half an event": lambda engine: engine.say(EVENTS, chunk(SAVED[:20]), Step.CLOSE),
}
LATE = {
    "silent": lambda engine: engine.say(Step.HANG),
    "head, then silent": lambda engine: engine.say(EVENTS, Step.HANG),
}


class ReplicaRig(Rig):
    """A gateway before tiers of several scripted engines each."""

    def __init__(self, groups, url, client, state):
        self.groups = groups
        super().__init__({name: engines[0] for name, engines in groups.items()}, url, client, state)

    @property
    def n_asked(self):
        """How many requests each engine of ``small`` has got."""
        return [len(engine.requests) for engine in self.groups["small"]]

    async def turns(self, conversation, n=4, *, model="auto"):
        """Take so many turns of a conversation; return which engines of ``small`` served."""
        before = self.n_asked
        headers = {"x-llmtier-session": conversation}
        for _ in range(n):
            async with self.client.post(
                "/v1/chat/completions", json=ask() | {"model": model}, headers=headers
            ) as answer:
                assert (200, "small") == (answer.status, answer.headers["x-llmtier-tier"])
        return [number for number, (was, now) in enumerate(zip(before, self.n_asked, strict=True)) if now > was]


def ask():
    return {"model": "auto", "messages": [{"role": "user", "content": "x"}]}


@asynccontextmanager
async def replicated(make_state, running_gateway, sizes=SMALL, *, watch=SELDOM, **changes):
    async with AsyncExitStack() as stack:
        groups = {
            name: [await stack.enter_async_context(scripted_server()) for _ in range(n)] for name, n in sizes.items()
        }
        changes.setdefault("deadlines", BRIEF)
        state = make_state(
            {name: [each.url for each in group] for name, group in groups.items()}, watch=watch, **changes
        )
        state.pool._clock = state.clock
        url = await stack.enter_async_context(running_gateway(state))
        client = await stack.enter_async_context(aiohttp.ClientSession(url))
        yield ReplicaRig(groups, url, client, state)


@pytest.fixture
def rig(make_state, running_gateway):
    return partial(replicated, make_state, running_gateway)


def breaker(number):
    return f'llmtier_engine_breaker_state{{replica="{number}",tier="small"}}'


CASES = [
    *(
        pytest.param(fault, stream, id=f"{name}, {stream=}")
        for name, fault in BROKEN.items()
        for stream in (True, False)
    ),
    *(pytest.param(fault, True, id=name) for name, fault in LATE.items()),
]


@pytest.mark.parametrize(("break_it", "stream"), CASES)
async def test_another_engine_of_the_tier_answers_before_another_tier_is_asked(rig, break_it, stream):
    async with rig(BOTH) as ground:
        break_it(ground.small)
        for _ in range(4):
            status, headers, body = await ground.ask(stream=stream)
            assert (200, "small", SAVED if stream else document()) == (status, headers["x-llmtier-tier"], body)
            assert "failover" != headers["x-llmtier-reason"]
        counts = await ground.counts()

        assert 4 == counts[requests("small", "ok")]
        assert 1 <= counts['llmtier_replica_retries_total{tier="small"}'] <= 4
        assert (0, 0) == (counts[breaker(2)], counts[in_flight("small")])
        assert [] == ground.engines["large"].requests
        assert decisions("large", "failover") not in counts


@pytest.mark.parametrize("stream", [True, False])
async def test_a_pinned_request_may_go_to_another_engine_of_its_tier(rig, stream):
    async with rig(BOTH) as ground:
        ground.small.say(whole(500))
        answers = [await ground.ask(model="small", stream=stream) for _ in range(2)]

        assert {(200, "small")} == {(status, headers["x-llmtier-tier"]) for status, headers, _ in answers}


async def test_the_next_tier_answers_when_every_engine_of_one_fails(rig):
    async with rig(BOTH) as ground:
        for engine in ground.groups["small"]:
            engine.say(whole(500))
        status, headers, _ = await ground.ask()
        counts = await ground.counts()

        assert (200, "large", "failover") == (status, headers["x-llmtier-tier"], headers["x-llmtier-reason"])
        assert [1, 1] == ground.n_asked
        assert (1, 1) == (counts[decisions("large", "failover")], counts['llmtier_replica_retries_total{tier="small"}'])


async def test_a_request_is_sent_three_times_at_most(rig):
    """One other engine of a tier and one other tier: what a request may cost stays bounded whatever is broken."""
    async with rig({"small": 3, "large": 3}) as ground:
        for engine in (*ground.groups["small"], *ground.groups["large"]):
            engine.say(whole(500))
        status, _, body = await ground.ask()

        assert (502, "upstream_error") == (status, json.loads(body)["error"]["code"])
        assert 2 == sum(ground.n_asked)
        assert 1 == sum(len(engine.requests) for engine in ground.groups["large"])


async def test_second_tries_at_replicas_are_in_the_same_budget(rig):
    async with rig() as ground:
        for engine in ground.groups["small"]:
            engine.say(whole(429))  # says nothing against the engine, so no breaker opens
        statuses = [(await ground.ask())[0] for _ in range(50)]

        assert {429} == set(statuses)
        assert 50 + 19 <= sum(ground.n_asked) <= 50 + 20


@pytest.mark.parametrize("broken", [1, 2])
async def test_an_engine_that_keeps_failing_is_left_alone_and_its_tier_serves_on(rig, broken):
    """Five failures in a row open the breaker of one engine; after its pause it is tried with one request."""
    offset_s = 0.0
    async with rig(BOTH, clock=lambda: perf_counter() + offset_s) as ground:
        engine = ground.groups["small"][broken - 1]
        engine.say(whole(500))
        for _ in range(20):
            assert "small" == (await ground.ask())[1]["x-llmtier-tier"]
        counts = await ground.counts()
        assert 5 == len(engine.requests)
        states = counts[breaker(broken)], counts[breaker(3 - broken)], counts['llmtier_breaker_state{tier="small"}']
        assert (2, 0, 0) == states
        offset_s = 5.5
        engine.say(whole(body=document()))
        for _ in range(4):
            assert 200 == (await ground.ask())[0]

        assert 0 == (await ground.counts())[breaker(broken)]
        assert len(engine.requests) >= 6


async def test_a_dead_engine_is_asked_once_and_shows(rig):
    async with rig(BOTH) as ground:
        ground.groups["small"][1].refuse()
        for _ in range(6):
            assert "small" == (await ground.ask())[1]["x-llmtier-tier"]
        counts = await ground.counts()
        async with ground.client.get("/ready") as page:
            assert (200, True) == (page.status, (await page.json())["healthy"]["small"])

        up = [counts[f'llmtier_engine_up{{replica="{number}",tier="small"}}'] for number in (1, 2)]
        assert ([1, 0], 1) == (up, counts['llmtier_tier_healthy{tier="small"}'])
        assert 1 == counts['llmtier_replica_retries_total{tier="small"}']


async def test_requests_one_after_the_other_take_turns(rig):
    async with rig({"small": 3}) as ground:
        for _ in range(12):
            await ground.ask()

        assert [4, 4, 4] == ground.n_asked


async def test_requests_at_once_go_where_the_least_is(rig):
    async with rig() as ground:
        go = asyncio.Event()
        for engine in ground.groups["small"]:
            engine.say(go, whole(body=document()))
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ground.ask()) for _ in range(8)]
            for engine in ground.groups["small"]:
                await engine.asked(4)
            go.set()

        assert [4, 4] == ground.n_asked
        assert {200} == {task.result()[0] for task in asking}


@pytest.mark.parametrize("model", ["auto", "small"])
async def test_a_conversation_stays_on_its_engine_and_conversations_spread(rig, model):
    async with rig(sticky_s=60) as ground:
        homes = [await ground.turns(f"conversation {number}", model=model) for number in range(12)]

        assert {1} == {len(home) for home in homes}
        assert {0, 1} == {home[0] for home in homes}


async def test_a_conversation_leaves_an_engine_that_is_clearly_busier(rig):
    async with rig(sticky_s=60) as ground:
        (home,) = await ground.turns("c")
        go = asyncio.Event()
        ground.groups["small"][home].say(go, whole(body=document()))
        async with asyncio.TaskGroup() as group:
            for number in range(1, 4):
                group.create_task(ground.turns("c", n=1))
                await ground.groups["small"][home].asked(4 + number)
            assert [1 - home] == await ground.turns("c", n=1)
            go.set()


async def test_a_conversation_moves_when_its_engine_fails_and_others_stay(rig):
    async with rig(sticky_s=60) as ground:
        homes = {name: (await ground.turns(name))[0] for name in map(str, range(8))}
        ground.groups["small"][0].refuse()
        ground.groups["small"][0].at_accept = Step.RESET
        ground.groups["small"][0].say(Step.RESET)
        moved = {name: await ground.turns(name) for name in homes}

        assert all(1 in served for served in moved.values())
        assert all([1] == moved[name] for name, home in homes.items() if home == 1)
        assert [1] == await ground.turns("new")


async def test_an_engine_that_comes_back_serves_again(rig, eventually):
    async with rig(BOTH, watch=WatchPlan(health_interval_s=0.05, metrics_interval_s=60)) as ground:
        ground.small.say(whole(503), path="/health")
        pool = ground.state.pool

        async def is_up(*, wanted):
            return wanted is pool.board.is_alive("small")

        await eventually(partial(is_up, wanted=False))
        for _ in range(4):
            assert "small" == (await ground.ask())[1]["x-llmtier-tier"]
        assert ([0, 4], True) == (ground.n_asked, pool.is_healthy("small"))
        ground.small.say(whole(), path="/health")
        await eventually(partial(is_up, wanted=True))
        for _ in range(4):
            await ground.ask()

        assert [2, 6] == ground.n_asked


async def test_the_line_of_a_request_names_its_engine(rig, caplog):
    caplog.set_level(logging.INFO, "llmtier.serve.record")
    async with rig(BOTH) as ground:
        for model in ("small", "small", "large"):
            await ground.ask(model=model)

        assert [1, 2, None] == [each.replica for each in caplog.records if each.message == "request"]


@pytest.fixture
def guarded():
    """Return a guard before two engines of one tier, each of which takes two requests at once."""
    tier = ServedTier(name="a", base_url="http://h:1", more_urls=("http://h:2",), model_name="m")
    pool = TierPool([tier])
    for name in pool.sites:
        pool.board.set_engine(name, EngineSlot.ALIVE, 1.0)
    limits = {"a": TierLimit(max_in_flight=2)}
    hooks = AdmissionHooks()
    return pool, Guard(pool, limits, AdmissionSettings(), clock=perf_counter, now=utc_now, hooks=hooks)


def n_let_in(guard):
    record = SimpleNamespace(needs=None, key_sha256=None, offer=None, received_s=0.0)
    return sum(guard.enter("a", record, Requirement()).state is PlaceState.RUNNING for _ in range(8))


def test_a_tier_has_room_for_as_many_requests_as_its_engines(guarded):
    assert 4 == n_let_in(guarded[1])


def test_a_dead_engine_has_no_room(guarded):
    pool, guard = guarded
    pool.report_lost("a#2")
    guard.tick()

    assert 2 == n_let_in(guard)


def test_an_engine_that_is_left_alone_has_no_room(guarded):
    pool, guard = guarded
    for _ in range(5):
        pool.note_failure("a", Failure.STATUS, sent_s=perf_counter())
    guard.tick()

    assert 2 == n_let_in(guard)


def test_a_request_that_waited_goes_to_an_engine_that_is_there(guarded):
    """While it waited for a slot its engine died: it is looked for once more when the slot is there."""
    pool, guard = guarded
    plan, trail = SimpleNamespace(affinity=None), Trail()
    guard.pick(plan, "a", trail)
    first = trail.site
    pool.report_lost(first)
    guard.pick_again(plan, trail, since_s=perf_counter())

    assert {"a", "a#2"} == {first, trail.site}


def test_a_request_that_waited_stays_where_nobody_else_is(guarded):
    pool, guard = guarded
    plan, trail = SimpleNamespace(affinity=None), Trail()
    pool.report_lost("a#2")
    guard.pick(plan, "a", trail)
    guard.pick_again(plan, trail, since_s=perf_counter())

    assert ("a", ["a"]) == (trail.site, trail.sites)


def test_routing_sees_the_engine_that_would_get_the_request(guarded):
    pool, _ = guarded
    flights = [pool.begin("a", PromptSize(n_tokens=5), is_stream=True) for _ in range(3)]
    assert 0 == pool.states()["a"].load.n_in_flight
    pool.report_lost("a#2")
    assert 3 == pool.states()["a"].load.n_in_flight
    for flight in flights:
        pool.end("a", flight)

    assert 0 == pool.n_in_flight("a")


def test_an_engine_whose_cache_is_full_is_passed_over(guarded):
    pool, _ = guarded
    pool.board.set_engine("a", EngineSlot.KV_USAGE, 0.99)
    pool.board.set_engine("a", EngineSlot.SIGNS_S, perf_counter())

    assert pool.states()["a"].unusable is None
    assert ["a#2"] * 4 == [pool.pick_site("a") for _ in range(4)]
