"""Requests of exact lengths for the raw completions endpoint, as ``vllm bench serve --dataset-name random`` sends them.

Prompts are random printable characters, each a token of the tokenizer that ``support.llama`` makes; answers have a
fixed length, the end-of-text token ignored.
"""

import string
from collections.abc import Iterator

import numpy as np

from llmtier.profile.workload import COMPLETION_PATH, WorkItem

CHARACTERS = tuple(string.ascii_letters + string.digits + string.punctuation)


def exact_items(*, input_tokens: int, output_tokens: int, seed: int) -> Iterator[WorkItem]:
    """Yield requests without end, no two alike."""
    rng = np.random.default_rng(seed)
    number = 0
    while True:
        prompt = "".join(rng.choice(CHARACTERS, input_tokens))
        fields = {"prompt": prompt, "max_tokens": output_tokens, "temperature": 0.0, "ignore_eos": True}
        yield WorkItem(id=f"exact-{number}", path=COMPLETION_PATH, fields=fields, prompt_id=f"exact-{number}")
        number += 1
