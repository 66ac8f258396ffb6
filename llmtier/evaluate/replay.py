"""Ask every tier the same prompts, and lay the outcomes side by side.

Reads prompts and one engine per tier; writes nothing: the journal that makes a
replay resumable is kept by ``on_outcome``'s owner, who gives back what it holds
as ``done``.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from llmtier.core.prompt import LabelledPrompt, Outcome, Prompt
from llmtier.evaluate.ask import ChatClient, OnOutcome, ask_all
from llmtier.evaluate.grading import Grader, grade_by_reference
from llmtier.evaluate.workers import task_group

_Value = TypeVar("_Value")


async def replay_prompts(
    clients: Mapping[str, ChatClient],
    prompts: Sequence[Prompt],
    *,
    concurrency: int,
    max_tokens: int | None,
    done: Collection[tuple[str, str]] = frozenset(),
    on_outcome: OnOutcome | None = None,
) -> list[Outcome]:
    """Ask each tier the prompts that it has not answered yet, all tiers at the same time.

    Args:
        clients: Tier name to the client of its engine.
        prompts: What to ask.
        concurrency: Requests kept in flight per tier.
        max_tokens: Longest answer, for prompts that name none.
        done: Pairs of prompt id and tier that need no asking; see ``answered_pairs``.
        on_outcome: Told of each outcome as it comes.

    Returns:
        The new outcomes, tier by tier in the order of ``clients``, each in the order of ``prompts``.

    Raises:
        EngineRequestError: An engine is down; the other tiers are stopped.
    """
    async with task_group() as group:
        tasks = [
            group.create_task(
                ask_all(
                    client,
                    [prompt for prompt in prompts if (prompt.id, tier) not in done],
                    tier=tier,
                    concurrency=concurrency,
                    max_tokens=max_tokens,
                    on_outcome=on_outcome,
                )
            )
            for tier, client in clients.items()
        ]
    return [outcome for task in tasks for outcome in task.result()]


def answered_pairs(outcomes: Iterable[Outcome]) -> frozenset[tuple[str, str]]:
    """Return (prompt id, tier) of each outcome that holds an answer: what a resumed replay may skip."""
    return frozenset((outcome.prompt_id, outcome.tier) for outcome in outcomes if outcome.text is not None)


def merge_outcomes(
    prompts: Sequence[Prompt],
    outcomes: Iterable[Outcome],
    *,
    grade: Grader = grade_by_reference,
    weights: Mapping[str, float] | None = None,
    ratings: Mapping[str, float | None] | None = None,
) -> list[LabelledPrompt]:
    """Return one row per prompt, in their order, with what each tier scored.

    Scores are made anew from the texts. A tier whose request failed is absent from the row. Of several
    answers to one prompt the last counts.

    Args:
        prompts: The rows.
        outcomes: Of these prompts, in any order.
        grade: Scores a prompt's answers.
        weights: Prompt id to how many prompts it stands for; 1 where absent.
        ratings: Prompt id to its complexity in [0, 10].

    Raises:
        ValueError: An outcome belongs to none of ``prompts``.
    """
    answered: dict[str, dict[str, Outcome]] = {prompt.id: {} for prompt in prompts}
    for outcome in outcomes:
        if outcome.prompt_id not in answered:
            raise ValueError(f"outcome of {outcome.prompt_id} on {outcome.tier}: no such prompt")
        if outcome.text is not None:
            answered[outcome.prompt_id][outcome.tier] = outcome
    known_weights, known_ratings = weights or {}, ratings or {}
    return [
        LabelledPrompt(
            prompt=prompt,
            scores=grade(prompt, _texts(answered[prompt.id])),
            output_tokens=_known(answered[prompt.id], lambda outcome: outcome.n_output_tokens),
            weight=known_weights.get(prompt.id, 1.0),
            rating=known_ratings.get(prompt.id),
            confidences=_known(answered[prompt.id], lambda outcome: outcome.mean_logprob),
        )
        for prompt in prompts
    ]


def _texts(answers: Mapping[str, Outcome]) -> dict[str, str]:
    return _known(answers, lambda outcome: outcome.text)


def _known(answers: Mapping[str, Outcome], read: Callable[[Outcome], _Value | None]) -> dict[str, _Value]:
    """Return what ``read`` finds, by tier, where it finds anything."""
    found = {tier: read(outcome) for tier, outcome in answers.items()}
    return {tier: value for tier, value in found.items() if value is not None}
