"""What makes a load point unfit to be believed: one clear line per gate, with the two numbers.

Reads the requests of one point and what was found of its window; returns faults, empty when there
is none. Measures the client and the machine as much as the engine; changes no number.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtier.profile.sample import RequestSample
from llmtier.profile.window import LEAST_ANSWERS, Window
from llmtier.stats.quantiles import quantile

_STILL_S = 5.0  # without any event while requests are in flight; a prefill of a long prompt may take as long,
_STILL_RATIO = 10.0  # so it must also be this often the next longest pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where each gate closes.

    Attributes:
        schedule_delay_s: Most that the 99th percentile of sent minus scheduled may be.
        delay_share: Or this share of the median TTFT where that is more (docs/decisions/008).
        rate_share: Least of the scheduled rate that must have been sent.
        failed_share: Most requests that may fail or lack usage.
        little: Most that the residual of Little's law may be, besides the requests cut by the window's edges.
        suspended_s: Most that the machine may have slept.
        n_ok: Fewest answers in the window.
    """

    schedule_delay_s: float = 0.010
    delay_share: float = 0.1
    rate_share: float = 0.95
    failed_share: float = 0.01
    little: float = 0.15
    suspended_s: float = 0.5
    n_ok: int = LEAST_ANSWERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What the gates look at besides the requests.

    Attributes:
        window: Of the point.
        little_residual: (L - lambda W) / L over the window; ``None`` when undetermined.
        mean_in_flight: Over the window; likewise ``None``.
        is_open: Whether requests came by a clock.
        suspended_s: How long the machine slept meanwhile.
    """

    window: Window
    little_residual: float | None
    mean_in_flight: float | None
    is_open: bool
    suspended_s: float = 0.0


def find_faults(samples: Sequence[RequestSample], readings: Readings, limits: Limits) -> tuple[str, ...]:
    """Return why the point must not be believed, the gravest first; empty when it may."""
    measured = [sample for sample in samples if not sample.is_warmup]
    n_ok = sum(samples[i].is_ok for i in readings.window.counted)
    found = (
        _find_failures(measured, limits),
        None if n_ok >= limits.n_ok else f"{n_ok} answers in the window, fewer than the {limits.n_ok} needed",
        None if readings.window.reason is None else f"no steady state: {readings.window.reason}",
        _find_delay(measured, limits),
        _find_lag(measured, limits) if readings.is_open else None,
        _find_imbalance(readings, limits),
        _find_missing_usage(measured, limits),
        _find_sleep(samples, readings, limits),
    )
    return tuple(fault for fault in found if fault is not None)


def failure_counts(samples: Sequence[RequestSample]) -> dict[str, int]:
    """Return how many requests failed by status, the most frequent first; warm-up left out."""
    counts = Counter(sample.row.status for sample in samples if not (sample.is_ok or sample.is_warmup))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def sent_rates_rps(samples: Sequence[RequestSample]) -> tuple[float, float] | None:
    """Return the rate that was sent and the rate that was scheduled; ``None`` for fewer than 2 instants."""
    scheduled_s = [sample.row.scheduled_s for sample in samples]
    sent_s = [sample.row.sent_s for sample in samples]
    if len(samples) < 2 or min(scheduled_s) == max(scheduled_s) or min(sent_s) == max(sent_s):
        return None
    n_gaps = len(samples) - 1
    return n_gaps / (max(sent_s) - min(sent_s)), n_gaps / (max(scheduled_s) - min(scheduled_s))


def _find_failures(measured: Sequence[RequestSample], limits: Limits) -> str | None:
    counts = failure_counts(measured)
    n_failed = sum(counts.values())
    if n_failed <= limits.failed_share * len(measured):
        return None
    kinds = ", ".join(f"{status} x{n}" for status, n in counts.items())
    return f"{n_failed} of {len(measured)} requests failed, more than {limits.failed_share:.0%}: {kinds}"


def _find_delay(measured: Sequence[RequestSample], limits: Limits) -> str | None:
    delay_s = quantile([sample.row.sent_s - sample.row.scheduled_s for sample in measured], 0.99)
    ttft_s = quantile([s.content_s[0] - s.row.sent_s for s in measured if s.is_ok and s.content_s], 0.5)
    limit_s = max(limits.schedule_delay_s, limits.delay_share * (ttft_s or 0.0))
    if delay_s is None or delay_s <= limit_s:
        return None
    return f"p99 schedule delay is {delay_s * 1000:.3g} ms, more than {limit_s * 1000:.3g} ms: the client was late"


def _find_lag(measured: Sequence[RequestSample], limits: Limits) -> str | None:
    rates = sent_rates_rps(measured)
    if rates is None or rates[0] >= limits.rate_share * rates[1]:
        return None
    return f"{rates[0]:.4g} requests/s were sent of {rates[1]:.4g} scheduled, less than {limits.rate_share:.0%}"


def _find_imbalance(readings: Readings, limits: Limits) -> str | None:
    """Compare with Little's law; the window's edges may cut as many requests as are in flight."""
    residual, in_flight = readings.little_residual, readings.mean_in_flight
    if residual is None or in_flight is None:
        return None
    limit = limits.little + in_flight / max(len(readings.window.counted), 1)
    if abs(residual) <= limit:
        return None
    return f"Little's law is off by {residual:+.0%} of the requests in flight, more than {limit:.0%}"


def _find_missing_usage(measured: Sequence[RequestSample], limits: Limits) -> str | None:
    answered = [sample for sample in measured if sample.is_ok]
    n_missing = sum(sample.row.n_output_tokens is None for sample in answered)
    if n_missing <= limits.failed_share * len(answered):
        return None
    return f"{n_missing} of {len(answered)} answers reported no usage, more than {limits.failed_share:.0%}"


def _find_sleep(samples: Sequence[RequestSample], readings: Readings, limits: Limits) -> str | None:
    if readings.suspended_s > limits.suspended_s:
        return f"the machine slept for {readings.suspended_s:.3g} s, more than {limits.suspended_s:.3g} s"
    pauses_s = _pauses_s(samples)
    longest_s, next_s = float(pauses_s[-1]), float(pauses_s[-2])
    if longest_s <= max(_STILL_S, _STILL_RATIO * next_s):
        return None
    return f"nothing happened for {longest_s:.3g} s with requests in flight, otherwise {next_s:.2g} s at most: engine or machine stood still"


def _pauses_s(samples: Sequence[RequestSample]) -> NDArray[np.float64]:
    """Return the gaps between events with a request in flight, ascending and two at least."""
    sent_s = [sample.row.sent_s for sample in samples]
    done_s = [sample.row.done_s for sample in samples]
    content_s = [instant_s for sample in samples for instant_s in sample.content_s]
    instants_s = np.array(sent_s + content_s + done_s)
    change = np.repeat([1, 0, -1], [len(sent_s), len(content_s), len(done_s)])
    order = np.argsort(instants_s, kind="stable")
    in_flight = np.cumsum(change[order])[:-1]
    return np.concatenate([[0.0, 0.0], np.sort(np.diff(instants_s[order])[in_flight > 0])])
