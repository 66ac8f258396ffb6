"""How well do the scorers rank prompts by what the dear model gains, from 200 to 11,000 labels, and how fast?

Reads ``routellm_mmlu.parquet`` (14,037 MMLU questions, scores of mixtral-8x7b and gpt-4) from the data folder. For
each number of labels and each of 20 seeds every scorer is fitted on the same random labels, and ranks all other prompts
by P(correct | dear) - P(correct | cheap). Beside llmtier's own scorers and controls stands ``plain linear``: one logistic
regression a model on tf-idf of words and word pairs, eleven counts and a one-hot of the domain, made here.

APGR is the mean, over every cut of that ranking, of the share of the accuracy gap that is recovered: 0.5 is chance. CPT is
the smallest share of prompts sent to the dear model that recovers 50 % or 80 % of the gap. ``minus_best_control`` is
paired by split; the best control is the one with the highest mean there. ``ece`` is that of P(correct), 15 bins of equal
width, the mean over models and splits. ``decision_ms`` is scoring and routing of one 2 KB prompt by the wall clock, warm,
one thread, as the gateway does it for a prompt that its score cache does not know, with a latency model and a load on both
tiers. ``decision_ms_by_size`` has other sizes, prompts that name no domain, and beside ``p50`` and ``p99`` the ``least``
(the median prompt at its quickest, which other processes disturb least) and ``scoring``, the p50 of that part alone.

Example: python benchmarks/routing.py --json benchmarks/results/routing.json
"""

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: two processes share two cores

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from support.decision import LIMITS, make_policy, make_states
from support.machine import describe_machine, publish
from support.mmlu import read_rows
from support.plain_linear import PlainLinear

from llmtier.core.policy import Policy
from llmtier.core.prompt import LabelledPrompt, Message, Prompt
from llmtier.engine.embedder import Embedder, load_embedder
from llmtier.score.cache import ScoreCache
from llmtier.score.scorer import Scorer, fit_scorer, load_scorer, score_matrix
from llmtier.score.signals import NO_SIGNALS, Signals
from llmtier.score.text import scored_text
from llmtier.serve.choose import Question, TierState, choose
from llmtier.serve.ledger import PromptSize
from llmtier.serve.needs import Needs

DATA_FILE = "routellm_mmlu.parquet"
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CHEAP, DEAR = "mixtral-8x7b", "gpt-4"
TIERS = (CHEAP, DEAR)
SCORERS = ("learned", "entropy")
CONTROLS = ("random", "length", "domain_mean")
PLAIN = "plain linear"
NO_DOMAIN = "learned, no domains"
LABELS = (200, 500, 1500, 5000, 11000)
ECE_LABELS = 1500
SIZES_BYTES = (600, 2048, 40_000)
ROUNDS = 15  # over 200 prompts
EXIT_NO_DATA = 4
PUBLISHED = {"RouteLLM, best router": {"apgr": 0.603, "cpt50": 0.354, "cpt80": 0.703}}
"""Read off lm-sys/RouteLLM's own evaluation of the same questions; not measured here."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    n_splits: int = 20
    labels: tuple[int, ...] = LABELS
    n_processes: int = 2


QUICK = Plan(n_splits=2, labels=(200, 1500))

_rows: list[LabelledPrompt] = []  # of each process, read once


def load_rows(path: Path) -> None:
    """Read the rows of this process."""
    _rows.extend(read_rows(path))


def rank(gains: Vector, scores: Vector) -> dict[str, float]:
    """Judge a ranking by descending predicted gain; ``scores`` has columns (cheap, dear)."""
    steps = (scores[:, 1] - scores[:, 0])[np.argsort(-gains, kind="stable")]
    recovered = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    return {
        "apgr": float(recovered.mean()),
        "cpt50": float(np.argmax(recovered >= 0.5) / steps.size),
        "cpt80": float(np.argmax(recovered >= 0.8) / steps.size),
    }


def calibration_error(predicted: Vector, scores: Vector, n_bins: int = 15) -> float:
    """Return the expected calibration error over bins of equal width."""
    bins = np.minimum((predicted * n_bins).astype(np.intp), n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    gaps = np.bincount(bins, weights=predicted - scores, minlength=n_bins)
    return float(np.abs(gaps).sum() / counts.sum())


def measure_cell(job: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Fit every scorer on one draw of labels and rank the rest; return figures by scorer."""
    n_labels, seed = job
    order = np.random.default_rng(seed).permutation(len(_rows)).tolist()
    labels, test = [_rows[row] for row in order[:n_labels]], [_rows[row] for row in order[n_labels:]]
    scores = score_matrix(test, TIERS)
    cell = {"oracle": rank(scores[:, 1] - scores[:, 0], scores)}
    fitters = dict.fromkeys((*SCORERS, *CONTROLS), fit_scorer)
    for kind, fit in fitters.items():
        started_s = time.process_time()
        scorer = fit(kind, labels, TIERS, seed=seed)
        fit_cpu_s = time.process_time() - started_s
        cell[kind] = {**judge(predict(scorer, test), scores), "fit_cpu_s": fit_cpu_s}
    without = predict(fit_scorer("learned", [anonymous(row) for row in labels], TIERS, seed=seed), test)
    cell[NO_DOMAIN] = judge(without, scores)
    cell[PLAIN] = judge(PlainLinear.fit(labels, TIERS).predict(test), scores)
    return cell


def judge(predicted: Vector, scores: Vector) -> dict[str, float]:
    """Return the ranking's figures and the calibration error of P(correct), shape (n, 2) both."""
    errors = [calibration_error(predicted[:, tier], scores[:, tier]) for tier in range(len(TIERS))]
    return {**rank(predicted[:, 1] - predicted[:, 0], scores), "ece": float(np.mean(errors))}


def predict(scorer: Scorer, rows: Sequence[LabelledPrompt]) -> Vector:
    """Return P(correct) of each row on each model, shape (n, 2)."""
    predicted = [scorer.probabilities(row.prompt) for row in rows]
    return np.array([[row[tier] for tier in TIERS] for row in predicted])


def anonymous(row: LabelledPrompt) -> LabelledPrompt:
    """Return the row without its domain."""
    return replace(row, prompt=replace(row.prompt, domain=None))


def summarise(cells: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Return means over splits, by scorer, and the paired difference to the best control."""
    table = {kind: {name: column(cells, kind, name) for name in cells[0][kind]} for kind in cells[0]}
    best = max(CONTROLS, key=lambda kind: float(table[kind]["apgr"].mean()))
    found: dict[str, Any] = {"best_control": best}
    for kind, columns in table.items():
        figures: dict[str, Any] = {name: round(float(values.mean()), 4) for name, values in columns.items()}
        figures["apgr_sd"] = round(float(columns["apgr"].std(ddof=1)), 4)
        figures["minus_best_control"] = paired(columns["apgr"] - table[best]["apgr"])
        figures["minus_plain_linear"] = paired(columns["apgr"] - table[PLAIN]["apgr"])
        found[kind] = figures
    return found


def column(cells: Sequence[Mapping[str, Mapping[str, float]]], kind: str, name: str) -> Vector:
    """Return one figure of one scorer over the splits."""
    return np.array([cell[kind][name] for cell in cells])


def paired(differences: Vector) -> dict[str, object]:
    """Return the mean difference over splits and its 95 % interval (Student's t)."""
    n, mean = differences.size, float(differences.mean())
    half = float(stdtrit(n - 1, 0.975) * differences.std(ddof=1) / n**0.5)
    return {"mean": round(mean, 4), "ci95": [round(mean - half, 4), round(mean + half, 4)], "n": n}


def time_decisions(rows: Sequence[LabelledPrompt]) -> dict[str, dict[str, dict[str, float]]]:
    """Return figures of ``time_size`` by scorer and size of the prompt."""
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    texts = [rows[row].prompt.last_user_text for row in order[:400]]
    timed: dict[str, dict[str, dict[str, float]]] = {}
    for kind in SCORERS:
        scorer = fit_scorer(kind, [rows[row] for row in order[:ECE_LABELS]], TIERS, seed=0)
        served = load_scorer(kind, scorer.to_bytes())
        timed[kind] = {str(size): time_size(served, texts, size) for size in SIZES_BYTES}
        if kind == "learned":
            timed[NO_DOMAIN] = {str(size): time_size(served, texts, size, domain=None) for size in SIZES_BYTES}
    return timed


def time_semantic(rows: Sequence[LabelledPrompt], folder: Path) -> dict[str, dict[str, float]]:
    """Return the same of ``semantic``, embedding included, by size of the prompt."""
    embedder = load_embedder(folder)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    texts = [rows[row].prompt.last_user_text for row in order[:400]]
    labels = [rows[row] for row in order[:400]]
    signals = [Signals(embedding=embedder.embed(scored_text(row.prompt))) for row in labels]
    scorer = fit_scorer("semantic", labels, TIERS, seed=0, signals=signals)
    return {str(size): time_size(scorer, texts, size, embedder=embedder, n_rounds=3) for size in SIZES_BYTES}


def time_size(
    scorer: Scorer,
    texts: Sequence[str],
    size: int,
    *,
    embedder: Embedder | None = None,
    domain: str | None = "anatomy",
    n_rounds: int = ROUNDS,
) -> dict[str, float]:
    """Time prompts of one size; return milliseconds."""
    prompts = draw_prompts(texts, size, domain)
    states, policy = make_states(*TIERS), make_policy(*TIERS)
    scores = ScoreCache(scorer, capacity=0)  # takes a digest of every prompt, as in the gateway, and finds none
    spent_s = np.array(
        [[time_one(prompt, scores, embedder, states, policy) for prompt in prompts] for _ in range(n_rounds + 1)]
    )[1:]
    whole_s, scoring_s = spent_s[..., 0], spent_s[..., 1]
    p50_s, p99_s = np.quantile(whole_s, [0.5, 0.99]).tolist()
    figures_s = {
        "p50": p50_s,
        "p99": p99_s,
        "least": float(np.median(whole_s.min(axis=0))),
        "scoring": float(np.median(scoring_s)),
    }
    return {name: round(1000 * value_s, 4) for name, value_s in figures_s.items()}


def draw_prompts(texts: Sequence[str], size: int, domain: str | None, n: int = 200) -> list[Prompt]:
    """Return prompts of ``size`` characters, each of questions put together."""
    draw = np.random.default_rng(size)
    n_joined = size // 100 + 2
    joined = [" ".join(texts[index] for index in draw.integers(0, len(texts), n_joined).tolist()) for _ in range(n)]
    return [Prompt(id="timed", messages=(Message(role="user", content=text[:size]),), domain=domain) for text in joined]


def time_one(
    prompt: Prompt, scores: ScoreCache, embedder: Embedder | None, states: Mapping[str, TierState], policy: Policy
) -> tuple[float, float]:
    """Return the seconds that scoring and routing take, and those of scoring alone."""
    started_s = time.perf_counter()
    probabilities = scores.probabilities(prompt, give_signals(prompt, embedder))
    scored_s = time.perf_counter()
    question = Question(
        model="auto",
        needs=Needs(requirement=LIMITS, domain=prompt.domain),
        probabilities=probabilities,
        max_tokens=100,
        size=PromptSize(n_characters=len(prompt.last_user_text)),
    )
    choose(question, states, policy=policy, default_tier=None)
    return time.perf_counter() - started_s, scored_s - started_s


def describe_timing(
    timed: Mapping[str, Mapping[str, Mapping[str, float]]], kept: Mapping[str, Any] | None = None
) -> dict[str, object]:
    """Return the document's part on time, with the machine's load average when it was measured.

    Args:
        timed: Figures by scorer and size.
        kept: An earlier document, whose figures stand for the scorers that were not timed.
    """
    by_size = {**(kept or {}).get("decision_ms_by_size", {}), **timed}
    return {
        "decision_ms": {
            kind: {name: figures["2048"][name] for name in ("p50", "p99")} for kind, figures in by_size.items()
        },
        "decision_ms_by_size": by_size,
        "load_average_while_timed": round(os.getloadavg()[0], 2),
    }


def give_signals(prompt: Prompt, embedder: Embedder | None) -> Signals:
    """Return the prompt's embedding where there is an embedder."""
    return NO_SIGNALS if embedder is None else Signals(embedding=embedder.embed(scored_text(prompt)))


def parse_arguments() -> argparse.Namespace:
    """Return what was asked."""
    parser = argparse.ArgumentParser(description="APGR, calibration and speed of every scorer on public outcomes.")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds the data")
    parser.add_argument("--quick", action="store_true", help="few labels and splits")
    parser.add_argument(
        "--embedder", type=Path, help="also time semantic, with what 'llmtier embedder export' wrote here"
    )
    parser.add_argument("--retime", type=Path, help="time decisions anew, and take the rankings from this document")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; return the exit status."""
    arguments = parse_arguments()
    path = arguments.data / DATA_FILE
    if not path.is_file():
        print(f"{path}: not here; give the folder that holds {DATA_FILE} with --data", file=sys.stderr)
        return EXIT_NO_DATA
    plan = QUICK if arguments.quick else Plan()
    begun_s = time.perf_counter()
    rows = read_rows(path)
    timed = time_decisions(rows)
    if arguments.embedder is not None:
        timed["semantic"] = time_semantic(rows, arguments.embedder)
    if arguments.retime is not None:
        kept = json.loads(arguments.retime.read_text(encoding="utf-8"))
        del kept["schema_version"], kept["command"]
        publish({**kept, **describe_timing(timed, kept)}, arguments.json)
        return 0
    jobs = [(n, seed) for n in reversed(plan.labels) for seed in range(plan.n_splits)]
    with get_context("spawn").Pool(plan.n_processes, initializer=load_rows, initargs=(path,)) as pool:
        cells = dict(zip(jobs, pool.map(measure_cell, jobs, chunksize=1), strict=True))
    by_labels = {n: [cells[n, seed] for seed in range(plan.n_splits)] for n in plan.labels}
    document = {
        "benchmark": "routing",
        "machine": describe_machine({name: importlib.metadata.version(name) for name in ("numpy", "scipy")}),
        "data": DATA_FILE,
        "n_rows": len(rows),
        "n_splits": plan.n_splits,
        "labels": {str(n): summarise(drawn) for n, drawn in by_labels.items()},
        "ece": {str(ECE_LABELS): {kind: summarise(by_labels[ECE_LABELS])[kind]["ece"] for kind in (*SCORERS, PLAIN)}},
        **describe_timing(timed),
        "published": PUBLISHED,
        "wall_s": round(time.perf_counter() - begun_s, 1),
    }
    publish(document, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
