"""Scores of one prompt's answers, by what they are held against.

Pure. A grader takes a prompt and each tier's answer and gives the scores that can be given; a tier
without one is left out.
"""

from collections.abc import Callable, Mapping

from llmtier.core.prompt import Prompt
from llmtier.evaluate.agreement import score_agreement
from llmtier.evaluate.answers import score_answer
from llmtier.evaluate.verdict import verdict_score

Grader = Callable[[Prompt, Mapping[str, str]], dict[str, float]]
"""Prompt and tier name to answer → tier name to score in [0, 1]."""


def grade_by_reference(prompt: Prompt, answers: Mapping[str, str]) -> dict[str, float]:
    """Hold answers against the row's reference answer; without one there are no scores."""
    if prompt.answer is None:
        return {}
    return {tier: score_answer(prompt.scorer, prompt.answer, text) for tier, text in answers.items()}


def grade_by_agreement(reference: str) -> Grader:
    """Return the grader that holds answers against the answer of the tier ``reference``, whose own score is 1.

    Where that tier gave none, no tier has a score.
    """

    def grade(prompt: Prompt, answers: Mapping[str, str]) -> dict[str, float]:
        if reference not in answers:
            return {}
        wanted = answers[reference]
        return {
            tier: 1.0 if tier == reference else score_agreement(prompt.scorer, wanted, text)
            for tier, text in answers.items()
        }

    return grade


def grade_by_verdicts(verdicts: Mapping[str, float | None]) -> Grader:
    """Return the grader that gives each answer its verdict; see ``verdict.verdict_prompts``."""

    def grade(prompt: Prompt, answers: Mapping[str, str]) -> dict[str, float]:
        scores = {tier: verdict_score(verdicts, prompt.id, text) for tier, text in answers.items()}
        return {tier: score for tier, score in scores.items() if score is not None}

    return grade
