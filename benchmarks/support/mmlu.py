"""The public outcomes that routing is measured on: 14,037 MMLU questions with scores of two models."""

from pathlib import Path

import pandas as pd

from llmtier.core.prompt import LabelledPrompt, Message, Prompt


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
