"""Laws of the prediction: profile and load to offer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import MissReason
from llmtier.core.profile import Cost, LoadPoint, TierProfile
from llmtier.core.tier import EngineIdentity
from llmtier.route.predict import accuracy_need, interpolate, predict, request_usd

knots = st.lists(
    st.tuples(st.integers(1, 64), st.floats(0.001, 10)), min_size=1, max_size=6, unique_by=lambda knot: knot[0]
).map(sorted)


def make_point(concurrency, ttft_s, tpot_s=0.01, mean_output_tokens=11.0):
    return LoadPoint(
        concurrency=concurrency, n_ok=10, n_failed=0, duration_s=1.0, ttft_p50_s=ttft_s, ttft_p95_s=ttft_s,
        tpot_p50_s=tpot_s, tpot_p95_s=tpot_s, itl_p50_s=None, itl_p95_s=None, e2el_p50_s=None, e2el_p95_s=ttft_s * 2,
        mean_input_tokens=5.0, mean_output_tokens=mean_output_tokens,
    )  # fmt: skip


def make_profile(points=(), cost=None):
    return TierProfile(
        tier="t", checkpoint_digest=None, engine=EngineIdentity(name="mock"), hardware_fingerprint="f", device="cpu",
        co_tenants=(), context_tokens=128, points=tuple(points), accuracy=(), cost=cost,
    )  # fmt: skip


@given(knots, st.floats(1, 200), st.floats(1, 200))
def test_more_load_is_never_predicted_faster(curve, a, b):
    low, high = sorted((a, b))

    assert interpolate(curve, low) <= interpolate(curve, high) + 1e-9


@given(knots)
def test_interpolation_is_never_below_a_measured_point(curve):
    assert all(interpolate(curve, x) >= y - 1e-9 for x, y in curve)


def test_interpolation_between_and_beyond_points():
    assert 1.5 == interpolate([(1, 1.0), (3, 2.0)], 2)
    assert 1.0 == interpolate([(2, 1.0)], 1)
    assert 4.0 == pytest.approx(interpolate([(1, 1.0), (3, 2.0)], 6))  # at least proportional: 2/3 a request
    assert interpolate([], 1) is None


def test_a_failed_point_makes_everything_beyond_it_unknown():
    curve = [(1, 1.0), (4, None), (8, 2.0)]

    assert 1.0 == interpolate(curve, 1)
    assert interpolate(curve, 2) is None
    assert interpolate(curve, 8) is None


def test_predict_uses_the_load_after_this_request_joins():
    offer = predict(make_profile([make_point(1, 0.1), make_point(3, 0.3)]), accuracy=0.9, n_in_flight=1)

    assert 0.2 == pytest.approx(offer.ttft_s)
    assert 0.4 == pytest.approx(offer.e2el_s)  # as measured, for answers as long as the measured ones
    assert 128 == offer.context_tokens


def test_profile_without_points_is_unusable():
    offer = predict(make_profile(), accuracy=0.9)

    assert MissReason.NO_PROFILE is offer.unusable
    assert offer.ttft_s is None


def test_stale_reason_wins_over_points():
    offer = predict(make_profile([make_point(1, 0.1)]), accuracy=None, unusable=MissReason.STALE_PROFILE)

    assert MissReason.STALE_PROFILE is offer.unusable


def test_cost_follows_the_output_tokens_where_known():
    cost = Cost(usd_per_hour=1.0, usd_per_request=0.5, usd_per_output_token=0.1, concurrency=4)

    assert request_usd(make_profile(cost=None)) is None
    assert 0.5 == request_usd(make_profile(cost=cost))
    assert 0.7 == pytest.approx(request_usd(make_profile(cost=cost), 7))


def test_need_is_reference_less_gap_or_the_floor():
    assert 0.8 == pytest.approx(accuracy_need({"ref": 0.9}, reference="ref", max_gap=0.1))
    assert 0.85 == accuracy_need({"ref": 0.9}, reference="ref", max_gap=0.1, floor=0.85)
    assert 0.0 == accuracy_need({"ref": 0.1}, reference="ref", max_gap=0.5)
    assert accuracy_need({}, reference="ref", max_gap=0.1) is None


def test_a_known_length_is_priced_token_by_token():
    profile = make_profile([make_point(1, 0.1)])

    assert 0.1 + 20 * 0.01 == pytest.approx(predict(profile, accuracy=0.9, output_tokens=21).e2el_s)
    assert predict(make_profile(), accuracy=0.9, output_tokens=21).e2el_s is None
