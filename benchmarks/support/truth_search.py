"""Does the search for the highest rate that meets the SLOs find it?

``profile.capacity.find_capacity`` runs as it is; only the measuring of a rate is replaced by a simulated run, summed up by the
real ``summarize``. The truth is the rate at which the 95th percentile of a long simulated run crosses the limit, or, where
every limit is far above what an unsaturated engine does, the analytic rate of a batch that is always full.
"""

import asyncio
from dataclasses import dataclass

import numpy as np

from llmtier.core.requirement import Requirement
from llmtier.engine.mock_settings import MockSettings
from llmtier.engine.simulate import Simulation
from llmtier.profile.capacity import find_capacity
from llmtier.profile.point import MeasuredPoint, PointSpec
from llmtier.profile.summarize import PointFacts, summarize
from support.simulated import Lengths, Scene, to_samples

LEVEL = 0.95
_BISECTIONS = 11
_SETTLING = 0.1  # of a long run, left out at either end


@dataclass(frozen=True, kw_only=True)
class SearchCase:
    """A scene, its limits, and how much each probe sends; ``is_analytic`` when saturation is the capacity."""

    scene: Scene
    slo: Requirement
    n_requests: int
    is_analytic: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchFound:
    """One search.

    Attributes:
        error: Of the found rate, the tier's goodput, relative to the truth; ``None`` when nothing was found.
        estimate_error: Likewise of the rate at which the search's own fit meets the limit; signed.
        n_points: Rates measured; ``n_invalid`` of them were flagged.
    """

    case: str
    seed: int
    truth_rps: float
    found_rps: float | None
    upper_rps: float | None
    error: float | None
    estimate_error: float | None
    n_points: int
    n_invalid: int
    reason: str


def _scene(name: str, engine: MockSettings, n_input: tuple[int, int], n_output: tuple[int, int]) -> Scene:
    return Scene(name=name, engine=engine, lengths=Lengths(n_input=n_input, n_output=n_output))


_GPU = MockSettings(
    alpha_s=0.008, beta_s_per_token=4e-5, sequence_s=3e-4, gamma_s_per_kv_token=4e-7, noise=0.05, max_num_seqs=64
)
_NARROW = MockSettings(
    alpha_s=0.02, beta_s_per_token=6e-5, sequence_s=5e-4, gamma_s_per_kv_token=3e-6, noise=0.05, max_num_seqs=8
)
_SLOW = MockSettings(
    alpha_s=0.3, beta_s_per_token=1e-3, sequence_s=0.02, gamma_s_per_kv_token=2e-5, noise=0.05, max_num_seqs=8
)
_CRAWLING = MockSettings(alpha_s=5.0, beta_s_per_token=0.01, sequence_s=0.5, noise=0.1, max_num_seqs=4)
CASES: dict[str, SearchCase] = {
    case.scene.name: case
    for case in (
        SearchCase(
            scene=_scene("TPOT limit", _GPU, (32, 512), (16, 96)), slo=Requirement(tpot_s=0.022), n_requests=1500
        ),
        SearchCase(
            scene=_scene("TTFT limit, 8 sequences", _NARROW, (32, 256), (16, 96)),
            slo=Requirement(ttft_s=2.0),
            n_requests=1500,
        ),
        SearchCase(
            scene=_scene("under 1 request/s", _SLOW, (32, 256), (8, 48)), slo=Requirement(e2el_s=40.0), n_requests=1500
        ),
        SearchCase(
            scene=_scene("under 0.1 requests/s", _CRAWLING, (16, 128), (4, 24)),
            slo=Requirement(ttft_s=200.0, e2el_s=400.0),
            n_requests=1500,
        ),
        SearchCase(
            scene=_scene("saturation", _NARROW, (128, 128), (48, 48)),
            slo=Requirement(e2el_s=20.0),
            n_requests=1500,
            is_analytic=True,
        ),
    )
}


def search_once(job: tuple[str, int, float]) -> SearchFound:
    """Search one case from one seed; ``job`` holds the truth too."""
    name, seed, truth_rps = job
    case = CASES[name]

    async def measure(spec: PointSpec) -> MeasuredPoint:
        return measure_simulated(case.scene, spec)

    found = asyncio.run(
        find_capacity(
            measure,
            case.slo,
            start_rps=case.scene.saturation_rps / 3,
            n_requests=case.n_requests,
            warmup_requests=50,
            seed=10_000 * (seed + 1),
        )
    )
    return SearchFound(
        case=name,
        seed=seed,
        truth_rps=truth_rps,
        found_rps=found.rate_rps,
        upper_rps=found.upper_rps,
        error=None if found.rate_rps is None else abs(found.rate_rps / truth_rps - 1.0),
        estimate_error=None if found.estimate_rps is None else found.estimate_rps / truth_rps - 1.0,
        n_points=len(found.points),
        n_invalid=sum(bool(one.point.invalid) for one in found.points),
        reason=found.reason,
    )


def measure_simulated(scene: Scene, spec: PointSpec) -> MeasuredPoint:
    """Measure a point of Poisson arrivals on the simulated engine."""
    rate_rps = spec.shape.rate_rps
    if rate_rps is None:
        raise ValueError("a search measures rates")
    run = scene.open_run(rate_rps, spec.n_sent, spec.seed)
    label = spec.shape.label
    samples = tuple(to_samples(run, n_warmup=spec.warmup_requests, shape=label))
    facts = PointFacts(shape=label, concurrency=None, asked_rps=rate_rps, seed=spec.seed, is_open=True)
    return MeasuredPoint(spec=spec, key=label, samples=samples, point=summarize(samples, facts), facts={})


def true_capacity(job: tuple[str, int]) -> tuple[str, float]:
    """Return the name of a case and the rate at which a long run of ``n`` requests just meets its limits."""
    name, n = job
    case = CASES[name]
    high_rps = case.scene.saturation_rps
    if case.is_analytic:
        return name, high_rps
    low_rps = 0.0
    for _ in range(_BISECTIONS):
        middle_rps = (low_rps + high_rps) / 2
        if _meets(case.scene.open_run(middle_rps, n, seed=77), case.slo):
            low_rps = middle_rps
        else:
            high_rps = middle_rps
    return name, (low_rps + high_rps) / 2


def _meets(run: Simulation, slo: Requirement) -> bool:
    pairs = ((run.ttft_s, slo.ttft_s), (run.tpot_s, slo.tpot_s), (run.e2el_s, slo.e2el_s))
    return all(_settled_quantile(values) <= limit for values, limit in pairs if limit is not None)


def _settled_quantile(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    cut = int(_SETTLING * len(values))
    return float(np.quantile(values[cut : len(values) - cut], LEVEL))
