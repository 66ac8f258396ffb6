"""Arrivals follow the law that was asked for, and shapes survive being written down."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from llmtier.profile.shape_text import parse_shape, parse_shapes
from llmtier.profile.shapes import (
    ClosedLoop,
    ConstantRate,
    GammaRate,
    PoissonRate,
    Ramp,
    RampKind,
    Trace,
    arrival_offsets,
)

RATES = st.floats(min_value=1e-3, max_value=1e4)
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1, max_size=12)


def recorded_instants():
    instants = st.floats(min_value=0, max_value=1e6)
    return st.lists(instants, min_size=1, max_size=20).map(lambda found: tuple(sorted(found)))


OPEN_SHAPES = st.one_of(
    st.builds(ConstantRate, rate_rps=RATES),
    st.builds(PoissonRate, rate_rps=RATES),
    st.builds(GammaRate, rate_rps=RATES, burstiness=st.floats(min_value=0.01, max_value=100)),
    st.builds(Ramp, from_rps=RATES, to_rps=RATES, kind=st.sampled_from(RampKind)),
    st.builds(Ramp, from_rps=st.just(0.0), to_rps=RATES),
)
TRACES = st.builds(Trace, name=NAMES, recorded_s=recorded_instants(), time_scale=RATES)
SHAPES = st.one_of(OPEN_SHAPES, TRACES, st.builds(ClosedLoop, concurrency=st.integers(1, 10_000)))


@given(shape=OPEN_SHAPES, n=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_offsets_are_finite_ascending_and_the_same_for_the_same_seed(shape, n, seed):
    offsets_s = arrival_offsets(shape, n, np.random.default_rng(seed))

    assert (n,) == offsets_s.shape
    assert np.isfinite(offsets_s).all()
    assert offsets_s[0] >= 0
    assert (np.diff(offsets_s) >= 0).all()
    assert offsets_s.tolist() == arrival_offsets(shape, n, np.random.default_rng(seed)).tolist()


@given(shape=st.one_of(st.builds(PoissonRate, rate_rps=RATES), st.builds(Ramp, from_rps=RATES, to_rps=RATES)))
def test_another_seed_gives_other_arrivals(shape):
    first, second = (arrival_offsets(shape, 20, np.random.default_rng(seed)) for seed in (1, 2))

    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("rate_rps", [0.01, 2.5, 700.0])
@pytest.mark.parametrize("burstiness", [None, 0.25, 1.0, 16.0])
def test_random_gaps_follow_their_law(rate_rps, burstiness):
    """Kolmogorov-Smirnov at 0.001, mean and variation within four standard errors."""
    shape = (
        PoissonRate(rate_rps=rate_rps) if burstiness is None else GammaRate(rate_rps=rate_rps, burstiness=burstiness)
    )
    n, k = 20_000, burstiness or 1.0

    gaps_s = np.diff(arrival_offsets(shape, n, np.random.default_rng(7)), prepend=0.0)

    cv = 1 / math.sqrt(k)
    assert abs(gaps_s.mean() * rate_rps - 1) < 4 * cv / math.sqrt(n)
    kurtosis = 3 + 6 / k
    cv_error = cv * math.sqrt((kurtosis - 1) / 4 / n + cv**2 / n)
    assert abs(gaps_s.std() / gaps_s.mean() - cv) < 4 * cv_error
    assert stats.kstest(gaps_s, stats.gamma(k, scale=1 / (rate_rps * k)).cdf).pvalue > 0.001


def test_random_arrivals_are_not_rescaled_to_the_asked_total():
    totals_s = [arrival_offsets(PoissonRate(rate_rps=1), 100, np.random.default_rng(seed))[-1] for seed in range(400)]

    assert 10 == pytest.approx(np.std(totals_s), rel=0.2)  # sqrt(100) gaps of 1 s


def test_constant_arrivals_start_one_gap_in():
    offsets_s = arrival_offsets(ConstantRate(rate_rps=0.25), 3, np.random.default_rng(0))

    assert [4.0, 8.0, 12.0] == offsets_s.tolist()


def expected_arrivals(shape, duration_s, until_s):
    """Integrate the ramp's rate numerically: the truth that the closed forms must meet."""
    grid_s = np.linspace(0, until_s, 20_001)
    share = grid_s / duration_s
    if shape.kind is RampKind.LINEAR:
        rate_rps = shape.from_rps + (shape.to_rps - shape.from_rps) * share
    else:
        rate_rps = shape.from_rps * (shape.to_rps / shape.from_rps) ** share
    return np.trapezoid(rate_rps, grid_s)


@pytest.mark.parametrize("kind", RampKind)
@pytest.mark.parametrize(("from_rps", "to_rps"), [(1.0, 8.0), (8.0, 1.0), (0.01, 0.05), (3.0, 3.0), (3.0, 3.0000001)])
def test_a_ramp_inverts_its_cumulated_rate(kind, from_rps, to_rps):
    shape = Ramp(from_rps=from_rps, to_rps=to_rps, kind=kind)
    counts = np.array([1.0, 25.0, 50.0, 100.0])

    instants_s = shape.invert(counts, n=100)

    duration_s = shape.duration_s(100)
    found = [expected_arrivals(shape, duration_s, instant_s) for instant_s in instants_s]
    assert counts.tolist() == pytest.approx(found, rel=1e-4)
    assert duration_s == pytest.approx(instants_s[-1])
    assert 100 / duration_s == pytest.approx(shape.rate_rps)


def test_a_ramp_from_zero_begins_slowly_and_goes_on_at_its_last_rate():
    shape = Ramp(from_rps=0, to_rps=10)

    assert [10.0, 20.0, 20.5] == pytest.approx(shape.invert(np.array([25.0, 100.0, 105.0]), n=100).tolist())


def test_a_ramp_puts_its_arrivals_where_its_rate_is():
    shape = Ramp(from_rps=1, to_rps=9)
    n, duration_s = 1000, shape.duration_s(1000)

    in_first_half = [
        (arrival_offsets(shape, n, np.random.default_rng(seed)) < duration_s / 2).sum() for seed in range(50)
    ]

    expected = duration_s / 2 * 3  # mean rate of the first half: (1 + 5) / 2
    assert abs(np.mean(in_first_half) - expected) < 4 * math.sqrt(expected / 50)


@given(trace=TRACES, factor=st.sampled_from([0.5, 2.0, 4.0]))
def test_a_trace_keeps_its_instants_and_the_time_scale_stretches_them(trace, factor):
    n = len(trace.recorded_s)
    scaled = Trace(name=trace.name, recorded_s=trace.recorded_s, time_scale=factor)

    assert [instant_s * factor for instant_s in trace.recorded_s] == arrival_offsets(scaled, n, None).tolist()
    if scaled.rate_rps is not None and math.isfinite(scaled.rate_rps):
        whole = Trace(name=trace.name, recorded_s=trace.recorded_s)
        assert whole.rate_rps == pytest.approx(scaled.rate_rps * factor)


def test_more_requests_than_a_trace_holds_are_refused():
    with pytest.raises(ValueError, match="trace day holds 2 arrivals, 3 were asked for"):
        arrival_offsets(Trace(name="day", recorded_s=(0, 1)), 3, np.random.default_rng(0))


def test_a_closed_loop_has_no_schedule_and_no_rate():
    assert ClosedLoop(concurrency=4).rate_rps is None
    with pytest.raises(ValueError, match="no arrival instants"):
        arrival_offsets(ClosedLoop(concurrency=4), 3, np.random.default_rng(0))


def test_no_requests_are_no_load():
    with pytest.raises(ValueError, match="at least 1 request"):
        arrival_offsets(ConstantRate(rate_rps=1), 0, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_are_none_are_refused(bad):
    for make in (
        lambda: ConstantRate(rate_rps=bad),
        lambda: PoissonRate(rate_rps=bad),
        lambda: GammaRate(rate_rps=1, burstiness=bad),
        lambda: Ramp(from_rps=1, to_rps=bad),
        lambda: Ramp(from_rps=bad, to_rps=1, kind=RampKind.EXPONENTIAL),
        lambda: Trace(name="t", recorded_s=(0.0,), time_scale=bad),
    ):
        with pytest.raises(ValueError, match="must be a number above 0"):
            make()


@pytest.mark.parametrize("recorded_s", [(), (1.0, 0.5), (-1.0,), (math.nan,), (0.0, math.inf)])
def test_a_trace_that_is_out_of_order_is_refused(recorded_s):
    with pytest.raises(ValueError, match="trace"):
        Trace(name="t", recorded_s=recorded_s)


@given(shape=SHAPES)
def test_a_label_reads_back(shape):
    recorded_s = getattr(shape, "recorded_s", ())
    assume(shape.label.isprintable())

    assert shape == parse_shape(shape.label, load_trace=lambda name: recorded_s)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("closed:4", "closed:4"),
        (" Poisson: 2.50 ", "poisson:2.5"),
        ("poisson:.01", "poisson:0.01"),
        ("constant:1e-3", "constant:0.001"),
        ("gamma:2.5,0.5", "gamma:2.5,0.5"),
        ("ramp:1-8", "ramp:1-8"),
        ("ramp:0-8", "ramp:0-8"),
        ("ramp:1-8,linear", "ramp:1-8"),
        ("ramp:8-1,exponential", "ramp:8-1,exponential"),
        ("trace:logs/a,b.csv*2", "trace:logs/a,b.csv*2"),
        ("trace:day.csv*1", "trace:day.csv"),
    ],
)
def test_shapes_are_read_as_people_type_them(text, label):
    assert label == parse_shape(text, load_trace=lambda name: [0.0, 1.0]).label


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("closed:1,2,4,8", ["closed:1", "closed:2", "closed:4", "closed:8"]),
        ("poisson:1..8/8", [f"poisson:{rate}" for rate in range(1, 9)]),
        ("constant:0.5, 1..2/3", ["constant:0.5", "constant:1", "constant:1.5", "constant:2"]),
        ("gamma:1,2,0.5", ["gamma:1,0.5", "gamma:2,0.5"]),
        ("gamma:1..3/3,0.5", ["gamma:1,0.5", "gamma:2,0.5", "gamma:3,0.5"]),
    ],
)
def test_a_sweep_names_several_shapes(text, labels):
    assert labels == [shape.label for shape in parse_shapes(text)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one of closed:CONCURRENCY"),
        ("burst:3", "expected one of closed:CONCURRENCY"),
        ("poisson", "expected a number above 0"),
        ("poisson:", "expected a number above 0"),
        ("poisson:-1", "expected a number above 0"),
        ("poisson:0", "must be a number above 0, got 0"),
        ("poisson:nan", "expected a number above 0"),
        ("poisson:1e999", "must be a number above 0, got inf"),
        ("poisson:1,,2", "expected a number above 0"),
        ("poisson:2,2", "may stand once"),
        ("poisson:8..1/4", "LOW < HIGH"),
        ("poisson:1..8/1", "N from 2"),
        ("poisson:1..8/99999999", "N from 2"),
        ("poisson:1..8", "a range such as"),
        ("poisson:1..8/1000,9", "at most 1000 loads"),
        ("closed:0", "at least 1, got 0"),
        ("closed:1.5", "whole number"),
        ("closed:1..2/4", "whole number"),
        ("gamma:2", "gamma:RATE,BURSTINESS"),
        ("gamma:2,1..3/3", "gamma:RATE,BURSTINESS"),
        ("ramp:1", "ramp:FROM-TO"),
        ("ramp:1-8,steep", "linear, exponential"),
        ("ramp:1-0", "last rate of a load must be a number above 0"),
        ("ramp:0-8,exponential", "first rate of a load must be a number above 0"),
        ("trace:", "trace:FILE"),
        ("trace:day.csv*0", "time scale of a load must be a number above 0"),
    ],
)
def test_a_shape_that_is_none_is_quoted_and_explained(text, message):
    with pytest.raises(ValueError, match="load shape") as caught:
        parse_shapes(text, load_trace=lambda name: [0.0])

    assert repr(text) in str(caught.value)
    assert message in str(caught.value)


def test_one_shape_is_not_a_sweep_and_a_trace_needs_a_reader():
    with pytest.raises(ValueError, match="names 2 loads, expected one"):
        parse_shape("closed:1,2")
    with pytest.raises(ValueError, match="no trace can be read here"):
        parse_shape("trace:day.csv")
