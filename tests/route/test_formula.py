"""The unpacked formula and the predictor say what the model that was fitted says, and the rule what it said before."""

import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmtier.core.decision import Miss, MissReason, Offer
from llmtier.core.interval import Interval
from llmtier.core.latency_model import DomainBox, LatencyModel, LoadState, Metric, ResidualBucket, StepModel
from llmtier.core.profile import AccuracyEstimate, Cost, LoadPoint, TierProfile
from llmtier.core.requirement import Requirement
from llmtier.core.tier import EngineIdentity
from llmtier.core.timing import predict_e2el_s
from llmtier.route.decide import decide, find_misses
from llmtier.route.formula import Formula
from llmtier.route.predict import Predictor, interpolate, predict

many = settings(max_examples=200, deadline=None)
maybe = st.none


def costs(most):
    return st.just(0.0) | st.floats(most * 1e-4, most)


def make_model(**changes):
    settings = {
        "step": StepModel(
            alpha_s=0.01, prefill_s_per_token=1e-4, attention_s_per_token2=1e-8, sequence_s=5e-4, kv_s_per_token=1e-6
        ),
        "frontend_s": 0.002, "frontend_s_per_token": 1e-6, "wait_share": 0.7, "mean_input_tokens": 100.0,
        "mean_output_tokens": 20.0, "n_fit": 1000,
        "domain": DomainBox(input_tokens=(8, 512), output_tokens=(4, 128), n_in_flight=(0, 16)),
    }  # fmt: skip
    return LatencyModel(**{**settings, **changes})


@st.composite
def residuals(draw):
    """Draw buckets of any order, some of them without a level, some metrics without any."""
    buckets = []
    for metric in Metric:
        for edge in draw(st.lists(maybe() | st.integers(0, 32), max_size=3)):
            values = {0.5: draw(st.floats(-1, 1)), 0.95: draw(st.floats(-1, 1))}
            kept = draw(st.sampled_from([(0.5, 0.95), (0.5, 0.95), (0.5,), (0.95,)]))
            quantiles = tuple((level, values[level]) for level in kept)
            buckets.append(ResidualBucket(metric=metric, max_in_flight=edge, n=9, quantiles=quantiles))
    return tuple(buckets)


models = st.builds(
    make_model,
    step=st.builds(
        StepModel, alpha_s=costs(0.1), prefill_s_per_token=costs(0.01), attention_s_per_token2=costs(1e-5),
        sequence_s=costs(0.01), kv_s_per_token=costs(1e-4),
    ),
    frontend_s=costs(0.1), frontend_s_per_token=costs(1e-4), lag_s=costs(0.05), wait_share=st.floats(0, 2),
    mean_input_tokens=st.floats(1, 2000), mean_output_tokens=st.floats(0.5, 500), residuals=residuals(),
    max_batched_tokens=maybe() | st.integers(16, 4096), max_sequences=maybe() | st.integers(1, 32),
    co_tenants=st.just((("neighbour", 0.4), ("other", 2.0))),
)  # fmt: skip
tokens = st.integers(0, 5000)
states = st.builds(
    LoadState, n_decoding=st.integers(0, 40), n_prefilling=st.integers(0, 10), prefill_tokens=tokens,
    n_joined=st.integers(0, 10), joined_tokens=tokens, kv_tokens=st.integers(0, 50_000),
    arrival_rps=maybe() | st.floats(1e-3, 200), mean_input_tokens=maybe() | st.floats(1, 2000),
    mean_output_tokens=maybe() | st.floats(0.5, 500), step_age_s=maybe() | st.floats(0, 0.2),
    co_tenants=st.lists(st.tuples(st.sampled_from(["neighbour", "other", "stranger"]), st.floats(0, 1))).map(tuple),
).map(lambda load: replace(load, joined_tokens=min(load.joined_tokens, load.prefill_tokens)))  # fmt: skip
lengths = st.floats(0, 3000)

STEP = StepModel(alpha_s=0.12, prefill_s_per_token=1e-3, attention_s_per_token2=0.0, sequence_s=0.0, kv_s_per_token=0.0)
FULL = LoadState(n_decoding=8, kv_tokens=9000, arrival_rps=150.0, mean_output_tokens=200.0)


@many
@given(models, states, lengths, lengths)
@example(make_model(max_sequences=8), FULL, 100.0, 200.0)  # the batch is full before the fixed point is found
@example(make_model(max_sequences=32), replace(FULL, arrival_rps=3.0), 100.0, 200.0)
@example(
    make_model(), LoadState(n_decoding=8, arrival_rps=60.0, mean_input_tokens=2000.0), 100.0, 20.0
)  # prefill-bound
@example(  # prompts that join are cut, and who is in flight is not: only answers of less than a token can do that
    make_model(step=STEP, max_sequences=8),
    LoadState(n_decoding=5, arrival_rps=9.0, mean_input_tokens=100.0, mean_output_tokens=0.5),
    100.0,
    20.0,
)
@example(make_model(lag_s=0.05), LoadState(n_decoding=1, kv_tokens=10, step_age_s=0.005), 100.0, 20.0)  # two steps late
def test_the_unpacked_formula_is_the_models(model, state, n_in, n_out):
    formula = Formula(model)
    ttft_s = model.ttft_s(state, input_tokens=n_in)
    tpot_s = model.tpot_s(state, input_tokens=n_in, output_tokens=n_out)

    assert ttft_s == pytest.approx(formula.ttft_s(state, n_in), rel=1e-9, abs=1e-15)
    assert tpot_s == pytest.approx(formula.tpot_s(state, n_in, n_out), rel=1e-9, abs=1e-15)


def make_point(concurrency, ttft_s, tpot_s):
    return LoadPoint(
        concurrency=concurrency, n_ok=10, n_failed=0, duration_s=1.0, ttft_p50_s=0.5 * ttft_s, ttft_p95_s=ttft_s,
        tpot_p50_s=None if tpot_s is None else 0.5 * tpot_s, tpot_p95_s=tpot_s, itl_p50_s=None, itl_p95_s=None,
        e2el_p50_s=None, e2el_p95_s=ttft_s * 2, mean_input_tokens=5.0, mean_output_tokens=11.0,
    )  # fmt: skip


def make_profile(points=(), **more):
    cost = Cost(usd_per_hour=1.0, usd_per_request=0.5, usd_per_output_token=0.1, concurrency=4)
    interval = Interval(low=0.0, high=1.0)
    accuracy = tuple(
        AccuracyEstimate(domain=domain, n=9, n_failed=0, accuracy=value, interval=interval)
        for domain, value in (("all", 0.8), ("code", 0.0))
    )
    return TierProfile(**{
        "tier": "t", "checkpoint_digest": None, "engine": EngineIdentity(name="mock"), "hardware_fingerprint": "f",
        "device": "cpu", "co_tenants": (), "context_tokens": 128, "points": tuple(points), "accuracy": accuracy,
        "cost": cost, **more,
    })  # fmt: skip


profiles = st.builds(
    make_profile,
    points=st.lists(
        st.tuples(st.integers(1, 64), st.floats(0.001, 10), maybe() | st.floats(0.001, 1)),
        max_size=3, unique_by=lambda found: found[0],
    ).map(lambda found: [make_point(*one) for one in sorted(found, key=lambda one: one[0])]),
    latency=maybe() | models, max_in_flight=maybe() | st.integers(1, 32),
)  # fmt: skip


def measure_plainly(points, at, output_tokens):
    def read(name):
        return interpolate([(float(point.concurrency), getattr(point, name)) for point in points], at)

    ttft_s, tpot_s = read("ttft_p95_s"), read("tpot_p95_s")
    if output_tokens is None:
        return ttft_s, tpot_s, read("e2el_p95_s")
    if ttft_s is None or tpot_s is None:
        return ttft_s, tpot_s, None
    return ttft_s, tpot_s, predict_e2el_s(ttft_s=ttft_s, tpot_s=tpot_s, n_output_tokens=output_tokens)


def predict_plainly(profile, load, n_in, n_out):
    """Return TTFT, TPOT and E2EL as the definition has them, step by step."""
    model, points, at = profile.latency, profile.closed_points, load.n_in_flight + 1.0
    if model is None:
        return measure_plainly(points, at, n_out)
    n_in = next(x for x in (n_in, load.mean_input_tokens, model.mean_input_tokens) if x is not None)
    n_out = next(x for x in (n_out, load.mean_output_tokens, model.mean_output_tokens) if x is not None)
    lengths = {"input_tokens": n_in, "output_tokens": n_out}
    bare = (model.ttft_s(load, input_tokens=n_in), model.tpot_s(load, **lengths), model.e2el_s(load, **lengths))
    box, n = model.domain, load.n_in_flight
    is_beyond = n_in > box.input_tokens[1] or n_out > box.output_tokens[1] or n > box.n_in_flight[1]
    found = []
    for metric, bare_s, measured_s in zip(Metric, bare, measure_plainly(points, at, n_out), strict=True):
        residual = model.residual(metric, n_in_flight=n, level=0.95)
        if residual is None:
            found.append(measured_s)
        elif is_beyond and points:
            found.append(None if measured_s is None else max(bare_s * math.exp(residual), measured_s))
        else:
            found.append(bare_s * math.exp(residual))
    return tuple(found)


def near(values):
    return [None if value is None else pytest.approx(value, rel=1e-9, abs=1e-15) for value in values]


def latencies(offer):
    return [offer.ttft_s, offer.tpot_s, offer.e2el_s]


@many
@given(profiles, states, maybe() | lengths, maybe() | lengths)
def test_the_predictor_follows_the_definition(profile, state, n_in, n_out):
    offer = Predictor(profile).offer(state, 0.5, n_in, n_out)

    assert near(predict_plainly(profile, state, n_in, n_out)) == latencies(offer)
    assert offer == predict(profile, accuracy=0.5, state=state, input_tokens=n_in, output_tokens=n_out)
    assert offer.is_extrapolated is (
        profile.latency is not None
        and not profile.latency.domain.holds(
            input_tokens=n_in if n_in is not None else state.mean_input_tokens or profile.latency.mean_input_tokens,
            output_tokens=n_out
            if n_out is not None
            else state.mean_output_tokens or profile.latency.mean_output_tokens,
            n_in_flight=state.n_in_flight,
        )
    )


@many
@given(profiles, states, lengths, lengths, st.floats(0.5, 2), st.floats(0.5, 2))
def test_a_correction_multiplies_and_leaves_the_typical_values_alone(profile, state, n_in, n_out, k_ttft, k_tpot):
    predictor = Predictor(replace(profile, points=()) if profile.latency else profile)
    plain = predictor.offer(state, None, n_in, n_out)
    scaled = predictor.offer(state, None, n_in, n_out, ttft_ratio=k_ttft, tpot_ratio=k_tpot)
    same = predictor.offer(state, None, n_in, n_out, ttft_ratio=k_ttft, tpot_ratio=k_ttft)

    assert (
        near([plain.ttft_s and k_ttft * plain.ttft_s, plain.tpot_s and k_tpot * plain.tpot_s]) == latencies(scaled)[:2]
    )
    assert near([plain.e2el_s and k_ttft * plain.e2el_s]) == latencies(same)[2:]
    assert (plain.typical_ttft_s, plain.typical_tpot_s) == (scaled.typical_ttft_s, scaled.typical_tpot_s)


def bucket(metric, median, upper):
    return ResidualBucket(metric=metric, max_in_flight=None, n=9, quantiles=((0.5, median), (0.95, upper)))


def test_the_typical_value_is_the_models_median():
    model = make_model(residuals=tuple(bucket(metric, 0.1, 0.3) for metric in Metric))
    state = LoadState(n_decoding=2, kv_tokens=300)
    offer = Predictor(make_profile(latency=model)).offer(state, None, 50, 20)

    assert model.ttft_s(state, input_tokens=50) * math.exp(0.1) == pytest.approx(offer.typical_ttft_s)
    assert model.tpot_s(state, input_tokens=50, output_tokens=20) * math.exp(0.1) == pytest.approx(offer.typical_tpot_s)


def test_residuals_change_where_the_models_do():
    edges = ((Metric.TTFT, 4, 0.1), (Metric.TTFT, 9, 0.5), (Metric.TPOT, 4, 0.2), (Metric.TPOT, None, 0.3))
    buckets = (
        ResidualBucket(metric=metric, max_in_flight=edge, n=9, quantiles=((0.5, upper / 2), (0.95, upper)))
        for metric, edge, upper in (*edges, (Metric.E2EL, None, 0.0))
    )
    model = make_model(residuals=tuple(buckets))
    predictor = Predictor(make_profile(latency=model))
    for n in range(12):
        offer, load = predictor.offer(LoadState(n_decoding=n), None, 50, 20), LoadState(n_decoding=n)
        expected = [
            model.ttft_s(load, input_tokens=50) * math.exp(0.1 if n <= 4 else 0.5),
            model.tpot_s(load, input_tokens=50, output_tokens=20) * math.exp(0.2 if n <= 4 else 0.3),
        ]

        assert near(expected) == latencies(offer)[:2]


def test_a_measured_whole_time_is_corrected_by_the_greater_factor():
    predictor = Predictor(make_profile([make_point(1, 0.2, 0.02)]))
    load = LoadState()

    assert [0.3, 0.01, 0.6] == near(latencies(predictor.offer(load, None, ttft_ratio=1.5, tpot_ratio=0.5)))


def test_without_a_model_the_typical_value_lies_between_the_medians():
    offer = Predictor(make_profile([make_point(1, 0.2, 0.02), make_point(3, 0.4, 0.04)])).offer(
        LoadState(n_decoding=1), None
    )

    assert (pytest.approx(0.15), pytest.approx(0.015)) == (offer.typical_ttft_s, offer.typical_tpot_s)


def test_a_long_answer_counts_for_the_whole_time_and_for_nothing_else():
    predictor = Predictor(make_profile(latency=make_model(residuals=tuple(bucket(m, 0.0, 0.0) for m in Metric))))
    short, long = (predictor.offer(LoadState(), None, 50, 20, n) for n in (None, 90))

    assert (short.ttft_s, short.tpot_s, short.usd) == (long.ttft_s, long.tpot_s, long.usd)
    assert long.ttft_s + 89 * long.tpot_s == pytest.approx(long.e2el_s)
    assert short.ttft_s + 19 * short.tpot_s == pytest.approx(short.e2el_s)


@given(st.sampled_from([None, "code", "law"]))
def test_mean_accuracy_is_the_profiles(domain):
    profile = make_profile()

    assert profile.accuracy_of(domain).accuracy == Predictor(profile).mean_accuracy(domain)
    assert Predictor(make_profile(accuracy=())).mean_accuracy(domain) is None


numbers = maybe() | st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)
offers = st.builds(
    Offer, tier=st.sampled_from("abc"), accuracy=numbers, usd=numbers, ttft_s=numbers, tpot_s=numbers, e2el_s=numbers,
    context_tokens=maybe() | st.integers(0, 3), is_healthy=st.booleans(), unusable=maybe() | st.sampled_from(MissReason),
)  # fmt: skip
requirements = st.builds(
    Requirement, ttft_s=numbers, tpot_s=numbers, e2el_s=numbers, accuracy=numbers, usd=numbers,
    context_tokens=maybe() | st.integers(0, 3),
)  # fmt: skip


def list_misses_plainly(need, offer, barred):
    checks = [
        (MissReason.RULE, offer.tier not in barred, None, None),
        (MissReason.UNHEALTHY, offer.is_healthy, None, None),
        (offer.unusable, offer.unusable is None, None, None),
    ]
    for reason, name, is_met in (
        (MissReason.ACCURACY, "accuracy", lambda offered, limit: offered >= limit),
        (MissReason.TTFT, "ttft_s", lambda offered, limit: offered <= limit),
        (MissReason.TPOT, "tpot_s", lambda offered, limit: offered <= limit),
        (MissReason.E2EL, "e2el_s", lambda offered, limit: offered <= limit),
        (MissReason.COST, "usd", lambda offered, limit: offered <= limit),
    ):
        offered, limit = getattr(offer, name), getattr(need, name)
        checks.append((reason, limit is None or (offered is not None and is_met(offered, limit)), offered, limit))
    fits = None in (offer.context_tokens, need.context_tokens) or need.context_tokens <= offer.context_tokens
    checks.append((MissReason.CONTEXT, fits, offer.context_tokens, need.context_tokens))
    return [
        Miss(tier=offer.tier, reason=reason, offered=offered, needed=limit)
        for reason, is_met, offered, limit in checks
        if not is_met
    ]


@many
@given(requirements, offers, st.sets(st.sampled_from("abc")))
def test_misses_are_those_of_the_definition(requirement, offer, barred):
    assert list_misses_plainly(requirement, offer, barred) == find_misses(requirement, offer, barred)


@given(requirements, st.lists(offers, unique_by=lambda offer: offer.tier), numbers)
def test_a_need_beside_the_requirement_stands_in_for_its_accuracy(requirement, candidates, need):
    within = requirement if need is None else replace(requirement, accuracy=need)

    assert decide(within, candidates) == decide(requirement, candidates, need_accuracy=need)
