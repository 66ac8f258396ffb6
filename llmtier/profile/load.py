"""Keep a fixed number of requests in flight on one engine and note every instant: a closed loop.

Asks an engine through its client; writes nothing. Each worker sends its next
request as soon as its last is done, so the scheduled instant is the instant the
worker became free, and in a closed loop that is the send instant but for the
client's own delay, which thereby counts. Latency at an arrival rate is another
question, and not answered here.

The warm-up belongs to the same loop: the first requests are sent and forgotten, and
no pause follows them, so the counted ones meet an engine that is already loaded.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from llmtier.core.errors import EngineRequestError
from llmtier.core.prompt import Prompt
from llmtier.engine.stream import Completion
from llmtier.evaluate.ask import ChatClient
from llmtier.evaluate.workers import EngineWatch, run_workers
from llmtier.store.profiles import RequestRow

Clock = Callable[[], float]
"""Seconds on the monotonic clock that the client stamps with."""

STATUS_OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """How load is put on a tier.

    Attributes:
        concurrency: Requests in flight at each load point, ascending.
        requests_per_point: Counted requests at each.
        warmup_requests: Requests before them that are not counted.
        max_tokens: Longest answer, for prompts that name none.
        stagger_s: How much later than the one before each worker begins, so that they do not send as one burst.
    """

    concurrency: tuple[int, ...] = (1, 4, 16)
    requests_per_point: int = 128
    warmup_requests: int = 16
    max_tokens: int = 64
    stagger_s: float = 0.005  # some steps of a small model; 0.3 s in all at 64 workers

    def __post_init__(self) -> None:
        if not self.concurrency or list(self.concurrency) != sorted(set(self.concurrency)) or self.concurrency[0] < 1:
            raise ValueError(f"load: concurrency must rise from at least 1, got {list(self.concurrency)}")
        if self.requests_per_point < 1 or self.max_tokens < 1 or self.warmup_requests < 0:
            raise ValueError("load: requests_per_point and max_tokens must be >= 1, warmup_requests >= 0")
        if not self.stagger_s >= 0:
            raise ValueError(f"load: stagger_s must be >= 0, got {self.stagger_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSample:
    """One counted request.

    Attributes:
        row: What is stored of it.
        itl_s: Gaps between its content chunks, which are not stored; empty when it failed.
    """

    row: RequestRow
    itl_s: tuple[float, ...] = ()


def cycle_prompts(prompts: Sequence[Prompt], *, seed: int) -> Iterator[Prompt]:
    """Yield ``prompts`` in one random order, over and over.

    Share one cycle among all load points: a point then repeats prompts of another, which the
    engine may hold in its prefix cache, only when the set is used up.
    """
    order = np.random.default_rng(seed).permutation(len(prompts))
    return itertools.cycle([prompts[index] for index in order])


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """Puts load on one tier.

    Attributes:
        client: Of the tier's engine.
        tier: Name that the rows carry.
        prompts: What to send next; without end, see ``cycle_prompts``.
        settings: How much.
        clock: The one that ``client`` stamps with.
    """

    client: ChatClient
    tier: str
    prompts: Iterator[Prompt]
    settings: LoadSettings
    clock: Clock = time.perf_counter

    async def measure(self, concurrency: int) -> list[RequestSample]:
        """Keep ``concurrency`` requests in flight; return the counted ones in the order in which they ended.

        Raises:
            EngineRequestError: The engine is down: 20 requests in a row failed, warm-up included.
        """
        n_warmup = self.settings.warmup_requests
        watch = EngineWatch()
        samples: list[RequestSample] = []

        async def send(job: tuple[int, Prompt]) -> None:
            index, prompt = job
            sample = await self._send(prompt, concurrency, watch)
            if index >= n_warmup:
                samples.append(sample)

        jobs = enumerate(itertools.islice(self.prompts, n_warmup + self.settings.requests_per_point))
        with _frozen_garbage():
            await run_workers(send, jobs, concurrency=concurrency, stagger_s=self.settings.stagger_s)
        return samples

    async def _send(self, prompt: Prompt, concurrency: int, watch: EngineWatch) -> RequestSample:
        max_tokens = prompt.max_tokens or self.settings.max_tokens
        free_s = self.clock()
        try:
            completion = await self.client.stream_chat(prompt.messages, max_tokens=max_tokens, scheduled_s=free_s)
        except EngineRequestError as error:
            done_s = self.clock()
            watch.note_failure(error)
            return RequestSample(row=self._failed_row(prompt, concurrency, free_s, done_s, error))
        watch.note_answer()
        return RequestSample(row=self._answered_row(prompt, concurrency, completion), itl_s=completion.timing.itl_s)

    def _answered_row(self, prompt: Prompt, concurrency: int, completion: Completion) -> RequestRow:
        timing = completion.timing
        return RequestRow(
            tier=self.tier,
            concurrency=concurrency,
            prompt_id=prompt.id,
            scheduled_s=timing.scheduled_s,
            sent_s=timing.sent_s,
            first_s=timing.content_s[0] if timing.content_s else None,
            last_s=timing.content_s[-1] if timing.content_s else None,
            done_s=timing.done_s,
            n_input_tokens=completion.n_input_tokens,
            n_output_tokens=timing.n_output_tokens,
            status=STATUS_OK,
        )

    def _failed_row(
        self, prompt: Prompt, concurrency: int, free_s: float, done_s: float, error: EngineRequestError
    ) -> RequestRow:
        return RequestRow(
            tier=self.tier,
            concurrency=concurrency,
            prompt_id=prompt.id,
            scheduled_s=free_s,
            sent_s=free_s,  # the error carries no instants
            first_s=None,
            last_s=None,
            done_s=done_s,
            n_input_tokens=None,
            n_output_tokens=None,
            status=str(error) or "failed",
        )


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Keep what exists now out of the collector's way: a full collection would look like a slow engine."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
