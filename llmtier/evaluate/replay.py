"""Ask every tier the same prompts, and lay the outcomes side by side.

Reads prompts and one engine per tier; writes nothing: the journal that makes a
replay resumable is kept by ``on_outcome``'s owner, who gives back what it holds
as ``done``.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from llmtier.core.prompt import LabelledPrompt, Outcome, Prompt
from llmtier.evaluate.ask import ChatClient, OnOutcome, ask_all, score_outcomes
from llmtier.evaluate.workers import task_group


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


def merge_outcomes(prompts: Sequence[Prompt], outcomes: Iterable[Outcome]) -> list[LabelledPrompt]:
    """Return one row per prompt, in their order, with what each tier scored.

    Scores are made anew from the texts. A tier whose request failed is absent from the row, and
    a prompt without reference answer has no scores. Of several answers to one prompt the last counts.

    Raises:
        ValueError: An outcome belongs to none of ``prompts``.
    """
    scores: dict[str, dict[str, float]] = {prompt.id: {} for prompt in prompts}
    output_tokens: dict[str, dict[str, int]] = {prompt.id: {} for prompt in prompts}
    for outcome in score_outcomes(prompts, outcomes):
        if outcome.score is not None:
            scores[outcome.prompt_id][outcome.tier] = outcome.score
        if outcome.n_output_tokens is not None:
            output_tokens[outcome.prompt_id][outcome.tier] = outcome.n_output_tokens
    return [
        LabelledPrompt(prompt=prompt, scores=scores[prompt.id], output_tokens=output_tokens[prompt.id])
        for prompt in prompts
    ]
