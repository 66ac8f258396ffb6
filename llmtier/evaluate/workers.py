"""A fixed pool of workers over a queue of jobs, and the rule that ends it when an engine is down.

Neither reads nor writes anything; what a job is, its caller knows.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from llmtier.core.errors import EngineRequestError, LlmtierError

GIVE_UP_AFTER = 20
"""Requests in a row that must fail before an engine counts as down."""

_Job = TypeVar("_Job")


@dataclass(slots=True, kw_only=True)
class EngineWatch:
    """Tells an engine that is down from one that fails now and then; use one per run.

    Attributes:
        has_answered: Whether any request was answered.
        n_failed: Failures in a row. Once it has answered, a refusal (4xx) is no sign of death.
    """

    has_answered: bool = False
    n_failed: int = 0

    def note_answer(self) -> None:
        """Remember that the engine works."""
        self.has_answered = True
        self.n_failed = 0

    def note_failure(self, error: EngineRequestError) -> None:
        """Count a failure.

        Raises:
            EngineRequestError: ``GIVE_UP_AFTER`` requests in a row have failed.
        """
        if self.has_answered and error.status is not None and error.status < 500:
            return
        self.n_failed += 1
        if self.n_failed < GIVE_UP_AFTER:
            return
        if self.has_answered:
            raise EngineRequestError(
                f"the engine stopped answering: {self.n_failed} requests in a row failed, the last with: {error}; "
                "see the engine's log",
                status=error.status,
            ) from error
        raise EngineRequestError(
            f"the first {self.n_failed} requests all failed, the last with: {error}; "
            "is the engine up and its model name right?",
            status=error.status,
        ) from error


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open an ``asyncio.TaskGroup`` whose first error comes out bare when all of them are llmtier's own."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        own, others = errors.split(LlmtierError)
        if own is None or others is not None:
            raise
        raise own.exceptions[0] from None


async def run_workers(
    work: Callable[[_Job], Awaitable[None]], jobs: Iterable[_Job], *, concurrency: int, stagger_s: float = 0.0
) -> None:
    """Keep up to ``concurrency`` jobs going until ``jobs`` is exhausted.

    Args:
        work: Does one job; an error that leaves it ends the pool and cancels the other workers.
        jobs: Taken one at a time, in order.
        concurrency: Workers, at least 1.
        stagger_s: How much later than the one before each worker begins.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")
    queue = iter(jobs)

    async def drain(delay_s: float) -> None:
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        for job in queue:
            await work(job)

    async with task_group() as group:
        for index in range(concurrency):
            group.create_task(drain(index * stagger_s))
