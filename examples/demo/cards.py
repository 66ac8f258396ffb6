"""Write the model card of each demo model from the record its training left.

Reads `models/<name>/training.json` and writes `models/<name>/README.md`. It measures nothing: the accuracies are those
that `train.py` or `measure.py` found.
"""

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A {layers}-layer Llama-architecture model of {parameters:,} parameters for the demo of llmtier. It answers five kinds
of short support-desk question: labelling an intent, finding an order number, copying slots into JSON, sorting and
adding. It knows nothing else.

| | |
|---|---|
| layers / width / feed-forward / heads | {layers} / {width} / {inner} / {heads} |
| tokenizer | one token per character, vocabulary of 128, chat template included |
| context | 512 tokens configured; trained on exchanges of at most about 160 |
| weights | bfloat16, safetensors |
| training data | questions drawn by `examples/demo/tasks.py`, training hash buckets only |
| training | seed {seed}, {steps:,} steps of {batch_rows} rows, {train_s:,} s on shared CPU cores |
| licence | Apache-2.0 |

## Accuracy

Greedy decoding on the {asked:,} rows of `examples/demo/data/heldout.jsonl`, whose questions no training row can equal:

| kind | accuracy | right / asked |
|---|---:|---:|
{accuracy}

## Limits

- Depth was chosen for a realistic latency gap between the two models: `nano` has two layers and `mini` has eight,
  both of the same width.
- The questions are generated from templates. The figures say how well a model learned these templates; they say
  nothing about real customers.
- Sums have two terms of two or three digits. No pair of terms in the evaluation splits occurs in training, in either
  order.
- Training used Muon for the matrices inside the layers and AdamW for the rest, on a cosine schedule.
- Only one user message and one answer were trained. A system message is read as a user message. Accented letters
  are in the vocabulary but were never trained.
{sums}"""


def accuracy_rows(heldout: dict[str, dict[str, int]]) -> str:
    """Return the rows of the accuracy table."""
    right = sum(counts["right"] for counts in heldout.values())
    asked = sum(counts["asked"] for counts in heldout.values())
    lines = [(kind, counts["right"], counts["asked"]) for kind, counts in heldout.items()]
    lines.append(("all", right, asked))
    return "\n".join(f"| {kind} | {good / total:.3f} | {good} / {total} |" for kind, good, total in lines)


def sum_note(recipe: dict[str, Any]) -> str:
    """Return the remarks on how the model was taught to add."""
    if not recipe["shows_work"]:
        return "- A sum is answered at once, without working.\n"
    return (
        '- A sum is worked out before it is answered ("7+4=11 8+5+1=14 1+2+1=4: 441"); the last number counts. `nano` was\n'
        "  not taught to do so: a part of the gap between the two models is training and not size.\n"
    )


def make_card(record: dict[str, Any]) -> str:
    """Return the model card of one training record."""
    heldout = record["heldout"]
    return CARD.format(
        **record["recipe"],
        name=record["name"],
        seed=record["seed"],
        parameters=record["parameters"],
        train_s=record["train_s"],
        asked=sum(counts["asked"] for counts in heldout.values()),
        accuracy=accuracy_rows(heldout),
        sums=sum_note(record["recipe"]),
    )


def main() -> None:
    """Write the card of every model folder that holds a training record."""
    parser = argparse.ArgumentParser(description="Write the model cards from the training records.")
    parser.add_argument("--models", type=Path, default=HERE / "models")
    arguments = parser.parse_args()
    for path in sorted(arguments.models.glob("*/training.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        (path.parent / "README.md").write_text(make_card(record), encoding="utf-8")
        print(f"wrote the card of {record['name']}")


if __name__ == "__main__":
    main()
