"""Laws of the prediction: profile and load to offer."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmtier.core.decision import MissReason
from llmtier.core.latency_model import DomainBox, LatencyModel, LoadState, Metric, ResidualBucket, StepModel
from llmtier.core.profile import Cost, LoadPoint, TierProfile
from llmtier.core.tier import EngineIdentity
from llmtier.route.predict import accuracy_need, interpolate, predict, request_usd

knots = st.lists(
    st.tuples(st.integers(1, 64), st.floats(0.001, 10)), min_size=1, max_size=6, unique_by=lambda knot: knot[0]
).map(sorted)


ONE = LoadState(n_decoding=1)


def make_point(concurrency, ttft_s, tpot_s=0.01, mean_output_tokens=11.0, **more):
    return LoadPoint(
        concurrency=concurrency, n_ok=10, n_failed=0, duration_s=1.0, ttft_p50_s=ttft_s, ttft_p95_s=ttft_s,
        tpot_p50_s=tpot_s, tpot_p95_s=tpot_s, itl_p50_s=None, itl_p95_s=None, e2el_p50_s=None,
        e2el_p95_s=None if ttft_s is None else ttft_s * 2,
        mean_input_tokens=5.0, mean_output_tokens=mean_output_tokens, **more,
    )  # fmt: skip


def make_profile(points=(), cost=None, **more):
    return TierProfile(
        tier="t", checkpoint_digest=None, engine=EngineIdentity(name="mock"), hardware_fingerprint="f", device="cpu",
        co_tenants=(), context_tokens=128, points=tuple(points), accuracy=(), cost=cost, **more,
    )  # fmt: skip


BOX = DomainBox(input_tokens=(8, 512), output_tokens=(4, 128), n_in_flight=(0, 16))


def make_bucket(metric, max_in_flight, median, upper):
    return ResidualBucket(metric=metric, max_in_flight=max_in_flight, n=100, quantiles=((0.5, median), (0.95, upper)))


def make_residuals(upper=0.2):
    return tuple(make_bucket(metric, None, 0.0, upper) for metric in Metric)


def make_model(**changes):
    settings = {
        "step": StepModel(
            alpha_s=0.01, prefill_s_per_token=1e-4, attention_s_per_token2=1e-8, sequence_s=5e-4, kv_s_per_token=1e-6
        ),
        "frontend_s": 0.002, "frontend_s_per_token": 1e-6, "wait_share": 0.5, "mean_input_tokens": 100.0,
        "mean_output_tokens": 20.0, "domain": BOX, "residuals": make_residuals(), "n_fit": 1000,
    }  # fmt: skip
    return LatencyModel(**{**settings, **changes})


coefficients = st.floats(0, 0.01)
steps = st.builds(
    StepModel, alpha_s=st.floats(1e-4, 0.1), prefill_s_per_token=coefficients, attention_s_per_token2=st.floats(0, 1e-5),
    sequence_s=coefficients, kv_s_per_token=st.floats(0, 1e-4),
)  # fmt: skip
edges = st.lists(st.integers(0, 32), max_size=3, unique=True).map(lambda found: [*sorted(found), None])


@st.composite
def residuals(draw):
    buckets = []
    for metric in Metric:
        for edge in draw(edges):
            median, upper = sorted(draw(st.tuples(st.floats(-1, 1), st.floats(-1, 1))))
            buckets.append(make_bucket(metric, edge, median, upper))
    return tuple(buckets)


models = st.builds(
    make_model, step=steps, residuals=residuals(), mean_input_tokens=st.floats(1, 2000),
    mean_output_tokens=st.floats(1, 500), max_batched_tokens=st.none() | st.integers(64, 4096),
    max_sequences=st.none() | st.integers(1, 64), wait_share=st.floats(0, 1), frontend_s_per_token=st.floats(0, 1e-4),
)  # fmt: skip
profiles = st.builds(
    make_profile,
    points=st.lists(
        st.tuples(st.integers(1, 64), st.floats(0.001, 10)), max_size=4, unique_by=lambda pair: pair[0]
    ).map(lambda pairs: [make_point(n, ttft_s) for n, ttft_s in sorted(pairs)]),
    latency=models,
)
states = st.builds(
    LoadState, n_decoding=st.integers(0, 40), n_prefilling=st.integers(0, 10), prefill_tokens=st.integers(0, 5000),
    kv_tokens=st.integers(0, 50_000), step_age_s=st.none() | st.floats(0, 0.1), n_joined=st.integers(0, 10),
    joined_tokens=st.integers(0, 5000),
).map(
    lambda state: replace(
        state,
        n_joined=min(state.n_joined, state.n_prefilling),
        joined_tokens=min(state.joined_tokens, state.prefill_tokens),
    )
)  # fmt: skip
lengths = st.floats(1, 1000)


def assert_never_faster(slower, faster, *, without_tpot=False):
    for name in ("ttft_s", "e2el_s") if without_tpot else ("ttft_s", "tpot_s", "e2el_s"):
        more, less = getattr(slower, name), getattr(faster, name)

        assert more is None or (less is not None and more >= less * (1 - 1e-9))


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
    offer = predict(make_profile([make_point(1, 0.1), make_point(3, 0.3)]), accuracy=0.9, state=ONE)

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


@given(
    profiles, states, lengths, lengths, st.sampled_from(["n_decoding", "n_prefilling", "kv_tokens", "prefill_tokens"])
)
def test_a_model_never_predicts_faster_under_more_load(profile, state, n_in, n_out, what):
    assume(state.n_in_flight or state.step_age_s is None)
    fuller = replace(state, **{what: getattr(state, what) + 1})
    lone, crowded = (
        predict(profile, accuracy=None, state=load, input_tokens=n_in, output_tokens=n_out) for load in (state, fuller)
    )

    assert_never_faster(crowded, lone)


@given(profiles, states, lengths, lengths, lengths)
def test_a_model_never_predicts_faster_for_a_longer_prompt(profile, state, a, b, n_out):
    short, long = (
        predict(profile, accuracy=None, state=state, input_tokens=n_in, output_tokens=n_out) for n_in in sorted((a, b))
    )

    assert_never_faster(long, short)


@given(profiles, states, lengths, lengths, lengths)
def test_a_model_never_predicts_an_earlier_end_for_a_longer_answer(profile, state, n_in, a, b):
    short, long = (
        predict(profile, accuracy=None, state=state, input_tokens=n_in, output_tokens=n_out) for n_out in sorted((a, b))
    )

    assert_never_faster(long, short, without_tpot=True)  # the mean gap may fall: the load at arrival drains


@given(profiles, states, lengths, lengths)
def test_the_upper_quantile_is_never_below_the_median(profile, state, n_in, n_out):
    median, upper = (
        predict(profile, accuracy=None, state=state, input_tokens=n_in, output_tokens=n_out, level=level)
        for level in (0.5, 0.95)
    )

    assert_never_faster(upper, median)


def test_inside_its_domain_the_model_alone_speaks():
    model = make_model()
    offer = predict(
        make_profile([make_point(1, 9.0)], latency=model), accuracy=0.9, state=ONE, input_tokens=64, output_tokens=16
    )

    assert model.ttft_s(ONE, input_tokens=64) * math.exp(0.2) == pytest.approx(offer.ttft_s)
    assert model.tpot_s(ONE, input_tokens=64, output_tokens=16) * math.exp(0.2) == pytest.approx(offer.tpot_s)
    assert model.e2el_s(ONE, input_tokens=64, output_tokens=16) * math.exp(0.2) == pytest.approx(offer.e2el_s)
    assert not offer.is_extrapolated


def test_beyond_its_domain_the_slower_of_model_and_points_counts():
    slow, fast = (make_profile([make_point(1, ttft_s)], latency=make_model()) for ttft_s in (9.0, 1e-6))
    inside, beyond = (
        [predict(profile, accuracy=0.9, input_tokens=n_in).ttft_s for profile in (slow, fast)] for n_in in (512, 513)
    )

    assert 9.0 == beyond[0]
    assert beyond[1] > inside[1] == inside[0]


@pytest.mark.parametrize("lengths", [{"input_tokens": 7}, {"output_tokens": 3}])
def test_below_its_domain_the_model_holds_and_says_so(lengths):
    offer = predict(make_profile([make_point(1, 9.0)], latency=make_model()), accuracy=0.9, **lengths)

    assert offer.is_extrapolated
    assert offer.ttft_s < 1


def test_load_beyond_the_domain_is_unknown_where_the_points_failed():
    points = [make_point(1, 0.1), make_point(16, None)]
    profile = make_profile(points, latency=make_model())

    assert predict(profile, accuracy=0.9, state=LoadState(n_decoding=16)).ttft_s is not None
    assert predict(profile, accuracy=0.9, state=LoadState(n_decoding=17)).ttft_s is None
    assert predict(make_profile(latency=make_model()), accuracy=0.9, state=LoadState(n_decoding=17)).ttft_s is not None


def test_a_metric_without_residuals_is_taken_from_the_points():
    model = make_model(residuals=(make_bucket(Metric.TTFT, None, 0.0, 0.2),))
    offer = predict(make_profile([make_point(1, 9.0, tpot_s=0.5)], latency=model), accuracy=0.9)

    assert offer.ttft_s < 1
    assert 0.5 == offer.tpot_s
    assert predict(make_profile(latency=model), accuracy=0.9).tpot_s is None


def test_lengths_are_those_of_late_else_those_profiled():
    profile = make_profile(latency=make_model())
    recent = LoadState(mean_input_tokens=200.0, mean_output_tokens=40.0)

    assert predict(profile, accuracy=1, input_tokens=100, output_tokens=20) == predict(profile, accuracy=1)
    assert predict(profile, accuracy=1, state=recent, input_tokens=200, output_tokens=40) == predict(
        profile, accuracy=1, state=recent
    )
    assert predict(profile, accuracy=1, state=recent).e2el_s > predict(profile, accuracy=1).e2el_s


def test_an_expected_length_does_not_change_the_price():
    """A price that followed the recent mean would reorder the tiers that a policy was fitted on."""
    cost = Cost(usd_per_hour=1.0, usd_per_request=0.5, usd_per_output_token=0.1, concurrency=4)
    profile = make_profile(latency=make_model(), cost=cost)

    assert 0.5 == predict(profile, accuracy=1, state=LoadState(mean_output_tokens=400.0)).usd


def test_a_tier_at_its_knee_is_saturated_unless_something_worse_is_known():
    profile = make_profile([make_point(1, 0.1)], max_in_flight=2)
    full = LoadState(n_decoding=1, n_prefilling=1)

    assert predict(profile, accuracy=1, state=ONE).unusable is None
    assert MissReason.SATURATED is predict(profile, accuracy=1, state=full).unusable
    assert (
        MissReason.STALE_PROFILE is predict(profile, accuracy=1, state=full, unusable=MissReason.STALE_PROFILE).unusable
    )


def test_a_model_alone_is_a_profile():
    assert predict(make_profile(latency=make_model()), accuracy=1).unusable is None


def test_invalid_and_open_points_are_never_used():
    bad = replace(make_point(1, 0.001), invalid=("the client fell behind",))
    open_loop = replace(make_point(1, 0.002), concurrency=None, shape="poisson:1")
    offers = [predict(make_profile(points), accuracy=1) for points in ([bad, open_loop, make_point(2, 0.3)], [bad])]

    assert [0.3, None] == [offer.ttft_s for offer in offers]
    assert [None, None] == [offer.unusable for offer in offers]  # measured, only not to be believed


def test_beyond_its_domain_invalid_points_have_no_say():
    bad = replace(make_point(1, 9.0), invalid=("no steady state",))
    without, within = (
        predict(make_profile(points, latency=make_model()), accuracy=1, input_tokens=5000) for points in ([], [bad])
    )

    assert without == within
    assert within.is_extrapolated
