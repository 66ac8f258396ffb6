"""Ask the gateway as a user's program would: through the official ``openai`` client, streaming and not.

Every prompt is asked under every model name; blocks of the models alternate, so that a slow minute of the machine
cannot fall on one of them alone. Writes nothing.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmtier.cli.demo_summary import Answer
from llmtier.core.errors import MachineError
from llmtier.core.prompt import Prompt
from llmtier.evaluate.answers import score_answer

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CONCURRENCY = 4
"""Questions in flight; the load point of the profile that the demo's table shows."""

N_BLOCKS = 4
MAX_TOKENS = 64


async def ask_in_blocks(
    base_url: str, prompts: Sequence[Prompt], *, models: Sequence[str], on_answer: Callable[[], None]
) -> list[Answer]:
    """Ask every prompt under every model name, in alternating blocks.

    Raises:
        MachineError: The ``openai`` package is not installed.
    """
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise MachineError("the demo asks through the openai package; run 'pip install openai'") from error
    answers: list[Answer] = []
    async with AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:
        for model in models:  # not counted: first requests pay for connections
            await ask_all(client, prompts[:CONCURRENCY], model=model, on_answer=lambda: None)
        for block in split(prompts, N_BLOCKS):
            for model in models:
                answers += await ask_all(client, block, model=model, on_answer=on_answer)
    return answers


def split(prompts: Sequence[Prompt], n_blocks: int) -> Iterator[Sequence[Prompt]]:
    """Cut ``prompts`` into ``n_blocks`` runs of nearly equal length."""
    edges = [len(prompts) * index // n_blocks for index in range(n_blocks + 1)]
    for start, end in itertools.pairwise(edges):
        yield prompts[start:end]


async def ask_all(
    client: "AsyncOpenAI", prompts: Sequence[Prompt], *, model: str, on_answer: Callable[[], None]
) -> list[Answer]:
    """Keep ``CONCURRENCY`` questions in flight until all are answered; every second one streams."""
    queue = list(enumerate(prompts))[::-1]
    answers: list[Answer] = []

    async def work() -> None:
        while queue:
            index, prompt = queue.pop()
            answers.append(await ask_one(client, prompt, model=model, is_stream=index % 2 == 0))
            on_answer()

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(work())
    return answers


async def ask_one(client: "AsyncOpenAI", prompt: Prompt, *, model: str, is_stream: bool) -> Answer:
    """Ask one question; a failed request is an answer with an error and score 0."""
    from openai import OpenAIError

    started_s = time.perf_counter()
    try:
        text, tier, n_tokens = await (stream_one if is_stream else fetch_one)(client, prompt, model)
    except OpenAIError as error:
        return Answer(
            prompt_id=prompt.id, model=model, tier=None, score=0.0, e2el_s=None, n_output_tokens=None, error=str(error)
        )
    score = 0.0 if prompt.answer is None else score_answer(prompt.scorer, prompt.answer, text)
    e2el_s = time.perf_counter() - started_s
    return Answer(prompt_id=prompt.id, model=model, tier=tier, score=score, e2el_s=e2el_s, n_output_tokens=n_tokens)


def as_messages(prompt: Prompt) -> list[Any]:
    """Return the conversation as the client wants it."""
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


async def fetch_one(client: "AsyncOpenAI", prompt: Prompt, model: str) -> tuple[str, str | None, int | None]:
    """Ask without streaming; return text, tier, output tokens."""
    raw = await client.chat.completions.with_raw_response.create(
        model=model, messages=as_messages(prompt), max_tokens=MAX_TOKENS, temperature=0.0
    )
    completion = raw.parse()
    n_tokens = completion.usage.completion_tokens if completion.usage is not None else None
    return completion.choices[0].message.content or "", raw.headers.get("x-llmtier-tier"), n_tokens


async def stream_one(client: "AsyncOpenAI", prompt: Prompt, model: str) -> tuple[str, str | None, int | None]:
    """Ask with streaming; return text, tier, output tokens."""
    raw = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=as_messages(prompt),
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, n_tokens = "", None
    async for chunk in raw.parse():
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        if chunk.usage is not None:
            n_tokens = chunk.usage.completion_tokens
    return text, raw.headers.get("x-llmtier-tier"), n_tokens
