"""The profiler's own design of load points for a latency model, measured on a running engine with the counts given here.

Closed loops at short and at long prompts give the coefficients, Poisson loads the residuals, Poisson loads of other
seeds judge. Shapes, lengths and rates are those that ``llmtier profile`` chooses; only the number of requests differs.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice

from llmtier.engine.launch import RunningEngine
from llmtier.engine.load_client import LoadClient
from llmtier.profile.design import choose_regimes, fit_specs, poisson_specs
from llmtier.profile.lengths import LognormalLength, SyntheticLengths, UniformLength
from llmtier.profile.point import Bench, MeasuredPoint, PointSpec, Workload, measure_point
from llmtier.profile.probe import EngineManners, probe_engine
from llmtier.profile.shapes import ClosedLoop
from llmtier.profile.synthetic import SyntheticSource
from llmtier.profile.workload import WorkItem
from llmtier.store.measured_points import MeasuredPoints

Keys = dict[str, list[str]]
"""Under which keys the load points are kept, by role: ``fit``, ``calibration``, ``held_out``."""

MIXED = SyntheticLengths(
    input=LognormalLength(median_tokens=48, sigma=0.6, longest_tokens=192),
    output=UniformLength(low_tokens=16, high_tokens=128),
)


@dataclass(frozen=True)
class Design:
    """How much is measured.

    Attributes:
        concurrency: Of the closed loops; the last one with mixed lengths tells the capacity.
        n_closed: Requests per closed loop, more where many are in flight.
        n_calibration: Requests per Poisson load for the residuals; there are two.
        n_held_out: Requests per Poisson load that judges; likewise.
        seed: Of lengths, prompts and arrivals.
    """

    concurrency: tuple[int, ...] = (1, 4, 16)
    n_closed: int = 24
    n_calibration: int = 120
    n_held_out: int = 170
    n_warmup: int = 12
    seed: int = 0


QUICK = Design(concurrency=(1, 4), n_calibration=24, n_held_out=24)


async def measure_design(
    engine: RunningEngine, design: Design, store: MeasuredPoints, *, tell: Callable[[str], None]
) -> tuple[Keys, dict[str, object]]:
    """Measure every point that ``store`` does not hold; return where they are, and the capacity and invalid points."""
    async with LoadClient(engine.base_url, timeout_s=300.0) as client:
        bench = Bench(
            client=client,
            tier=engine.model_name,
            model_name=engine.model_name,
            identity={"tier": engine.model_name, "engine": asdict(engine.identity)},
            pid=engine.pid,
            points=store,
        )
        manners = await probe_engine(client, engine.model_name, seed=design.seed)
        return await _Run(bench, manners, design, tell).measure(engine.context_tokens)


class _Run:
    """Goes through the points of one engine."""

    def __init__(self, bench: Bench, manners: EngineManners, design: Design, tell: Callable[[str], None]) -> None:
        self._bench, self._manners, self._design, self._tell = bench, manners, design, tell
        self._n_points = 0
        self._invalid: list[str] = []
        self._keys: Keys = {"fit": [], "calibration": [], "held_out": []}

    async def measure(self, context_tokens: int | None) -> tuple[Keys, dict[str, object]]:
        design = self._design
        regimes = choose_regimes(max_input_tokens=256, max_output_tokens=128, context_tokens=context_tokens)
        warm_up = PointSpec(shape=ClosedLoop(concurrency=4), n_requests=16, warmup_requests=0, seed=design.seed)
        await self._measure(warm_up, regimes.short, None)  # an engine's first steps are slow
        for lengths in (regimes.short, regimes.long):
            for spec in fit_specs(design.concurrency, n_requests=2 * design.n_closed, seed=design.seed):
                await self._measure(spec, lengths, "fit")
        most = design.concurrency[-1]
        spec = PointSpec(
            shape=ClosedLoop(concurrency=most), n_requests=6 * most, warmup_requests=most, seed=design.seed
        )
        capacity_rps = (await self._measure(spec, MIXED, "fit")).point.request_rps
        for role, n, seed in (("calibration", design.n_calibration, 100), ("held_out", design.n_held_out, 1100)):
            rates = poisson_specs(capacity_rps, n_requests=n, warmup_requests=design.n_warmup, seed=design.seed + seed)
            for open_spec in rates:
                await self._measure(open_spec, MIXED, role)
        return self._keys, {"capacity_rps": capacity_rps, "invalid": self._invalid}

    async def _measure(self, spec: PointSpec, lengths: SyntheticLengths, role: str | None) -> MeasuredPoint:
        self._n_points += 1
        seed = 1000 * self._design.seed + self._n_points  # every point draws its own lengths and words
        label = f"{lengths.input.label} {lengths.output.label} seed {seed}"
        measured = await measure_point(self._bench, spec, Workload(label=label, items=self._items(lengths, seed)))
        point = measured.point
        self._tell(
            f"  {role or 'forgotten':11} {point.shape:14} input {lengths.input.label:20} n {point.n_ok:3} "
            f"{point.duration_s:5.1f} s  {point.request_rps:5.2f} req/s  TTFT p50 {1e3 * (point.ttft_p50_s or 0):5.0f} ms  "
            f"TPOT p50 {1e3 * (point.tpot_p50_s or 0):5.1f} ms  {'; '.join(point.invalid)}"
        )
        if role is not None:
            self._keys[role].append(measured.key)
            self._invalid += [f"{role} {point.shape} {lengths.input.label}: {reason}" for reason in point.invalid]
        return measured

    def _items(self, lengths: SyntheticLengths, seed: int) -> Callable[[int], Iterator[WorkItem]]:
        source = SyntheticSource(lengths=lengths, budget=self._manners.budget, seed=seed, style=self._manners.style)
        return lambda offset: islice(iter(source), offset, None)
