"""Where ``auto`` goes when tiers are full: to one that has room and meets the need, else into the cheapest one's queue."""

import asyncio
import importlib.util
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from llmtier.core.decision import Decision, Miss, MissReason, Offer, Reason
from llmtier.serve.admission_plan import AdmissionSettings
from llmtier.serve.pool import TierPool
from llmtier.serve.relay import Deadlines
from llmtier.serve.room import Move, find_room
from tests.serve.scripted_server import CHAT, EVENTS, STREAM, ask, chunk, decisions, requests, rigged, token

PRICES = {"small": 1.0, "middle": 2.0, "large": 3.0}
FULL, INACCURATE = MissReason.SATURATED, MissReason.ACCURACY


@pytest.fixture
def anyio_backend():
    """Run on the loop that the gateway runs on."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


def decided(tier, *misses, reason=Reason.CHEAPEST_FEASIBLE):
    offers = tuple(Offer(name, 0.9, usd) for name, usd in PRICES.items())
    return Decision(tier, reason, offers, tuple(Miss(name, why) for name, why in misses))


def upgrade(tier):
    return Move(tier=tier, waits=False)


def wait(tier):
    return Move(tier=tier, waits=True)


ALL_FULL = [(name, FULL) for name in PRICES]


@pytest.mark.parametrize(
    ("decision", "busy", "expected"),
    [
        (decided("small"), "", None),
        (decided("small"), "small", upgrade("middle")),
        (decided("small"), "small middle", upgrade("large")),
        (decided("small", ("middle", INACCURATE)), "small", upgrade("large")),
        (decided("small", ("middle", INACCURATE), ("large", MissReason.TTFT)), "small", None),
        (decided("small"), "small middle large", None),
        (decided("middle", ("small", FULL)), "", upgrade("middle")),
        (decided("middle", ("small", INACCURATE)), "", None),
        (decided("middle", ("small", FULL)), "middle", upgrade("large")),
        (decided("middle", ("small", FULL)), "small middle large", wait("small")),
        (decided("large", *ALL_FULL, reason=Reason.FALLBACK), "small middle large", wait("small")),
        (
            decided("large", *ALL_FULL, ("small", INACCURATE), reason=Reason.FALLBACK),
            "small middle large",
            wait("middle"),
        ),
        (decided("large", ("small", FULL), ("large", MissReason.TTFT), reason=Reason.FALLBACK), "", None),
        (decided("large", reason=Reason.PINNED), "large", upgrade("small")),
        (decided("large", reason=Reason.PINNED), "small middle large", None),
        (decided("small", reason=Reason.RULE), "small", None),
        (decided("small", reason=Reason.SAFE_TIER), "small", None),
        (decided(None, *ALL_FULL, reason=Reason.REJECTED), "small", None),
        (decided("middle", ("small", FULL), reason=Reason.HIGHEST_UTILITY), "", None),
    ],
)
def test_the_next_tier_that_meets_the_need_and_has_room_serves(decision, busy, expected):
    assert expected == find_room(decision, lambda tier: tier not in busy.split())


@pytest.mark.parametrize(
    ("decision", "busy", "expected"),
    [
        (decided("small"), "small", None),
        (decided("middle", ("small", FULL)), "small", wait("small")),
        (decided("middle", ("small", FULL)), "", upgrade("middle")),
        (decided("middle", ("small", FULL)), "small middle", wait("small")),
        (decided("large", *ALL_FULL, reason=Reason.FALLBACK), "small middle large", wait("small")),
        (decided("middle", ("small", INACCURATE)), "middle", None),
    ],
)
def test_whoever_would_rather_wait_waits_for_the_cheapest(decision, busy, expected):
    assert expected == find_room(decision, lambda tier: tier not in busy.split(), upgrades=False)


@pytest.fixture
def full(make_state, running_gateway, make_policy, word_scorer):
    """Return a context manager that runs a gateway whose tiers take one request each; ``busy`` ones have it."""

    def make(urls, **changes):
        tiers = make_state(urls).pool.tiers.values()
        small = [replace(tier, profile=replace(tier.profile, max_in_flight=1)) for tier in tiers]
        routing = {"policy": make_policy("small", "large"), "scorer": word_scorer}
        return make_state(urls, pool=TierPool(small), **{**routing, **changes})

    @asynccontextmanager
    async def run(*busy, **changes):
        changes.setdefault("deadlines", Deadlines(first_byte_s=10, total_s=15))
        let_go = asyncio.Event()
        async with rigged(make, running_gateway, **changes) as ground, asyncio.TaskGroup() as group:
            for name in busy:
                ground.engines[name].turns.append([EVENTS, chunk(token("x")), let_go, STREAM[len(EVENTS) :]])
                group.create_task(ground.ask(model=name, stream=True))
                await ground.engines[name].asked()
            try:
                yield ground, let_go
            finally:
                let_go.set()

    return run


def of(headers):
    return headers["x-llmtier-tier"], headers["x-llmtier-reason"]


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [True, False])
async def test_auto_takes_the_dearer_tier_that_has_room(full, stream):
    async with full("small") as (ground, _):
        status, headers, _ = await ground.ask(stream=stream)
        counts = await ground.counts()

    assert (200, "large", "upgrade") == (status, *of(headers))
    assert 1 == counts[decisions("large", "upgrade")] == counts[requests("large", "ok")]


@pytest.mark.anyio
async def test_without_a_policy_the_default_tier_gives_way_too(full):
    async with full("small", policy=None, scorer=None, default_tier="small") as (ground, _):
        _, headers, _ = await ground.ask()

    assert ("large", "upgrade") == of(headers)


@pytest.mark.anyio
@pytest.mark.parametrize("busy", [("small", "large"), ("large", "small")])
async def test_where_all_are_full_the_cheapest_that_meets_the_need_is_waited_for(full, eventually, busy):
    async with full(*busy) as (ground, let_go), asyncio.TaskGroup() as group:
        waiting = group.create_task(ground.ask())

        async def waits():
            return 1 == (await ground.counts())['llmtier_tier_queue{tier="small"}']

        await eventually(waits)
        let_go.set()
        status, headers, _ = await waiting

    assert (200, "small", "wait") == (status, *of(headers))


@pytest.mark.anyio
async def test_a_tier_that_misses_the_need_is_no_upgrade(full, eventually):
    """A hard prompt needs the large tier: the small one has room, and is not asked."""
    async with full("large") as (ground, let_go), asyncio.TaskGroup() as group:
        waiting = group.create_task(ground.ask(messages=[{"role": "user", "content": "hard"}]))

        async def waits():
            return 1 == (await ground.counts())['llmtier_tier_queue{tier="large"}']

        await eventually(waits)
        let_go.set()
        _, headers, _ = await waiting

    assert "large" == headers["x-llmtier-tier"]
    assert not ground.small.requests


@pytest.mark.anyio
async def test_a_request_that_names_its_tier_waits_there(full, eventually):
    async with full("small") as (ground, let_go), asyncio.TaskGroup() as group:
        waiting = group.create_task(ground.ask(model="small"))

        async def waits():
            return 1 == (await ground.counts())['llmtier_tier_queue{tier="small"}']

        await eventually(waits)
        let_go.set()
        _, headers, _ = await waiting

    assert ("small", "pinned") == of(headers)
    assert not ground.engines["large"].requests


@pytest.mark.anyio
async def test_whoever_would_rather_wait_is_upgraded_when_its_limit_cannot_be_kept(full):
    """By itself it takes 0.4 s behind the other one; there is room for 0.1 s of waiting, and then the large tier serves."""
    async with full("small", admission=AdmissionSettings(upgrades=False)) as (ground, _):
        answer = await ground.client.post(CHAT, json=ask(), headers={"x-llmtier-e2el-ms": "500"})
        headers = answer.headers
        counts = await ground.counts()

    assert (1, 1) == (counts[decisions("small", "wait")], counts[decisions("large", "upgrade")])
    assert ("large", "upgrade") == of(headers)


@pytest.mark.anyio
async def test_a_limit_that_no_tier_can_keep_any_more_is_told_at_once(full):
    async with full("small", "large") as (ground, _):
        async with ground.client.post(CHAT, json=ask(), headers={"x-llmtier-e2el-ms": "210"}) as answer:
            headers = answer.headers
        asked = [len(engine.requests) for engine in ground.engines.values()]

    assert (503, "deadline") == (answer.status, headers["x-llmtier-dropped-reason"])
    assert "1" <= headers["retry-after"]
    assert [1, 1] == asked


@pytest.mark.anyio
async def test_waiting_first_is_a_choice(full, eventually):
    async with full("small", admission=AdmissionSettings(upgrades=False)) as (ground, let_go):
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(ground.ask())

            async def waits():
                return 1 == (await ground.counts())['llmtier_tier_queue{tier="small"}']

            await eventually(waits)
            let_go.set()
        _, headers, _ = waiting.result()

    assert ("small", "wait") == of(headers)
    assert not ground.engines["large"].requests
