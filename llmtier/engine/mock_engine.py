"""A virtual engine: continuous batching with a step time that is known exactly.

Holds no text and speaks no HTTP: requests are counts of tokens, and what comes
out is the instant of each output token. Runs on any Clock. Requests join and
leave at step boundaries; each running request gets one token per step, the step
in which it joins included. Steps follow one another without drift: when the
machine wakes us late, the next sleep is shorter.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from llmtier.engine.clock import Clock
from llmtier.engine.mock_settings import MockSettings

# When the process itself was held up for longer, the lost time is not caught up in a burst.
_MAX_LAG_S = 0.05


@dataclass(slots=True, kw_only=True, eq=False)
class MockSequence:
    """One request inside the engine.

    Attributes:
        n_prompt_tokens: At least 1.
        n_output_tokens: To produce; at least 1.
        finish_reason: What it counts as when it ends by itself.
        n_done: Produced so far.
    """

    n_prompt_tokens: int
    n_output_tokens: int
    finish_reason: str
    n_done: int = 0
    _ready: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)

    async def tokens(self) -> AsyncIterator[int]:
        """Yield the number of each output token, from 0, when its step has ended; stop early when cancelled."""
        for _ in range(self.n_output_tokens):
            number = await self._ready.get()
            if number is None:
                return
            yield number

    def add_token(self) -> None:
        """Hand out the next token."""
        self._ready.put_nowait(self.n_done)
        self.n_done += 1

    def stop(self) -> None:
        """End ``tokens`` for whoever waits there."""
        self._ready.put_nowait(None)

    @property
    def is_finished(self) -> bool:
        """Whether every token was produced."""
        return self.n_done >= self.n_output_tokens

    @property
    def n_kv_tokens(self) -> int:
        """Tokens held: the prompt and the output so far."""
        return self.n_prompt_tokens + self.n_done


@dataclass(slots=True, kw_only=True)
class MockCounters:
    """What happened since the start; the engine's metrics page shows these."""

    n_steps: int = 0
    n_prompt_tokens: int = 0
    n_generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)


class MockEngine:
    """Runs sequences; its task lives only while there is work."""

    def __init__(self, settings: MockSettings, *, clock: Clock) -> None:
        self.counters = MockCounters()
        self._settings = settings
        self._clock = clock
        self._random = np.random.default_rng(settings.seed)
        self._running: list[MockSequence] = []
        self._waiting: deque[MockSequence] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def n_running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        """Sequences that wait for a place."""
        return len(self._waiting)

    @property
    def n_kv_tokens(self) -> int:
        """Tokens held by running sequences."""
        return sum(sequence.n_kv_tokens for sequence in self._running)

    def submit(self, *, n_prompt_tokens: int, n_output_tokens: int, finish_reason: str = "length") -> MockSequence:
        """Queue a request; it joins at the next step boundary that has a place."""
        sequence = MockSequence(
            n_prompt_tokens=n_prompt_tokens, n_output_tokens=n_output_tokens, finish_reason=finish_reason
        )
        self._waiting.append(sequence)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return sequence

    def cancel(self, sequence: MockSequence) -> None:
        """Take a sequence out at once; no effect on one that has finished."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            return
        self.counters.finished["abort"] += 1
        sequence.stop()

    async def close(self) -> None:
        """Cancel every sequence and end the task."""
        for sequence in [*self._running, *self._waiting]:
            self.cancel(sequence)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        ended_s = self._clock.now_s()
        try:
            while self._running or self._waiting:
                ended_s += self._begin_step()
                await self._clock.sleep(max(ended_s - self._clock.now_s(), 0.0))
                now_s = self._clock.now_s()
                ended_s = ended_s if now_s - ended_s <= _MAX_LAG_S else now_s
                self._end_step()
        finally:
            self._task = None

    def _begin_step(self) -> float:
        """Let waiting sequences in; return how long the step lasts."""
        n_free = self._settings.max_num_seqs - len(self._running)
        joining = [self._waiting.popleft() for _ in range(min(n_free, len(self._waiting)))]
        self._running += joining
        n_prefill_tokens = sum(sequence.n_prompt_tokens for sequence in joining)
        self.counters.n_prompt_tokens += n_prefill_tokens
        return self._step_s(n_prefill_tokens)

    def _step_s(self, n_prefill_tokens: int) -> float:
        settings = self._settings
        step_s = (
            settings.alpha_s
            + settings.beta_s_per_token * n_prefill_tokens
            + settings.sequence_s * len(self._running)
            + settings.gamma_s_per_kv_token * self.n_kv_tokens
        )
        if not settings.noise:
            return step_s
        # A log-normal factor with mean exp(mu + sigma^2 / 2) = 1.
        return step_s * float(self._random.lognormal(-(settings.noise**2) / 2, settings.noise))

    def _end_step(self) -> None:
        for sequence in self._running:
            sequence.add_token()
        self.counters.n_steps += 1
        self.counters.n_generation_tokens += len(self._running)
        for sequence in self._running:
            if sequence.is_finished:
                self.counters.finished[sequence.finish_reason] += 1
        self._running = [sequence for sequence in self._running if not sequence.is_finished]
