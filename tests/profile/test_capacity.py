"""The search on an engine whose latency is a known function of the rate."""

import math
from dataclasses import replace

import pytest

from llmtier.core.profile import LoadPoint
from llmtier.core.requirement import Requirement
from llmtier.profile.capacity import find_capacity, worst_ratio
from llmtier.profile.point import MeasuredPoint
from tests.profile.simulated_load import make_sample

pytestmark = pytest.mark.anyio

SLO = Requirement(ttft_s=1.0)


def point(**changes):
    known = LoadPoint(
        concurrency=None, n_ok=100, n_failed=0, duration_s=1.0, ttft_p50_s=0.1, ttft_p95_s=0.2, tpot_p50_s=0.01,
        tpot_p95_s=0.02, itl_p50_s=None, itl_p95_s=None, e2el_p50_s=1.0, e2el_p95_s=2.0, mean_input_tokens=10.0,
        mean_output_tokens=10.0,
    )  # fmt: skip
    return replace(known, **changes)


class Engine:
    """Its 95th percentile is ``ttft_p95_s(rate)``; ``n_together`` requests are sent at once."""

    def __init__(self, ttft_p95_s, *, invalid=lambda _: (), n_together=lambda _: 1):
        self.ttft_p95_s = ttft_p95_s
        self.invalid = invalid
        self.n_together = n_together
        self.specs = []

    async def __call__(self, spec):
        self.specs.append(spec)
        rate_rps = spec.shape.rate_rps
        n = self.n_together(rate_rps)
        samples = [make_sample(10.0 * group, [10.0 * group + 5]) for group in range(20) for _ in range(n)]
        found = point(ttft_p95_s=self.ttft_p95_s(rate_rps), shape=spec.shape.label, invalid=self.invalid(rate_rps))
        return MeasuredPoint(spec=spec, key=str(len(self.specs)), samples=tuple(samples), point=found, facts={})

    @property
    def rates(self):
        return [spec.shape.rate_rps for spec in self.specs]


def queue(capacity_rps, service_s=0.1):
    """Return the latency of a queue that has none at rest and grows without end at ``capacity_rps``."""
    return lambda rate_rps: service_s / max(1 - rate_rps / capacity_rps, 1e-6)


async def search(engine, slo=SLO, *, start_rps=1.0, **more):
    options = {"n_requests": 50, "warmup_requests": 5, "seed": 100, **more}
    return await find_capacity(engine, slo, start_rps=start_rps, **options)


@pytest.mark.parametrize("start_rps", [0.3, 8.0, 40.0])
@pytest.mark.parametrize("capacity_rps", [0.05, 10.0, 700.0])
async def test_the_rate_comes_within_five_percent_from_wherever_it_starts(capacity_rps, start_rps):
    engine = Engine(queue(capacity_rps))

    found = await search(engine, start_rps=start_rps)

    truth = 0.9 * capacity_rps  # where 0.1 / (1 - x) is the limit of 1 s
    assert found.rate_rps <= truth < found.upper_rps
    assert found.upper_rps / found.rate_rps < 1.05
    assert found.rate_rps <= found.estimate_rps <= found.upper_rps
    assert len(engine.specs) == len(found.points) <= 24


async def test_each_rate_gets_arrivals_of_its_own():
    engine = Engine(queue(10.0))

    await search(engine)

    assert list(range(100, 100 + len(engine.specs))) == [spec.seed for spec in engine.specs]
    assert {(50, 5)} == {(spec.n_requests, spec.warmup_requests) for spec in engine.specs}


async def test_no_rate_meets_a_limit_below_the_service_time():
    found = await search(Engine(queue(10.0, service_s=3.0)))

    assert (None, None) == (found.rate_rps, found.max_in_flight)
    assert "no rate" in found.reason


async def test_a_rate_whose_point_is_invalid_does_not_count_as_met():
    """Its latencies look fine; its queue grew."""
    engine = Engine(lambda _: 0.1, invalid=lambda rate_rps: ("no steady state",) if rate_rps > 6 else ())

    found = await search(engine)

    assert 6 / 1.05 < found.rate_rps <= 6 < found.upper_rps


async def test_a_rate_without_the_limited_metric_does_not_count_as_met():
    found = await search(Engine(lambda rate_rps: 0.1 if rate_rps < 3 else None))

    assert found.rate_rps < 3 <= found.upper_rps


async def test_an_engine_that_is_never_too_slow_ends_the_search():
    found = await search(Engine(lambda _: 0.1))

    assert (None, 24) == (found.upper_rps, len(found.points))
    assert found.rate_rps > 1000


async def test_the_knee_is_what_was_in_flight_at_the_found_rate():
    engine = Engine(queue(10.0), n_together=math.ceil)

    found = await search(engine)

    # The last of so many at once meets all the others: 1, 2, ... n in flight with itself, of which the 95th percentile.
    assert math.ceil(found.rate_rps) == found.max_in_flight


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        (Requirement(ttft_s=0.4), 0.5),
        (Requirement(tpot_s=0.01), 2.0),
        (Requirement(e2el_s=4.0), 0.5),
        (Requirement(ttft_s=0.4, tpot_s=0.01, e2el_s=4.0), 2.0),
    ],
)
def test_the_worst_ratio_is_that_of_the_tightest_limit(slo, expected):
    assert pytest.approx(expected) == worst_ratio(point(), slo)


def test_one_unknown_of_the_limited_metrics_makes_the_ratio_unknown():
    assert worst_ratio(point(tpot_p95_s=None), Requirement(ttft_s=1.0, tpot_s=1.0)) is None
    assert 0.2 == worst_ratio(point(tpot_p95_s=None), SLO)


async def test_a_search_without_a_latency_limit_is_refused():
    with pytest.raises(ValueError, match="TTFT, TPOT or E2EL"):
        await search(Engine(queue(10.0)), Requirement())
