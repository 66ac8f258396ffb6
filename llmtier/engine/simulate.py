"""The mock engine without an event loop: the instant of every token, computed as fast as Python can.

Says exactly what ``mock_engine`` would do on a virtual clock under an open loop (arrivals given) or a
closed loop (so many workers), thousands of times faster, so that statistics can be held against a truth
that is known. A request gets one token in each step from the one in which it joins, so its tokens are
consecutive steps: only the end of each step is kept. Reads and writes nothing; of the scripted faults it
knows those that refuse a request at once.
"""

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat

import numpy as np
from numpy.typing import NDArray

from llmtier.engine.mock_settings import FaultKind, MockSettings

Vector = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

_REFUSING = frozenset({FaultKind.REFUSE, FaultKind.RATE_LIMIT, FaultKind.ERROR})
_NOISE_BLOCK = 8192  # factors drawn at once; the stream is that of single draws


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRequest:
    """What one client would have seen.

    Attributes:
        arrival_s: When it reached the engine.
        n_input_tokens: Of its prompt.
        token_s: Instant of each output token; empty when it was refused.
    """

    arrival_s: float
    n_input_tokens: int
    token_s: tuple[float, ...]

    @property
    def is_refused(self) -> bool:
        """Whether a scripted fault answered in the place of the engine."""
        return not self.token_s

    @property
    def done_s(self) -> float:
        """When the response ended; a refusal takes no time."""
        return self.token_s[-1] if self.token_s else self.arrival_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulation:
    """A whole run; arrays over requests are in the order of arrival, shape (n,).

    Attributes:
        arrival_s: When each request reached the engine.
        n_input_tokens: Of each prompt; likewise ``n_output_tokens``, asked for.
        is_refused: Whether a scripted fault answered it.
        first_step: Step of the first token of each request that was not refused, shape (n_answered,).
        step_end_s: End of each engine step, shape (n_steps,).
        n_running: Requests in each step, shape (n_steps,).
    """

    arrival_s: Vector
    n_input_tokens: Counts
    n_output_tokens: Counts
    is_refused: Mask
    first_step: Counts
    step_end_s: Vector
    n_running: Counts

    @property
    def ttft_s(self) -> Vector:
        """Of the answered requests, shape (n_answered,)."""
        return self.step_end_s[self.first_step] - self.arrival_s[~self.is_refused]

    @property
    def e2el_s(self) -> Vector:
        """Of the answered requests, shape (n_answered,)."""
        return self.step_end_s[self._last_step] - self.arrival_s[~self.is_refused]

    @property
    def tpot_s(self) -> Vector:
        """Of the answered requests of two tokens or more."""
        n_later = self.n_output_tokens[~self.is_refused] - 1
        spent_s = self.step_end_s[self._last_step] - self.step_end_s[self.first_step]
        return spent_s[n_later > 0] / n_later[n_later > 0]

    @property
    def n_token_events(self) -> int:
        """Tokens produced."""
        return int(self.n_output_tokens[~self.is_refused].sum())

    def requests(self) -> list[SimulatedRequest]:
        """Return each request with its tokens' instants."""
        step_end_s = self.step_end_s.tolist()
        spans = zip(self.first_step.tolist(), self._last_step.tolist(), strict=True)
        answers = (tuple(step_end_s[first : last + 1]) for first, last in spans)
        return [
            SimulatedRequest(arrival_s=arrival_s, n_input_tokens=n_input, token_s=() if is_refused else next(answers))
            for arrival_s, n_input, is_refused in zip(
                self.arrival_s.tolist(), self.n_input_tokens.tolist(), self.is_refused.tolist(), strict=True
            )
        ]

    @property
    def _last_step(self) -> Counts:
        return self.first_step + self.n_output_tokens[~self.is_refused] - 1


def simulate(
    settings: MockSettings,
    arrivals_s: Sequence[float] | Vector,
    n_input: Sequence[int] | Counts,
    n_output: Sequence[int] | Counts,
    rng: np.random.Generator,
    concurrency: int | None = None,
) -> Simulation:
    """Run requests through the engine until the last is done.

    Args:
        settings: The engine; answers and start-up do not matter here.
        arrivals_s: Ascending. Open loop: when each request arrives. Closed loop: when each worker starts.
        n_input: Prompt tokens of each request.
        n_output: Tokens of each answer, at least 1.
        rng: Draws the noise; seeded with ``settings.seed`` it draws what the mock engine draws.
        concurrency: Workers of a closed loop, each of which sends the next request as soon as its own is done;
            ``None`` for an open loop.

    Raises:
        ValueError: Lengths that do not fit, arrivals that do not ascend, a fault that acts inside a stream.
    """
    inputs, outputs = np.asarray(n_input, dtype=np.int64), np.asarray(n_output, dtype=np.int64)
    starts_s = np.asarray(arrivals_s, dtype=np.float64)
    n_starts = len(inputs) if concurrency is None else concurrency
    if not len(inputs) == len(outputs) or not len(starts_s) == n_starts or np.any(outputs < 1):
        raise ValueError("each request needs a prompt and an answer of 1 token or more, each start an instant")
    if np.any(np.diff(starts_s) < 0):
        raise ValueError("arrivals_s must ascend")
    refused = find_refused(settings, len(inputs))
    admitted = np.flatnonzero(~refused)
    waits_s = starts_s[admitted].tolist() if concurrency is None else starts_s[: len(admitted)].tolist()
    run = _Run(waits_s, inputs[admitted].tolist(), outputs[admitted].tolist(), is_closed=concurrency is not None)
    run.go(settings, _noise_factors(settings.noise, rng))
    return Simulation(
        arrival_s=starts_s if concurrency is None else _closed_arrivals(run, refused, starts_s),
        n_input_tokens=inputs,
        n_output_tokens=outputs,
        is_refused=refused,
        first_step=np.array(run.first_step, dtype=np.int64),
        step_end_s=np.array(run.step_end_s),
        n_running=np.array(run.n_running, dtype=np.int64),
    )


def find_refused(settings: MockSettings, n_requests: int) -> Mask:
    """Tell of each request, the first being number 1, whether a scripted fault refuses it; shape (n_requests,).

    Raises:
        ValueError: A fault that does not refuse at once.
    """
    refused = np.zeros(n_requests, dtype=np.bool_)
    for index, fault in enumerate(settings.faults):
        if fault.kind not in _REFUSING:
            raise ValueError(f"cannot simulate the fault {fault.kind}")
        numbers = range(1, n_requests + 1) if fault.on_nth_request is None else (fault.on_nth_request,)
        for number in numbers:
            # The mock's own draw: a generator per request and fault.
            draw = np.random.default_rng((settings.seed, number, index)).random()
            if number <= n_requests and draw < fault.probability:
                refused[number - 1] = True
    return refused


class _Run:
    """The engine's loop over steps; its lists are the result."""

    def __init__(self, arrived_s: list[float], n_input: list[int], n_output: list[int], *, is_closed: bool) -> None:
        self.arrived_s = [*arrived_s, float("inf")]  # of admitted requests; a closed loop adds to it
        self.first_step: list[int] = []
        self.step_end_s: list[float] = []
        self.n_running: list[int] = []
        self.freed_s: float | None = None  # when the first worker found nothing more to send
        self._n_input = n_input
        self._n_output = n_output
        self._is_closed = is_closed
        self._leaving: dict[int, list[int]] = {}  # last step -> tokens that each request holds then

    def go(self, settings: MockSettings, factors: Iterator[float]) -> None:
        """Run every step; one multiplication or so per step, whatever the batch."""
        alpha_s, beta_s = settings.alpha_s, settings.beta_s_per_token
        sequence_s, gamma_s = settings.sequence_s, settings.gamma_s_per_kv_token
        arrived_s, leaving = self.arrived_s, self._leaving
        now_s, n_running, n_held, step = 0.0, 0, 0, 0
        while True:
            is_idle = n_running == 0 and arrived_s[len(self.first_step)] >= now_s
            if is_idle:
                now_s = arrived_s[len(self.first_step)]
                if now_s == float("inf"):
                    return
            n_free = settings.max_num_seqs - n_running
            n_joining, n_prefill = self._join(now_s, n_free, step, is_idle=is_idle)
            n_running += n_joining
            n_held += n_prefill
            step_s = alpha_s + beta_s * n_prefill + sequence_s * n_running + gamma_s * n_held
            now_s += step_s * next(factors)
            self.step_end_s.append(now_s)
            self.n_running.append(n_running)
            n_held += n_running
            if step in leaving:
                held = leaving.pop(step)
                n_running -= len(held)
                n_held -= sum(held)
                self._free(now_s, len(held))
            step += 1

    def _join(self, now_s: float, n_free: int, step: int, *, is_idle: bool) -> tuple[int, int]:
        """Let in who waits; return how many and their prompt tokens.

        Who arrives at the very instant of a step boundary missed it, unless the engine sat idle: the mock
        begins the next step before any client hears of the last token.
        """
        head = begin = len(self.first_step)
        n_prefill = 0
        while head - begin < n_free and (self.arrived_s[head] < now_s or (is_idle and self.arrived_s[head] == now_s)):
            last = step + self._n_output[head] - 1
            self._leaving.setdefault(last, []).append(self._n_input[head] + self._n_output[head])
            n_prefill += self._n_input[head]
            self.first_step.append(step)
            head += 1
        return head - begin, n_prefill

    def _free(self, now_s: float, n_workers: int) -> None:
        """Let the workers of a closed loop send their next request."""
        if not self._is_closed:
            return
        for _ in range(n_workers):
            insort(self.arrived_s, now_s, lo=len(self.first_step))
            if len(self.arrived_s) - 1 > len(self._n_input):  # one worker too many: the last to come has nothing left
                idle_s = self.arrived_s.pop(-2)
                self.freed_s = idle_s if self.freed_s is None else min(self.freed_s, idle_s)


def _noise_factors(noise: float, rng: np.random.Generator) -> Iterator[float]:
    """Return log-normal factors of mean 1, without end."""
    if not noise:
        yield from repeat(1.0)
    while True:
        yield from rng.lognormal(-(noise**2) / 2, noise, size=_NOISE_BLOCK).tolist()


def _closed_arrivals(run: _Run, refused: Mask, starts_s: Vector) -> Vector:
    """Return when each request of a closed loop was sent: one refused, at the instant of the next in line."""
    n_admitted = int((~refused).sum())
    in_line_s = list(islice(run.arrived_s, n_admitted))
    idle_s = [*starts_s[n_admitted : n_admitted + 1].tolist(), *([] if run.freed_s is None else [run.freed_s])]
    return np.array([*in_line_s, min(idle_s)])[np.cumsum(~refused) - ~refused]
