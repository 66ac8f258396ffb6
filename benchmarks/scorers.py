"""How well do the scorers rank prompts by what the dear model gains? APGR on public outcomes.

Reads ``routellm_mmlu.parquet`` (14,037 MMLU questions, scores of mixtral-8x7b and gpt-4) from the data
folder, prints one JSON document and, with ``--json``, writes it to a file. For each number of labels and each seed
every scorer is fitted on the same random labels and ranks all other prompts by P(correct | dear) - P(correct | cheap).

APGR is the mean, over every cut of that ranking, of the share of the accuracy gap that is recovered: 0.5 is chance.
CPT is the smallest share of prompts sent to the dear model that recovers 50 % or 80 % of the gap.

Example: python benchmarks/scorers.py --json benchmarks/results/scorers.json
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmtier import __version__
from llmtier.core.prompt import LabelledPrompt, Message, Prompt
from llmtier.score.scorer import KINDS, Scorer, fit_scorer, score_matrix

DATA_FILE = "routellm_mmlu.parquet"
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CHEAP, DEAR = "mixtral-8x7b", "gpt-4"
SEEDS_BY_LABELS = {500: 6, 1500: 5, 5000: 3}
QUICK_SEEDS_BY_LABELS = {500: 2}
QUICK_TEST_ROWS = 2000
TIMED_PROMPTS = 1000
EXIT_NO_DATA = 4
PUBLISHED = {"RouteLLM, best router": {"apgr": 0.603, "cpt50": 0.354, "cpt80": 0.703}}
"""Read off lm-sys/RouteLLM's own evaluation of the same questions; not measured here."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """How one ranking of the test prompts did."""

    apgr: float
    cpt50: float
    cpt80: float


def read_rows(path: Path) -> list[LabelledPrompt]:
    """Return every question as a labelled prompt."""
    frame = pd.read_parquet(path)
    columns = zip(frame["prompt"], frame["domain"], frame["scores"], strict=True)
    return [
        LabelledPrompt(
            prompt=Prompt(id=str(number), messages=(Message(role="user", content=text),), domain=domain),
            scores=dict(scores),
        )
        for number, (text, domain, scores) in enumerate(columns)
    ]


def rank(gains: Vector, scores: Vector) -> Ranking:
    """Judge a ranking by descending predicted gain; ``scores`` has columns (cheap, dear)."""
    order = np.argsort(-gains, kind="stable")
    steps = (scores[:, 1] - scores[:, 0])[order]
    recovered = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    return Ranking(
        apgr=float(recovered.mean()),
        cpt50=float(np.argmax(recovered >= 0.5) / steps.size),
        cpt80=float(np.argmax(recovered >= 0.8) / steps.size),
    )


def predict_gains(scorer: Scorer, rows: Sequence[LabelledPrompt]) -> Vector:
    """Return P(correct | dear) - P(correct | cheap), shape (n,)."""
    predicted = [scorer.probabilities(row.prompt) for row in rows]
    return np.array([row[DEAR] - row[CHEAP] for row in predicted])


def measure_cell(
    rows: Sequence[LabelledPrompt], n_labels: int, seed: int, n_test: int | None
) -> dict[str, dict[str, float]]:
    """Fit every scorer on one draw of labels and rank the rest; return figures by scorer."""
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    labels, test = [rows[row] for row in order[:n_labels]], [rows[row] for row in order[n_labels:]][:n_test]
    scores = score_matrix(test, (CHEAP, DEAR))
    cell: dict[str, dict[str, float]] = {"oracle": vars(rank(scores[:, 1] - scores[:, 0], scores))}
    for kind in KINDS:
        started_s = time.process_time()
        scorer = fit_scorer(kind, labels, (CHEAP, DEAR), seed=seed)
        fit_cpu_s = time.process_time() - started_s
        cell[kind] = {**vars(rank(predict_gains(scorer, test), scores)), "fit_cpu_s": fit_cpu_s}
    return cell


def summarise(cells: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over seeds, by scorer, and the paired gain over ``domain_mean``."""
    table: dict[str, dict[str, float]] = {}
    for kind in cells[0]:
        values = {name: np.array([cell[kind][name] for cell in cells]) for name in cells[0][kind]}
        means = {name: round(float(column.mean()), 4) for name, column in values.items()}
        gains = np.array([cell[kind]["apgr"] - cell["domain_mean"]["apgr"] for cell in cells])
        table[kind] = {
            **means,
            "apgr_sd": round(float(values["apgr"].std(ddof=1)), 4),
            "apgr_gain_over_domain_mean": round(float(gains.mean()), 4),
            "apgr_gain_sd": round(float(gains.std(ddof=1)), 4),
        }
    return table


def time_scorers(rows: Sequence[LabelledPrompt], n_labels: int) -> dict[str, dict[str, float]]:
    """Return p50, p95 and p99 of the time of one prompt, in seconds of this thread's CPU, by scorer."""
    timings: dict[str, dict[str, float]] = {}
    rows = [rows[row] for row in np.random.default_rng(0).permutation(len(rows)).tolist()]
    for kind in KINDS:
        scorer = fit_scorer(kind, rows[:n_labels], (CHEAP, DEAR), seed=0)
        spent_s = []
        for row in rows[n_labels : n_labels + TIMED_PROMPTS]:
            started_s = time.thread_time()
            scorer.probabilities(row.prompt)
            spent_s.append(time.thread_time() - started_s)
        p50, p95, p99 = np.quantile(spent_s, [0.5, 0.95, 0.99]).tolist()
        state_bytes = float(len(scorer.to_bytes()))
        timings[kind] = {"p50_s": p50, "p95_s": p95, "p99_s": p99, "state_bytes": state_bytes}
    return timings


def describe_machine() -> dict[str, object]:
    """Return what the figures depend on."""
    cpu_info = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip() for line in cpu_info.read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "n_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "llmtier": __version__,
        **{name: importlib.metadata.version(name) for name in ("numpy", "scipy")},
    }


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description="APGR of every scorer on public outcomes.")
    parser.add_argument("--json", type=Path, help="also write the document here")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds the data")
    parser.add_argument("--quick", action="store_true", help="few labels, seeds and test prompts")
    arguments = parser.parse_args()
    path = arguments.data / DATA_FILE
    if not path.is_file():
        print(f"{path}: not here; give the folder that holds {DATA_FILE} with --data", file=sys.stderr)
        return EXIT_NO_DATA
    rows = read_rows(path)
    plan = QUICK_SEEDS_BY_LABELS if arguments.quick else SEEDS_BY_LABELS
    n_test = QUICK_TEST_ROWS if arguments.quick else None
    cells = {n: [measure_cell(rows, n, seed, n_test) for seed in range(n_seeds)] for n, n_seeds in plan.items()}
    document = {
        "schema_version": 1,
        "benchmark": "scorers",
        "command": ["python", *sys.argv],
        "machine": describe_machine(),
        "data": DATA_FILE,
        "n_rows": len(rows),
        "seeds_by_labels": plan,
        "by_labels": {n: summarise(drawn) for n, drawn in cells.items()},
        "request": time_scorers(rows, min(plan)),
        "published": PUBLISHED,
        "cpu_s": round(time.process_time(), 1),
    }
    text = json.dumps(document, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
