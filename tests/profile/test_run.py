"""A tier's whole measurement against a mock engine of known speed: laws, never absolute times."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from llmtier.core.errors import EngineRequestError, InputFileError
from llmtier.core.hardware import Hardware
from llmtier.core.prompt import AnswerScorer
from llmtier.core.provenance import Provenance
from llmtier.core.requirement import Requirement
from llmtier.core.tier import EngineIdentity
from llmtier.engine.client import EngineClient
from llmtier.engine.load_client import LoadClient
from llmtier.engine.mock import mock_app, running_app
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.profile.conclude import conclude
from llmtier.profile.events import AccuracyProgress, PointDone, PointStarted
from llmtier.profile.lengths import FixedLength, SyntheticLengths
from llmtier.profile.point import Bench
from llmtier.profile.run import check_evaluation, measure_tier
from llmtier.profile.settings import Evaluation, ProfileSettings, TierFacts
from llmtier.profile.shapes import ClosedLoop, Trace
from llmtier.store.arrivals import Arrival
from llmtier.store.measured_points import MeasuredPoints
from llmtier.store.profiles import read_items, read_profile, read_requests, write_profile

pytestmark = pytest.mark.anyio

FAST = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0, output_tokens=2)
QUICK = ProfileSettings(
    shapes=(ClosedLoop(concurrency=1), ClosedLoop(concurrency=3)),
    concurrency=(1, 3),
    requests_per_point=9,
    warmup_requests=2,
    max_tokens=8,
    seed=0,
    has_latency_model=False,
)
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
async def bench_of(settings, points=None):
    app = mock_app(settings)
    async with running_app(app) as url, LoadClient(url, timeout_s=5) as client:
        yield app, Bench(client=client, tier=FACTS.tier, model_name="mock", identity={"tier": "x"}, points=points)


async def measure(mock, prompts, settings=QUICK, *, facts=FACTS, on_event=None, points=None):
    async with bench_of(mock, points) as (_, bench), EngineClient(bench.client.base_url, model_name="mock") as client:
        evaluation = Evaluation(prompts=prompts, digest="d")
        return await measure_tier(bench, client, facts, evaluation, settings, on_event=on_event)


@pytest.fixture
def labelled(make_prompts):
    """Return four prompts, three of which the echoing mock answers rightly, in two domains."""
    prompts = make_prompts(4, answers=["word 0", "word 1", "word 2", "other"], domain="a")
    return [*prompts[:3], replace(prompts[3], domain="b")]


async def test_a_measurement_holds_every_request_point_and_item(labelled):
    measured = conclude(await measure(FAST, labelled))

    profile = measured.profile
    assert [("closed:1", 11), ("closed:3", 11)] == [(point.shape, point.n_sent) for point in profile.points]
    assert [1] * 11 + [3] * 11 == [row.concurrency for row in measured.requests]
    assert [1.0, 1.0, 1.0, 0.0] == [item.score for item in measured.items]
    assert [("all", 0.75), ("a", 1.0), ("b", 0.0)] == [(each.domain, each.accuracy) for each in profile.accuracy]
    assert all(point.mean_output_tokens == 2 and point.mean_input_tokens == 2 for point in profile.points)
    assert (FACTS.tier, "ab12", FACTS.engine, "f00", "cpu:0", ("a", "b"), 512) == (
        profile.tier, profile.checkpoint_digest, profile.engine, profile.hardware_fingerprint, profile.device,
        profile.co_tenants, profile.context_tokens,
    )  # fmt: skip


async def test_a_measurement_survives_being_stored(labelled, tmp_path):
    hardware = Hardware(cpu_model="x", cpu_flags=(), n_cores=2, memory_bytes=1)
    provenance = Provenance(llmtier_version="0", command=("llmtier",), created_at="2026-01-01", hardware=hardware)

    measured = conclude(await measure(FAST, labelled))
    folder = write_profile(
        tmp_path, hardware, measured.profile, requests=measured.requests, items=measured.items, provenance=provenance
    )

    assert measured.profile == read_profile(folder)
    assert list(measured.requests) == read_requests(folder)
    assert list(measured.items) == read_items(folder)


async def test_progress_is_told_point_by_point_then_answer_by_answer(labelled):
    events = []

    await measure(FAST, labelled, on_event=events.append)

    assert [PointStarted, PointDone, PointStarted, PointDone] == [type(event) for event in events[:4]]
    assert [("closed:1", 1), ("closed:3", 0)] == [(event.shape, event.n_left) for event in events[:4:2]]
    assert AccuracyProgress(tier=FACTS.tier, n_done=4, n_total=4, score_sum=3.0) == events[-1]


async def test_points_of_an_interrupted_run_are_found_again(labelled, tmp_path):
    """The second run of a command measures only what the first one lacked, and comes to the same numbers."""
    points = MeasuredPoints(tmp_path / "points")
    first = await measure(FAST, labelled, replace(QUICK, shapes=QUICK.shapes[:1]), points=points)

    events = []
    second = await measure(FAST, labelled, on_event=events.append, points=points)

    done = [event for event in events if isinstance(event, PointDone)]
    assert [True, False] == [event.is_resumed for event in done]
    assert first.reported[0].point == second.reported[0].point
    assert first.reported[0].samples == second.reported[0].samples


async def test_points_of_another_tier_seed_or_load_are_not_taken(labelled, tmp_path):
    points = MeasuredPoints(tmp_path / "points")
    await measure(FAST, labelled, points=points)
    events = []

    await measure(FAST, labelled, replace(QUICK, seed=1), on_event=events.append, points=points)
    await measure(FAST, labelled, replace(QUICK, requests_per_point=10), on_event=events.append, points=points)

    assert not any(event.is_resumed for event in events if isinstance(event, PointDone))


async def test_engine_that_dies_keeps_the_points_before(labelled, tmp_path):
    points = MeasuredPoints(tmp_path / "points")
    faults = tuple(Fault(kind=FaultKind.REFUSE, on_nth_request=number) for number in range(33, 100))
    settings = replace(QUICK, requests_per_point=30)

    with pytest.raises(EngineRequestError, match="20 requests all failed"):
        await measure(replace(FAST, faults=faults), labelled, settings, points=points)

    assert 1 == len(points.keys())


async def test_failures_are_counted_and_score_nothing(labelled):
    # Requests 1 to 11 are the first point, 12 to 22 the second, 23 to 26 the answers.
    faults = tuple(Fault(kind=FaultKind.ERROR, on_nth_request=number) for number in (4, 5, 23))

    measured = conclude(await measure(replace(FAST, faults=faults), labelled))

    profile = measured.profile
    assert [2, 0] == [point.n_failed for point in profile.points]
    assert any("failed" in reason for reason in profile.points[0].invalid)
    assert 2 == sum(row.status != "ok" for row in measured.requests)
    assert (1, 0.5) == (profile.accuracy[0].n_failed, profile.accuracy[0].accuracy)


async def test_a_tier_that_never_answers_is_no_profile(labelled):
    settings = replace(QUICK, shapes=(ClosedLoop(concurrency=1),), requests_per_point=3, warmup_requests=0)

    with pytest.raises(EngineRequestError, match=r"tier mini@bf16: every request failed, the last with: .*503"):
        await measure(replace(FAST, faults=(Fault(kind=FaultKind.REFUSE),)), labelled, settings)


async def test_without_answers_and_price_there_is_latency_alone(make_prompts):
    measured = conclude(await measure(FAST, make_prompts(3), facts=replace(FACTS, usd_per_hour=None)))

    assert ((), None, ()) == (measured.profile.accuracy, measured.profile.cost, measured.items)
    assert 2 == len(measured.profile.points)


async def test_the_seed_decides_the_order_of_the_prompts(make_prompts):
    prompts = make_prompts(9)
    orders = []
    for seed in (3, 3, 4):
        raw = await measure(FAST, prompts, replace(QUICK, shapes=QUICK.shapes[:1], seed=seed))
        orders.append([sample.row.prompt_id for sample in raw.reported[0].samples])

    assert orders[0] == orders[1] != orders[2]


async def test_points_take_turns_in_one_order_of_prompts(make_prompts):
    settings = replace(QUICK, requests_per_point=3, warmup_requests=0)

    raw = await measure(FAST, make_prompts(6), settings)

    seen = [sample.row.prompt_id for point in raw.reported for sample in point.samples]
    assert {f"p{number}" for number in range(6)} == set(seen)


async def test_synthetic_lengths_and_traces_are_sent_as_asked(make_prompts):
    lengths = SyntheticLengths(input=FixedLength(tokens=20), output=FixedLength(tokens=3))
    arrivals = tuple(Arrival(arrival_s=0.01 * number, input_tokens=5 + number, output_tokens=2) for number in range(4))
    trace = Trace(name="x", recorded_s=tuple(row.arrival_s for row in arrivals))
    settings = replace(QUICK, shapes=(ClosedLoop(concurrency=1), trace), lengths=lengths, arrivals=arrivals)

    raw = await measure(replace(FAST, output_tokens=None), make_prompts(3), settings)

    loop, replay = (point.samples for point in raw.reported)
    assert {(20, 3)} == {(sample.row.n_input_tokens, sample.row.n_output_tokens) for sample in loop}
    assert [(5, 2), (6, 2), (7, 2), (8, 2)] == [(s.row.n_input_tokens, s.row.n_output_tokens) for s in replay]


async def test_a_latency_model_is_fitted_and_judged(make_prompts):
    mock = MockSettings(alpha_s=0.002, beta_s_per_token=0.00001, sequence_s=0.0002)
    settings = replace(
        QUICK, has_latency_model=True, requests_per_point=20, max_input_tokens=64, concurrency=(1, 4), max_tokens=6
    )

    measured = conclude(await measure(mock, make_prompts(8), settings))

    model = measured.profile.latency
    assert model is not None
    assert model.step.alpha_s > 0
    assert {"ttft_s", "tpot_s", "e2el_s"} == set(measured.judgement)
    assert measured.no_model is None
    assert model.residual(next(iter(model.residuals)).metric, n_in_flight=1, level=0.95) is not None


async def test_an_engine_without_lengths_to_fit_gets_no_model_and_says_why(make_prompts):
    settings = replace(QUICK, has_latency_model=True, requests_per_point=6, concurrency=(1,), max_tokens=1)

    measured = conclude(await measure(replace(FAST, output_tokens=1), make_prompts(3), settings))

    assert measured.profile.latency is None or measured.no_model is None


async def test_the_highest_rate_that_meets_the_slo_is_searched(make_prompts):
    mock = MockSettings(alpha_s=0.002, beta_s_per_token=0.0, sequence_s=0.002, output_tokens=2)
    settings = replace(QUICK, slo=Requirement(e2el_s=5.0), requests_per_point=25)

    raw = await measure(mock, make_prompts(8), settings)

    assert raw.capacity is not None
    assert raw.capacity.points
    assert raw.capacity.reason


async def test_busy_time_splits_the_price_of_a_shared_device(labelled):
    raw = await measure(FAST, labelled)
    alone, shared = conclude(raw), conclude(raw, {"b": raw.busy})

    assert alone.busy_share is None
    assert 0.5 == pytest.approx(shared.busy_share)
    if alone.profile.cost is not None:
        assert alone.profile.cost.usd_per_request == pytest.approx(2 * shared.profile.cost.usd_per_request)


def test_evaluation_sets_that_cannot_be_used_are_refused(make_prompts):
    with pytest.raises(InputFileError, match="empty"):
        check_evaluation([])
    with pytest.raises(InputFileError, match="prompt p0: its answer 'x'"):
        check_evaluation(make_prompts(1, answers=["x"], scorer=AnswerScorer.NUMBER))
    with pytest.raises(InputFileError, match="domain 'all'"):
        check_evaluation(make_prompts(1, domain="all"))
