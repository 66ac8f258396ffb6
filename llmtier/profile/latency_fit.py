"""Fit a tier's latency model: step times first, then what a first token waits for, then the residuals.

Reads the requests of measured loads; returns a ``LatencyModel``. Three stages, each on what the one before
left over: step coefficients by non-negative least squares on intervals between tokens (``step_rows``), relative to
their length, so that short answers count as much as long ones; the frontend's time and the wait for the running step
by the same method on first tokens, given the ledger's state at arrival; quantiles of log(observed / predicted)
on loads that fitted nothing (split-conformal rank: Lei et al., JASA 113, 2018).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.core.latency_model import DomainBox, LatencyModel, LoadState, Metric, ResidualBucket, StepModel
from llmtier.profile.ledger_view import rebuild_states
from llmtier.profile.sample import RequestSample
from llmtier.profile.step_rows import STEP_COLUMNS, BusyTimes, StepRows, step_rows
from llmtier.stats.nonnegative import NonnegativeFit, fit_nonnegative

Array = NDArray[np.float64]

LEVELS = (0.05, 0.5, 0.9, 0.95, 0.99)
"""Quantiles of the residuals that a model carries."""

MIN_ROWS = 30
_POOLED_LEVEL = 0.95  # the one that the router asks for
_MIN_BUCKET = 100  # below it a 95 % quantile is hardly more than the largest value
_MAX_BUCKETS = 4
_OUTLIER = 4.0  # median absolute deviations
_N_PASSES = 3
_ATTENTION, _SEQUENCES = STEP_COLUMNS.index("attention_s_per_token2"), STEP_COLUMNS.index("sequence_s")
_SURE = 3.0  # standard errors
_LAG_PARTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One measured load.

    Attributes:
        samples: Every request, warm-up included.
        co_tenants: When the other tiers on the device were busy, by name.
    """

    samples: Sequence[RequestSample]
    co_tenants: Mapping[str, BusyTimes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One answered request with the state that it met; ``tpot_s`` is ``None`` for a single token."""

    state: LoadState
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float | None
    e2el_s: float

    def observed(self, metric: Metric) -> float | None:
        """Return what was measured."""
        return {Metric.TTFT: self.ttft_s, Metric.TPOT: self.tpot_s, Metric.E2EL: self.e2el_s}[metric]

    def predicted(self, model: LatencyModel, metric: Metric) -> float:
        """Return what the model says, without residual."""
        match metric:
            case Metric.TTFT:
                return model.ttft_s(self.state, input_tokens=self.input_tokens)
            case Metric.TPOT:
                return model.tpot_s(self.state, input_tokens=self.input_tokens, output_tokens=self.output_tokens)
            case Metric.E2EL:
                return model.e2el_s(self.state, input_tokens=self.input_tokens, output_tokens=self.output_tokens)


def fit_latency(
    fit: Sequence[Load], calibration: Sequence[Load], *, max_batched_tokens: int | None = None
) -> LatencyModel:
    """Return the model of one tier.

    Args:
        fit: Loads that vary prompt length, context and concurrency independently.
        calibration: Loads like those that will be served, for the residuals; ``fit`` itself when empty.
        max_batched_tokens: Prompt tokens that one step of the engine takes; ``None`` when unknown.

    Raises:
        InputFileError: Too few answers with reported token counts to fit from.
    """
    names = sorted({name for load in fit for name in load.co_tenants})
    observations = [seen for load in fit for seen in observe(load)]
    rows = _stack([step_rows(load.samples, _in_order(load, names)) for load in fit])
    if len(rows.target_s) < MIN_ROWS or len(observations) < MIN_ROWS:
        raise InputFileError(
            f"{len(rows.target_s)} answers of 4 tokens or more with reported usage are too few for a latency model, "
            f"which needs {MIN_ROWS}; raise load.requests_per_point or load.max_tokens"
        )
    coefficients = _fit_trimmed(rows)
    base = LatencyModel(
        step=StepModel(**dict(zip(STEP_COLUMNS, coefficients[: len(STEP_COLUMNS)], strict=True))),
        frontend_s=0.0,
        frontend_s_per_token=0.0,
        wait_share=0.5,
        mean_input_tokens=_mean(seen.input_tokens for seen in observations),
        mean_output_tokens=_mean(seen.output_tokens for seen in observations),
        domain=_domain(observations),
        n_fit=len(observations),
        max_batched_tokens=max_batched_tokens,
        max_sequences=find_max_sequences(fit),
        co_tenants=tuple(zip(names, coefficients[len(STEP_COLUMNS) :], strict=True)),
    )
    judged = [seen for load in calibration for seen in observe(load)] or observations
    waiting = _fit_first_token(base, observations)
    return replace(waiting, residuals=tuple(_residuals(waiting, judged)))


def observe(load: Load) -> list[Observation]:
    """Return every answered, counted request of a load with usage, and the state it met."""
    states = rebuild_states(load.samples)
    shares = {name: load.co_tenants[name] for name in sorted(load.co_tenants)}
    return [
        seen
        for sample, state in zip(load.samples, states, strict=True)
        if not sample.is_warmup and (seen := _observe_one(sample, _with_co_tenants(state, sample, shares))) is not None
    ]


def find_max_sequences(loads: Iterable[Load]) -> int | None:
    """Return how many requests the engine decodes at once, where a load ran into that limit; else ``None``.

    Looked at where answers end: an arrival of a closed loop comes just when a place is free.
    """
    counts = [pair for load in loads for pair in _count_at_ends(load.samples)]
    most = max((n_decoding for n_decoding, _ in counts), default=0)
    n_full = sum(n_decoding == most and n_waiting > most // 2 + 1 for n_decoding, n_waiting in counts)
    return most if n_full >= MIN_ROWS else None


def _count_at_ends(samples: Sequence[RequestSample]) -> list[tuple[int, int]]:
    """Return, at the last token of each request, how many get a token then and how many wait for their first."""
    begun = [sample for sample in samples if sample.content_s]
    sent_s = np.sort([sample.row.sent_s for sample in begun])
    first_s = np.sort([sample.content_s[0] for sample in begun])
    last_s = np.sort([sample.content_s[-1] for sample in begun])
    n_begun = np.searchsorted(first_s, last_s, side="right")
    n_decoding = n_begun - np.searchsorted(last_s, last_s, side="left")
    n_waiting = np.searchsorted(sent_s, last_s, side="left") - n_begun
    return list(zip(n_decoding.tolist(), n_waiting.tolist(), strict=True))


def _observe_one(sample: RequestSample, state: LoadState) -> Observation | None:
    row, timing = sample.row, sample.timing
    if not sample.is_ok or row.n_input_tokens is None or row.n_output_tokens is None or not row.n_output_tokens:
        return None
    if timing.ttft_s is None or timing.e2el_s is None:
        return None
    return Observation(
        state=state,
        input_tokens=row.n_input_tokens,
        output_tokens=row.n_output_tokens,
        ttft_s=timing.ttft_s,
        tpot_s=timing.tpot_s,
        e2el_s=timing.e2el_s,
    )


def _with_co_tenants(state: LoadState, sample: RequestSample, tenants: Mapping[str, BusyTimes]) -> LoadState:
    """Add whether each co-tenant was busy when the request was sent."""
    if not tenants:
        return state
    now_s = sample.row.sent_s
    return replace(
        state,
        co_tenants=tuple((name, float(times.between(now_s - 1e-6, now_s) > 0)) for name, times in tenants.items()),
    )


def _in_order(load: Load, names: Sequence[str]) -> dict[str, BusyTimes]:
    idle = BusyTimes(starts_s=np.empty(0), ends_s=np.empty(0))
    return {name: load.co_tenants.get(name, idle) for name in names}


def _stack(rows: Sequence[StepRows]) -> StepRows:
    return StepRows(
        design=np.concatenate([part.design for part in rows]), target_s=np.concatenate([part.target_s for part in rows])
    )


def _fit_trimmed(rows: StepRows) -> list[float]:
    """Fit relative errors; leave out, again and again, what lies far off: steps in which the machine did something else.

    Errors are relative to what the fit of before says: relative to the measured time itself, a step that
    happened to be short would count for more, and every coefficient would come out low.
    """
    kept = rows.target_s > 0
    expected_s = np.where(kept, rows.target_s, 1.0)
    used = np.ones(rows.design.shape[1], dtype=bool)
    coefficients = np.zeros(used.size)
    for _ in range(_N_PASSES):
        found = fit_nonnegative(rows.design[np.ix_(kept, used)], rows.target_s[kept], 1.0 / expected_s[kept] ** 2)
        coefficients[:] = 0.0
        coefficients[used] = found.coefficients
        used[_ATTENTION] &= _is_sure_of_attention(found, used, rows)
        expected_s = np.maximum(rows.design @ coefficients, 1e-9)
        kept = (rows.target_s > 0) & _is_near(rows.target_s / expected_s - 1.0)
    return [float(value) for value in coefficients]


def _is_sure_of_attention(found: NonnegativeFit, used: NDArray[np.bool_], rows: StepRows) -> bool:
    """Tell whether prefill attention is more than noise; if not, it would take its share from the prompt's tokens.

    Every sequence of a step has a row of that step, so the rows are worth fewer than they are.
    """
    if not used[_ATTENTION] or found.covariance is None:
        return False
    place = int(used[:_ATTENTION].sum())
    n_sequences = max(float(rows.design[:, _SEQUENCES].sum() / rows.design[:, 0].sum()), 1.0)
    error = math.sqrt(float(found.covariance[place, place]) * n_sequences)
    return float(found.coefficients[place]) > _SURE * error


def _fit_first_token(model: LatencyModel, observations: Sequence[Observation]) -> LatencyModel:
    """Return the model with the frontend's time and the wait for a step.

    The lag before the scheduler is tried in twentieths of what a lone request takes outside its step; the rest follows
    by least squares. The lag with the least mean relative error stays.
    """
    alone = [
        seen.ttft_s - model.ttft_s(seen.state, input_tokens=seen.input_tokens)
        for seen in observations
        if seen.state.n_in_flight == 0
    ]
    most_s = max(float(np.median(alone)), 0.0) if alone else 0.0
    lags_s = sorted({most_s * part / _LAG_PARTS for part in range(_LAG_PARTS + 1)})
    fits = [_fit_frontend(replace(model, lag_s=lag_s), observations) for lag_s in lags_s]
    return min(fits, key=lambda fit: fit[0])[1]


def _fit_frontend(model: LatencyModel, observations: Sequence[Observation]) -> tuple[float, LatencyModel]:
    """Return the mean relative error of the best frontend for this lag, and the model with it."""
    known = np.asarray([model.ttft_s(seen.state, input_tokens=seen.input_tokens) for seen in observations])
    steps = [0.0 if seen.state.n_in_flight == 0 else model.running_step_s(seen.state) for seen in observations]
    lengths = [float(seen.input_tokens) for seen in observations]
    design = np.column_stack([np.ones(len(known)), lengths, steps])
    target = np.maximum([seen.ttft_s for seen in observations], 1e-6)
    left = target - known
    kept = np.ones(len(known), dtype=bool)
    found = np.zeros(3)
    for _ in range(_N_PASSES):
        found = fit_nonnegative(design[kept], left[kept], 1.0 / target[kept] ** 2).coefficients
        kept = _is_near((left - design @ found) / target)
    error = float(np.abs((left - design @ found) / target).mean())
    frontend_s, per_token_s, ahead = (float(value) for value in found)
    return error, replace(model, frontend_s=frontend_s, frontend_s_per_token=per_token_s, wait_share=0.5 + ahead)


def _residuals(model: LatencyModel, observations: Sequence[Observation]) -> Iterable[ResidualBucket]:
    """Yield quantiles of log(observed / predicted) per metric and range of requests in flight.

    A range whose upper quantile lies below that of a lower load is pooled with it: more load is never predicted
    faster, and pooling, unlike a running maximum, keeps the coverage.
    """
    edges = _bucket_edges([seen.state.n_in_flight for seen in observations])
    for metric in Metric:
        pools: list[tuple[int | None, list[float]]] = []
        previous = -1
        for edge in edges:
            inside = [seen for seen in observations if _is_between(seen.state.n_in_flight, previous, edge)]
            previous = previous if edge is None else edge
            pools.append((edge, list(_log_ratios(model, metric, inside))))
            while len(pools) > 1 and _upper(pools[-1][1]) < _upper(pools[-2][1]):
                (edge_above, above), (_, below) = pools.pop(), pools.pop()
                pools.append((edge_above, below + above))
        yield from (_to_bucket(metric, edge, ratios) for edge, ratios in pools if ratios)


def _is_between(n: int, above: int, up_to: int | None) -> bool:
    return n > above and (up_to is None or n <= up_to)


def _upper(ratios: Sequence[float]) -> float:
    return _conformal(sorted(ratios), _POOLED_LEVEL) if ratios else math.inf


def _to_bucket(metric: Metric, edge: int | None, ratios: Sequence[float]) -> ResidualBucket:
    ascending = sorted(ratios)
    quantiles = tuple((level, _conformal(ascending, level)) for level in LEVELS)
    return ResidualBucket(metric=metric, max_in_flight=edge, n=len(ratios), quantiles=quantiles)


def _log_ratios(model: LatencyModel, metric: Metric, observations: Iterable[Observation]) -> Iterable[float]:
    for seen in observations:
        observed, predicted = seen.observed(metric), seen.predicted(model, metric)
        if observed is not None and observed > 0 and predicted > 0:
            yield math.log(observed / predicted)


def _conformal(ascending: Sequence[float], level: float) -> float:
    """Return the value of rank ceil((n + 1) level): a new one lies at or below it with at least that probability."""
    rank = math.ceil((len(ascending) + 1) * level) if level > 0.5 else round((len(ascending) - 1) * level) + 1
    return ascending[min(max(rank, 1), len(ascending)) - 1]


def _bucket_edges(counts: Sequence[int]) -> list[int | None]:
    """Return upper edges that part the requests evenly, the last one open."""
    n_buckets = max(min(len(counts) // _MIN_BUCKET, _MAX_BUCKETS), 1)
    ordered = sorted(counts)
    cuts = {ordered[len(ordered) * index // n_buckets] for index in range(1, n_buckets)} if ordered else set()
    return [*(cut for cut in sorted(cuts) if cut < ordered[-1]), None]


def _is_near(errors: Array) -> NDArray[np.bool_]:
    centre = float(np.median(errors))
    spread = float(np.median(np.abs(errors - centre)))
    return np.asarray(np.abs(errors - centre) <= max(_OUTLIER * 1.4826 * spread, 1e-6))


def _domain(observations: Sequence[Observation]) -> DomainBox:
    def box(values: Sequence[float]) -> tuple[float, float]:
        return (float(min(values)), float(max(values)))

    return DomainBox(
        input_tokens=box([seen.input_tokens for seen in observations]),
        output_tokens=box([seen.output_tokens for seen in observations]),
        n_in_flight=box([seen.state.n_in_flight for seen in observations]),
    )


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
