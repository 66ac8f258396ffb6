"""Numbers from 0 to 10 that a model is asked for: the questions about a prompt's complexity, and what was answered.

Pure. The question itself and what counts as an answer are ``score.self_assess``'s, which the gateway
asks in the same way.
"""

from collections.abc import Iterable, Sequence

from llmtier.core.prompt import Outcome, Prompt
from llmtier.score.self_assess import MAX_RATING_TOKENS, build_rating_messages, parse_rating
from llmtier.score.text import scored_text

RATER = "(rater)"
"""Stands as ``tier`` in the answers; no tier can be called so."""


def rating_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return what to ask about each prompt, under the prompt's own id."""
    return [
        Prompt(id=prompt.id, messages=build_rating_messages(scored_text(prompt)), max_tokens=MAX_RATING_TOKENS)
        for prompt in prompts
    ]


def read_ratings(outcomes: Iterable[Outcome]) -> dict[str, float | None]:
    """Return the rating in [0, 10] that each answer holds, by ``prompt_id``; ``None`` where it holds none.

    A request that failed is absent. Of several answers under one id the last counts.
    """
    return {outcome.prompt_id: parse_rating(outcome.text) for outcome in outcomes if outcome.text is not None}
