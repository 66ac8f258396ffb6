"""The equations that step times are fitted from: one row per measured interval, unknowns in columns. Pure.

Between the first and the last token of a request the engine makes one step per further token, and each step gives
one token to every sequence in it. So the tokens of all requests that came in that interval count its sequences, their
contexts sum to its KV tokens, and the prompts whose first token fell into it were its prefill: all of it can be
counted from outside, on any engine that streams. What is not seen: prompts that an engine found in its prefix cache.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.profile.ledger_view import tokens_per_chunk
from llmtier.profile.sample import RequestSample

Array = NDArray[np.float64]

STEP_COLUMNS = ("alpha_s", "prefill_s_per_token", "attention_s_per_token2", "sequence_s", "kv_s_per_token")
MIN_OUTPUT_TOKENS = 4
"""Shorter answers have too few steps for their ends to be exact."""

_STEPS_PER_ROW = 4  # fewer, and noise decides; more, and the one step with a prefill drowns in the others


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """Rows for a least-squares fit.

    Attributes:
        design: Shape (n, 5 + n co-tenants): steps, prefill tokens, prefill attention, sequences, KV tokens, then the
            seconds that each co-tenant was busy.
        target_s: Shape (n,), the intervals.
    """

    design: Array
    target_s: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class BusyTimes:
    """When a tier had requests in flight: disjoint intervals, ascending."""

    starts_s: Array
    ends_s: Array

    def between(self, start_s: float, end_s: float) -> float:
        """Return the busy seconds in an interval."""
        overlap = np.minimum(self.ends_s, end_s) - np.maximum(self.starts_s, start_s)
        return float(np.maximum(overlap, 0.0).sum())

    @property
    def total_s(self) -> float:
        """All busy seconds."""
        return float((self.ends_s - self.starts_s).sum())


def busy_times(spans: Iterable[tuple[float, float]]) -> BusyTimes:
    """Return when at least one of the (sent, done) spans lasted."""
    starts: list[float] = []
    ends: list[float] = []
    for start_s, end_s in sorted(spans):
        if ends and start_s <= ends[-1]:
            ends[-1] = max(ends[-1], end_s)
        else:
            starts.append(start_s)
            ends.append(end_s)
    return BusyTimes(starts_s=np.asarray(starts), ends_s=np.asarray(ends))


def step_rows(samples: Sequence[RequestSample], co_tenants: Mapping[str, BusyTimes]) -> StepRows:
    """Return a row for every few steps of each answered request of one load that is long enough.

    Args:
        samples: Every request of the load, warm-up included.
        co_tenants: When the other tiers on the device were busy, on the same clock.
    """
    tokens = _cumulate(*_token_events(samples))
    prefills = _cumulate(*_prefill_events(samples))
    designs, targets = [np.empty((0, len(STEP_COLUMNS) + len(co_tenants)))], [np.empty(0)]
    for sample in samples:
        if not sample.is_ok or (sample.row.n_output_tokens or 0) < MIN_OUTPUT_TOKENS or len(sample.content_s) < 2:
            continue
        instants_s = np.asarray(sample.content_s, dtype=np.float64)
        marks = _marks(len(instants_s))
        edges_s = _between_steps(instants_s)[marks]
        n_steps = np.diff(marks) * tokens_per_chunk(sample)
        spans = list(zip(instants_s[marks[:-1]].tolist(), instants_s[marks[1:]].tolist(), strict=True))
        busy_s = [[times.between(start_s, end_s) for start_s, end_s in spans] for times in co_tenants.values()]
        columns = [n_steps, *prefills.between(edges_s), *tokens.between(edges_s), *(np.asarray(row) for row in busy_s)]
        designs.append(np.column_stack(columns))
        targets.append(np.diff(instants_s[marks]))
    return StepRows(design=np.concatenate(designs), target_s=np.concatenate(targets))


def _marks(n_chunks: int) -> NDArray[np.int64]:
    """Return the chunks at which a request's rows begin and end; the last row takes what is left over."""
    n_rows = max((n_chunks - 1) // _STEPS_PER_ROW, 1)
    return np.append(np.arange(n_rows) * _STEPS_PER_ROW, n_chunks - 1)


def _between_steps(instants_s: Array) -> Array:
    """Return, for each chunk, an instant after its step and before the next.

    The chunks of one step do not arrive at one instant. Counted from this request's own stamp, those that
    came just after it would be taken for the next step's: with 50 us of jitter that alone made a scripted
    prefill coefficient 10 to 37 % wrong. After the last, when the next step ends is not seen: not before half of
    the shortest one.
    """
    gaps_s = np.diff(instants_s)
    return instants_s + np.append(gaps_s, gaps_s.min()) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cumulated:
    """Running sums of two weights over events in time; ``sums_a[i]`` is that of the first ``i`` events."""

    instants_s: Array
    sums_a: Array
    sums_b: Array

    def between(self, edges_s: Array) -> tuple[Array, Array]:
        """Return both sums over the events after each edge and up to the next, shape (len(edges_s) - 1,)."""
        places = np.searchsorted(self.instants_s, edges_s, side="right")
        return np.diff(self.sums_a[places]), np.diff(self.sums_b[places])


def _cumulate(instants_s: Array, a: Array, b: Array) -> _Cumulated:
    order = np.argsort(instants_s, kind="stable")
    return _Cumulated(
        instants_s=instants_s[order],
        sums_a=np.concatenate(([0.0], np.cumsum(a[order]))),
        sums_b=np.concatenate(([0.0], np.cumsum(b[order]))),
    )


def _token_events(samples: Sequence[RequestSample]) -> tuple[Array, Array, Array]:
    """Return each chunk's instant, the tokens in it, and the tokens held by its sequence times those."""
    instants: list[Array] = [np.empty(0)]
    counts: list[Array] = [np.empty(0)]
    contexts: list[Array] = [np.empty(0)]
    for sample in samples:
        per_chunk = tokens_per_chunk(sample)
        n_chunks = len(sample.content_s)
        held = (sample.row.n_input_tokens or 0) + np.arange(n_chunks) * per_chunk
        instants.append(np.asarray(sample.content_s, dtype=np.float64))
        counts.append(np.full(n_chunks, per_chunk))
        contexts.append(np.asarray(held * per_chunk, dtype=np.float64))
    return np.concatenate(instants), np.concatenate(counts), np.concatenate(contexts)


def _prefill_events(samples: Sequence[RequestSample]) -> tuple[Array, Array, Array]:
    """Return the instant of each first token, the prompt's tokens, and its attention work."""
    known = [s for s in samples if s.content_s and s.row.n_input_tokens is not None]
    lengths = np.asarray([float(sample.row.n_input_tokens or 0) for sample in known])
    instants = np.asarray([sample.content_s[0] for sample in known], dtype=np.float64)
    return instants, lengths, lengths**2 / 2
