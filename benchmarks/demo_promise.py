"""Does the demo's promise, a loss of at most .01 with 95 % confidence, hold on the demo's own traffic?

Reads outcomes of ``llmtier replay``: the demo's labelled traffic, its held-out questions and more questions of the same
generator, which ``--write-questions`` draws. Their union is a population whose true losses are known. Fits of the
demo's size are repeated on random parts of it; a fit is a violation where the certified rule truly loses more.

- ``refit``: ``fit_policy`` itself, on rows drawn without replacement. On ``whole`` the labels are part of what they are
  judged on, which flatters; on ``rest`` what is left over is itself a sample, whose noise counts as a violation, too.
- ``independent``: both halves drawn with replacement, as the theorem has it: the whole IS the truth. A row that comes
  twice is two draws, so ``certify`` is called as ``fit_policy`` calls it, but for the units.

Every fit splits by a seed of its own: one seed would always test with the same half of the texts.

Example: python benchmarks/demo_promise.py --heldout heldout.parquet --fresh fresh.parquet
"""

import argparse
import importlib.metadata
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from support.machine import describe_machine, publish

from llmtier.core.policy import Goal, GoalKind, Policy
from llmtier.core.prompt import LabelledPrompt
from llmtier.engine.hardware import detect_hardware
from llmtier.fit.certify import Promise, certify
from llmtier.fit.path import Evidence
from llmtier.fit.prices import Prices, price_profiles
from llmtier.fit.run import fit_policy
from llmtier.fit.search import choose_columns
from llmtier.fit.settings import FitSettings
from llmtier.score.scorer import FittedScorer, Scorer, fit_out_of_fold, score_matrix
from llmtier.score.signals import NO_SIGNALS
from llmtier.stats.intervals import paired_interval
from llmtier.store.outcomes import load_outcomes
from llmtier.store.profiles import read_profiles

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "demo"
BUILD = Path("build") / "demo"
TIERS = ("nano@bf16", "mini@bf16")  # by cost; the other two never enter the demo's policy: they share a device
REFERENCE = TIERS[1]
PROMISE = Promise(epsilon=0.01, confidence=0.95)
N_LABELS = 2400
FRESH_SEED = 2
N_CHANCES = 400_000
"""Simulated samples behind a probability: a standard error of .0003 at .05."""

Losses = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What one fit certified and what that truly loses.

    Attributes:
        certified: Mean loss on the labels that certify; 0 where nothing left the reference.
        whole: Mean loss on the population; ``rest`` without the labels, ``None`` where draws are replaced.
        share: Of the population that leaves the reference.
    """

    certified: float
    whole: float
    rest: float | None
    share: float


class Population:
    """Labelled rows, and what a scorer says of all of them."""

    def __init__(self, rows: Sequence[LabelledPrompt]) -> None:
        self.rows = list(rows)
        self.scores = score_matrix(self.rows, TIERS)
        self._features: list[object] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def take(self, places: NDArray[np.intp]) -> list[LabelledPrompt]:
        """Return the rows at ``places``."""
        return [self.rows[place] for place in places.tolist()]

    def predict(self, scorer: Scorer) -> NDArray[np.float64]:
        """Return P(correct) of every row, shape (n, n_tiers); what the texts say is extracted once for all scorers."""
        if not isinstance(scorer, FittedScorer):
            raise TypeError(f"expected a fitted scorer, got {type(scorer).__name__}")
        if self._features is None:
            self._features = [scorer.recipe.extract(row.prompt, NO_SIGNALS) for row in self.rows]
        found = np.array(
            [
                [platt.apply_one(x) for platt, x in zip(scorer.calibration, scorer.model.logits(one), strict=True)]
                for one in self._features
            ]
        )
        expected = scorer.probabilities(self.rows[0].prompt)
        columns = [scorer.tiers.index(tier) for tier in TIERS]
        if [found[0, column] for column in columns] != [expected[tier] for tier in TIERS]:
            raise RuntimeError("the short way to predict differs from the scorer's own")
        return found[:, columns]

    def lose(self, scorer: Scorer, gap: float | None) -> tuple[Losses, float]:
        """Return the loss of every row at a gap, and the share that leaves the reference."""
        if gap is None:
            return np.zeros(len(self)), 0.0
        columns = choose_columns(self.predict(scorer), TIERS.index(REFERENCE), gap)
        losses = self.scores[:, -1] - self.scores[np.arange(len(self)), columns]
        return losses, float((columns == 0).mean())


def certified_gap(policy: Policy) -> float | None:
    """Return the gap of a policy; ``None`` where all goes to the reference."""
    return policy.max_accuracy_gap if len(policy.tiers) > 1 else None


def make_settings(seed: int) -> FitSettings:
    """Return what ``llmtier demo`` asks ``fit-thresholds`` for."""
    goal = Goal(kind=GoalKind.MAX_ACCURACY_LOSS, value=PROMISE.epsilon)
    return FitSettings(goal=goal, seed=seed, reference=REFERENCE, confidence=PROMISE.confidence)


def refit(population: Population, prices: Prices, seed: int) -> Fit:
    """Fit on a part of the population as the demo does."""
    order = np.random.default_rng((seed, 1)).permutation(len(population))
    fitted = fit_policy(population.take(order[:N_LABELS]), prices, make_settings(seed))
    losses, share = population.lose(fitted.scorer, certified_gap(fitted.policy))
    judgement = fitted.policy.judgement
    return Fit(
        certified=0.0 if judgement is None else judgement.loss,
        whole=float(losses.mean()),
        rest=float(losses[order[N_LABELS:]].mean()),
        share=share,
    )


def fit_independent(population: Population, prices: Prices, seed: int) -> Fit:
    """Fit on independent draws, each a unit of its own."""
    del prices  # two tiers, one path: nothing is chosen by cost
    places = np.random.default_rng((seed, 2)).integers(0, len(population), N_LABELS).astype(np.intp)
    for_fit, for_test = places[: N_LABELS // 2], places[N_LABELS // 2 :]
    scorer, out_of_fold = fit_out_of_fold("learned", population.take(for_fit), TIERS, seed=seed)
    found = certify(
        make_evidence(population.scores[for_fit], out_of_fold),
        make_evidence(population.scores[for_test], population.predict(scorer)[for_test]),
        PROMISE,
        reference_column=TIERS.index(REFERENCE),
        seed=seed,
        bound=1.0,
        has_forecast=False,
    )
    losses, share = population.lose(scorer, found.gap)
    return Fit(certified=float(losses[for_test].mean()), whole=float(losses.mean()), rest=None, share=share)


def make_evidence(scores: NDArray[np.float64], probabilities: NDArray[np.float64]) -> Evidence:
    """Return rows that are each a unit of their own."""
    n = len(scores)
    return Evidence(probabilities=probabilities, scores=scores, weights=np.ones(n), groups=np.arange(n, dtype=np.intp))


WAYS: dict[str, Callable[[Population, Prices, int], Fit]] = {"refit": refit, "independent": fit_independent}


def run_cell(name: str, way: str, population: Population, prices: Prices, n_fits: int) -> dict[str, object]:
    """Repeat one way of fitting on one population; return the cell."""
    fits = []
    for seed in range(n_fits):
        fits.append(WAYS[way](population, prices, seed))
        if seed % 50 == 49:
            n_broken = sum(fit.whole > PROMISE.epsilon for fit in fits)
            print(f"{name} {way}: {seed + 1} fits, {n_broken} violations", file=sys.stderr, flush=True)
    rests = [fit.rest for fit in fits if fit.rest is not None]
    return {
        "population": name,
        "way": way,
        "n_population": len(population),
        "n_labels": N_LABELS,
        "whole": count_violations([fit.whole for fit in fits]),
        "rest": count_violations(rests) if rests else None,
        "certified_loss_mean": round(statistics.fmean(fit.certified for fit in fits), 5),
        "share_reference": round(1 - statistics.fmean(fit.share for fit in fits), 4),
        "fits_that_moved_nothing": sum(fit.share == 0 for fit in fits),
    }


def count_violations(losses: Sequence[float]) -> dict[str, object]:
    """Return how often the limit is broken, with Clopper and Pearson's interval and what may be seen at delta."""
    from scipy.stats import binomtest

    n, n_broken = len(losses), sum(loss > PROMISE.epsilon + 1e-12 for loss in losses)
    interval = binomtest(n_broken, n).proportion_ci(method="exact")
    delta = 1 - PROMISE.confidence
    limit = delta + 2 * math.sqrt(delta * (1 - delta) / n)
    return {
        "fits": n,
        "violations": n_broken,
        "violation_rate": round(n_broken / n, 4),
        "violation_rate_ci95": [round(interval.low, 4), round(interval.high, 4)],
        "violation_rate_limit": round(limit, 4),
        "holds": n_broken / n <= limit,
        "loss_mean": round(statistics.fmean(losses), 5),
        "loss_quantiles_05_50_95": [round(float(q), 5) for q in np.quantile(losses, (0.05, 0.5, 0.95))],
    }


def describe_demo(parts: dict[str, Population], prices: Prices) -> dict[str, object]:
    """Refit the demo's own policy; return what it loses on each part, and how lucky its samples were."""
    fitted = fit_policy(parts["labelled"].rows, prices, make_settings(0))
    judgement = fitted.policy.judgement
    if judgement is None:
        raise RuntimeError("the demo's fit judged nothing")
    lost = {name: part.lose(fitted.scorer, certified_gap(fitted.policy))[0] for name, part in parts.items()}
    truth = lost.get("fresh", np.concatenate(list(lost.values())))
    n, held_out = len(lost["heldout"]), float(lost["heldout"].mean())
    return {
        "gap": fitted.policy.max_accuracy_gap,
        "certified_loss": round(judgement.loss, 5),
        "n_certified": judgement.n_judge,
        "losses": {name: describe_losses(losses) for name, losses in lost.items()},
        "truth_taken_from": "fresh" if "fresh" in lost else "labelled and held-out",
        "chance_of_held_out_loss_or_more": simulate(truth, n, lambda mean: mean >= held_out - 1e-9),
        "chance_of_certified_loss_or_less": simulate(
            truth, judgement.n_judge, lambda mean: mean <= judgement.loss + 1e-9
        ),
        "chance_of_held_out_loss_or_more_at_limit": simulate_limit(n, held_out),
    }


def describe_losses(losses: Losses) -> dict[str, object]:
    """Return a mean loss with its interval."""
    interval = paired_interval(losses)
    return {
        "n": len(losses),
        "lost": int((losses > 0).sum()),
        "won": int((losses < 0).sum()),
        "mean": round(float(losses.mean()), 5),
        "ci95": [round(interval.low, 5), round(interval.high, 5)],
    }


def simulate(losses: Losses, n: int, is_hit: Callable[[Losses], NDArray[np.bool_]]) -> float:
    """Return how often the mean of ``n`` independent draws is a hit."""
    values, counts = np.unique(losses, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(n, counts / counts.sum(), N_CHANCES)
    return round(float(is_hit(drawn @ values / n).mean()), 5)


def simulate_limit(n: int, mean: float) -> float:
    """Return the chance of ``mean`` or more on ``n`` questions where exactly the limit is lost."""
    from scipy.stats import binom

    return round(float(binom.sf(round(mean * n) - 1, n, PROMISE.epsilon)), 5)


def name_kind(row: LabelledPrompt, intents: frozenset[str]) -> str:
    """Return which of the demo's five kinds a question is, told by its answer."""
    answer = row.prompt.answer or ""
    if row.prompt.scorer in {"json", "number"}:
        return {"json": "json", "number": "total"}[row.prompt.scorer]
    if answer.startswith("ORD-"):
        return "order_id"
    return "intent" if answer in intents else "sort"


def compare_parts(parts: dict[str, Population]) -> dict[str, object]:
    """Return the kinds and nano's errors in each part, and whether they differ more than chance has it."""
    from scipy.stats import chi2_contingency

    sys.path.insert(0, str(EXAMPLES))
    from wordlists import INTENTS

    intents = frozenset(INTENTS)
    kinds = {name: [name_kind(row, intents) for row in part.rows] for name, part in parts.items()}
    names = sorted(set(kinds["labelled"]))
    counts = {name: Counter(of_part) for name, of_part in kinds.items()}
    wrong = {
        name: Counter(kind for kind, score in zip(kinds[name], part.scores[:, 0], strict=True) if score < 1)
        for name, part in parts.items()
    }
    others = [name for name in parts if name != "labelled"]
    pairs = {other: [[counts[part][kind] for kind in names] for part in ("labelled", other)] for other in others}
    sorts = {
        other: [[wrong[part]["sort"], counts[part]["sort"] - wrong[part]["sort"]] for part in ("labelled", other)]
        for other in others
    }
    return {
        "share_of_kind": {
            part: {kind: round(counts[part][kind] / len(kinds[part]), 4) for kind in names} for part in parts
        },
        "nano_right": {
            part: {kind: round(1 - wrong[part][kind] / counts[part][kind], 4) for kind in names} for part in parts
        },
        "p_same_kinds_as_labelled": {other: round(float(chi2_contingency(t).pvalue), 4) for other, t in pairs.items()},
        "p_same_sort_errors_as_labelled": {
            other: round(float(chi2_contingency(t).pvalue), 4) for other, t in sorts.items()
        },
    }


def write_questions(path: Path, n: int) -> None:
    """Write fresh questions of the labelled traffic's generator, none of which the demo's data holds."""
    sys.path.insert(0, str(EXAMPLES))
    import tasks

    files = sorted((EXAMPLES / "data").glob("*.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    known = {json.loads(line)["messages"][0]["content"] for line in lines}
    drawn = [task for task in tasks.draw("traffic", n + len(known), FRESH_SEED) if task.prompt not in known][:n]
    rows = [json.dumps(tasks.as_row(task, f"fresh-{index:05d}")) for index, task in enumerate(drawn)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def read_parts(arguments: argparse.Namespace) -> dict[str, Population]:
    """Read the outcomes that were named."""
    paths = {"labelled": arguments.labelled, "heldout": arguments.heldout, "fresh": arguments.fresh}
    return {name: Population(load_outcomes([path]).rows) for name, path in paths.items() if path is not None}


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description="Violations of the demo's promise over refits on its own traffic.")
    parser.add_argument("--labelled", type=Path, default=BUILD / "outcomes.parquet", help="outcomes of traffic.jsonl")
    parser.add_argument("--heldout", type=Path, default=BUILD / "heldout.parquet", help="outcomes of heldout.jsonl")
    parser.add_argument("--fresh", type=Path, help="outcomes of the questions that --write-questions wrote")
    parser.add_argument("--profiles", type=Path, default=BUILD / "profiles", help="of the demo's tiers")
    parser.add_argument("--fits", type=int, default=200, help="fits of each way on each population")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--write-questions", type=Path, help="write 12,000 fresh questions here and end")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; return the exit status."""
    arguments = parse_arguments()
    if arguments.write_questions is not None:
        write_questions(arguments.write_questions, 12_000)
        return 0
    begun_s = time.perf_counter()
    parts = read_parts(arguments)
    prices = price_profiles(TIERS, read_profiles(arguments.profiles, detect_hardware().slug))
    populations = {"labelled and held-out": Population(parts["labelled"].rows + parts["heldout"].rows)}
    if "fresh" in parts:
        populations["and fresh"] = Population([row for part in parts.values() for row in part.rows])
    document = {
        "benchmark": "demo_promise",
        "machine": describe_machine({name: importlib.metadata.version(name) for name in ("numpy", "scipy")}),
        "epsilon": PROMISE.epsilon,
        "delta": round(1 - PROMISE.confidence, 4),
        "data": compare_parts(parts),
        "demo": describe_demo(parts, prices),
        "cells": [
            run_cell(name, way, population, prices, arguments.fits)
            for name, population in populations.items()
            for way in WAYS
        ],
        "seconds": round(time.perf_counter() - begun_s, 1),
    }
    publish(document, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
