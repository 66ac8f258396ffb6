"""The profiler against simulated engines whose truth is known: the benchmark's questions, small and from fixed seeds."""

import asyncio

import numpy as np
import pytest

from llmtier.core.requirement import Requirement
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.engine.simulate import Simulation, simulate
from llmtier.profile.capacity import find_capacity
from llmtier.profile.latency_fit import Load, fit_latency
from llmtier.profile.point import MeasuredPoint, PointSpec
from llmtier.profile.sample import RequestSample
from llmtier.profile.summarize import PointFacts, summarize
from llmtier.store.profiles import RequestRow

ENGINE = MockSettings(
    alpha_s=0.02, beta_s_per_token=6e-5, sequence_s=5e-4, gamma_s_per_kv_token=3e-6, noise=0.05, max_num_seqs=16
)
SHORT, LONG = (16, 128), (320, 512)
OUTPUT = (8, 40)


def draw(n: int, span: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    return rng.integers(span[0], span[1] + 1, n)


def open_run(rate_rps: float, n: int, seed: int, mock: MockSettings = ENGINE) -> Simulation:
    rng = np.random.default_rng(seed)
    arrivals_s = np.cumsum(rng.exponential(1 / rate_rps, n))
    return simulate(mock, arrivals_s, draw(n, SHORT, rng), draw(n, OUTPUT, rng), rng)


def samples_of(run: Simulation, n_warmup: int, concurrency: int | None = None) -> list[RequestSample]:
    return [
        RequestSample(
            row=RequestRow(
                tier="t",
                concurrency=concurrency,
                prompt_id=str(number),
                scheduled_s=one.arrival_s,
                sent_s=one.arrival_s,
                first_s=one.token_s[0] if one.token_s else None,
                last_s=one.token_s[-1] if one.token_s else None,
                done_s=one.done_s,
                n_input_tokens=None if one.is_refused else one.n_input_tokens,
                n_output_tokens=len(one.token_s) or None,
                status="http 500" if one.is_refused else "ok",
            ),
            content_s=one.token_s,
            is_warmup=number < n_warmup,
        )
        for number, one in enumerate(run.requests())
    ]


def measure(rate_rps: float, n: int, seed: int, mock: MockSettings = ENGINE):
    samples = samples_of(open_run(rate_rps, n, seed, mock), n_warmup=50)
    facts = PointFacts(shape="poisson", concurrency=None, asked_rps=rate_rps, seed=seed, is_open=True)
    return samples, summarize(samples, facts)


def saturation_rps(mock: MockSettings) -> float:
    """Return the rate of a batch that is always full."""
    answers = np.arange(OUTPUT[0], OUTPUT[1] + 1)
    held = (sum(SHORT) / 2 * answers + answers * (answers - 1) / 2).mean() / answers.mean()
    ends_per_step = mock.max_num_seqs / answers.mean()
    prefill_s = mock.beta_s_per_token * sum(SHORT) / 2 * ends_per_step
    per_sequence_s = mock.sequence_s + mock.gamma_s_per_kv_token * held
    return float(ends_per_step / (mock.alpha_s + prefill_s + per_sequence_s * mock.max_num_seqs))


@pytest.mark.parametrize("error_share", [0.0, 0.03])
def test_scripted_coefficients_come_back_within_five_percent(error_share):
    mock = MockSettings(
        alpha_s=0.004,
        beta_s_per_token=1e-4,
        sequence_s=4e-4,
        gamma_s_per_kv_token=2e-6,
        noise=0.05,
        faults=(Fault(kind=FaultKind.ERROR, probability=error_share),) if error_share else (),
    )
    rng = np.random.default_rng(3)
    loads = []
    for span in (SHORT, LONG):
        for concurrency in (1, 4, 8, 16):
            n = max(60, 8 * concurrency)
            run = simulate(mock, [0.0] * concurrency, draw(n, span, rng), draw(n, OUTPUT, rng), rng, concurrency)
            loads.append(Load(samples=samples_of(run, concurrency, concurrency), co_tenants={}))

    step = fit_latency(loads, []).step

    assert pytest.approx(mock.alpha_s, rel=0.05) == step.alpha_s
    assert pytest.approx(mock.beta_s_per_token, rel=0.05) == step.prefill_s_per_token
    assert pytest.approx(mock.sequence_s, rel=0.05) == step.sequence_s
    assert pytest.approx(mock.gamma_s_per_kv_token, rel=0.05) == step.kv_s_per_token


def test_upper_bounds_hold_the_truth_of_a_long_run():
    rate_rps = 0.5 * saturation_rps(ENGINE)
    long = open_run(rate_rps, 60_000, seed=999)
    truth_s = {name: float(np.quantile(getattr(long, name), 0.95)) for name in ("ttft_s", "e2el_s")}
    points = [measure(rate_rps, 5000, seed)[1] for seed in range(40)]

    bounds = [(point.ttft_p95_high_s, truth_s["ttft_s"]) for point in points]
    bounds += [(point.e2el_p95_high_s, truth_s["e2el_s"]) for point in points]
    given = [(bound, truth) for bound, truth in bounds if bound is not None]
    assert 76 <= len(given)
    assert 0.9 <= sum(bound >= truth for bound, truth in given) / len(given)
    assert np.mean([bound / truth for bound, truth in given]) < 1.35  # a bound that is never near would always hold


def test_overload_is_invalid_and_half_load_is_not():
    capacity_rps = saturation_rps(ENGINE)
    overloaded = [measure(1.3 * capacity_rps, 1250, seed)[1] for seed in range(8)]
    ordinary = [measure(0.5 * capacity_rps, 1250, seed)[1] for seed in range(8)]

    assert all(any("no steady state" in reason for reason in point.invalid) for point in overloaded)
    assert [()] * 8 == [point.invalid for point in ordinary]


def test_little_residual_of_a_simulated_run_is_small():
    _, point = measure(0.5 * saturation_rps(ENGINE), 1250, seed=4)

    assert abs(point.little_residual) < 0.02


@pytest.mark.parametrize("slowdown", [1.0, 200.0])
def test_search_lands_at_the_saturation_rate(slowdown):
    """An SLO far above any unsaturated latency is first missed where the batch is always full; 1 request/s is no floor."""
    mock = MockSettings(
        alpha_s=0.02 * slowdown,
        beta_s_per_token=6e-5 * slowdown,
        sequence_s=5e-4 * slowdown,
        noise=0.05,
        max_num_seqs=8,
    )
    capacity_rps = saturation_rps(mock)

    async def measure_spec(spec: PointSpec) -> MeasuredPoint:
        assert spec.shape.rate_rps is not None
        samples, point = measure(spec.shape.rate_rps, spec.n_sent, spec.seed, mock)
        return MeasuredPoint(spec=spec, key="", samples=tuple(samples), point=point, facts={})

    found = asyncio.run(
        find_capacity(
            measure_spec,
            Requirement(e2el_s=6.0 * slowdown),
            start_rps=capacity_rps / 3,
            n_requests=2000,
            warmup_requests=50,
            seed=7,
        )
    )

    assert (slowdown == 1.0) == (capacity_rps > 1.0)
    assert pytest.approx(capacity_rps, rel=0.08) == found.rate_rps
