"""Measure the greedy accuracy of a demo model, per kind of question.

Reads a model folder and `tasks.py`; prints one line per kind. Replies are generated in batches with the chat template
and compared by each question's scorer. It trains nothing and writes no file.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tasks


def ask(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:  # noqa: ANN401  (types of an optional package)
    """Return the greedy reply to each prompt."""
    import torch

    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    encoded = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
    with torch.no_grad():
        output = model.generate(**encoded, max_new_tokens=64, do_sample=False)
    replies = output[:, encoded["input_ids"].shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(replies, skip_special_tokens=True)]


def per_kind(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    rows: Iterable[tasks.Task],
    batch: int = 64,
) -> dict[str, tuple[int, int]]:
    """Return the right answers and the questions of each kind."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    ordered = sorted(rows, key=lambda task: (task.kind, len(task.prompt)))
    for begin in range(0, len(ordered), batch):
        part = ordered[begin : begin + batch]
        for task, reply in zip(part, ask(model, tokenizer, [task.prompt for task in part]), strict=True):
            asked[task.kind] += 1
            right[task.kind] += tasks.is_right(task, reply)
    return {kind: (right[kind], asked[kind]) for kind in tasks.KIND_SHARES if asked[kind]}


def main() -> None:
    """Measure one model folder and print its accuracy per kind."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description="Measure the accuracy of a demo model, per kind of question.")
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--split", default="heldout", choices=sorted(tasks.SPLIT_BUCKETS))
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    counts = per_kind(model, tokenizer, tasks.draw(arguments.split, arguments.rows, arguments.seed))
    for kind, (right, asked) in counts.items():
        print(f"{kind:9s} {right / asked:.3f} ({right} of {asked})")
    whole = [sum(column) for column in zip(*counts.values(), strict=True)]
    print(f"{'all':9s} {whole[0] / whole[1]:.3f} ({whole[0]} of {whole[1]})")


if __name__ == "__main__":
    main()
