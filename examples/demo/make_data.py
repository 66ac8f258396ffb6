"""Write the demo's splits: evaluation, traffic and held-out rows, and the calibration text for quantization.

Reads `tasks.py` only. Writes `data/*.jsonl` and `calibration.jsonl` beside this file. With `--check` it writes nothing
and compares the committed files with what it would write. It never writes training rows: `train.py` draws those itself.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import tasks

HERE = Path(__file__).resolve().parent
SEED = 1
EVALUATION_ROWS = 1000
TRAFFIC_ROWS = 2400
HELDOUT_ROWS = 1200
CALIBRATION_ROWS = 256
ARRIVALS_PER_S = 4.0


def as_lines(rows: Iterable[dict[str, object]]) -> str:
    """Return rows as the text of a JSON Lines file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def plain_rows(split: str, count: int) -> list[dict[str, object]]:
    """Return the rows of one split."""
    drawn = tasks.draw(split, count, SEED)
    return [tasks.as_row(task, f"{split}-{index:04d}") for index, task in enumerate(drawn)]


def traffic_rows() -> list[dict[str, object]]:
    """Return the traffic rows, each with its arrival time in a seeded Poisson stream."""
    rng = random.Random(f"{SEED}-arrivals")  # noqa: S311  (a repeatable draw, not a secret)
    rows = plain_rows("traffic", TRAFFIC_ROWS)
    arrival_s = 0.0
    for row in rows:
        arrival_s += rng.expovariate(ARRIVALS_PER_S)
        row["arrival_s"] = round(arrival_s, 4)
    return rows


def calibration_rows() -> list[dict[str, object]]:
    """Return whole exchanges for the calibration of quantized weights."""
    return [
        {
            "messages": [
                {"role": "user", "content": task.prompt},
                {"role": "assistant", "content": task.answer},
            ]
        }
        for task in tasks.draw("calibration", CALIBRATION_ROWS, SEED)
    ]


def make_files() -> dict[Path, str]:
    """Return the text of every file this script is responsible for."""
    return {
        HERE / "data" / "evaluation.jsonl": as_lines(plain_rows("evaluation", EVALUATION_ROWS)),
        HERE / "data" / "traffic.jsonl": as_lines(traffic_rows()),
        HERE / "data" / "heldout.jsonl": as_lines(plain_rows("heldout", HELDOUT_ROWS)),
        HERE / "calibration.jsonl": as_lines(calibration_rows()),
    }


def main() -> int:
    """Write the files, or compare them; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the demo's splits and the calibration text.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    arguments = parser.parse_args()
    stale = False
    for path, text in make_files().items():
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("utf-8"))
            print(f"wrote {path.name}: {text.count(chr(10))} lines")
        elif not path.is_file() or path.read_bytes() != text.encode("utf-8"):
            print(f"differs: {path.name}", file=sys.stderr)
            stale = True
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
