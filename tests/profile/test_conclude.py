"""From measured points to a profile, without an engine: simulated loads and points made by hand."""

import json
from dataclasses import replace

import pytest

from llmtier.core.tier import EngineIdentity
from llmtier.profile.capacity import Capacity
from llmtier.profile.conclude import RawMeasurement, conclude, judgement_document
from llmtier.profile.point import MeasuredPoint, PointSpec
from llmtier.profile.settings import TierFacts
from llmtier.profile.shapes import ClosedLoop, PoissonRate
from llmtier.profile.step_rows import busy_times
from llmtier.profile.summarize import PointFacts, summarize
from tests.profile.simulated_load import LONG, SHORT, TRUTH, closed, make_sample, poisson

FACTS = TierFacts(
    tier="t",
    checkpoint_digest="ab",
    engine=EngineIdentity(name="mock"),
    hardware_fingerprint="f",
    device="cpu:0",
    context_tokens=512,
    usd_per_hour=2.0,
    max_batched_tokens=256,
)


def measured(shape, samples, *, seed=0, **facts):
    """Return the point that these samples make."""
    asked = PointFacts(
        shape=shape.label,
        concurrency=getattr(shape, "concurrency", None),
        asked_rps=shape.rate_rps,
        seed=seed,
        is_open=not isinstance(shape, ClosedLoop),
    )
    spec = PointSpec(shape=shape, n_requests=len(samples), warmup_requests=0, seed=seed)
    return MeasuredPoint(
        spec=spec, key=shape.label, samples=tuple(samples), point=summarize(samples, asked), facts=facts
    )


def loop(concurrency, *, n=20, seed=0, lengths=SHORT, **facts):
    samples = closed(TRUTH, concurrency, lengths, n=n, seed=seed)
    return measured(ClosedLoop(concurrency=concurrency), samples, seed=seed, **facts)


def arrivals(rate_rps, *, n=80, seed=0, **facts):
    return measured(PoissonRate(rate_rps=rate_rps), poisson(TRUTH, rate_rps, n=n, seed=seed), seed=seed, **facts)


def raw(**parts):
    empty = {"fitted": (), "calibration": (), "held_out": (), "capacity": None, "items": ()}
    return RawMeasurement(**{"facts": FACTS, "reported": (loop(1),), **empty, **parts})


@pytest.fixture(scope="module")
def whole():
    """Return a measurement with everything a latency model wants."""
    return raw(
        reported=(loop(4, n=40), loop(1)),
        fitted=tuple(loop(c, n=40, seed=c, lengths=lengths) for lengths in (SHORT, LONG) for c in (1, 4, 8)),
        calibration=(arrivals(2.0, seed=20), arrivals(4.0, seed=21)),
        held_out=(arrivals(2.0, seed=30), arrivals(4.0, seed=31)),
    )


def test_points_stand_in_order_each_shape_once_the_first_one_kept():
    reported = (arrivals(3.0, seed=1), loop(4), loop(1))
    again = arrivals(3.0, seed=2)
    capacity = Capacity(
        rate_rps=5.0, upper_rps=5.2, estimate_rps=5.1, max_in_flight=7, reason="x", points=(arrivals(5.0, seed=3),)
    )

    profile = conclude(raw(reported=reported, held_out=(again,), capacity=capacity)).profile

    assert ["closed:1", "closed:4", "poisson:3", "poisson:5"] == [point.shape for point in profile.points]
    assert 1 == profile.points[2].seed
    assert (5.0, 7) == (profile.goodput_rps, profile.max_in_flight)


def test_loads_of_the_fit_are_no_points_of_the_profile(whole):
    found = conclude(whole)

    assert ["closed:1", "closed:4", "poisson:2", "poisson:4"] == [point.shape for point in found.profile.points]
    assert [30, 31] == [point.seed for point in found.profile.points if point.concurrency is None]


def test_requests_and_facts_are_those_of_the_profiles_points_in_their_order():
    found = conclude(raw(reported=(loop(4, n=9, mark="four"), loop(1, n=5, mark="one"))))

    assert [{"mark": "one"}, {"mark": "four"}] == list(found.engine_side)
    assert 5 + 9 == len(found.requests)
    assert found.requests[:5] == tuple(sample.row for sample in loop(1, n=5).samples)


def test_every_seed_is_recorded_once(whole):
    assert (0, 1, 4, 8, 20, 21, 30, 31) == conclude(whole).seeds


def test_the_model_is_the_engines_and_is_judged_on_what_it_has_not_seen(whole):
    found = conclude(whole)
    model = found.profile.latency

    assert pytest.approx(TRUTH.alpha_s, rel=0.02) == model.step.alpha_s
    assert 256 == model.max_batched_tokens
    assert found.no_model is None
    assert {"ttft_s", "tpot_s", "e2el_s"} == set(found.judgement)
    assert 160 == found.judgement["ttft_s"].n
    assert 0.2 > found.judgement["ttft_s"].mape


def test_without_held_out_points_there_is_a_model_and_no_judgement(whole):
    found = conclude(replace(whole, held_out=()))

    assert found.profile.latency is not None
    assert {} == found.judgement


def test_too_little_to_fit_is_said_and_the_rest_of_the_profile_stands():
    few = loop(1, n=5)

    found = conclude(raw(reported=(few,), fitted=(few,)))

    assert found.profile.latency is None
    assert "too few" in found.no_model
    assert 1 == len(found.profile.points)


def test_no_model_asked_for_is_no_model_and_no_complaint():
    found = conclude(raw())

    assert (None, None, {}) == (found.profile.latency, found.no_model, found.judgement)
    assert (None, None) == (found.profile.goodput_rps, found.profile.max_in_flight)


def test_a_neighbour_takes_its_share_of_the_price():
    own = raw(reported=(loop(1, n=60),))
    busy_s = own.busy.total_s

    alone = conclude(own)
    beside = conclude(own, {"b": busy_times([(0.0, 3 * busy_s)])})

    assert alone.busy_share is None
    assert pytest.approx(0.25) == beside.busy_share
    assert 2.0 == alone.profile.cost.usd_per_hour
    assert pytest.approx(0.5) == beside.profile.cost.usd_per_hour


def test_a_neighbour_that_never_ran_costs_nothing_of_the_price():
    found = conclude(raw(reported=(loop(1, n=60),)), {"b": busy_times([])})

    assert (1.0, 2.0) == (found.busy_share, found.profile.cost.usd_per_hour)


def test_busy_time_joins_points_and_what_came_after_them():
    samples = [make_sample(0.0, [1.0, 2.0]), make_sample(1.0, [2.0, 3.0]), make_sample(5.0, [6.0])]
    point = replace(loop(1), samples=tuple(samples))

    busy = raw(reported=(point,), extra_busy=((6.0, 10.0), (20.0, 21.0))).busy

    assert ([0.0, 5.0, 20.0], [3.0, 10.0, 21.0]) == (busy.starts_s.tolist(), busy.ends_s.tolist())


def test_neighbours_are_named_in_one_order():
    facts = replace(FACTS, co_tenants=("b", "a"))

    assert ("a", "b") == conclude(raw(facts=facts), {"a": busy_times([]), "b": busy_times([])}).profile.co_tenants


def test_a_judgement_is_plain_data(whole):
    document = judgement_document(conclude(whole).judgement)

    read = json.loads(json.dumps(document, allow_nan=False))
    assert document["e2el_s"]["mape"] == read["e2el_s"]["mape"]
    assert 6 == len(read["e2el_s"]["slos"])
