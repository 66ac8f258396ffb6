"""Synthetic outcomes for the scorers."""

import random

import pytest

from llmtier.core.prompt import LabelledPrompt, Message, Prompt

HARD = ("prove", "theorem", "integral", "lemma")
EASY = ("hello", "weather", "colour", "lunch")
FILLERS = ("please", "tell", "me", "about", "the", "thing", "now", "again", "why", "how")


@pytest.fixture
def make_prompt():
    """Return a function: text and domain to a prompt."""

    def make(text, domain=None, prompt_id="p"):
        return Prompt(id=prompt_id, messages=(Message(role="user", content=text),), domain=domain)

    return make


@pytest.fixture
def make_labelled(make_prompt):
    """Return a function that draws prompts which ``cheap`` answers when easy and ``dear`` always.

    Each text is unique; with ``with_domains`` the domain says which kind it is.
    """

    def make(n, *, seed=0, with_domains=False):
        draw = random.Random(seed)
        rows = []
        for number in range(n):
            is_hard = draw.random() < 0.5
            words = [*draw.sample(FILLERS, 4), draw.choice(HARD if is_hard else EASY)]
            draw.shuffle(words)
            domain = ("hard" if is_hard else "easy") if with_domains else None
            prompt = make_prompt(f"{' '.join(words)} {number}", domain, str(number))
            rows.append(LabelledPrompt(prompt=prompt, scores={"cheap": float(not is_hard), "dear": 1.0}))
        return rows

    return make
