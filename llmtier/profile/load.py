"""Put one load on one engine and note every instant: closed loops, schedules, conversations.

Reads a work source and an engine behind a ``LoadClient``; writes nothing. A schedule's requests leave
at their instants whatever the engine does, and latency counts from those instants (no coordinated
omission). A closed loop's worker sends when its last answer is done; its scheduled instant is the
instant it became free. Bodies are encoded before the load begins and answers are decoded after it ends,
so that neither delays a stamp. Warm-up belongs to the same load: no pause separates the counted
requests from it.
"""

import asyncio
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from llmtier.core.errors import EngineRequestError
from llmtier.engine.exchange import Answer, decode_exchange
from llmtier.engine.load_client import LoadClient
from llmtier.engine.load_connection import Exchange
from llmtier.engine.pacer import Pacer
from llmtier.evaluate.workers import EngineWatch, run_workers, task_group
from llmtier.profile.conversation import Conversation
from llmtier.profile.sample import STATUS_OK, RequestSample
from llmtier.profile.shapes import ClosedLoop, LoadShape, arrival_offsets
from llmtier.profile.workload import WorkItem, encode
from llmtier.store.profiles import RequestRow

_LEAD_S = 0.05  # from the plan to the first scheduled instant
_HOLD_BYTES = 512 * 1024 * 1024  # undecoded answers kept; beyond it they are decoded while the load runs


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """One load.

    Attributes:
        tier: Name that the rows carry.
        model_name: What the engine calls the model.
        shape: When requests are sent.
        n_requests: Counted requests.
        warmup_requests: Requests before them that are not counted.
        seed: Of the arrivals.
        stagger_s: How much later than the one before each worker of a closed loop begins.
    """

    tier: str
    model_name: str
    shape: LoadShape
    n_requests: int
    warmup_requests: int
    seed: int
    stagger_s: float = 0.005  # some steps of a small model; 0.3 s in all at 64 workers

    def __post_init__(self) -> None:
        if self.n_requests < 1 or self.warmup_requests < 0 or not self.stagger_s >= 0:
            raise ValueError("load: n_requests must be >= 1, warmup_requests and stagger_s >= 0")

    @property
    def concurrency(self) -> int | None:
        """Of a closed loop; ``None`` for other shapes."""
        return self.shape.concurrency if isinstance(self.shape, ClosedLoop) else None


@dataclass(slots=True)
class LoadProgress:
    """What a view may look at while a load runs; written by the load, read by others.

    Attributes:
        n_planned: Requests of the load.
        n_sent: Sent so far; likewise ``n_done`` and ``n_failed`` of those done.
        first_byte_s: From schedule to the first byte of each answer so far; likewise ``e2el_s`` to its end.
    """

    n_planned: int = 0
    n_sent: int = 0
    n_done: int = 0
    n_failed: int = 0
    first_byte_s: list[float] = field(default_factory=list)
    e2el_s: list[float] = field(default_factory=list)

    def begin(self, n_planned: int) -> None:
        """Forget the load before."""
        self.n_planned = n_planned
        self.n_sent = self.n_done = self.n_failed = 0
        self.first_byte_s.clear()
        self.e2el_s.clear()

    def note(self, exchange: Exchange) -> None:
        """Count an exchange that has ended."""
        self.n_done += 1
        if is_answered(exchange):
            self.first_byte_s.append(exchange.arrived_s[0] - exchange.scheduled_s)
            self.e2el_s.append(exchange.done_s - exchange.scheduled_s)
        else:
            self.n_failed += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a load gave.

    Attributes:
        samples: Every request, warm-up included, in the order of the plan.
        suspended_s: How long the machine slept meanwhile.
    """

    samples: tuple[RequestSample, ...]
    suspended_s: float


def is_answered(exchange: Exchange) -> bool:
    """Tell from the outside whether an exchange went well; its events are not looked at."""
    return exchange.failure is None and exchange.status == 200


async def run_load(
    client: LoadClient, plan: LoadPlan, items: Iterator[WorkItem], *, progress: LoadProgress | None = None
) -> LoadResult:
    """Send the plan's requests and wait for every answer.

    Args:
        client: Of the tier's engine.
        plan: How many, when.
        items: What; at least as many as the plan sends.
        progress: Kept up to date.

    Raises:
        EngineRequestError: The engine is down: 20 requests in a row failed, warm-up included.
    """
    run = _Run(client, plan, progress if progress is not None else LoadProgress())
    bodies = [
        (item, encode(item, plan.model_name))
        for item in itertools.islice(items, plan.warmup_requests + plan.n_requests)
    ]
    run.progress.begin(len(bodies))
    slept_before_s = _slept_s()
    with _frozen_garbage():
        await (run.keep_busy(bodies) if plan.concurrency is not None else run.follow_schedule(bodies))
    return LoadResult(samples=run.samples(), suspended_s=max(_slept_s() - slept_before_s, 0.0))


async def run_talks(
    client: LoadClient, plan: LoadPlan, talks: Iterator[Conversation], *, progress: LoadProgress | None = None
) -> LoadResult:
    """Hold as many conversations at once as the plan's closed loop has in flight; otherwise as ``run_load``.

    A turn is scheduled when the answer before it is done and the pause is over. Answers are decoded on the way, since
    the next turn needs them.

    Raises:
        ValueError: The plan is no closed loop.
        EngineRequestError: As ``run_load``.
    """
    if plan.concurrency is None:
        raise ValueError(f"conversations need a closed loop, got {plan.shape.label}")
    run = _Run(client, plan, progress if progress is not None else LoadProgress())
    run.progress.begin(plan.warmup_requests + plan.n_requests)
    slept_before_s = _slept_s()
    with _frozen_garbage():
        await run.hold_talks(talks)
    return LoadResult(samples=run.samples(), suspended_s=max(_slept_s() - slept_before_s, 0.0))


@dataclass(slots=True)
class _Sent:
    """A request and its answer, decoded or not."""

    index: int
    item: WorkItem
    exchange: Exchange
    answer: Answer | None = None

    def decode(self) -> Answer:
        if self.answer is None:
            self.answer = decode_exchange(self.exchange)
            self.exchange.pieces.clear()
            self.exchange.arrived_s.clear()
        return self.answer


class _Run:
    """The state of one load."""

    def __init__(self, client: LoadClient, plan: LoadPlan, progress: LoadProgress) -> None:
        self.progress = progress
        self._client = client
        self._plan = plan
        self._watch = EngineWatch()
        self._sent: list[_Sent] = []
        self._n_held_bytes = 0
        self._n_decoded = 0

    async def keep_busy(self, bodies: Sequence[tuple[WorkItem, bytes]]) -> None:
        """Keep the plan's concurrency in flight."""
        concurrency = self._plan.concurrency or 1

        async def send(job: tuple[int, tuple[WorkItem, bytes]]) -> None:
            await self._send(job[0], *job[1], scheduled_s=time.perf_counter())

        await self._client.prepare(min(concurrency, len(bodies)))
        await run_workers(send, enumerate(bodies), concurrency=concurrency, stagger_s=self._plan.stagger_s)

    async def hold_talks(self, talks: Iterator[Conversation]) -> None:
        """Keep the plan's concurrency of conversations going until enough turns were asked."""
        concurrency = self._plan.concurrency or 1
        numbers = iter(range(self.progress.n_planned))

        async def hold(_worker: int) -> None:
            for talk in talks:
                answer: str | None = None
                while (item := talk.next_item(answer)) is not None:
                    number = next(numbers, None)
                    if number is None:
                        return
                    answer = await self._take_turn(number, item)
                    await asyncio.sleep(talk.next_think_s or 0.0)

        await self._client.prepare(concurrency)
        await run_workers(hold, range(concurrency), concurrency=concurrency, stagger_s=self._plan.stagger_s)

    async def _take_turn(self, number: int, item: WorkItem) -> str | None:
        """Send one turn; return the answer's text, ``None`` when it failed."""
        body = encode(item, self._plan.model_name)
        sent = await self._send(number, item, body, scheduled_s=time.perf_counter())
        answer = sent.decode()
        return answer.completion.text if answer.failure is None else None

    async def follow_schedule(self, bodies: Sequence[tuple[WorkItem, bytes]]) -> None:
        """Send each request at its instant."""
        offsets_s = arrival_offsets(self._plan.shape, len(bodies), np.random.default_rng(self._plan.seed)).tolist()
        await self._client.prepare(min(16, len(bodies)))
        begin_s = time.perf_counter() + _LEAD_S - offsets_s[0]  # the first gap is nobody's wait
        with Pacer() as pacer:
            async with task_group() as group:
                for index, ((item, body), offset_s) in enumerate(zip(bodies, offsets_s, strict=True)):
                    await pacer.until(begin_s + offset_s)
                    group.create_task(self._send(index, item, body, scheduled_s=begin_s + offset_s))

    async def _send(self, index: int, item: WorkItem, body: bytes, *, scheduled_s: float) -> _Sent:
        self.progress.n_sent += 1
        exchange = await self._client.send(body, path=item.path, scheduled_s=scheduled_s)
        sent = _Sent(index, item, exchange)
        self._sent.append(sent)
        self.progress.note(exchange)
        if is_answered(exchange):
            self._watch.note_answer()
        else:
            self._watch.note_failure(sent.decode().error or EngineRequestError("no answer", status=exchange.status))
        self._hold(exchange)
        return sent

    def _hold(self, exchange: Exchange) -> None:
        self._n_held_bytes += sum(map(len, exchange.pieces))
        if self._n_held_bytes > _HOLD_BYTES:
            for sent in self._sent[self._n_decoded :]:
                sent.decode()
            self._n_decoded, self._n_held_bytes = len(self._sent), 0

    def samples(self) -> tuple[RequestSample, ...]:
        """Decode what is left and return every request by its place in the plan."""
        ordered = sorted(self._sent, key=lambda sent: sent.index)
        return tuple(self._to_sample(sent, sent.decode()) for sent in ordered)

    def _to_sample(self, sent: _Sent, answer: Answer) -> RequestSample:
        timing = answer.completion.timing
        row = RequestRow(
            tier=self._plan.tier,
            concurrency=self._plan.concurrency,
            shape=self._plan.shape.label,
            prompt_id=sent.item.prompt_id,
            scheduled_s=timing.scheduled_s,
            sent_s=timing.sent_s,
            first_s=timing.content_s[0] if timing.content_s else None,
            last_s=timing.content_s[-1] if timing.content_s else None,
            done_s=timing.done_s,
            n_input_tokens=answer.completion.n_input_tokens,
            n_output_tokens=timing.n_output_tokens,
            status=STATUS_OK if answer.failure is None else answer.failure,
            n_chunks=len(timing.content_s),
        )
        return RequestSample(row=row, content_s=timing.content_s, is_warmup=sent.index < self._plan.warmup_requests)


def _slept_s() -> float:
    """Return how long the machine has been suspended since it started; 0 where the system does not tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.clock_gettime(clock) - time.clock_gettime(time.CLOCK_MONOTONIC)


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Keep the collector out of the load: a full collection would look like a slow engine."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
