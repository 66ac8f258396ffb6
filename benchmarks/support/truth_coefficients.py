"""Do the scripted coefficients of a simulated engine come back from llmtier's own fit?

Each case is profiled as ``llmtier profile`` would: the design's closed loops, short prompts and long ones, then Poisson
arrivals at half and four fifths of capacity for the residuals, and others that judge. A client delay with jitter lies
between engine and stamps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmtier.core.latency_model import LatencyModel, Metric
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.engine.simulate import Simulation
from llmtier.profile.design import LOAD_SHARES, choose_regimes, fit_specs
from llmtier.profile.judge import judge
from llmtier.profile.latency_fit import Load, fit_latency, observe
from llmtier.profile.lengths import SyntheticLengths, UniformLength
from llmtier.profile.sample import RequestSample
from llmtier.profile.shapes import ClosedLoop
from support.simulated import ClientDelay, Lengths, Scene, to_samples

CONCURRENCY = (2, 4, 8, 16, 32)
N_REQUESTS = 200
LEAST_SHARE = 0.02
"""A coefficient that makes less of the engine's time than this is not asked to come back."""
SCRIPTED = {
    "alpha_s": "alpha_s",
    "prefill_s_per_token": "beta_s_per_token",
    "sequence_s": "sequence_s",
    "kv_s_per_token": "gamma_s_per_kv_token",
}
"""Fitted names and the scripted ones."""


def _engine(alpha_s: float, beta_s: float, sequence_s: float, gamma_s: float, **others: object) -> MockSettings:
    speeds = {"alpha_s": alpha_s, "beta_s_per_token": beta_s, "sequence_s": sequence_s, "gamma_s_per_kv_token": gamma_s}
    return MockSettings.from_mapping({**speeds, **others})


_ERRORS = (Fault(kind=FaultKind.ERROR, probability=0.03),)
CASES: dict[str, MockSettings] = {
    "accelerator": _engine(0.008, 4e-5, 1.5e-4, 4e-7, noise=0.05),
    "cpu, 3 % errors": replace(_engine(0.002, 1.5e-4, 8e-4, 2e-6, noise=0.1), faults=_ERRORS),
    "8 sequences at most": _engine(0.02, 6e-5, 5e-4, 3e-6, noise=0.05, max_num_seqs=8),
    "under 1 request/s": _engine(0.3, 1e-3, 0.02, 2e-5, noise=0.05, max_num_seqs=16),
    "no noise": _engine(0.005, 1e-4, 3e-4, 1e-6),
    "strong noise": _engine(0.005, 1e-4, 3e-4, 1e-6, noise=0.15),
}


@dataclass(frozen=True, kw_only=True)
class CoefficientResult:
    """One profile of one case.

    Attributes:
        errors: Relative error of each scripted coefficient that makes ``LEAST_SHARE`` of the engine's time.
        shares: Of the engine's time in the fitted loads, by coefficient.
        strangers_share: Of the engine's time, that the fit gives to what is scripted as 0.
        mape: Of the model on held-out Poisson arrivals, by metric.
    """

    case: str
    seed: int
    errors: dict[str, float]
    shares: dict[str, float]
    strangers_share: float
    mape: dict[str, float]


def measure_coefficients(job: tuple[str, int]) -> CoefficientResult:
    """Profile one case once."""
    name, seed = job
    scene = Scene(name=name, engine=CASES[name], lengths=Lengths(n_input=(16, 512), n_output=(32, 128)))
    regimes = choose_regimes(max_input_tokens=512, max_output_tokens=128, context_tokens=None)
    runs = [
        (run_closed(scene.with_lengths(_lengths(regime)), spec.shape.concurrency, spec.n_sent, spec.seed), spec)
        for number, regime in enumerate((regimes.short, regimes.long))
        for spec in fit_specs(CONCURRENCY, n_requests=N_REQUESTS, seed=100 * seed + 50 * number)
        if isinstance(spec.shape, ClosedLoop)
    ]
    fitted = [_load(run, n_warmup=spec.warmup_requests, shape=spec.shape.label, seed=spec.seed) for run, spec in runs]
    mixed = scene.with_lengths(_lengths(regimes.mixed))
    model = fit_latency(fitted, _poisson(mixed, 1000 * seed + 1))
    held_out = [seen for load in _poisson(mixed, 1000 * seed + 2) for seen in observe(load)]
    judged = {metric.value: judge(model, held_out, metric) for metric in Metric}
    shares = time_shares(scene.engine, [run for run, _ in runs])
    return CoefficientResult(
        case=name,
        seed=seed,
        errors=coefficient_errors(scene.engine, model, shares),
        shares=shares,
        strangers_share=_strangers_share(scene.engine, model, [run for run, _ in runs]),
        mape={metric: found.mape for metric, found in judged.items() if found is not None},
    )


def run_closed(scene: Scene, concurrency: int, n: int, seed: int) -> Simulation:
    """Simulate one closed loop of the design."""
    return scene.closed_run(concurrency, n, seed * 31 + concurrency)


def coefficient_errors(engine: MockSettings, model: LatencyModel, shares: dict[str, float]) -> dict[str, float]:
    """Return the relative error of each coefficient that matters."""
    return {
        fitted: abs(getattr(model.step, fitted) / getattr(engine, scripted) - 1.0)
        for fitted, scripted in SCRIPTED.items()
        if shares[fitted] >= LEAST_SHARE
    }


def time_shares(engine: MockSettings, runs: Sequence[Simulation]) -> dict[str, float]:
    """Return which part of the engine's working time each scripted coefficient makes."""
    work = _work(runs)
    spent = {fitted: getattr(engine, scripted) * work[fitted] for fitted, scripted in SCRIPTED.items()}
    return {name: value / sum(spent.values()) for name, value in spent.items()}


def _strangers_share(engine: MockSettings, model: LatencyModel, runs: Sequence[Simulation]) -> float:
    work = _work(runs)
    total_s = sum(getattr(engine, scripted) * work[fitted] for fitted, scripted in SCRIPTED.items())
    unasked = [fitted for fitted, scripted in SCRIPTED.items() if not getattr(engine, scripted)]
    return sum(getattr(model.step, name) * work[name] for name in (*unasked, "attention_s_per_token2")) / total_s


def _work(runs: Sequence[Simulation]) -> dict[str, float]:
    """Return what each coefficient is multiplied with, summed over every step."""
    totals = dict.fromkeys((*SCRIPTED, "attention_s_per_token2"), 0.0)
    for run in runs:
        prompts = run.n_input_tokens[~run.is_refused].astype(np.float64)
        answers = run.n_output_tokens[~run.is_refused]
        totals["alpha_s"] += len(run.step_end_s)
        totals["prefill_s_per_token"] += float(prompts.sum())
        totals["attention_s_per_token2"] += float((prompts**2 / 2).sum())
        totals["sequence_s"] += float(run.n_running.sum())
        totals["kv_s_per_token"] += float((prompts * answers + answers * (answers - 1) / 2).sum())
    return totals


def _poisson(scene: Scene, seed: int) -> list[Load]:
    return [
        _load(
            scene.open_run(share * scene.saturation_rps, 2 * N_REQUESTS, seed + 10 * number),
            n_warmup=20,
            shape=f"poisson:{share}",
            seed=seed,
        )
        for number, share in enumerate(LOAD_SHARES)
    ]


def _load(run: Simulation, *, n_warmup: int, shape: str, seed: int) -> Load:
    samples: list[RequestSample] = to_samples(run, n_warmup=n_warmup, shape=shape, delay=ClientDelay(), seed=seed)
    return Load(samples=samples, co_tenants={})


def _lengths(asked: SyntheticLengths) -> Lengths:
    if not (isinstance(asked.input, UniformLength) and isinstance(asked.output, UniformLength)):
        raise TypeError("the design draws uniform lengths")
    return Lengths(
        n_input=(asked.input.low_tokens, asked.input.high_tokens),
        n_output=(asked.output.low_tokens, asked.output.high_tokens),
    )
