"""Are the profiler's numbers true? Coefficients, intervals and the SLO search against engines whose truth is known.

Three questions, each asked of llmtier's own functions on the simulated mock engine (``engine.simulate``, which gives its
very instants on a virtual clock):

- ``coefficient_error_max``: largest relative error of a scripted step-time coefficient that makes at least 2 % of the
  engine's time, over every case and seed; ``http`` repeats it against the mock engine as a process of its own.
- ``coverage``: share of whole runs whose 95 % interval holds the truth of a long run; ``inside`` is the mean over the
  two-sided intervals at both loads, ``conservative`` the least over the upper bounds of 95th percentiles.
- ``slo_search_error_max``: largest relative error of the highest rate that meets the SLOs, over every case and seed.

Example: python benchmarks/profile_truth.py --json benchmarks/results/profile_truth.json
"""

import argparse
import importlib.metadata
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from support import truth_coefficients, truth_coverage, truth_search
from support.machine import describe_machine, publish
from support.truth_http import measure_http

N_PROCESSES = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is simulated.

    Attributes:
        n_seeds: Profiles of each coefficient case.
        n_repetitions: Runs at each load.
        n_long: Requests of the long runs that tell the intervals' truth.
        n_capacity: Requests of the long runs that tell a search's truth.
        n_searches: Searches of each case.
    """

    n_seeds: int
    n_repetitions: int
    n_long: int
    n_capacity: int
    n_searches: int


FULL = Plan(n_seeds=5, n_repetitions=1000, n_long=1_000_000, n_capacity=200_000, n_searches=6)
QUICK = Plan(n_seeds=1, n_repetitions=60, n_long=100_000, n_capacity=30_000, n_searches=1)


def measure_coefficients(pool: Pool, plan: Plan) -> dict[str, object]:
    """Profile every case from several seeds."""
    jobs = [(case, seed) for case in truth_coefficients.CASES for seed in range(plan.n_seeds)]
    found = pool.map(truth_coefficients.measure_coefficients, jobs, chunksize=1)
    return {
        "error_max": max(error for one in found for error in one.errors.values()),
        "cases": {case: _sum_up([one for one in found if one.case == case]) for case in truth_coefficients.CASES},
    }


def _sum_up(found: Sequence[truth_coefficients.CoefficientResult]) -> dict[str, object]:
    return {
        "profiles": len(found),
        "error_max": {name: round(max(one.errors[name] for one in found), 4) for name in found[0].errors},
        "time_share": {name: round(share, 3) for name, share in found[0].shares.items()},
        "strangers_share_max": round(max(one.strangers_share for one in found), 4),
        "held_out_mape": {name: round(statistics.mean(one.mape[name] for one in found), 4) for name in found[0].mape},
    }


def measure_coverage(pool: Pool, plan: Plan) -> dict[str, object]:
    """Repeat whole runs at each load."""
    loads = truth_coverage.LOADS
    truths = pool.map(truth_coverage.true_values, [(load, plan.n_long) for load in loads], chunksize=1)
    details: dict[str, dict[str, object]] = {}
    shares: dict[str, list[Any]] = {"two-sided": [], "upper": []}
    for load, truth in zip(loads, truths, strict=True):
        jobs = [(load, seed, truth) for seed in range(plan.n_repetitions)]
        repetitions = pool.map(truth_coverage.repeat, jobs, chunksize=20)
        by_name: dict[str, dict[str, Any]] = {}
        for kind, names in (("two-sided", truth_coverage.TWO_SIDED), ("upper", truth_coverage.UPPER)):
            for name in names:
                by_name[name] = {"truth_s": truth[name], **truth_coverage.share_held(repetitions, name)}
                shares[kind].append(by_name[name]["share"])
        details[f"{load:.0%} load"] = {
            "mean_in_flight": truth["mean in flight"],
            "n_counted_mean": statistics.mean(one.n_counted for one in repetitions),
            "n_invalid": sum(bool(one.invalid) for one in repetitions),
            "invalid": dict(Counter(_kind(reason) for one in repetitions for reason in one.invalid)),
            "intervals": by_name,
        }
    return {
        "repetitions": plan.n_repetitions,
        "inside": round(statistics.mean(shares["two-sided"]), 4),
        "inside_least": min(shares["two-sided"]),
        "inside_most": max(shares["two-sided"]),
        "conservative": min((share for share in shares["upper"] if share is not None), default=None),
        "requests_per_run": truth_coverage.N_REQUESTS,
        "long_run_requests": plan.n_long,
        "loads": details,
    }


def _kind(reason: str) -> str:
    """Return a fault without its numbers."""
    return " ".join(word for word in reason.split() if not any(letter.isdigit() for letter in word))[:60]


def measure_searches(pool: Pool, plan: Plan) -> dict[str, object]:
    """Search every case from several seeds."""
    truths = dict(pool.map(truth_search.true_capacity, [(c, plan.n_capacity) for c in truth_search.CASES], chunksize=1))
    jobs = [(case, seed, truths[case]) for case in truth_search.CASES for seed in range(plan.n_searches)]
    found = pool.map(truth_search.search_once, jobs, chunksize=1)
    return {
        "error_max": max(float("inf") if one.error is None else one.error for one in found),
        "searches": len(found),
        "cases": {case: [asdict(one) for one in found if one.case == case] for case in truth_search.CASES},
    }


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description="The profiler against simulated engines of known truth.")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--quick", action="store_true", help="few seeds and repetitions, no HTTP")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    begun_s = time.perf_counter()
    http = None if arguments.quick else measure_http()
    with get_context("spawn").Pool(N_PROCESSES) as pool:
        coefficients = measure_coefficients(pool, plan)
        coverage = measure_coverage(pool, plan)
        search = measure_searches(pool, plan)
    document = {
        "benchmark": "profile_truth",
        "machine": describe_machine({name: importlib.metadata.version(name) for name in ("numpy", "scipy")}),
        "coefficient_error_max": coefficients["error_max"],
        "coverage": coverage,
        "slo_search_error_max": search["error_max"],
        "coefficients": {**coefficients, "http": http},
        "slo_search": search,
        "plan": asdict(plan),
        "wall_s": round(time.perf_counter() - begun_s, 1),
    }
    publish(document, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
