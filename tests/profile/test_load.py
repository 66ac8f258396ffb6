"""A load sends what it should, when it should, and counts what it should, against a mock engine."""

import asyncio
import gc
import itertools
from contextlib import asynccontextmanager

import pytest

from llmtier.core.errors import EngineRequestError
from llmtier.engine.load_client import LoadClient
from llmtier.engine.mock import mock_app, running_app
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.profile.conversation import Conversation, Turn
from llmtier.profile.load import LoadPlan, LoadProgress, run_load, run_talks
from llmtier.profile.shapes import ClosedLoop, ConstantRate, PoissonRate, Trace
from llmtier.profile.workload import PromptSource, RequestStyle

pytestmark = pytest.mark.anyio

FAST = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0, output_tokens=2)


@asynccontextmanager
async def engine(settings=FAST):
    app = mock_app(settings)
    async with running_app(app) as url, LoadClient(url, timeout_s=5) as client:
        yield app, client


def plan_of(shape, n_requests=6, warmup_requests=0, seed=1):
    return LoadPlan(
        tier="t",
        model_name="mock",
        shape=shape,
        n_requests=n_requests,
        warmup_requests=warmup_requests,
        seed=seed,
        stagger_s=0.0,
    )


def items_of(prompts, max_tokens=8):
    return iter(PromptSource(prompts=prompts, max_tokens=max_tokens, seed=1))


@pytest.mark.parametrize(("concurrency", "n_warmup"), [(1, 0), (3, 0), (3, 4), (5, 2)])
async def test_closed_loop_keeps_its_concurrency_and_flags_the_warmup(make_prompts, concurrency, n_warmup):
    async with engine(MockSettings(alpha_s=0.002)) as (app, client):
        peak = 0

        async def watch():
            nonlocal peak
            while True:
                peak = max(peak, app.engine.n_running + app.engine.n_waiting)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        result = await run_load(
            client, plan_of(ClosedLoop(concurrency=concurrency), 12, n_warmup), items_of(make_prompts(4))
        )
        watching.cancel()

    assert 12 + n_warmup == len(result.samples) == app.n_requests
    assert n_warmup == sum(sample.is_warmup for sample in result.samples)
    assert concurrency == peak
    assert all(sample.row.concurrency == concurrency for sample in result.samples)
    assert {f"closed:{concurrency}"} == {sample.row.shape for sample in result.samples}


async def test_worker_is_scheduled_when_its_last_request_is_done(make_prompts):
    async with engine() as (_, client):
        result = await run_load(client, plan_of(ClosedLoop(concurrency=1)), items_of(make_prompts(2)))

    for earlier, later in itertools.pairwise(result.samples):
        assert earlier.row.done_s <= later.row.scheduled_s <= later.row.sent_s


async def test_schedule_is_kept_whatever_the_engine_does(make_prompts):
    """The engine hangs on the first request; the others still leave at their instants, and count from them."""
    faults = (Fault(kind=FaultKind.SLOW_START, on_nth_request=1, delay_s=0.2),)
    async with engine(MockSettings(alpha_s=0.0, sequence_s=0.0, output_tokens=2, faults=faults)) as (_, client):
        result = await run_load(client, plan_of(ConstantRate(rate_rps=100.0)), items_of(make_prompts(3)))
    scheduled = [sample.row.scheduled_s for sample in result.samples]

    assert all(later - earlier == pytest.approx(0.01) for earlier, later in itertools.pairwise(scheduled))
    assert result.samples[-1].row.sent_s < result.samples[0].row.done_s
    assert all(sample.row.sent_s >= sample.row.scheduled_s for sample in result.samples)
    assert all(sample.row.concurrency is None for sample in result.samples)


async def test_same_seed_gives_the_same_gaps(make_prompts):
    gaps = []
    for _ in range(2):
        async with engine() as (_, client):
            result = await run_load(client, plan_of(PoissonRate(rate_rps=500.0), seed=7), items_of(make_prompts(3)))
        first = result.samples[0].row.scheduled_s
        gaps.append([round(sample.row.scheduled_s - first, 9) for sample in result.samples])

    assert gaps[0] == pytest.approx(gaps[1])


async def test_trace_keeps_its_recorded_gaps(make_prompts):
    shape = Trace(name="x", recorded_s=(0.0, 0.01, 0.03, 0.03, 0.04, 0.08), time_scale=0.5)
    async with engine() as (_, client):
        result = await run_load(client, plan_of(shape), items_of(make_prompts(3)))
    first = result.samples[0].row.scheduled_s

    assert [0.0, 0.005, 0.015, 0.015, 0.02, 0.04] == pytest.approx(
        [sample.row.scheduled_s - first for sample in result.samples]
    )


async def test_rows_hold_instants_counts_and_chunks(make_prompts):
    async with engine() as (_, client):
        result = await run_load(client, plan_of(ClosedLoop(concurrency=1), 1), items_of(make_prompts(1)))
    [sample] = result.samples
    row = sample.row

    assert row.scheduled_s <= row.sent_s <= row.first_s <= row.last_s <= row.done_s
    assert (row.first_s, row.last_s) == (sample.content_s[0], sample.content_s[-1])
    assert ("p0", 2, 2, 2, "ok") == (row.prompt_id, row.n_input_tokens, row.n_output_tokens, row.n_chunks, row.status)


async def test_failures_are_rows_with_their_reason(make_prompts):
    faults = (
        Fault(kind=FaultKind.ERROR, on_nth_request=2),
        Fault(kind=FaultKind.CUT, on_nth_request=3, after_tokens=1),
    )
    async with engine(MockSettings(alpha_s=0.0, sequence_s=0.0, output_tokens=2, faults=faults)) as (_, client):
        progress = LoadProgress()
        result = await run_load(
            client, plan_of(ClosedLoop(concurrency=1)), items_of(make_prompts(3)), progress=progress
        )
    statuses = [sample.row.status for sample in result.samples]

    assert ["ok", "ok", "ok", "ok"] == [statuses[0], *statuses[3:]]
    assert "HTTP 500: scripted fault" == statuses[1]
    assert statuses[2].startswith("stream cut after 1 chunks")
    assert [False, True, True, False, False, False] == [not sample.is_ok for sample in result.samples]
    assert (6, 6, 2) == (progress.n_sent, progress.n_done, progress.n_failed)
    assert 4 == len(progress.e2el_s) == len(progress.first_byte_s)


@pytest.mark.parametrize("shape", [ClosedLoop(concurrency=4), ConstantRate(rate_rps=2000.0)])
async def test_dead_engine_ends_the_load(make_prompts, shape):
    faults = (Fault(kind=FaultKind.REFUSE),)
    async with engine(MockSettings(faults=faults)) as (app, client):
        with pytest.raises(EngineRequestError, match="first 20 requests all failed"):
            await run_load(client, plan_of(shape, 2_000), items_of(make_prompts(3)))

    assert app.n_requests < 500


async def test_garbage_is_left_alone_only_while_a_load_runs(make_prompts):
    async with engine() as (app, client):
        was_collecting = []

        def items():
            yield from itertools.islice(items_of(make_prompts(1)), 3)

        submit = app.engine.submit

        def note(**fields):
            was_collecting.append(gc.isenabled())
            return submit(**fields)

        app.engine.submit = note
        await run_load(client, plan_of(ClosedLoop(concurrency=1), 3), items())

    assert [False] * 3 == was_collecting
    assert gc.isenabled()
    assert 0 == gc.get_freeze_count()


async def test_talks_carry_the_real_answers_into_the_next_turn():
    style = RequestStyle()

    def talks():
        for number in itertools.count():
            turns = [Turn(content=f"first {number}", max_tokens=2), Turn(content="second", max_tokens=2)]
            yield Conversation(f"s{number}", turns, style=style)

    async with engine(MockSettings(alpha_s=0.0, sequence_s=0.0)) as (_, client):
        result = await run_talks(client, plan_of(ClosedLoop(concurrency=2), 8), talks())
    lengths = sorted(sample.row.n_input_tokens for sample in result.samples)

    assert 8 == len(result.samples)
    assert [2, 2, 2, 2, 5, 5, 5, 5] == lengths  # 2 words; then those, the answer's 2 and "second"


async def test_talks_need_a_closed_loop():
    async with engine() as (_, client):
        with pytest.raises(ValueError, match="conversations need a closed loop"):
            await run_talks(client, plan_of(ConstantRate(rate_rps=1.0)), iter(()))


@pytest.mark.parametrize("fields", [{"n_requests": 0}, {"warmup_requests": -1}])
async def test_impossible_plans_are_refused(fields):
    with pytest.raises(ValueError, match="load: "):
        plan_of(ClosedLoop(concurrency=1), **fields)
