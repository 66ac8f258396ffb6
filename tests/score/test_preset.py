"""Thresholds without labels."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.prompt import Message, Prompt
from llmtier.score.preset import GAP, meet_shares, plain_entropy
from llmtier.score.scorer import load_scorer

TIERS = ("small", "middle", "large")


def ask(text):
    return Prompt(id="p", messages=(Message(role="user", content=text),))


def serving(scorer, prompt):
    """Return who serves by the rule: the first tier at most the gap below the reference."""
    found = scorer.probabilities(prompt)
    return next(tier for tier in scorer.tiers if found[tier] >= found[scorer.tiers[-1]] - GAP)


def test_plain_text_goes_to_the_cheapest_and_markers_climb():
    scorer = plain_entropy(TIERS)

    assert "small" == serving(scorer, ask("Tell me something about the weather in spring, please."))
    assert "middle" == serving(scorer, ask("Tell me what 12 + 30 comes to, please, and say why it is so."))
    assert "large" == serving(scorer, ask("def add(a, b): return {'sum': a + b}  # then 3 * 4 = 12, as json"))
    assert serving(load_scorer("entropy", scorer.to_bytes()), ask("def f(): pass")) == serving(
        scorer, ask("def f(): pass")
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 60))
def test_shares_are_met_to_one_prompt(a, b, n):
    total = max(a + b, 100)
    shares = {"small": a / total, "middle": b / total, "large": 1 - (a + b) / total}
    prompts = [
        ask(" ".join("abcdefghijklmnopqrstuvwxyz"[: index % 26 + 1] for _ in range(index + 1))) for index in range(n)
    ]
    scorer = meet_shares(plain_entropy(TIERS), prompts, shares)
    served = [serving(scorer, prompt) for prompt in prompts]

    assert set(served) <= set(TIERS)
    distinct = len({scorer.model.logits(scorer.recipe.extract(prompt, None))[0] for prompt in prompts}) == n
    if distinct:
        assert served.count("small") == pytest.approx(shares["small"] * n, abs=0.5 + 1e-9)
        assert served.count("large") == pytest.approx(shares["large"] * n, abs=0.5 + 1e-9)
