"""Ask a tier many prompts and score what it answers.

Reads prompts and an engine behind a client; writes nothing: ``on_outcome`` is
where a caller keeps a journal or moves a progress bar. A failed request is an
outcome with an error, not an exception; only an engine that is down ends
the run.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from llmtier.core.errors import EngineRequestError
from llmtier.core.prompt import Message, Outcome, Prompt
from llmtier.engine.stream import Completion
from llmtier.evaluate.answers import score_answer
from llmtier.evaluate.workers import EngineWatch, run_workers

OnOutcome = Callable[[Outcome], None]
"""Called on the event loop after each request, in order of completion; it must be quick."""


class ChatClient(Protocol):
    """What asking needs of ``engine.client.EngineClient``."""

    async def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None,
        temperature: float = 0.0,
        scheduled_s: float | None = None,
    ) -> Completion:
        """Ask for a chat completion and wait for its end, else raise ``EngineRequestError``."""


async def ask_all(
    client: ChatClient,
    prompts: Sequence[Prompt],
    *,
    tier: str,
    concurrency: int,
    max_tokens: int | None,
    on_outcome: OnOutcome | None = None,
) -> list[Outcome]:
    """Ask every prompt at temperature 0 and return one outcome each, in the order of ``prompts``.

    Args:
        client: Of the engine that serves ``tier``.
        prompts: What to ask.
        tier: Name that the outcomes carry.
        concurrency: Requests kept in flight.
        max_tokens: Longest answer, for prompts that name none.
        on_outcome: Told of each outcome as it comes.

    Raises:
        EngineRequestError: The engine is down: 20 requests in a row failed.
    """
    outcomes: dict[int, Outcome] = {}
    watch = EngineWatch()

    async def ask(job: tuple[int, Prompt]) -> None:
        index, prompt = job
        outcomes[index] = outcome = await ask_prompt(client, prompt, tier=tier, max_tokens=max_tokens, watch=watch)
        if on_outcome is not None:
            on_outcome(outcome)

    await run_workers(ask, enumerate(prompts), concurrency=concurrency)
    return [outcomes[index] for index in range(len(prompts))]


async def ask_prompt(
    client: ChatClient, prompt: Prompt, *, tier: str, max_tokens: int | None, watch: EngineWatch
) -> Outcome:
    """Ask one prompt; a failed request is an outcome with an error.

    Raises:
        EngineRequestError: ``watch`` takes the engine for down.
    """
    try:
        completion = await client.stream_chat(prompt.messages, max_tokens=prompt.max_tokens or max_tokens)
    except EngineRequestError as error:
        watch.note_failure(error)
        return Outcome(prompt_id=prompt.id, tier=tier, error=str(error))
    watch.note_answer()
    return _score(prompt, _to_outcome(prompt, tier, completion))


def _to_outcome(prompt: Prompt, tier: str, completion: Completion) -> Outcome:
    timing = completion.timing
    return Outcome(
        prompt_id=prompt.id,
        tier=tier,
        text=completion.text,
        n_input_tokens=completion.n_input_tokens,
        n_output_tokens=timing.n_output_tokens,
        ttft_s=timing.ttft_s,
        e2el_s=timing.e2el_s,
        mean_logprob=completion.mean_logprob,
        min_logprob=min(completion.logprobs, default=None),
    )


def _score(prompt: Prompt, outcome: Outcome) -> Outcome:
    if prompt.answer is None or outcome.text is None:
        return outcome
    return replace(outcome, score=score_answer(prompt.scorer, prompt.answer, outcome.text))
