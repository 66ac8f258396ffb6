"""A routing that breaks costs no request: the safe tier serves, it is counted, and the log tells once."""

import importlib.util
import logging
import threading
from dataclasses import replace
from functools import partial
from hashlib import sha256

import msgspec
import pytest

from llmtier.core.errors import PlanError
from llmtier.core.rule import Condition, Rule
from llmtier.route.rules import RuleBook
from llmtier.score.signals import NO_SIGNALS, Signal
from llmtier.serve.app import build_gateway
from llmtier.serve.keys import KeyRing
from llmtier.serve.relay import Deadlines
from llmtier.serve.safe_tier import SafeTier
from llmtier.serve.signals import SignalPlan
from llmtier.store.keys import ApiKey
from llmtier.store.patterns import compile_pattern
from tests.serve.scripted_server import CHAT, Step, ask, decisions, requests, rigged

pytestmark = pytest.mark.anyio

NAMES = ("small", "large")


class Breaking:
    """A scorer that raises what it is given, once for each."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def probabilities(self, prompt, signals=NO_SIGNALS):
        if self.errors:
            raise self.errors.pop(0)
        return {"small": 0.9, "large": 0.95}


def failures(step):
    return f'llmtier_routing_failures_total{{step="{step}"}}'


def rules_of(**rule):
    return RuleBook((Rule(name="r", when=Condition(min_characters=1), **rule),), compile_pattern=compile_pattern)


@pytest.fixture
def anyio_backend():
    """Run on the loop that the gateway runs on."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


@pytest.fixture
def rig(make_state, running_gateway, make_policy):
    return partial(rigged, make_state, running_gateway, policy=make_policy(*NAMES))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("a bug"), TimeoutError(), msgspec.DecodeError("torn")])
async def test_a_scorer_that_breaks_sends_the_request_to_the_reference_tier(rig, error, stream):
    async with rig(scorer=Breaking(error)) as ground:
        status, headers, _ = await ground.ask(stream=stream)
        later = await ground.ask(stream=stream)
        counts = await ground.counts()

    assert (200, "large", "safe_tier") == (status, headers["x-llmtier-tier"], headers["x-llmtier-reason"])
    assert "small" == later[1]["x-llmtier-tier"]
    assert 1 == counts[failures("score")] == counts[decisions("large", "safe_tier")] == counts[requests("large", "ok")]


@pytest.mark.parametrize(
    ("target", "step"),
    [
        ("llmtier.serve.planner.find_rule", "rules"),
        ("llmtier.serve.planner.choose", "choose"),
        ("llmtier.serve.pool.TierPool.states", "choose"),
        ("llmtier.serve.planner.identify", "sticky"),
    ],
)
async def test_whatever_breaks_on_the_way_the_configured_tier_serves(rig, word_scorer, monkeypatch, target, step):
    async with rig(scorer=word_scorer, safe_tier="small", sticky_s=60) as ground:
        monkeypatch.setattr(target, lambda *_, **__: 1 / 0)
        messages = [{"role": "user", "content": "hard"}]
        status, headers, _ = await ground.ask(messages=messages)
        counts = await ground.counts()

    assert (200, "small", "safe_tier") == (status, headers["x-llmtier-tier"], headers["x-llmtier-reason"])
    assert 1 == counts[failures(step)]


async def test_the_log_tells_of_each_kind_once(rig, caplog):
    async with rig(scorer=Breaking(ValueError("one"), ValueError("two"), KeyError("three"))) as ground:
        for _ in range(3):
            await ground.ask()

    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [ValueError, KeyError] == [record.exc_info[0] for record in told]
    assert [("score", "large")] * 2 == [(record.step, record.safe_tier) for record in told]


async def test_a_request_that_names_its_tier_stays_there(rig, monkeypatch):
    async with rig() as ground:
        monkeypatch.setattr("llmtier.serve.planner.choose", lambda *_, **__: 1 / 0)
        _, headers, _ = await ground.ask(model="small")
        ground.small.say(Step.RESET)
        failed = await ground.ask(model="small")
        unknown = await ground.ask(model="tiny")

    assert ("small", "pinned") == (headers["x-llmtier-tier"], headers["x-llmtier-reason"])
    assert (502, 404) == (failed[0], unknown[0])


async def test_a_clients_mistake_is_still_its_own(rig, monkeypatch):
    async with rig() as ground:
        monkeypatch.setattr("llmtier.serve.planner.choose", lambda *_, **__: 1 / 0)
        async with ground.client.post(CHAT, json=ask(), headers={"x-llmtier-ttft-ms": "soon"}) as bad_header:
            pass
        assert (400, 400) == (bad_header.status, (await ground.ask(n=-1))[0])
        assert failures("choose") not in await ground.counts()


async def test_the_safe_tier_may_fail_or_be_down_too(rig, eventually):
    async with rig(scorer=Breaking(*[RuntimeError()] * 2)) as ground:
        ground.engines["large"].say(Step.RESET)
        failed_over = await ground.ask()
        ground.state.pool.report_lost("large")
        at_once = await ground.ask()

    assert ("small", "failover") == (failed_over[1]["x-llmtier-tier"], failed_over[1]["x-llmtier-reason"])
    assert ("small", "safe_tier") == (at_once[1]["x-llmtier-tier"], at_once[1]["x-llmtier-reason"])


@pytest.mark.parametrize(
    ("rule", "safe", "expected"),
    [
        ({"least_tier": "large"}, "small", "large"),
        ({"least_tier": "small"}, "large", "large"),
        ({"pin": "small"}, "large", "small"),
    ],
)
async def test_a_rule_that_was_found_holds(rig, monkeypatch, rule, safe, expected):
    async with rig(rules=rules_of(**rule), safe_tier=safe) as ground:
        monkeypatch.setattr("llmtier.serve.planner.choose", lambda *_, **__: 1 / 0)
        _, headers, _ = await ground.ask()

    assert (expected, "r") == (headers["x-llmtier-tier"], headers["x-llmtier-rule"])


async def test_a_key_keeps_its_tiers(rig, monkeypatch):
    key = ApiKey(name="k", digest=sha256(b"secret").digest(), tiers=frozenset({"small"}))
    async with rig(keys=KeyRing((key,))) as ground:
        monkeypatch.setattr("llmtier.serve.pool.TierPool.states", lambda *_: 1 / 0)
        for model, expected in (("auto", 200), ("large", 403)):
            bearer = {"authorization": "Bearer secret"}
            async with ground.client.post(CHAT, json=ask(model=model), headers=bearer) as answer:
                assert expected == answer.status
                assert answer.headers.get("x-llmtier-tier", "small") == "small"


async def test_an_embedder_that_hangs_is_a_signal_that_cannot_be_had(rig, word_scorer, monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr("llmtier.serve.signals._EMBEDDING_TIMEOUT_S", 0.05)
    plan = SignalPlan(reads=frozenset({Signal.EMBEDDING}), embed=lambda _: hanging.wait(10) and None)
    deadlines = Deadlines(total_s=15)
    try:
        async with rig(scorer=word_scorer, signals=plan, deadlines=deadlines) as ground:
            status, headers, _ = await ground.ask()
            counts = await ground.counts()
    finally:
        hanging.set()

    assert (200, "small") == (status, headers["x-llmtier-tier"])
    assert 1 == counts['llmtier_signal_failures_total{signal="embedding"}']


def test_without_one_configured_it_is_the_reference_else_the_default_else_the_first(make_state, make_policy):
    state = make_state({"small": "http://127.0.0.1:1", "large": "http://127.0.0.1:1"})
    names = [
        SafeTier(replace(state, **changes)).name
        for changes in (
            {"policy": make_policy(*NAMES), "safe_tier": "small", "default_tier": "large"},
            {"policy": make_policy(*NAMES), "default_tier": "small"},
            {"default_tier": "large"},
            {},
        )
    ]

    assert ["small", "large", "large", "small"] == names


def test_one_that_is_not_served_is_refused(make_state):
    with pytest.raises(PlanError, match=r"gateway\.safe_tier: 'tiny' is not served"):
        build_gateway(make_state({"small": "http://127.0.0.1:1"}, safe_tier="tiny"))
