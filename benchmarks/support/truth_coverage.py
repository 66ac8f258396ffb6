"""How often do the intervals of a load point hold the truth?

Each repetition is a whole run: Poisson arrivals from an empty engine, warm-up, drain and all, through the real window and summary.
Its requests are autocorrelated, since they share the engine. The truth is one long run of the same engine.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.core.interval import Interval
from llmtier.core.profile import LoadPoint
from llmtier.engine.mock_settings import MockSettings
from llmtier.profile.sample import RequestSample
from llmtier.profile.summarize import PointFacts, summarize
from llmtier.profile.window import find_window
from llmtier.stats.bounds import series_interval
from llmtier.stats.intervals import wilson
from support.simulated import Lengths, Scene, to_samples

LOADS = (0.5, 0.8)
"""Shares of the rate at which a full batch answers."""
SCENE = Scene(
    name="8 sequences at most",
    engine=MockSettings(
        alpha_s=0.02, beta_s_per_token=6e-5, sequence_s=5e-4, gamma_s_per_kv_token=1e-6, noise=0.05, max_num_seqs=8
    ),
    lengths=Lengths(n_input=(32, 512), n_output=(4, 24)),
)
N_REQUESTS = 8000
N_WARMUP = 50
TWO_SIDED = ("ttft mean", "ttft p50", "e2el mean", "e2el p50")
UPPER = ("ttft p95", "tpot p95", "e2el p95")
_SETTLING = 0.02  # of a long run, left out at either end

Outcome = dict[str, bool | None]


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """One run: whether each interval held the truth, ``None`` where there was none; and whether a gate closed."""

    held: Outcome
    invalid: tuple[str, ...]
    n_counted: int


def true_values(job: tuple[float, int]) -> dict[str, float]:
    """Return the truth of every statistic at one load from one run of so many requests."""
    load, n = job
    run = SCENE.open_run(load * SCENE.saturation_rps, n, seed=999)
    cut = int(_SETTLING * n)
    series: dict[str, NDArray[np.float64]] = {
        name: values[cut : len(values) - cut]
        for name, values in (("ttft", run.ttft_s), ("e2el", run.e2el_s), ("tpot", run.tpot_s))
    }
    means = {f"{name} mean": float(values.mean()) for name, values in series.items()}
    levels = {"p50": 0.5, "p95": 0.95}
    quantiles = {
        f"{name} {label}": float(np.quantile(values, level))
        for name, values in series.items()
        for label, level in levels.items()
    }
    return {**means, **quantiles, "mean in flight": float(run.n_running[cut:-cut].mean())}


def repeat(job: tuple[float, int, dict[str, float]]) -> Repetition:
    """Run once at one load from one seed and compare with the truth."""
    load, seed, truth = job
    rate_rps = load * SCENE.saturation_rps
    run = SCENE.open_run(rate_rps, N_REQUESTS + N_WARMUP, seed=seed)
    samples = to_samples(run, n_warmup=N_WARMUP, shape=f"poisson:{rate_rps:.4g}")
    facts = PointFacts(shape=samples[0].row.shape, concurrency=None, asked_rps=rate_rps, seed=seed, is_open=True)
    point = summarize(samples, facts)
    held: Outcome = {name: _is_inside(found, truth[name]) for name, found in _intervals(samples).items()}
    held |= {name: None if bound is None else bound >= truth[name] for name, bound in _bounds(point).items()}
    return Repetition(held=held, invalid=point.invalid, n_counted=point.n_ok)


def _intervals(samples: list[RequestSample]) -> dict[str, Interval | None]:
    """Return the two-sided intervals of the window, in time order."""
    window = find_window(samples, is_open=True)
    timings = [samples[i].timing for i in window.counted if samples[i].is_ok]
    ttft_s = [timing.ttft_s for timing in timings if timing.ttft_s is not None]
    e2el_s = [timing.e2el_s for timing in timings if timing.e2el_s is not None]
    return {
        "ttft mean": series_interval(ttft_s, "mean"),
        "ttft p50": series_interval(ttft_s, 0.5),
        "e2el mean": series_interval(e2el_s, "mean"),
        "e2el p50": series_interval(e2el_s, 0.5),
    }


def _bounds(point: LoadPoint) -> dict[str, float | None]:
    return {
        "ttft p95": point.ttft_p95_high_s,
        "tpot p95": point.tpot_p95_high_s,
        "e2el p95": point.e2el_p95_high_s,
    }


def _is_inside(interval: Interval | None, truth: float) -> bool | None:
    return None if interval is None else interval.low <= truth <= interval.high


def share_held(repetitions: list[Repetition], name: str) -> dict[str, object]:
    """Return how often one interval held the truth, with the interval of that share."""
    found = [one.held[name] for one in repetitions if one.held[name] is not None]
    n_held = sum(map(bool, found))
    return {
        "n": len(found),
        "n_without": len(repetitions) - len(found),
        "held": n_held,
        "share": round(n_held / len(found), 4) if found else None,
        "share_interval": [round(bound, 4) for bound in wilson(n_held, len(found)).as_list()],
    }
