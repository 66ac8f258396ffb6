"""Does the promised accuracy loss hold as often as it says, and how much traffic does the promise allow?

Reads ``routellm_mmlu.parquet`` (14,037 MMLU questions, scores of mixtral-8x7b and gpt-4) from the data folder. For
each of some scorers, each fitted on labels of its own, the other rows ARE the population: calibration sets are drawn
from it with replacement, so the true loss of every gap is known and a violation (the certified gap truly loses more
than epsilon) is judged without noise. ``violation_rate_limit`` is delta and two standard errors, clustered by scorer.

- ``share_reference`` is what the certified rule sends to gpt-4, ``oracle_share_reference`` what the same scorer would
  send if its true losses were known.
- ``labels_needed`` compares the forecast of ``llmtier.fit.certify`` with the number of calibration labels at which
  half of the refits certify 5 % of the traffic.

Other bounds walk the same path on the same draws beside llmtier's.

Example: python benchmarks/guarantee.py --json benchmarks/results/guarantee.json
"""

import argparse
import importlib.metadata
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from support.guarantee_peers import PEERS
from support.guarantee_population import DATA_FILE, REFERENCE_COLUMN, Population, draw_population, take
from support.machine import describe_machine, publish
from support.mmlu import read_rows

from llmtier.fit.certify import Certified, Promise, certify, count_passed
from llmtier.fit.shortfall import WORTH_HAVING
from llmtier.stats.betting import Belief, p_values

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DELTA = 0.05
EPSILONS = (0.005, 0.01, 0.02)
EXIT_NO_DATA = 4
FORECAST_FACTOR = 1.5
BATCH = 20
"""Draws that are bet on side by side."""

LLMTIER = "llmtier"
GRID = tuple(round(60 * 1.25**step) for step in range(18))
"""Numbers of labels, 60 to 2,665, between which the one that certifies half of the refits is interpolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is drawn."""

    n_scorers: int
    n_draws: int
    n_fit: int
    n_calibration: tuple[int, ...]
    n_grid_draws: int


FULL = Plan(n_scorers=20, n_draws=60, n_fit=1500, n_calibration=(500, 1500, 5000), n_grid_draws=20)
QUICK = Plan(n_scorers=3, n_draws=20, n_fit=1500, n_calibration=(500, 1500), n_grid_draws=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """One draw of a calibration split and what a bound certified on it."""

    scorer: int
    is_violated: bool
    share: float


def draw_batches(population: Population, n: int, n_draws: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Yield places in the population, shape (n, up to BATCH)."""
    rng = np.random.default_rng((seed, n))
    for start in range(0, n_draws, BATCH):
        yield rng.integers(0, len(population.rest), (n, min(BATCH, n_draws - start))).astype(np.intp)


def bet(population: Population, places: NDArray[np.intp], epsilon: float, n_gaps: int) -> NDArray[np.float64]:
    """Return llmtier's p-values of the first gaps for every draw, shape (n_draws, n_gaps)."""
    n, n_draws = places.shape
    belief = population.belief
    wide = Belief(variance=np.tile(belief.variance[:n_gaps], n_draws), n_units=belief.n_units)
    losses = population.walk.losses[:, :n_gaps][places].reshape(n, -1)
    p = p_values(losses, np.ones(n), limit=epsilon, confidence=1 - DELTA, belief=wide, bound=1.0)
    return p.reshape(n_draws, n_gaps)


def judge(population: Population, p: NDArray[np.float64], epsilon: float, scorer: int) -> Refit:
    """Return where the walk ended and whether that truly breaks the limit."""
    n_passed = count_passed(p, 1 - DELTA)
    if n_passed == 0:
        return Refit(scorer=scorer, is_violated=False, share=0.0)
    last = n_passed - 1
    return Refit(
        scorer=scorer,
        is_violated=bool(population.losses[last] > epsilon),
        share=float(population.walk.shares[last]),
    )


def find_oracle(population: Population, epsilon: float) -> float:
    """Return the largest share that truly keeps the limit."""
    keeps = population.losses <= epsilon
    return float(population.walk.shares[keeps].max(initial=0.0))


def check_wiring(population: Population, places: NDArray[np.intp], epsilon: float, expected: Refit) -> Certified:
    """Return what ``certify`` says of one draw; it must be what the batches say.

    Raises:
        RuntimeError: When it is not.
    """
    seed = 7
    rows = np.empty(len(places), dtype=np.intp)
    rows[np.random.default_rng(seed).permutation(len(places))] = places  # so that certify's shuffle restores the order
    found = certify(
        population.fit,
        take(population.rest, rows),
        Promise(epsilon=epsilon, confidence=1 - DELTA),
        reference_column=REFERENCE_COLUMN,
        seed=seed,
        bound=1.0,
    )
    share = 0.0 if found.gap is None else float(population.walk.shares[found.gaps.index(found.gap)])
    if share != expected.share:
        raise RuntimeError(f"certify moves {share}, the batch {expected.share}")
    return found


def run_cell(populations: Sequence[Population], epsilon: float, n: int, plan: Plan) -> dict[str, object]:
    """Certify on every draw of ``n`` calibration labels with every bound; return the cell."""
    refits: dict[str, list[Refit]] = {name: [] for name in (LLMTIER, *PEERS)}
    for scorer, population in enumerate(populations):
        for number, places in enumerate(draw_batches(population, n, plan.n_draws, scorer)):
            found = bet(population, places, epsilon, len(population.gaps))
            refits[LLMTIER] += [judge(population, p, epsilon, scorer) for p in found]
            if number == 0:
                check_wiring(population, places[:, 0], epsilon, refits[LLMTIER][-len(found)])
            for draw in places.T:
                losses = population.walk.losses[draw]
                for name, peer in PEERS.items():
                    refits[name].append(judge(population, peer(losses, epsilon), epsilon, scorer))
    oracle = statistics.fmean(find_oracle(population, epsilon) for population in populations)
    own = summarise(refits[LLMTIER])
    cell = {
        "epsilon": epsilon,
        "delta": DELTA,
        "n_calibration": n,
        **own,
        "oracle_share_reference": round(1 - oracle, 4),
        "peers": {name: summarise(refits[name]) for name in PEERS},
    }
    print(f"epsilon {epsilon:g} n {n}: {own}, oracle {1 - oracle:.3f}", file=sys.stderr, flush=True)
    return cell


def summarise(refits: Sequence[Refit]) -> dict[str, float | int | bool]:
    """Return violations with their limit, and shares."""
    by_scorer: dict[int, list[bool]] = {}
    for refit in refits:
        by_scorer.setdefault(refit.scorer, []).append(refit.is_violated)
    rates = [statistics.fmean(flags) for flags in by_scorer.values()]
    limit = DELTA + 2 * statistics.stdev(rates) / math.sqrt(len(rates))
    rate = statistics.fmean(rates)
    return {
        "refits": len(refits),
        "violations": sum(refit.is_violated for refit in refits),
        "violation_rate": round(rate, 5),
        "violation_rate_limit": round(limit, 5),
        "holds": rate <= limit,
        "share_reference": round(1 - statistics.fmean(refit.share for refit in refits), 4),
        "share_of_refits_certifying_5_percent": round(
            statistics.fmean(refit.share >= WORTH_HAVING for refit in refits), 4
        ),
    }


def forecast(populations: Sequence[Population], epsilon: float, plan: Plan) -> dict[str, object]:
    """Return the labels that were forecast by each scorer's fit split and those that it took."""
    forecasts = [
        check_wiring(population, places[:, 0], epsilon, judge(population, p[0], epsilon, 0)).labels_needed
        for scorer, population in enumerate(populations)
        for places in [next(draw_batches(population, GRID[0], 1, scorer))]
        for p in [bet(population, places, epsilon, len(population.gaps))]
    ]
    measured = measure_half(populations, epsilon, plan)
    median = statistics.median(math.inf if value is None else value for value in forecasts)
    return {
        "epsilon": epsilon,
        "delta": DELTA,
        "predicted": None if math.isinf(median) else median,
        "measured": measured,
        "ratio": None if measured is None or math.isinf(median) else round(median / measured, 3),
        "is_within_factor": measured is not None and 1 / FORECAST_FACTOR <= median / measured <= FORECAST_FACTOR,
        "predicted_by_scorer": forecasts,
        "share_of_scorers_within_factor": None if measured is None else statistics.fmean(
            value is not None and 1 / FORECAST_FACTOR <= value / measured <= FORECAST_FACTOR for value in forecasts
        ),
    }  # fmt: skip


def measure_half(populations: Sequence[Population], epsilon: float, plan: Plan) -> float | None:
    """Return the number of labels that certifies 5 % of the traffic in half of the refits of all scorers."""
    previous = (0.0, 0.0)
    for n in GRID:
        shares = [
            judge(population, p, epsilon, 0).share
            for scorer, population in enumerate(populations)
            for places in draw_batches(population, n, plan.n_grid_draws, scorer)
            for p in bet(population, places, epsilon, 1 + int(np.argmax(population.walk.shares >= WORTH_HAVING)))
        ]
        rate = statistics.fmean(share >= WORTH_HAVING for share in shares)
        if rate >= 0.5:
            n_before, rate_before = previous
            return round(n_before + (n - n_before) * (0.5 - rate_before) / (rate - rate_before), 1)
        previous = (float(n), rate)
    return None


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description="Violations and shares of the certified gap on a known population.")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds the data")
    parser.add_argument("--quick", action="store_true", help="few scorers and draws, no 5,000 labels")
    arguments = parser.parse_args()
    path = arguments.data / DATA_FILE
    if not path.is_file():
        print(f"{path}: not here; give the folder that holds {DATA_FILE} with --data", file=sys.stderr)
        return EXIT_NO_DATA
    plan = QUICK if arguments.quick else FULL
    begun_s = time.perf_counter()
    rows = read_rows(path)
    populations = [draw_population(rows, n_labels=plan.n_fit, seed=seed) for seed in range(plan.n_scorers)]
    cells = [run_cell(populations, epsilon, n, plan) for epsilon in EPSILONS for n in plan.n_calibration]
    document = {
        "benchmark": "guarantee",
        "machine": describe_machine({name: importlib.metadata.version(name) for name in ("numpy", "scipy")}),
        "data": DATA_FILE,
        "n_fit_labels": plan.n_fit,
        "n_scorers": plan.n_scorers,
        "n_population": len(rows) - plan.n_fit,
        "cells": cells,
        "labels_needed": [forecast(populations, epsilon, plan) for epsilon in EPSILONS],
        "seconds": round(time.perf_counter() - begun_s, 1),
    }
    publish(document, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
