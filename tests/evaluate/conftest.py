"""Prompts to ask, and an engine to ask them."""

import pytest

from llmtier.core.prompt import AnswerScorer, Message, Prompt


@pytest.fixture
def make_prompts():
    """Return a maker of ``n`` prompts ``word 0``, ``word 1`` …; ``answers`` are their reference answers."""

    def make(n, *, answers=None, domain=None, scorer=AnswerScorer.EXACT):
        return [
            Prompt(
                id=f"p{index}",
                messages=(Message(role="user", content=f"word {index}"),),
                answer=None if answers is None else answers[index],
                domain=domain,
                scorer=scorer,
            )
            for index in range(n)
        ]

    return make
