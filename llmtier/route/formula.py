"""A latency model made ready for asking: its coefficients unpacked once, each formula in one pass.

Reads a ``LatencyModel``; says what its ``ttft_s`` and ``tpot_s`` say, to rounding, in a tenth of the time, because a
gateway asks every tier at every request. ``core.latency_model`` stays the definition that profiles are fitted by;
``tests/route/test_formula.py`` holds the two together. Adds no residual and no correction.
"""

import math

# ruff: noqa: FURB136, PLR1730  # a call of min or max costs more than the branch that it saves
from llmtier.core.latency_model import FIXED_POINT_STEPS, LEAST_FREE_SHARE, LatencyModel, LoadState

_MOST_SHARE = 1.0 - LEAST_FREE_SHARE


class Formula:
    """One tier's latency model, unpacked.

    Attributes:
        mean_input_tokens: Of the model; likewise ``mean_output_tokens``.
    """

    __slots__ = (
        "_alpha_s", "_co_tenants", "_frontend_s", "_frontend_s_per_token", "_half_attention_s", "_kv_s", "_lag_s",
        "_max_batched", "_max_sequences", "_most_others", "_prefill_s", "_sequence_s", "_wait_ahead", "_wait_share",
        "mean_input_tokens", "mean_output_tokens",
    )  # fmt: skip

    def __init__(self, model: LatencyModel) -> None:
        step = model.step
        self.mean_input_tokens = model.mean_input_tokens
        self.mean_output_tokens = model.mean_output_tokens
        self._alpha_s = step.alpha_s
        self._prefill_s = step.prefill_s_per_token
        self._half_attention_s = step.attention_s_per_token2 / 2
        self._sequence_s = step.sequence_s
        self._kv_s = step.kv_s_per_token
        self._frontend_s = model.frontend_s
        self._frontend_s_per_token = model.frontend_s_per_token
        self._lag_s = model.lag_s
        self._wait_share = model.wait_share
        self._wait_ahead = max(model.wait_share - 0.5, 0.0)
        self._max_batched = math.inf if model.max_batched_tokens is None else float(model.max_batched_tokens)
        self._max_sequences = math.inf if model.max_sequences is None else float(model.max_sequences)
        self._most_others = self._max_sequences - 1.0
        self._co_tenants = dict(model.co_tenants)

    def ttft_s(self, load: LoadState, n_in: float) -> float:
        """Return ``LatencyModel.ttft_s`` for a prompt of ``n_in`` tokens."""
        n = load.n_decoding + load.n_prefilling
        most = self._max_sequences
        prefill = load.prefill_tokens
        waiting = prefill - load.joined_tokens + n_in
        n_sequences = n + 1 if n < most else most
        total_s = self._alpha_s + self._sequence_s * n_sequences + self._kv_s * (load.kv_tokens + prefill + n_in)
        if waiting > self._max_batched:
            total_s *= math.ceil(waiting / self._max_batched)
        total_s += self._prefill_s * waiting + self._half_attention_s * n_in * n_in
        if n:
            total_s += self._running_s(load)
            if n >= most:
                total_s += self._slot_s(load, n)
        else:
            total_s += self._lag_s
        if load.co_tenants:
            total_s *= self._slowdown(load)
        return self._frontend_s + self._frontend_s_per_token * n_in + total_s

    def tpot_s(self, load: LoadState, n_in: float, n_out: float) -> float:
        """Return ``LatencyModel.tpot_s`` for a prompt of ``n_in`` tokens and an answer of ``n_out``."""
        mean_in, mean_out, rate_rps = load.mean_input_tokens, load.mean_output_tokens, load.arrival_rps
        if mean_in is None:
            mean_in = self.mean_input_tokens
        if mean_out is None:
            mean_out = self.mean_output_tokens
        context = mean_in + mean_out / 2
        answer = mean_out if mean_out > 1.0 else 1.0
        n: float = load.n_decoding + load.n_prefilling
        if n > self._most_others:
            n = self._most_others  # who waits for a place slows no step
        kv: float = self._kv_now(load, context) if load.prefill_tokens else load.kv_tokens
        slowdown = self._slowdown(load) if load.co_tenants else 1.0
        joining_s = (self._prefill_s + self._half_attention_s * mean_in) * mean_in * slowdown
        ratio = (n_out - 1.0 if n_out > 2.0 else 1.0) / answer
        now = (1.0 - math.exp(-ratio)) / ratio
        step_s, sequence_s, kv_s = self._alpha_s + self._sequence_s, self._sequence_s, self._kv_s
        own = n_in + n_out / 2
        if rate_rps is None:  # the load lasts, and as many arrive as end
            kv_others = context * n + (kv - context * n) * now
            return slowdown * (step_s + sequence_s * n + kv_s * (own + kv_others)) + n / answer * joining_s
        base_s = slowdown * (step_s + sequence_s * n * now + kv_s * (own + kv * now))
        first_s = slowdown * (step_s + sequence_s * n + kv_s * (kv + n_in))
        share = rate_rps * joining_s
        if share > _MOST_SHARE:
            share = _MOST_SHARE
        each_s = slowdown * (1.0 - now) * (sequence_s + kv_s * context)
        most_joining_s = self._max_sequences / answer * joining_s if joining_s > 0 else 0.0
        stretch = share / (1.0 - share)
        return _settle(base_s, each_s, rate_rps * mean_out, self._most_others, stretch, most_joining_s, first_s)

    def _running_s(self, load: LoadState) -> float:
        """Return ``LatencyModel._running_s`` of an engine that is not idle."""
        n_joined, joined = load.n_joined, load.joined_tokens
        n: float = load.n_decoding + n_joined
        if n > self._max_sequences:
            n = self._max_sequences
        step_s = next_s = self._alpha_s + self._sequence_s * n + self._kv_s * (load.kv_tokens + joined)
        if joined:
            step_s += self._prefill_s * joined
            if n_joined:
                step_s += self._half_attention_s * joined * joined / n_joined
        if load.step_age_s is None:
            return self._wait_share * step_s + self._lag_s
        left_s = step_s - load.step_age_s
        if left_s < 0.0:
            left_s = 0.0
        waited_s = left_s + self._wait_ahead * step_s
        if self._lag_s <= left_s:
            return waited_s
        return waited_s + max(next_s, self._lag_s - left_s)

    def _slot_s(self, load: LoadState, n: float) -> float:
        """Return ``LatencyModel._slot_s`` of a batch that is full."""
        mean_out = self.mean_output_tokens if load.mean_output_tokens is None else load.mean_output_tokens
        most = self._max_sequences
        step_s = self._alpha_s + self._sequence_s * most + self._kv_s * load.kv_tokens
        return (n - most + 1) * mean_out / most * step_s

    def _kv_now(self, load: LoadState, context: float) -> float:
        """Return the tokens held soon: prompts that wait count as far as the batch has room for their requests."""
        kv_tokens = load.kv_tokens + load.prefill_tokens
        room = context * self._most_others
        return max(load.kv_tokens, room if room < kv_tokens else kv_tokens)

    def _slowdown(self, load: LoadState) -> float:
        lost = 0.0
        for name, busy in load.co_tenants:
            lost += self._co_tenants.get(name, 0.0) * busy
        return 1.0 / max(1.0 - lost, LEAST_FREE_SHARE)


def _settle(  # noqa: PLR0913, PLR0917  # seven floats by position: keywords would cost as much as the arithmetic
    base_s: float, each_s: float, load: float, most: float, stretch: float, most_joining_s: float, step_s: float
) -> float:
    """Return the step time after ``FIXED_POINT_STEPS`` of s -> alone(s) + min(stretch alone(s), most_joining_s).

    alone(s) = base_s + each_s min(load s, most): the steps that s second long steps make by whom they keep in flight.
    Where neither least is cut the map is s -> c + r s. As it never falls, its iterates go one way only, so the greater
    of the first and the last tells whether any was cut.
    """
    c, r = base_s * (1.0 + stretch), each_s * load * (1.0 + stretch)
    last_s = c + r * (c + r * (c + r * (c + r * step_s)))
    highest_s = last_s if last_s > step_s else step_s
    if load * highest_s <= most and stretch * highest_s <= most_joining_s * (1.0 + stretch):
        return last_s
    for _ in range(FIXED_POINT_STEPS):
        n_mean = load * step_s
        alone_s = base_s + each_s * (n_mean if n_mean < most else most)
        joining_s = stretch * alone_s
        step_s = alone_s + (joining_s if joining_s < most_joining_s else most_joining_s)
    return step_s
