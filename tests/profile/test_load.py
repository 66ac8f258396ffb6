"""The closed loop sends what it should, when it should, and counts what it should."""

import asyncio
import gc
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import EngineRequestError
from llmtier.core.prompt import Message, Prompt
from llmtier.core.timing import RequestTiming
from llmtier.engine.stream import Completion
from llmtier.profile.load import ClosedLoop, LoadSettings, cycle_prompts


@dataclass
class FakeClient:
    """Answers in two chunks after some turns of the loop; time is a counter that every look moves on by one."""

    fails: frozenset[int] = frozenset()
    n_asked: int = 0
    n_in_flight: int = 0
    peak: int = 0
    was_collecting: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    max_tokens: list[int | None] = field(default_factory=list)
    ticks: Iterator[int] = field(default_factory=itertools.count)

    def now_s(self):
        return float(next(self.ticks))

    async def stream_chat(self, messages, *, max_tokens, temperature=0.0, scheduled_s=None):
        number = self.n_asked
        self.n_asked += 1
        self.texts.append(messages[-1].content)
        self.max_tokens.append(max_tokens)
        self.was_collecting.append(gc.get_freeze_count())
        sent_s = self.now_s()
        self.n_in_flight += 1
        self.peak = max(self.peak, self.n_in_flight)
        await asyncio.sleep(0)
        self.n_in_flight -= 1
        if number in self.fails:
            raise EngineRequestError("scripted", status=500)
        first_s, last_s, done_s = self.now_s(), self.now_s(), self.now_s()
        timing = RequestTiming(
            scheduled_s=scheduled_s, sent_s=sent_s, content_s=(first_s, last_s), done_s=done_s, n_output_tokens=2
        )
        return Completion(text="a b", timing=timing, n_input_tokens=3, finish_reason="stop")


def make_loop(client, prompts, **settings):
    return ClosedLoop(
        client=client,
        tier="t",
        prompts=cycle_prompts(prompts, seed=1),
        settings=LoadSettings(**{"warmup_requests": 0, "requests_per_point": 6, "stagger_s": 0.0, **settings}),
        clock=client.now_s,
    )


@pytest.mark.anyio
@pytest.mark.parametrize(("concurrency", "n_warmup"), [(1, 0), (3, 0), (3, 4), (5, 2)])
async def test_the_loop_keeps_its_concurrency_and_drops_the_warmup(make_prompts, concurrency, n_warmup):
    client = FakeClient()

    samples = await make_loop(client, make_prompts(4), warmup_requests=n_warmup).measure(concurrency)

    assert 6 == len(samples)
    assert 6 + n_warmup == client.n_asked
    assert concurrency == client.peak
    assert all(sample.row.concurrency == concurrency and sample.row.tier == "t" for sample in samples)


@pytest.mark.anyio
async def test_rows_hold_the_instants_and_the_gaps(make_prompts):
    [sample] = await make_loop(FakeClient(), make_prompts(1), requests_per_point=1).measure(1)

    row = sample.row
    instants = (row.scheduled_s, row.sent_s, row.first_s, row.last_s, row.done_s)
    assert (0.0, 1.0, 2.0, 3.0, 4.0) == instants
    assert (1.0,) == sample.itl_s
    assert ("p0", 3, 2, "ok") == (row.prompt_id, row.n_input_tokens, row.n_output_tokens, row.status)


@pytest.mark.anyio
async def test_a_worker_is_scheduled_when_its_last_request_is_done(make_prompts):
    samples = await make_loop(FakeClient(), make_prompts(2)).measure(1)

    rows = [sample.row for sample in samples]
    for earlier, later in itertools.pairwise(rows):
        assert later.scheduled_s == earlier.done_s + 1.0  # the next look at the clock
        assert later.sent_s == later.scheduled_s + 1.0


@pytest.mark.anyio
async def test_failures_are_rows_without_latency(make_prompts):
    samples = await make_loop(FakeClient(fails=frozenset({0, 2})), make_prompts(3), warmup_requests=1).measure(1)

    assert ["ok", "scripted", "ok", "ok", "ok", "ok"] == [sample.row.status for sample in samples]
    failed = samples[1]
    assert (None, None, None) == (failed.row.first_s, failed.row.last_s, failed.row.n_output_tokens)
    assert failed.row.scheduled_s == failed.row.sent_s < failed.row.done_s
    assert () == failed.itl_s


@pytest.mark.anyio
async def test_a_dead_engine_ends_the_point(make_prompts):
    client = FakeClient(fails=frozenset(range(10_000)))

    with pytest.raises(EngineRequestError, match="first 20 requests all failed"):
        await make_loop(client, make_prompts(3), requests_per_point=10_000).measure(4)

    assert client.n_asked < 30


@pytest.mark.anyio
async def test_points_share_one_cycle_of_prompts(make_prompts):
    client = FakeClient()
    loop = make_loop(client, make_prompts(12))

    await loop.measure(1)
    await loop.measure(2)

    assert {f"word {index}" for index in range(12)} == set(client.texts)


@pytest.mark.anyio
async def test_a_prompt_may_name_its_own_max_tokens():
    client = FakeClient()
    prompt = Prompt(id="p", messages=(Message(role="user", content="?"),), max_tokens=3)

    await make_loop(client, [prompt], requests_per_point=1, max_tokens=9).measure(1)

    assert [3] == client.max_tokens


@pytest.mark.anyio
async def test_garbage_is_frozen_only_while_a_point_is_measured(make_prompts):
    client = FakeClient()

    await make_loop(client, make_prompts(1)).measure(1)

    assert all(n_frozen > 0 for n_frozen in client.was_collecting)
    assert 0 == gc.get_freeze_count()


PROMPTS = [Prompt(id=f"p{index}", messages=(Message(role="user", content="?"),)) for index in range(50)]


@given(st.integers(1, 50), st.integers(0, 2**32))
def test_a_cycle_repeats_one_seeded_order(n_prompts, seed):
    prompts = PROMPTS[:n_prompts]
    twice = list(itertools.islice(cycle_prompts(prompts, seed=seed), 2 * n_prompts))

    assert prompts == sorted(twice[:n_prompts], key=prompts.index)
    assert twice[:n_prompts] == twice[n_prompts:]
    assert twice == list(itertools.islice(cycle_prompts(prompts, seed=seed), 2 * n_prompts))


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": ()},
        {"concurrency": (0, 1)},
        {"concurrency": (4, 1)},
        {"concurrency": (1, 1)},
        {"requests_per_point": 0},
        {"warmup_requests": -1},
        {"max_tokens": 0},
        {"stagger_s": float("nan")},
    ],
)
def test_impossible_loads_are_refused(settings):
    with pytest.raises(ValueError, match="load: "):
        LoadSettings(**settings)
