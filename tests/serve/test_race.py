"""A first byte that is late is asked for twice: one answer reaches the client, and the loser's engine is told to stop."""

import asyncio
import importlib.util
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from llmtier.core.rule import Condition, Rule
from llmtier.route.rules import RuleBook
from llmtier.serve.hedge import HedgeSettings
from llmtier.serve.http_reply import Heads, ReplyChannel
from llmtier.serve.http_server import HttpRequest, Reply
from llmtier.serve.lane import Lane, LaneReply
from llmtier.serve.pool import TierPool
from llmtier.serve.race import _Race
from llmtier.serve.relay import Deadlines
from llmtier.serve.trail import Trail
from llmtier.store.patterns import compile_pattern
from tests.serve.scripted_server import (
    EVENTS,
    STREAM,
    Step,
    chunk,
    decisions,
    document,
    in_flight,
    leave,
    requests,
    rigged,
    token,
    whole,
)

pytestmark = pytest.mark.anyio

ON = HedgeSettings(is_on=True, budget_share=1.0)
PATIENT = Deadlines(first_byte_s=10, stall_s=10, total_s=15)
WHOLE = whole(body=document())
both = pytest.mark.parametrize("stream", [True, False])


@pytest.fixture
def anyio_backend():
    """Run on the loop that the gateway runs on."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


@pytest.fixture
def rig(make_state, running_gateway):
    return partial(rigged, make_state, running_gateway, deadlines=PATIENT, hedge=ON)


def hedges(result):
    return f'llmtier_hedges_total{{result="{result}"}}'


def answer(*, stream):
    return STREAM if stream else WHOLE


def content(body):
    return b"saved" in body and body.count(b"saved") == 1


async def settled(ground, eventually):
    """Return the counts once nothing is in flight any more."""

    async def is_quiet():
        counts = await ground.counts()
        return not any(counts[in_flight(name)] for name in ground.engines)

    await eventually(is_quiet)
    return await ground.counts()


@both
@pytest.mark.parametrize("so_far", [(), (EVENTS,), (EVENTS, chunk(b"data: {"))])
async def test_the_second_tier_serves_when_the_first_stays_silent(rig, eventually, stream, so_far):
    """A head, or half an event, is no first byte."""
    async with rig() as ground:
        ground.small.say(*(so_far if stream else ()), Step.HANG)
        status, headers, body = await ground.ask(stream=stream)
        await ground.small.left()
        counts = await settled(ground, eventually)

        assert (200, "large", "hedge") == (status, headers["x-llmtier-tier"], headers["x-llmtier-reason"])
        assert content(body)
        assert 1 == counts[hedges("won")] == counts[decisions("large", "hedge")] == counts[requests("large", "ok")]
        assert requests("small", "upstream_error") not in counts


@both
async def test_the_first_tier_serves_when_it_speaks_first(rig, eventually, stream):
    async with rig() as ground, asyncio.TaskGroup() as group:
        go = asyncio.Event()
        ground.small.say(go, answer(stream=stream))
        ground.engines["large"].say(Step.HANG)
        asking = group.create_task(ground.ask(stream=stream))
        await ground.engines["large"].asked()
        go.set()
        status, headers, body = await asking
        await ground.engines["large"].left()
        counts = await settled(ground, eventually)

    assert (200, "small", "cheapest_feasible") == (status, headers["x-llmtier-tier"], headers["x-llmtier-reason"])
    assert content(body)
    assert 1 == counts[hedges("lost")] == counts[requests("small", "ok")]


@both
async def test_exactly_one_of_two_serves_that_speak_at_once(rig, eventually, stream):
    async with rig() as ground:
        for _ in range(20):
            go = asyncio.Event()
            for engine in ground.engines.values():
                engine.turns.append([go, answer(stream=stream)])
            n_asked = len(ground.engines["large"].requests)
            asking = asyncio.ensure_future(ground.ask(stream=stream))
            await ground.engines["large"].asked(n_asked + 1)
            go.set()
            status, _, body = await asking

            assert 200 == status
            assert content(body)
        counts = await settled(ground, eventually)

    assert 20 == sum(counts.get(hedges(word), 0) for word in ("won", "lost"))
    assert 20 == sum(counts.get(requests(name, "ok"), 0) for name in ground.engines)


@both
async def test_the_second_tier_goes_on_when_the_first_fails(rig, eventually, stream):
    async with rig() as ground, asyncio.TaskGroup() as group:
        fail, go = asyncio.Event(), asyncio.Event()
        ground.small.say(fail, Step.RESET)
        ground.engines["large"].say(go, answer(stream=stream))
        asking = group.create_task(ground.ask(stream=stream))
        await ground.engines["large"].asked()
        fail.set()

        async def has_failed():
            return not (await ground.counts())[in_flight("small")]

        await eventually(has_failed)
        go.set()
        status, headers, body = await asking
        counts = await settled(ground, eventually)

    assert (200, "large", "hedge") == (status, headers["x-llmtier-tier"], headers["x-llmtier-reason"])
    assert content(body)
    assert [2, 1] == [len(ground.small.requests) + 1, len(ground.engines["large"].requests)]
    assert 1 == counts[hedges("won")]


@both
async def test_the_first_tier_goes_on_when_the_second_fails(rig, eventually, stream):
    async with rig() as ground, asyncio.TaskGroup() as group:
        go = asyncio.Event()
        ground.small.say(go, answer(stream=stream))
        ground.engines["large"].say(Step.RESET)
        asking = group.create_task(ground.ask(stream=stream))
        await ground.engines["large"].asked()

        async def has_failed():
            return not (await ground.counts())[in_flight("large")]

        await eventually(has_failed)
        go.set()
        status, headers, _ = await asking
        counts = await settled(ground, eventually)

    assert (200, "small") == (status, headers["x-llmtier-tier"])
    assert 1 == counts[hedges("lost")]


@both
@pytest.mark.parametrize("last", ["small", "large"])
async def test_both_failing_is_one_error(rig, eventually, stream, last):
    async with rig() as ground, asyncio.TaskGroup() as group:
        fail = asyncio.Event()
        for name, engine in ground.engines.items():
            engine.say(
                *([fail] if name == last else []), *([] if name == last else [late := asyncio.Event()]), Step.RESET
            )
        asking = group.create_task(ground.ask(stream=stream))
        await ground.engines["large"].asked()
        late.set()
        other = next(name for name in ground.engines if name != last)

        async def has_failed():
            return not (await ground.counts())[in_flight(other)]

        await eventually(has_failed)
        fail.set()
        status, _, body = await asking
        counts = await settled(ground, eventually)

    assert 502 == status
    assert f"tier {last}".encode() in body
    assert 1 == counts[requests(last, "upstream_error")] == counts[hedges("failed")]


async def test_a_client_that_leaves_ends_both(rig, eventually):
    async with rig() as ground:
        for engine in ground.engines.values():
            engine.say(Step.HANG)
        _, writer = await ground.connect(stream=True)
        await ground.engines["large"].asked()
        leave(writer, is_reset=False)
        for engine in ground.engines.values():
            await engine.left()
        counts = await settled(ground, eventually)

    assert 1 == sum(counts.get(requests(name, "client_gone"), 0) for name in ground.engines)


async def test_the_loser_gives_up_its_slot_at_once_and_its_breaker_learns_nothing(make_state, running_gateway):
    """Its tier takes one request: while the winner still streams, the next one that names it is served."""

    def make(urls, **changes):
        tiers = make_state(urls).pool.tiers.values()
        small = [replace(tier, profile=replace(tier.profile, max_in_flight=1)) for tier in tiers]
        return make_state(urls, pool=TierPool(small), **changes)

    async with rigged(make, running_gateway, deadlines=PATIENT, hedge=ON) as ground, asyncio.TaskGroup() as group:
        for _ in range(7):  # more than it takes to open a breaker
            last = asyncio.Event()
            ground.small.turns.append([Step.HANG])
            ground.engines["large"].say(EVENTS, chunk(token("saved")), last, STREAM[len(EVENTS) :])
            n_gone = ground.small.n_gone
            asking = group.create_task(ground.ask(stream=True))
            await ground.small.left(n_gone + 1, within_s=5)
            assert 200 == (await ground.ask(model="small"))[0]
            assert not asking.done()
            last.set()
            assert 200 == (await asking)[0]
        counts = await ground.counts()

    assert {0.0} == {counts[f'llmtier_breaker_state{{tier="{name}"}}'] for name in ground.engines}
    assert 7 == counts[hedges("won")]


class Wire:
    """A transport that keeps what is written."""

    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += data


async def test_only_the_first_that_speaks_reaches_the_client_even_in_the_same_step():
    """Over sockets it is luck whether two speak before either can be cancelled; here they do."""
    channel = ReplyChannel(Heads())
    channel.transport = Wire()
    request = HttpRequest(method="POST", path="/", query="", headers=[], body=b"", received_s=0.0, complete_s=0.0)
    race = _Race(SimpleNamespace(on_moved=lambda _: None), SimpleNamespace(), Trail())
    lanes = [Lane(name, name, None, None) for name in ("slow", "fast")]
    for lane in lanes:
        lane.task = asyncio.create_task(asyncio.sleep(60))
        race.lanes.append(lane)
    real = Reply(channel, request)
    slow, fast = (LaneReply(real, partial(race._claim, lane)) for lane in lanes)
    slow.on_writable = slow.on_unwritable = lambda: pytest.fail("the loser's")
    fast.headers[b"x-llmtier-tier"] = b"fast"
    fast.on_writable = print
    for reply in (fast, slow):
        reply.start(200, content_type=b"text/event-stream")
        reply.write(reply.headers.get(b"x-llmtier-tier", b"slow"))
        slow.finish(b"slow")
    slow.send_whole(200, b"slow")
    with pytest.raises(asyncio.CancelledError):
        await lanes[0].task
    lanes[1].task.cancel()

    assert (1, 2, 0) == (
        channel.transport.data.count(b"HTTP/1.1 200"),
        *map(channel.transport.data.count, (b"fast", b"slow")),
    )
    assert (print, None) == (real.on_writable, real.on_unwritable)
    assert (True, False) == (slow.is_finished, fast.is_finished)


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"hedge": None}, {}),
        ({"hedge": HedgeSettings()}, {}),
        ({}, {"model": "small"}),
        ({"hedge": HedgeSettings(is_on=True, budget_share=0.5)}, {}),
        ({"hedge": replace(ON, max_prompt_tokens=0)}, {}),
        (
            {
                "rules": RuleBook(
                    (Rule(name="r", when=Condition(min_characters=1), pin="small"),), compile_pattern=compile_pattern
                )
            },
            {},
        ),
    ],
    ids=["absent", "off", "pinned", "no budget", "long prompt", "pinned by a rule"],
)
async def test_nobody_else_is_asked(rig, changes, more):
    async with rig(**{"deadlines": Deadlines(first_byte_s=0.5, total_s=0.5), **changes}) as ground:
        ground.small.say(EVENTS, Step.HANG)
        ground.engines["large"].say(Step.CLOSE)
        await ground.ask(stream=True, **more)
        counts = await ground.counts()

    assert not [name for name in counts if name.startswith("llmtier_hedges_total") and "budget" not in name]
    assert 1 >= len(ground.engines["large"].requests)


async def test_a_tier_without_a_free_slot_is_not_asked(rig, eventually):
    async with rig() as ground, asyncio.TaskGroup() as group:
        go = asyncio.Event()
        ground.engines["large"].say(go, STREAM)
        ground.small.say(go, STREAM)
        group.create_task(ground.ask(stream=True, model="large"))
        await ground.engines["large"].asked()
        asking = group.create_task(ground.ask(stream=True))

        async def is_refused():
            return hedges("nobody-idle") in await ground.counts()

        await eventually(is_refused)
        go.set()
        assert "small" == (await asking)[1]["x-llmtier-tier"]

    assert 1 == len(ground.engines["large"].requests)


async def test_a_lane_waits_for_the_clients_own_pace():
    channel = ReplyChannel(Heads())
    channel.transport = Wire()
    request = HttpRequest(method="POST", path="/", query="", headers=[], body=b"", received_s=0.0, complete_s=0.0)
    real = Reply(channel, request)
    lane = LaneReply(real, lambda: True)

    await lane.drain()
    real.lose()
    with pytest.raises(ConnectionResetError):
        await lane.drain()
