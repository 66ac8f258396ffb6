"""Sum up the requests of one load point: samples in, a LoadPoint out.

Pure. Latencies come from ``core.timing`` and count answered requests of the steady window only;
failures count over the whole point. ITL pools the gaps between content chunks of all requests, as
``vllm bench serve`` does; an engine that puts several tokens into a chunk has larger gaps than its
TPOT says.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llmtier.core.profile import LoadPoint
from llmtier.core.timing import RequestTiming
from llmtier.profile.gates import Limits, Readings, find_faults, sent_rates_rps
from llmtier.profile.sample import RequestSample
from llmtier.profile.window import Window, find_window
from llmtier.stats.bounds import series_quantile_bound
from llmtier.stats.quantiles import quantile

_SHARED = 3.0  # the least of 1, 1.5, 2, 3 with which bounds that are given hold in 95 % of simulated runs at 80 % load
_LEAST_DURATION_S = 1e-9  # a point of which every instant is one


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFacts:
    """What is known of a load point besides its requests.

    Attributes:
        shape: Label of the load shape.
        concurrency: Of a closed loop; ``None`` for any other.
        asked_rps: Arrival rate asked for; ``None`` for a closed loop or a shape that has no one rate.
        seed: Of arrivals and prompts.
        is_open: Whether requests came by a clock.
        confidence: Of the upper bounds.
        max_schedule_delay_s: Gate on the 99th percentile of sent minus scheduled.
        min_rate_share: Gate on the sent share of the scheduled rate.
        max_failed_share: Gate on failed requests, and on answers without usage.
        max_little: Gate on the residual of Little's law.
        suspended_s: How long the machine slept during the point.
    """

    shape: str
    concurrency: int | None
    asked_rps: float | None
    seed: int
    is_open: bool
    confidence: float = 0.95
    max_schedule_delay_s: float = 0.010
    min_rate_share: float = 0.95
    max_failed_share: float = 0.01
    max_little: float = 0.15
    suspended_s: float = 0.0


def summarize(samples: Sequence[RequestSample], facts: PointFacts) -> LoadPoint:
    """Return the load point that ``samples`` make up: all of one point in any order, warm-up and tail included.

    ``duration_s`` is such that answers over duration is the throughput of the window, where a request
    that began before it or ended after it counts by the share of its time inside: no drain dilutes
    it, and it does not matter where in a round of a closed loop the window begins.

    Raises:
        ValueError: No samples.
    """
    window = find_window(samples, is_open=facts.is_open)
    counted = [samples[i] for i in window.counted]
    answered = [sample for sample in counted if sample.is_ok]
    in_flight, residual = _little(samples, counted, window)
    readings = Readings(
        window=window,
        little_residual=residual,
        mean_in_flight=in_flight,
        is_open=facts.is_open,
        suspended_s=facts.suspended_s,
    )
    measured = [sample for sample in samples if not sample.is_warmup]
    rates = sent_rates_rps(measured) if facts.is_open else None
    delays_s = [sample.row.sent_s - sample.row.scheduled_s for sample in measured]
    return LoadPoint(
        **_latencies([sample.timing for sample in answered], facts, in_flight),
        concurrency=facts.concurrency,
        n_ok=len(answered),
        n_failed=sum(not sample.is_ok for sample in measured),
        duration_s=_duration_s(samples, len(answered), window),
        mean_input_tokens=_mean(sample.row.n_input_tokens for sample in answered),
        mean_output_tokens=_mean(sample.row.n_output_tokens for sample in answered),
        shape=facts.shape,
        asked_rps=facts.asked_rps,
        achieved_rps=None if rates is None else rates[0],
        n_sent=len(samples),
        is_steady=window.is_steady,
        little_residual=residual,
        mean_in_flight=in_flight,
        schedule_delay_p50_s=quantile(delays_s, 0.50),
        schedule_delay_p99_s=quantile(delays_s, 0.99),
        bound_confidence=facts.confidence,
        invalid=find_faults(samples, readings, _limits(facts)),
        seed=facts.seed,
    )


def _limits(facts: PointFacts) -> Limits:
    return Limits(
        schedule_delay_s=facts.max_schedule_delay_s,
        rate_share=facts.min_rate_share,
        failed_share=facts.max_failed_share,
        little=facts.max_little,
    )


def _latencies(timings: Sequence[RequestTiming], facts: PointFacts, in_flight: float | None) -> dict[str, float | None]:
    """Return every latency field of a load point from the timings in the order they were scheduled.

    For the bounds of an open loop, as many requests count as one as three times are in flight: those
    share one swing of the load. A closed loop's load does not swing.
    """
    series: dict[str, list[float]] = {
        "ttft": _known(timings, lambda timing: timing.ttft_s),
        "tpot": _known(timings, lambda timing: timing.tpot_s),
        "e2el": _known(timings, lambda timing: timing.e2el_s),
        "itl": [gap_s for timing in timings for gap_s in timing.itl_s],
        "ttft_from_send": _known(timings, lambda timing: timing.ttft_from_send_s),
        "e2el_from_send": _known(timings, lambda timing: timing.e2el_from_send_s),
    }
    fields: dict[str, float | None] = {}
    for name, values in series.items():
        fields[f"{name}_p50_s"] = quantile(values, 0.50)
        fields[f"{name}_p95_s"] = quantile(values, 0.95)
    least_time = _SHARED * in_flight if facts.is_open and in_flight is not None else 1.0
    for name in ("ttft", "tpot", "e2el"):
        fields[f"{name}_p95_high_s"] = series_quantile_bound(
            series[name], 0.95, facts.confidence, least_time=least_time
        )
    return fields


def _duration_s(samples: Sequence[RequestSample], n_ok: int, window: Window) -> float:
    """Return the seconds in which as many requests as the window counts are served at the window's throughput."""
    span_s = max(window.end_s - window.start_s, _LEAST_DURATION_S)
    served = sum(_share(sample, window) for sample in samples if sample.is_ok)
    return span_s * n_ok / served if n_ok and served > 0 else span_s


def _little(
    samples: Sequence[RequestSample], counted: Sequence[RequestSample], window: Window
) -> tuple[float | None, float | None]:
    """Return the mean number in flight over the window, and how far lambda times W is from it, as a share of it."""
    span_s = window.end_s - window.start_s
    if span_s <= 0 or not counted:
        return None, None
    in_flight = sum(_inside_s(sample, window) for sample in samples) / span_s
    arrived = sum(sample.row.done_s - sample.row.sent_s for sample in counted) / span_s  # lambda W
    return in_flight, (in_flight - arrived) / in_flight if in_flight > 0 else None


def _inside_s(sample: RequestSample, window: Window) -> float:
    return max(min(sample.row.done_s, window.end_s) - max(sample.row.sent_s, window.start_s), 0.0)


def _share(sample: RequestSample, window: Window) -> float:
    """Return the share of a request's time that lies inside the window."""
    lived_s = sample.row.done_s - sample.row.sent_s
    if lived_s <= 0:
        return float(window.start_s <= sample.row.sent_s < window.end_s)
    return _inside_s(sample, window) / lived_s


def _known(timings: Sequence[RequestTiming], of: Callable[[RequestTiming], float | None]) -> list[float]:
    return [value for value in map(of, timings) if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
