"""What a gateway's ledger would have said at each arrival, rebuilt from the measured requests. Pure.

The gateway knows of each request on a tier when it was sent, how long its prompt is, how many tokens have
come and when the newest came; so does a load's client. A prediction is therefore fitted and judged on the
very state that it will be asked with.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from llmtier.core.latency_model import LoadState
from llmtier.profile.sample import RequestSample

N_RECENT = 32
"""Arrivals and answers over which the ledger takes rates and means."""

N_LEAST = 8
"""Of these at least, before a rate or a mean is known."""


def rebuild_states(samples: Sequence[RequestSample]) -> list[LoadState]:
    """Return the state at each sample's send instant, itself left out, in the order of ``samples``.

    Args:
        samples: Every request of one load, warm-up included: a state is wrong when one is missing.
    """
    order = sorted(range(len(samples)), key=lambda index: samples[index].row.sent_s)
    view = _View()
    states: dict[int, LoadState] = {}
    for index in order:
        now_s = samples[index].row.sent_s
        states[index] = view.state(now_s)
        view.add(samples[index])
    return [states[index] for index in range(len(samples))]


class _View:
    """The requests on the engine while the arrivals are gone through in order."""

    def __init__(self) -> None:
        self._active: list[RequestSample] = []
        self._arrived_s: deque[float] = deque(maxlen=N_RECENT)
        self._inputs: deque[int] = deque(maxlen=N_RECENT)
        self._outputs: deque[int] = deque(maxlen=N_RECENT)
        self._newest_s = -math.inf

    def add(self, sample: RequestSample) -> None:
        self._active.append(sample)
        self._arrived_s.append(sample.row.sent_s)
        if sample.row.n_input_tokens is not None:
            self._inputs.append(sample.row.n_input_tokens)

    def state(self, now_s: float) -> LoadState:
        self._retire(now_s)
        decoding = [sample for sample in self._active if sample.content_s and sample.content_s[0] <= now_s]
        prefilling = [sample for sample in self._active if not sample.content_s or sample.content_s[0] > now_s]
        begun_s = self._step_start(decoding, prefilling, now_s)
        joined = [sample for sample in prefilling if begun_s is not None and sample.row.sent_s <= begun_s]
        return LoadState(
            n_decoding=len(decoding),
            n_prefilling=len(prefilling),
            prefill_tokens=_prompt_tokens(prefilling),
            n_joined=len(joined),
            joined_tokens=_prompt_tokens(joined),
            kv_tokens=round(sum(_held_tokens(sample, now_s) for sample in decoding)),
            arrival_rps=self._rate(now_s),
            mean_input_tokens=_mean(self._inputs),
            mean_output_tokens=_mean(self._outputs),
            step_age_s=None if begun_s is None else now_s - begun_s,
        )

    def _retire(self, now_s: float) -> None:
        left = []
        for sample in self._active:
            if sample.row.done_s > now_s:
                left.append(sample)
                continue
            if sample.row.n_output_tokens is not None:
                self._outputs.append(sample.row.n_output_tokens)
            self._newest_s = max(self._newest_s, *sample.content_s[-1:], -math.inf)
        self._active = left

    def _step_start(
        self, decoding: Sequence[RequestSample], prefilling: Sequence[RequestSample], now_s: float
    ) -> float | None:
        """Return when the running step began: with the newest token, or with the first prompt on an idle engine."""
        newest_s = max((s.content_s[bisect_right(s.content_s, now_s) - 1] for s in decoding), default=-math.inf)
        self._newest_s = max(self._newest_s, newest_s)
        if decoding:
            return self._newest_s
        return max(min(s.row.sent_s for s in prefilling), self._newest_s) if prefilling else None

    def _rate(self, now_s: float) -> float | None:
        """Return arrivals per second over the last ones; unknown until some have come."""
        if len(self._arrived_s) < N_LEAST or now_s <= self._arrived_s[0]:
            return None
        return len(self._arrived_s) / (now_s - self._arrived_s[0])


def _prompt_tokens(samples: Sequence[RequestSample]) -> int:
    return sum(sample.row.n_input_tokens or 0 for sample in samples)


def tokens_per_chunk(sample: RequestSample) -> float:
    """Return how many tokens a content chunk carries on average; 1 where the engine reports no usage."""
    if sample.row.n_output_tokens is None or not sample.content_s:
        return 1.0
    return sample.row.n_output_tokens / len(sample.content_s)


def _held_tokens(sample: RequestSample, now_s: float) -> float:
    n_chunks = bisect_right(sample.content_s, now_s)
    return (sample.row.n_input_tokens or 0) + n_chunks * tokens_per_chunk(sample)


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if len(values) >= N_LEAST else None
