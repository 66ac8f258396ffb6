"""The part of a load point in which the load lasted and the latencies had settled.

Reads the requests of one point, returns which of them count and since when; computes no latency
percentile and judges no other gate. The start is MSER-5's, the later of TTFT and E2EL, where what
lies before it surely differs. The end is the schedule of the oldest request that was still on the
engine when the load began to fall: so every counted request lived under full load, and none is left
out for being long.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.profile.sample import RequestSample
from llmtier.stats.series import correlation
from llmtier.stats.steady import mser5_start

Series = NDArray[np.float64]

LEAST_ANSWERS = 20  # MSER-5 needs four batches of five
_APART = 6.0  # standard errors: the cut is chosen where the difference is largest, the rest is the calmer part
_LEAST_CHANGE = 0.05  # of the mean: 30 us of 1.3 ms is sure on an engine that hardly scatters, and of no interest
_TREND_BATCHES = 10
_TREND_LEVEL = 0.995  # one-sided: batch means are not quite independent, and up to three series are looked at
_LEAST_RISE = 0.5  # of the mean, over the window; a queue that grows from nothing rises by twice its mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What counts of a load point.

    Attributes:
        counted: Positions of the counted samples, in the order they were scheduled, failures among them.
        start_s: Schedule of the first.
        end_s: Schedule of the first that counts no more, or the last end where all count.
        is_steady: Whether the latencies settled and the queue did not grow; ``None`` when too few answered to tell.
        reason: Why not, with the numbers.
    """

    counted: tuple[int, ...]
    start_s: float
    end_s: float
    is_steady: bool | None
    reason: str | None = None


def find_window(samples: Sequence[RequestSample], *, is_open: bool) -> Window:
    """Return the steady window of one load point; without one, everything up to the end of the load.

    Args:
        samples: All requests of the point in any order, warm-up included.
        is_open: Whether requests came by a clock rather than as others ended.

    Raises:
        ValueError: No samples.
    """
    if not samples:
        raise ValueError("a window needs samples")
    order = sorted(range(len(samples)), key=lambda i: (samples[i].row.scheduled_s, samples[i].row.sent_s, i))
    measured = [i for i in order if not samples[i].is_warmup]
    end_s = _load_end_s(samples, is_open=is_open)
    lived = [i for i in measured if samples[i].row.scheduled_s < end_s]
    if not any(samples[i].is_ok for i in lived):
        too_short = "no answered request lived wholly under the full load; send more requests"
        return _make_window(samples, measured, end_s=math.inf, is_steady=None, reason=too_short)
    n_cut, unsettled = _find_start([samples[i] for i in lived])
    kept = lived[n_cut:]
    reason = unsettled or _find_growth(samples, kept, is_open=is_open)
    is_steady = None if sum(samples[i].is_ok for i in lived) < LEAST_ANSWERS else reason is None
    return _make_window(samples, kept, end_s=end_s, is_steady=is_steady, reason=reason)


def _make_window(
    samples: Sequence[RequestSample],
    counted: Sequence[int],
    *,
    end_s: float,
    is_steady: bool | None,
    reason: str | None,
) -> Window:
    rows = [samples[i].row for i in counted or range(len(samples))]
    return Window(
        counted=tuple(counted),
        start_s=min(row.scheduled_s for row in rows),
        end_s=end_s if math.isfinite(end_s) else max(row.done_s for row in rows),
        is_steady=is_steady,
        reason=reason,
    )


def _load_end_s(samples: Sequence[RequestSample], *, is_open: bool) -> float:
    """Return the schedule of the oldest answered request that outlived the full load; infinite if none did.

    The full load of an open loop lasts until its last arrival, that of a closed loop until a worker
    ends a request and has no next one to send.
    """
    last_s = max(sample.row.scheduled_s if is_open else sample.row.sent_s for sample in samples)
    if not is_open:
        last_s = min((sample.row.done_s for sample in samples if sample.row.done_s > last_s), default=last_s)
    return min((s.row.scheduled_s for s in samples if s.is_ok and s.row.done_s > last_s), default=math.inf)


def _find_start(samples: Sequence[RequestSample]) -> tuple[int, str | None]:
    """Return how many samples to cut at the start, and why there is no steady state."""
    answered = [i for i, sample in enumerate(samples) if sample.is_ok and sample.content_s]
    if len(answered) < LEAST_ANSWERS:
        return 0, None
    starts: list[int] = []
    for name, series in _latencies([samples[i] for i in answered]).items():
        start = mser5_start(series)
        if start is None:
            middle = series.size // 2
            if not _is_apart(series, middle):  # of noise alone, MSER-5 finds no cut in 16 % of series of 40, 7 % of 60
                starts.append(0)
                continue
            early, late = float(series[:middle].mean()), float(series[middle:].mean())
            return (
                0,
                f"{name} had not settled by half of the window: {_seconds(early)} in the first half, {_seconds(late)} in the second",
            )
        starts.append(start if _is_apart(series, start) else 0)
    n_cut = max(starts)
    return (answered[n_cut] if n_cut else 0), None


def _is_apart(series: Series, start: int) -> bool:
    """Tell whether what lies before ``start`` surely and notably differs from the rest.

    Without this the cut takes busy spells at the start for a warm-up, and is biased: by -2 % of the mean
    and -4 % of the 95th percentile at 80 % load of a simulated engine.
    """
    early, rest = series[:start], series[start:]
    if start == 0:
        return False
    change = abs(float(early.mean() - rest.mean()))
    variance = float(rest.var()) * correlation(rest).time * (1 / early.size + 1 / rest.size)
    return change > _LEAST_CHANGE * abs(float(rest.mean())) and change > _APART * math.sqrt(variance)


def _find_growth(samples: Sequence[RequestSample], counted: Sequence[int], *, is_open: bool) -> str | None:
    """Return which series kept growing to the end of the window, if any: more came than the engine serves."""
    answered = [samples[i] for i in counted if samples[i].is_ok and samples[i].content_s]
    if len(answered) < LEAST_ANSWERS:
        return None
    for name, series in _latencies(answered).items():
        if rise := _rise(series):
            return f"{name} kept growing, {_seconds(rise[0])} to {_seconds(rise[1])} over the window"
    if is_open and (rise := _rise(_in_flight(samples, counted))):
        return f"requests in flight kept growing, {rise[0]:.3g} to {rise[1]:.3g} over the window"
    return None


def _latencies(samples: Sequence[RequestSample]) -> dict[str, Series]:
    rows = [
        (sample.content_s[0] - sample.row.scheduled_s, sample.content_s[-1] - sample.row.scheduled_s)
        for sample in samples
    ]
    ttft_s, e2el_s = np.array(rows, dtype=np.float64).T
    return {"TTFT": ttft_s, "E2EL": e2el_s}


def _in_flight(samples: Sequence[RequestSample], counted: Sequence[int]) -> Series:
    """Return how many requests each counted one met."""
    sent_s = np.sort([sample.row.sent_s for sample in samples])
    done_s = np.sort([sample.row.done_s for sample in samples])
    arrived_s = np.array([samples[i].row.sent_s for i in counted])
    met = np.searchsorted(sent_s, arrived_s, side="left") - np.searchsorted(done_s, arrived_s, side="right")
    return np.asarray(met, dtype=np.float64)


def _rise(series: Series) -> tuple[float, float] | None:
    """Return the first and last value of a straight line through batch means that surely and notably rises."""
    from scipy.special import stdtrit

    means = np.array([batch.mean() for batch in np.array_split(series, _TREND_BATCHES)])
    place = np.arange(_TREND_BATCHES) - (_TREND_BATCHES - 1) / 2
    slope = float(place @ means / (place @ place))
    errors = means - means.mean() - slope * place
    error = math.sqrt(float(errors @ errors) / (_TREND_BATCHES - 2) / float(place @ place))
    half_rise = slope * _TREND_BATCHES / 2
    is_sure = slope > float(stdtrit(_TREND_BATCHES - 2, _TREND_LEVEL)) * error
    if not is_sure or 2 * half_rise <= _LEAST_RISE * float(means.mean()):
        return None
    return max(float(means.mean()) - half_rise, 0.0), float(means.mean()) + half_rise


def _seconds(value_s: float) -> str:
    return f"{value_s:.3g} s"
