"""Fixtures that every test may use."""

import pytest
from hypothesis import settings

from llmtier.core.prompt import AnswerScorer, Message, Prompt

settings.register_profile("llmtier", deadline=None)  # a busy machine is no failure: a timing is never asserted
settings.load_profile("llmtier")


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio only: uvicorn and aiohttp know no other."""
    return "asyncio"


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
