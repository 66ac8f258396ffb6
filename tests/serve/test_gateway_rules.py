"""Rules and the score cache over real sockets."""

import asyncio
import hashlib
import logging

import aiohttp
import pytest

from llmtier.core.decision import Reason
from llmtier.core.rule import Condition, Rule
from llmtier.engine.mock import running_mock
from llmtier.engine.mock_settings import MockSettings
from llmtier.serve.log import TrafficLog
from llmtier.serve.rules import make_rules
from llmtier.serve.state import Limits
from llmtier.store.traffic import TrafficWriter, read_traffic

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BY_KEY = Rule(name="by key", when=Condition(key_sha256=hashlib.sha256(b"sk-1").hexdigest()), pin="large")
BY_TEXT = Rule(name="by text", when=Condition(pattern=r"(?i)\bprove\b"), least_tier="large")


def ask(text="easy", *, model="auto"):
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4}


class CountingScorer:
    """Believes in every tier alike, and counts what it is asked."""

    def __init__(self):
        self.asked = []

    def probabilities(self, prompt, signals):
        self.asked.append(prompt.last_user_text)
        return {"small": 0.9, "large": 0.9}


@pytest.fixture
def scorer():
    return CountingScorer()


@pytest.fixture
async def ruled(make_state, make_policy, scorer):
    """Return a maker of states with rules, a policy and two mock engines."""
    small, large = (MockSettings(model_name=f"engine-{name}") for name in ("small", "large"))
    async with running_mock(small) as small_url, running_mock(large) as large_url:

        def make(*rules, large_url=large_url, **changes):
            policy = make_policy("small", "large")
            book = make_rules(rules, served=["small", "large"], policy=policy)
            urls = {"small": small_url, "large": large_url}
            return make_state(urls, policy=policy, scorer=scorer, rules=book, **changes)

        yield make


async def post(client, body, **headers):
    async with client.post(
        CHAT, json=body, headers={name.replace("_", "-"): v for name, v in headers.items()}
    ) as answer:
        await answer.read()
        assert 200 == answer.status
        return tuple(answer.headers.get(f"x-llmtier-{name}") for name in ("tier", "reason", "rule"))


async def read_metric(client, name):
    async with client.get("/metrics") as page:
        lines = (await page.text()).splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


async def test_rules_come_before_the_scorer(ruled, scorer, running_gateway):
    async with running_gateway(ruled(BY_KEY, BY_TEXT)) as url, aiohttp.ClientSession(url) as client:
        by_key = await post(client, ask("prove it"), Authorization="Bearer sk-1")
        assert [] == scorer.asked
        by_text = await post(client, ask("prove it"), Authorization="Bearer sk-2")
        free = await post(client, ask())
        named = await post(client, ask("prove it", model="small"), Authorization="Bearer sk-1")

    assert ("large", Reason.RULE, "by key") == by_key
    assert ("large", Reason.CHEAPEST_FEASIBLE, "by text") == by_text
    assert ("small", Reason.CHEAPEST_FEASIBLE, None) == free
    assert ("small", Reason.PINNED, None) == named


async def test_a_pinned_tier_that_is_dead_fails_over(ruled, running_gateway):
    state = ruled(BY_KEY, large_url="http://127.0.0.1:1")
    async with running_gateway(state) as url, aiohttp.ClientSession(url) as client:
        assert ("small", "failover", "by key") == await post(client, ask(), Authorization="Bearer sk-1")


async def test_a_rule_leaves_its_name_in_log_and_metrics_and_no_key(ruled, running_gateway, caplog, tmp_path):
    caplog.set_level(logging.DEBUG, logger="llmtier")
    log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail)
    async with running_gateway(ruled(BY_KEY, BY_TEXT, traffic=log)) as url, aiohttp.ClientSession(url) as client:
        await post(client, ask(), Authorization="Bearer sk-1")
        await post(client, ask("prove"))
        assert 1.0 == await read_metric(client, 'llmtier_route_decisions_total{reason="rule",tier="large"}')
    lines = [record for record in caplog.records if record.getMessage() == "request"]
    pinned, barred = read_traffic(tmp_path)

    assert [("rule", "by key"), ("cheapest_feasible", "by text")] == [(line.reason, line.rule) for line in lines]
    assert "sk-1" not in "".join(str(vars(record)) for record in caplog.records)
    assert ("rule", "") == (pinned.reason, pinned.misses)
    assert "small: rule" in barred.misses


async def test_a_prompt_that_came_before_is_not_scored_again(ruled, scorer, running_gateway):
    async with running_gateway(ruled()) as url, aiohttp.ClientSession(url) as client:
        for text, domain in (("one", "a"), ("one", "a"), ("one", "b"), ("two", "a"), ("one", "a")):
            await post(client, ask(text), x_llmtier_domain=domain)
        counts = [await read_metric(client, f"llmtier_score_cache_{name}_total") for name in ("hits", "misses")]

    assert ["one", "one", "two"] == scorer.asked
    assert [2.0, 3.0] == counts


async def test_the_cache_can_be_switched_off(ruled, scorer, running_gateway):
    state = ruled(limits=Limits(cached_scores=0))
    async with running_gateway(state) as url, aiohttp.ClientSession(url) as client:
        await post(client, ask())
        await post(client, ask())

    assert 2 == len(scorer.asked)


async def test_a_hostile_prompt_does_not_hold_up_the_others(ruled, running_gateway):
    """In a backtracking engine this pattern takes an exponential number of steps on this text."""
    rule = Rule(name="hostile", when=Condition(pattern=r"(a+)+$"), pin="large")
    async with running_gateway(ruled(rule)) as url, aiohttp.ClientSession(url) as client, asyncio.timeout(10):
        assert "small" == (await post(client, ask("a" * 40_000 + "!")))[0]
        assert "large" == (await post(client, ask("!" + "a" * 40_000)))[0]


async def test_token_ids_are_ruled_by_what_is_known_of_them(ruled, running_gateway):
    rules = (BY_TEXT, Rule(name="by team", when=Condition(headers=(("x-team", "a"),)), pin="small"))
    async with (
        running_gateway(ruled(*rules)) as url,
        aiohttp.ClientSession(url) as client,
        client.post("/v1/completions", json={"model": "auto", "prompt": [1, 2]}, headers={"X-Team": "a"}) as answer,
    ):
        assert ("small", "by team") == (answer.headers["x-llmtier-tier"], answer.headers["x-llmtier-rule"])
