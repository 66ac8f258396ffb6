"""A tier's latency as a formula: step time, the load at arrival, and what a new request would see.

Pure arithmetic on a handful of numbers, so that the gateway can evaluate it for every tier of every
request. ``profile`` fits the coefficients; ``route`` asks, through ``route.formula``, which unpacks them. Sources of the form: the step time that
Dynamo's planner and llm-d's queueing model share (a constant, prefill tokens, sequences, KV tokens),
with the prefill attention of its quadratic part; the relaxation of the number in service towards its
mean is that of an M/G/infinity queue. Instants are seconds, lengths tokens.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

FIXED_POINT_STEPS = 4
"""Of the time per token and the number in flight that it makes, each of which gives the other."""

LEAST_FREE_SHARE = 0.05
"""Of the engine's time that prefill leaves to decoding, before it counts as saturated."""


class Metric(StrEnum):
    """What is predicted."""

    TTFT = "ttft_s"
    TPOT = "tpot_s"
    E2EL = "e2el_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """How long one engine step lasts.

    Attributes:
        alpha_s: Each step.
        prefill_s_per_token: Per prompt token that the step processes.
        attention_s_per_token2: Per unit of prefill attention, ``length * length / 2`` for a whole prompt.
        sequence_s: Per sequence that gets a token.
        kv_s_per_token: Per token held by the sequences that get one.
    """

    alpha_s: float
    prefill_s_per_token: float
    attention_s_per_token2: float
    sequence_s: float
    kv_s_per_token: float

    def __post_init__(self) -> None:
        for name in ("alpha_s", "prefill_s_per_token", "attention_s_per_token2", "sequence_s", "kv_s_per_token"):
            if not getattr(self, name) >= 0:  # also refuses NaN
                raise ValueError(f"{name} must be >= 0")

    def step_s(
        self, *, n_sequences: float, kv_tokens: float, prefill_tokens: float = 0.0, attention_tokens2: float = 0.0
    ) -> float:
        """Return the duration of a step."""
        return (
            self.alpha_s
            + self.prefill_s_per_token * prefill_tokens
            + self.attention_s_per_token2 * attention_tokens2
            + self.sequence_s * n_sequences
            + self.kv_s_per_token * kv_tokens
        )


@dataclass(slots=True)
class LoadState:
    """What is on an engine when a request arrives, that request left out: the ledger's view.

    Never changed once made; not frozen, nor of keywords alone, because the gateway makes one a tier and request, and
    that would cost three times as much.

    Attributes:
        n_decoding: Requests whose first token has come and whose last has not.
        n_prefilling: Requests sent whose first token has not come.
        prefill_tokens: Prompt tokens of those.
        n_joined: Of those, how many are in the step that runs now: they were sent before it began.
        joined_tokens: Prompt tokens of the joined ones.
        kv_tokens: Prompt and output so far of the decoding ones.
        arrival_rps: Recent arrivals per second; ``None`` when unknown, and then the load is taken to last.
        mean_input_tokens: Of recent requests; ``None`` takes the profile's; likewise ``mean_output_tokens``.
        step_age_s: Since the running step began: since the newest token of any request came, or since the first request
            reached an idle engine; ``None`` when unknown or nothing is in flight.
        co_tenants: Share of time, in [0, 1], that each other tier on the device is busy, by name.
    """

    n_decoding: int = 0
    n_prefilling: int = 0
    prefill_tokens: int = 0
    n_joined: int = 0
    joined_tokens: int = 0
    kv_tokens: int = 0
    arrival_rps: float | None = None
    mean_input_tokens: float | None = None
    mean_output_tokens: float | None = None
    step_age_s: float | None = None
    co_tenants: tuple[tuple[str, float], ...] = ()

    @property
    def n_in_flight(self) -> int:
        """Every request on the engine."""
        return self.n_decoding + self.n_prefilling


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainBox:
    """The least and the greatest value that the model was fitted on; outside it is a guess."""

    input_tokens: tuple[float, float]
    output_tokens: tuple[float, float]
    n_in_flight: tuple[float, float]

    def holds(self, *, input_tokens: float, output_tokens: float, n_in_flight: float) -> bool:
        """Tell whether all three lie inside."""
        pairs = (
            (input_tokens, self.input_tokens),
            (output_tokens, self.output_tokens),
            (n_in_flight, self.n_in_flight),
        )
        return all(low <= value <= high for value, (low, high) in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualBucket:
    """Quantiles of log(observed / predicted) where at most ``max_in_flight`` requests were on the engine.

    Attributes:
        metric: Of which latency.
        max_in_flight: Upper edge, inclusive; ``None`` for the last bucket.
        n: Requests behind it.
        quantiles: (level, value) ascending.
    """

    metric: Metric
    max_in_flight: int | None
    n: int
    quantiles: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModel:
    """A fitted tier.

    Attributes:
        step: The step time.
        frontend_s: Of each request outside steps: network, tokenization, detokenization.
        frontend_s_per_token: Likewise per prompt token.
        lag_s: From sending to the engine's scheduler; the rest of the frontend's time is ``frontend_s``.
        wait_share: Steps that an arrival waits for on a busy engine when it comes at a random moment: 0.5 for what is
            left of the running one, and what is above 0.5 for steps that the engine had already scheduled.
        max_batched_tokens: Prompt tokens that one step takes; ``None`` when unlimited or unknown.
        max_sequences: Requests that decode at once; ``None`` when unlimited or unknown.
        mean_input_tokens: Of the load that was fitted on; likewise ``mean_output_tokens``.
        co_tenants: Seconds lost per second that another tier on the device is busy, by name.
        domain: Where the fit holds.
        residuals: How far single requests lie from the prediction.
        n_fit: Requests that the coefficients come from.
    """

    step: StepModel
    frontend_s: float
    frontend_s_per_token: float
    wait_share: float
    mean_input_tokens: float
    mean_output_tokens: float
    domain: DomainBox
    residuals: tuple[ResidualBucket, ...] = ()
    n_fit: int
    max_batched_tokens: int | None = None
    max_sequences: int | None = None
    co_tenants: tuple[tuple[str, float], ...] = ()
    lag_s: float = 0.0

    def ttft_s(self, state: LoadState, *, input_tokens: float) -> float:
        """Predict the time to the first token, without residual."""
        waiting = state.prefill_tokens - state.joined_tokens + input_tokens
        n_batches = 1 if self.max_batched_tokens is None else max(math.ceil(waiting / self.max_batched_tokens), 1)
        n_sequences = self._at_most_batch(state.n_in_flight + 1)
        kv_tokens = state.kv_tokens + state.prefill_tokens + input_tokens
        prefill_s = self.step.prefill_s_per_token * waiting + self.step.attention_s_per_token2 * input_tokens**2 / 2
        batches_s = n_batches * self.step.step_s(n_sequences=n_sequences, kv_tokens=kv_tokens) + prefill_s
        own_s = self.frontend_s + self.frontend_s_per_token * input_tokens
        return own_s + (self._running_s(state) + batches_s + self._slot_s(state)) * self._slowdown(state)

    def tpot_s(self, state: LoadState, *, input_tokens: float, output_tokens: float) -> float:
        """Predict the mean time per output token after the first, without residual."""
        mean_in = self.mean_input_tokens if state.mean_input_tokens is None else state.mean_input_tokens
        mean_out = self.mean_output_tokens if state.mean_output_tokens is None else state.mean_output_tokens
        context = mean_in + mean_out / 2
        n_now = self._at_most_others(state.n_in_flight)  # who waits for a place slows no step
        kv_now = max(
            state.kv_tokens, min(state.kv_tokens + state.prefill_tokens, context * self._at_most_others(math.inf))
        )
        slowdown = self._slowdown(state)
        step = self.step
        step_s = step.step_s(n_sequences=n_now + 1, kv_tokens=kv_now + input_tokens) * slowdown
        joining_s = self._prefill_s(mean_in) * slowdown  # what one prompt of another adds to its step
        most_joining_s = self._most_arriving(mean_out) * joining_s if joining_s > 0 else 0.0
        now = _relaxation(max(output_tokens - 1, 1.0) / max(mean_out, 1.0))
        own_kv_tokens = input_tokens + output_tokens / 2
        for _ in range(FIXED_POINT_STEPS):
            n_mean = n_now if state.arrival_rps is None else self._mean_in_flight(state.arrival_rps, mean_out, step_s)
            n_others = n_mean + (n_now - n_mean) * now
            kv_others = context * n_mean + (kv_now - context * n_mean) * now
            alone_s = slowdown * step.step_s(n_sequences=1 + n_others, kv_tokens=own_kv_tokens + kv_others)
            if state.arrival_rps is None:  # as many arrive as end
                step_s = alone_s + n_others / max(mean_out, 1.0) * joining_s
            else:
                share = min(state.arrival_rps * joining_s, 1.0 - LEAST_FREE_SHARE)
                step_s = alone_s + min(alone_s * share / (1.0 - share), most_joining_s)
        return step_s

    def e2el_s(self, state: LoadState, *, input_tokens: float, output_tokens: float) -> float:
        """Predict the time to the last token, without residual."""
        tpot_s = self.tpot_s(state, input_tokens=input_tokens, output_tokens=output_tokens)
        return self.ttft_s(state, input_tokens=input_tokens) + tpot_s * max(output_tokens - 1.0, 0.0)

    def running_step_s(self, state: LoadState) -> float:
        """Return how long the step lasts that runs at arrival."""
        attention = state.joined_tokens**2 / (2 * state.n_joined) if state.n_joined else 0.0
        return self.step.step_s(
            n_sequences=self._at_most_batch(state.n_decoding + state.n_joined),
            kv_tokens=state.kv_tokens + state.joined_tokens,
            prefill_tokens=state.joined_tokens,
            attention_tokens2=attention,
        )

    def residual(self, metric: Metric, *, n_in_flight: int, level: float) -> float | None:
        """Return the quantile of log(observed / predicted) at ``level``; ``None`` where there is none.

        Never less than under a lower load, so that more load is never predicted faster; beyond the last
        bucket the last one holds.
        """
        found: float | None = None
        for bucket in self.residuals:
            if bucket.metric is metric:
                value = next((value for at, value in bucket.quantiles if at == level), None)
                if value is None:
                    return None
                found = value if found is None else max(found, value)
                if bucket.max_in_flight is None or n_in_flight <= bucket.max_in_flight:
                    break
        return found

    def _running_s(self, state: LoadState) -> float:
        """Return how long it takes until a step begins that can take the request in.

        An idle engine begins one when its scheduler sees the request. A busy one ends the running step first; a
        request that comes to the scheduler after that waits for the next one as well.
        """
        if state.n_in_flight == 0:
            return self.lag_s
        step_s = self.running_step_s(state)
        if state.step_age_s is None:
            return self.wait_share * step_s + self.lag_s
        left_s = max(step_s - state.step_age_s, 0.0)
        ahead_s = max(self.wait_share - 0.5, 0.0) * step_s
        if self.lag_s <= left_s:
            return left_s + ahead_s
        n_sequences = self._at_most_batch(state.n_decoding + state.n_joined)
        next_s = self.step.step_s(n_sequences=n_sequences, kv_tokens=state.kv_tokens + state.joined_tokens)
        return left_s + max(next_s, self.lag_s - left_s) + ahead_s

    def _slot_s(self, state: LoadState) -> float:
        """Return the wait for a place in the batch: one frees every (mean remaining output / n) steps."""
        if self.max_sequences is None or state.n_in_flight < self.max_sequences:
            return 0.0
        mean_out = self.mean_output_tokens if state.mean_output_tokens is None else state.mean_output_tokens
        step_s = self.step.step_s(n_sequences=self.max_sequences, kv_tokens=state.kv_tokens)
        n_ahead = state.n_in_flight - self.max_sequences + 1
        return n_ahead * mean_out / self.max_sequences * step_s

    def _mean_in_flight(self, arrival_rps: float, mean_output_tokens: float, step_s: float) -> float:
        """Return Little's law at the present step time, never more than fit the batch."""
        return self._at_most_others(arrival_rps * mean_output_tokens * step_s)

    def _at_most_others(self, n: float) -> float:
        """Return how many of ``n`` others decode beside a request that has its place."""
        return n if self.max_sequences is None else min(n, self.max_sequences - 1.0)

    def _at_most_batch(self, n: float) -> float:
        return n if self.max_sequences is None else min(n, float(self.max_sequences))

    def _prefill_s(self, tokens: float) -> float:
        return self.step.prefill_s_per_token * tokens + self.step.attention_s_per_token2 * tokens**2 / 2

    def _most_arriving(self, mean_output_tokens: float) -> float:
        return math.inf if self.max_sequences is None else self.max_sequences / max(mean_output_tokens, 1.0)

    def _slowdown(self, state: LoadState) -> float:
        """Return by how much the other tiers on the device stretch a step."""
        if not state.co_tenants:
            return 1.0
        cost = dict(self.co_tenants)
        lost = sum(cost.get(name, 0.0) * busy for name, busy in state.co_tenants)
        return 1.0 / max(1.0 - lost, LEAST_FREE_SHARE)


def _relaxation(ratio: float) -> float:
    """Return the mean of exp(-t) over [0, ratio]: what is left on average of the load at arrival."""
    return (1.0 - math.exp(-ratio)) / ratio
