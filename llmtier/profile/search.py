"""Find the highest rate that still meets the SLOs: which rate to try next, and when to stop.

A pure state machine: ``next_rate``, measure, ``note``, again. Doubles or halves from a start until one
rate meets and one does not, halves that bracket three times on the log scale, then goes where an
isotonic fit of the worst latency over its SLO crosses 1. Measures nothing itself; a rate may be of
any size, far below one request per second too.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from llmtier.stats.isotonic import isotonic

_FACTOR = 2.0
_N_HALVINGS = 3
_CLIP = math.log(4.0)  # a ratio of latency to SLO tells no more beyond 4
_NEVER = math.log(2.0)  # stands for the ratio of a rate that does not meet and has none
_STEP = 0.4  # of the gap allowed: how far beside the estimated crossing a probe goes, to close the bracket


class SearchEnd(StrEnum):
    """Why a search ended."""

    CLOSED = "the bracket is within the gap"
    BUDGET = "no probes left"
    ALL_MET = "every rate up to the highest allowed meets the SLOs"
    NONE_MET = "no rate down to the lowest allowed meets the SLOs"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found so far.

    Attributes:
        capacity_rps: The rate at which the fitted ratio of latency to SLO crosses 1, between the other two;
            the highest measured where every one met; ``None`` where none met.
        low_rps: Highest rate that met; ``None`` where none did.
        high_rps: Lowest rate that did not; ``None`` where every one met.
        reason: Why it ended; ``None`` while it runs.
        n_probes: Rates measured.
    """

    capacity_rps: float | None
    low_rps: float | None
    high_rps: float | None
    reason: SearchEnd | None
    n_probes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    rate_rps: float
    log_ratio: float  # > 0 does not meet


class SearchPlan:
    """Plans the probes of one search.

    Args:
        start_rps: First rate.
        min_rps: Lowest rate to try; likewise ``max_rps``, such as the client's own limit.
        max_gap: Ends when the rate that does not meet is within this share of the one that does.
        max_probes: Rates measured at most.
        confirmations: How often each end of the final bracket is measured at least: near saturation one run's
            95th percentile says little. An end that the others contradict moves, and the search goes on.

    Raises:
        ValueError: Unless 0 < min_rps <= start_rps <= max_rps, max_gap > 0, max_probes >= 1 and confirmations >= 1.
    """

    def __init__(
        self,
        start_rps: float,
        *,
        min_rps: float | None = None,
        max_rps: float = math.inf,
        max_gap: float = 0.03,
        max_probes: int = 24,
        confirmations: int = 2,
    ) -> None:
        self._min_rps = start_rps / 1024 if min_rps is None else min_rps
        if not (0 < self._min_rps <= start_rps <= max_rps and max_gap > 0 and max_probes >= 1 and confirmations >= 1):
            raise ValueError(
                "a search needs 0 < min_rps <= start_rps <= max_rps, max_gap > 0, max_probes >= 1 and confirmations >= 1"
            )
        self._start_rps = start_rps
        self._max_rps = max_rps
        self._max_gap = max_gap
        self._max_probes = max_probes
        self._confirmations = confirmations
        self._probes: list[_Probe] = []
        self._widths: list[float] = []  # log(high / low) before each probe inside the bracket

    def next_rate(self) -> float | None:
        """Return the next rate to measure; ``None`` when the search has ended."""
        if self._end() is not None:
            return None
        low, high = self._bracket()
        if low is None and high is None:
            return self._start_rps
        if high is None:
            return min(max(probe.rate_rps for probe in self._probes) * _FACTOR, self._max_rps)
        if low is None:
            return max(min(probe.rate_rps for probe in self._probes) / _FACTOR, self._min_rps)
        return self._inside(low, high) if self._is_open(low, high) else self._least_measured(low, high)

    def note(self, rate_rps: float, *, meets: bool, margin: float | None) -> None:
        """Take in what a rate did.

        Args:
            rate_rps: The rate asked for.
            meets: Whether the point may be believed and every SLO was met.
            margin: Worst latency over its SLO, above 1 when it does not meet; ``None`` when there is no
                such number, as for a point without a steady state.

        Raises:
            ValueError: The rate or the margin is not positive and finite.
        """
        if not (0 < rate_rps < math.inf and (margin is None or margin >= 0)):
            raise ValueError(f"a probe needs a positive rate and margin, got {rate_rps} and {margin}")
        low, high = self._bracket()
        if low is not None and high is not None and self._is_open(low, high):
            self._widths.append(math.log(high / low))
        self._probes.append(_Probe(rate_rps=rate_rps, log_ratio=_log_ratio(meets=meets, margin=margin)))

    @property
    def result(self) -> SearchResult:
        """What was found so far."""
        low, high = self._bracket()
        capacity = low if low is None or high is None else self._crossing(low, high)
        return SearchResult(
            capacity_rps=capacity, low_rps=low, high_rps=high, reason=self._end(), n_probes=len(self._probes)
        )

    def _end(self) -> SearchEnd | None:
        low, high = self._bracket()
        if low is not None and high is not None and self._is_confirmed(low, high):
            return SearchEnd.CLOSED
        if high is None and low is not None and low >= self._max_rps:
            return SearchEnd.ALL_MET
        if low is None and high is not None and high <= self._min_rps:
            return SearchEnd.NONE_MET
        return SearchEnd.BUDGET if len(self._probes) >= self._max_probes else None

    def _is_open(self, low: float, high: float) -> bool:
        return high / low - 1 >= self._max_gap

    def _is_confirmed(self, low: float, high: float) -> bool:
        if self._is_open(low, high):
            return False
        return self._n_at(self._least_measured(low, high)) >= self._confirmations

    def _least_measured(self, low: float, high: float) -> float:
        """Return the end of the bracket that was measured least often."""
        return min(low, high, key=self._n_at)

    def _n_at(self, rate_rps: float) -> int:
        return sum(probe.rate_rps == rate_rps for probe in self._probes)

    def _fit(self) -> list[_Probe]:
        """Return each measured rate, ascending, with the isotonic fit of its log ratio."""
        rates = np.array([probe.rate_rps for probe in self._probes])
        fitted = isotonic(rates, [probe.log_ratio for probe in self._probes])
        values = dict(zip(rates.tolist(), fitted.tolist(), strict=True))
        return [_Probe(rate_rps=rate, log_ratio=values[rate]) for rate in sorted(values)]

    def _bracket(self) -> tuple[float | None, float | None]:
        """Return the highest rate that meets and the lowest that does not, by the fit: noise can not cross them."""
        fit = self._fit()
        low = [probe.rate_rps for probe in fit if probe.log_ratio <= 0]
        high = [probe.rate_rps for probe in fit if probe.log_ratio > 0]
        return (low[-1] if low else None), (high[0] if high else None)

    def _crossing(self, low: float, high: float) -> float:
        """Return where the fit, a straight line of logarithms inside the bracket, crosses 1."""
        value = {probe.rate_rps: probe.log_ratio for probe in self._fit()}
        share = -value[low] / (value[high] - value[low])
        return min(max(low * math.exp(share * math.log(high / low)), low), high)

    def _inside(self, low: float, high: float) -> float:
        """Return a rate strictly inside the bracket: its middle, or just beyond the estimated crossing."""
        width = math.log(high / low)
        n = len(self._widths)
        is_slow = n >= _N_HALVINGS + 2 and width > 0.5 * self._widths[-2]  # the estimate does not help
        if n < _N_HALVINGS or is_slow:
            return math.sqrt(low * high)
        crossing = self._crossing(low, high)
        step = _STEP * math.log1p(self._max_gap)
        towards_high = self._probes[-1].log_ratio <= 0  # the last one met: now one that does not is wanted
        place = math.log(crossing / low) + (step if towards_high else -step)
        edge = min(step, width / 4)
        return low * math.exp(min(max(place, edge), width - edge))


def _log_ratio(*, meets: bool, margin: float | None) -> float:
    """Return the log of the margin, on the side of 1 that ``meets`` says."""
    value = math.log(max(margin, 1e-3)) if margin is not None else (-_NEVER if meets else _NEVER)
    value = min(max(value, -_CLIP), _CLIP)
    return min(value, 0.0) if meets else max(value, 1e-6)
