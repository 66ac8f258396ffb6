"""A tier's whole measurement against a mock engine of known speed: laws, never absolute times."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from llmtier.core.errors import EngineRequestError, InputFileError, PlanError
from llmtier.core.hardware import Hardware
from llmtier.core.prompt import AnswerScorer
from llmtier.core.provenance import Provenance
from llmtier.core.tier import EngineIdentity
from llmtier.engine.client import EngineClient
from llmtier.engine.mock import running_mock
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.profile.load import LoadSettings
from llmtier.profile.run import AccuracyProgress, PointDone, PointStarted, TierFacts, check_evaluation, profile_tier
from llmtier.store.profiles import read_items, read_profile, read_requests, write_profile

FAST = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0, output_tokens=2)
QUICK = LoadSettings(concurrency=(1, 3), requests_per_point=9, warmup_requests=2, max_tokens=8, stagger_s=0.0)
FACTS = TierFacts(
    tier="mini@bf16",
    checkpoint_digest="ab12",
    engine=EngineIdentity(name="mock", version="mock-1"),
    hardware_fingerprint="f00",
    device="cpu:0",
    co_tenants=("b", "a"),
    context_tokens=512,
    usd_per_hour=0.05,
)


@asynccontextmanager
async def client_of(settings):
    async with running_mock(settings) as base_url, EngineClient(base_url, model_name="mock") as client:
        yield client


async def measure(mock, evaluation, settings=QUICK, *, facts=FACTS, on_event=None, seed=0):
    async with client_of(mock) as client:
        return await profile_tier(client, facts, evaluation, settings, seed=seed, on_event=on_event)


@pytest.fixture
def labelled(make_prompts):
    """Return four prompts, three of which the echoing mock answers rightly, in two domains."""
    prompts = make_prompts(4, answers=["word 0", "word 1", "word 2", "other"], domain="a")
    return [*prompts[:3], replace(prompts[3], domain="b")]


@pytest.mark.anyio
async def test_a_measurement_holds_every_request_point_and_item(labelled):
    measured = await measure(FAST, labelled)

    profile = measured.profile
    assert [(1, 9, 0), (3, 9, 0)] == [(point.concurrency, point.n_ok, point.n_failed) for point in profile.points]
    assert [1] * 9 + [3] * 9 == [row.concurrency for row in measured.requests]
    assert [1.0, 1.0, 1.0, 0.0] == [item.score for item in measured.items]
    assert [("all", 0.75), ("a", 1.0), ("b", 0.0)] == [(each.domain, each.accuracy) for each in profile.accuracy]
    assert profile.cost is not None
    assert 0.0 < profile.cost.usd_per_request < 0.05
    assert all(point.mean_output_tokens == 2 and point.mean_input_tokens == 2 for point in profile.points)


@pytest.mark.anyio
async def test_a_measurement_survives_being_stored(labelled, tmp_path):
    hardware = Hardware(cpu_model="x", cpu_flags=(), n_cores=2, memory_bytes=1)
    provenance = Provenance(llmtier_version="0", command=("llmtier",), created_at="2026-01-01", hardware=hardware)

    measured = await measure(FAST, labelled)
    folder = write_profile(
        tmp_path,
        hardware,
        measured.profile,
        requests=measured.requests,
        items=measured.items,
        provenance=provenance,
    )

    assert measured.profile == read_profile(folder)
    assert list(measured.requests) == read_requests(folder)
    assert list(measured.items) == read_items(folder)


@pytest.mark.anyio
async def test_facts_are_carried_into_the_profile(labelled):
    profile = (await measure(FAST, labelled)).profile

    assert (FACTS.tier, FACTS.checkpoint_digest, FACTS.engine) == (
        profile.tier,
        profile.checkpoint_digest,
        profile.engine,
    )
    assert ("f00", "cpu:0", ("a", "b"), 512) == (
        profile.hardware_fingerprint,
        profile.device,
        profile.co_tenants,
        profile.context_tokens,
    )


@pytest.mark.anyio
async def test_progress_is_told_point_by_point_then_answer_by_answer(labelled):
    events = []

    measured = await measure(FAST, labelled, on_event=events.append)

    first, second = measured.profile.points
    assert [
        PointStarted(tier=FACTS.tier, concurrency=1, n_requests=9),
        PointDone(tier=FACTS.tier, point=first),
        PointStarted(tier=FACTS.tier, concurrency=3, n_requests=9),
        PointDone(tier=FACTS.tier, point=second),
    ] == events[:4]
    assert [(1, 4), (2, 4), (3, 4), (4, 4)] == [(event.n_done, event.n_total) for event in events[4:]]
    assert AccuracyProgress(tier=FACTS.tier, n_done=4, n_total=4, score_sum=3.0) == events[-1]


@pytest.mark.anyio
async def test_a_steps_cost_per_sequence_shows_as_tpot_under_load(make_prompts):
    # A step takes 1 ms and 3 ms per running request: 4 ms alone, 25 ms for eight. A busy machine adds to both.
    mock = MockSettings(alpha_s=0.001, beta_s_per_token=0.0, sequence_s=0.003, output_tokens=4)
    settings = replace(QUICK, concurrency=(1, 8), requests_per_point=16, warmup_requests=0)

    one, eight = (await measure(mock, make_prompts(16), settings)).profile.points

    assert eight.tpot_p50_s > one.tpot_p50_s
    assert eight.itl_p50_s > one.itl_p50_s
    assert eight.e2el_p50_s > one.e2el_p50_s
    assert eight.ttft_p50_s <= eight.e2el_p50_s


@pytest.mark.anyio
async def test_failures_are_counted_and_score_nothing(labelled):
    # Requests 1 to 11 are the first point, 12 to 22 the second, 23 to 26 the answers.
    faults = tuple(Fault(kind=FaultKind.ERROR, on_nth_request=number) for number in (1, 5, 23))
    settings = replace(QUICK, concurrency=(1, 2))

    measured = await measure(replace(FAST, faults=faults), labelled, settings)

    profile = measured.profile
    assert [(8, 1), (9, 0)] == [(point.n_ok, point.n_failed) for point in profile.points]
    assert 1 == sum(row.status != "ok" for row in measured.requests)
    assert (1, 0.5) == (profile.accuracy[0].n_failed, profile.accuracy[0].accuracy)
    assert 2 == profile.cost.concurrency


@pytest.mark.anyio
async def test_a_tier_that_never_answers_is_no_profile(labelled):
    settings = replace(QUICK, concurrency=(1,), requests_per_point=3)

    async with client_of(replace(FAST, faults=(Fault(kind=FaultKind.REFUSE),))) as client:
        with pytest.raises(EngineRequestError, match=r"tier mini@bf16: all 3 requests failed, the last with: .*503"):
            await profile_tier(client, FACTS, labelled, settings, seed=0)


@pytest.mark.anyio
async def test_without_answers_and_price_there_is_latency_alone(make_prompts):
    measured = await measure(FAST, make_prompts(3), facts=replace(FACTS, usd_per_hour=None))

    assert ((), None, ()) == (measured.profile.accuracy, measured.profile.cost, measured.items)
    assert 2 == len(measured.profile.points)


@pytest.mark.anyio
async def test_the_seed_decides_the_order_of_the_prompts(make_prompts):
    prompts, settings = make_prompts(9), replace(QUICK, concurrency=(1,))

    orders = [
        [row.prompt_id for row in (await measure(FAST, prompts, settings, seed=seed)).requests] for seed in (3, 3, 4)
    ]

    assert orders[0] == orders[1] != orders[2]


@pytest.mark.anyio
async def test_a_point_with_too_few_requests_is_refused(labelled):
    with pytest.raises(PlanError, match="9 requests per point can never be 16 in flight"):
        await profile_tier(None, FACTS, labelled, replace(QUICK, concurrency=(1, 16)), seed=0)


def test_evaluation_sets_that_cannot_be_used_are_refused(make_prompts):
    with pytest.raises(InputFileError, match="empty"):
        check_evaluation([])
    with pytest.raises(InputFileError, match="prompt p0: its answer 'x'"):
        check_evaluation(make_prompts(1, answers=["x"], scorer=AnswerScorer.NUMBER))
    with pytest.raises(InputFileError, match="domain 'all'"):
        check_evaluation(make_prompts(1, domain="all"))
