"""Cost divides the price by the best rate that was measured without a failure."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.profile import LoadPoint
from llmtier.profile.cost import cost_of


def make_point(concurrency=1, n_ok=10, n_failed=0, duration_s=10.0, mean_output_tokens=5.0):
    return LoadPoint(
        concurrency=concurrency,
        n_ok=n_ok,
        n_failed=n_failed,
        duration_s=duration_s,
        ttft_p50_s=None,
        ttft_p95_s=None,
        tpot_p50_s=None,
        tpot_p95_s=None,
        itl_p50_s=None,
        itl_p95_s=None,
        e2el_p50_s=None,
        e2el_p95_s=None,
        mean_input_tokens=None,
        mean_output_tokens=mean_output_tokens,
    )


def test_price_is_divided_by_the_best_rate():
    cost = cost_of(3.6, [make_point(1, 10), make_point(4, 40), make_point(8, 20)])

    assert 4 == cost.concurrency
    assert pytest.approx(0.001 / 4) == cost.usd_per_request
    assert pytest.approx(0.001 / 20) == cost.usd_per_output_token


def test_a_point_with_failures_is_no_throughput():
    assert 1 == cost_of(1.0, [make_point(1, 10), make_point(4, 40, n_failed=1)]).concurrency


def test_equal_rates_go_to_the_lower_load():
    assert 2 == cost_of(1.0, [make_point(8), make_point(2)]).concurrency


@pytest.mark.parametrize(
    ("usd_per_hour", "points"),
    [(None, [make_point()]), (1.0, []), (1.0, [make_point(n_ok=0)]), (1.0, [make_point(n_failed=1)])],
)
def test_without_price_or_whole_point_there_is_no_cost(usd_per_hour, points):
    assert cost_of(usd_per_hour, points) is None


@pytest.mark.parametrize("mean_output_tokens", [None, 0.0])
def test_without_output_tokens_there_is_no_price_per_token(mean_output_tokens):
    assert cost_of(1.0, [make_point(mean_output_tokens=mean_output_tokens)]).usd_per_output_token is None


def test_a_free_tier_costs_nothing():
    assert 0.0 == cost_of(0.0, [make_point()]).usd_per_request


@given(st.floats(0.01, 100.0), st.lists(st.tuples(st.integers(1, 99), st.floats(0.1, 100.0)), min_size=1, max_size=6))
def test_cost_times_rate_is_the_price(usd_per_hour, sizes):
    points = [make_point(index + 1, n_ok, duration_s=duration_s) for index, (n_ok, duration_s) in enumerate(sizes)]

    cost = cost_of(usd_per_hour, points)

    assert usd_per_hour == pytest.approx(cost.usd_per_request * max(point.request_rps for point in points) * 3600.0)
    assert cost == cost_of(usd_per_hour, [*reversed(points), replace(points[0], n_failed=1, n_ok=10**6)])
