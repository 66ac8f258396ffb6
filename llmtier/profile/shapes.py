"""When requests are sent: load shapes, and the scheduled instants that they lead to.

Pure: a shape, a count and a random generator in, ascending offsets out. What is sent is
``workload``'s matter, sending is ``load``'s; ``shape_text`` reads the shapes that people type.

Rates are requests per second and may lie far below 1. Random gaps are never rescaled to hit
the asked mean exactly: that would take the variance of a real arrival process away.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray

Offsets: TypeAlias = NDArray[np.float64]
"""Seconds from the begin of a load to each scheduled instant, ascending, shape (n,)."""


class RampKind(StrEnum):
    """How a ramp's rate moves: by equal steps or by equal factors."""

    LINEAR = "linear"
    EXPONENTIAL = "exponential"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """Keep ``concurrency`` requests in flight: each answer lets the next request go."""

    concurrency: int

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"a closed loop needs a concurrency of at least 1, got {self.concurrency}")

    @property
    def label(self) -> str:
        """Return its name, which ``parse_shape`` reads back."""
        return f"closed:{self.concurrency}"

    @property
    def rate_rps(self) -> None:
        """Return ``None``: the engine's pace decides the rate."""
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantRate:
    """Send at equal gaps of ``1 / rate_rps``."""

    rate_rps: float

    def __post_init__(self) -> None:
        _check_positive(self.rate_rps, "rate")

    @property
    def label(self) -> str:
        """Return its name, which ``parse_shape`` reads back."""
        return f"constant:{format_number(self.rate_rps)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonRate:
    """Send as a Poisson process: independent exponential gaps, as many unrelated users do."""

    rate_rps: float

    def __post_init__(self) -> None:
        _check_positive(self.rate_rps, "rate")

    @property
    def label(self) -> str:
        """Return its name, which ``parse_shape`` reads back."""
        return f"poisson:{format_number(self.rate_rps)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaRate:
    """Send with Gamma gaps, whose coefficient of variation is ``1 / sqrt(burstiness)``.

    Attributes:
        rate_rps: Mean rate.
        burstiness: Shape of the Gamma law, as in ``vllm bench serve --burstiness``: 1 is Poisson, below 1
            comes in bursts, large is nearly constant.
    """

    rate_rps: float
    burstiness: float

    def __post_init__(self) -> None:
        _check_positive(self.rate_rps, "rate")
        _check_positive(self.burstiness, "burstiness")

    @property
    def label(self) -> str:
        """Return its name, which ``parse_shape`` reads back."""
        return f"gamma:{format_number(self.rate_rps)},{format_number(self.burstiness)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """Send as a Poisson process whose rate moves from one value to another.

    It lasts as long as the asked number of requests takes on average; if fewer came, the rest follows at ``to_rps``.

    Attributes:
        from_rps: Rate at the begin; 0 is allowed for a linear ramp.
        to_rps: Rate at the end, above or below ``from_rps``.
        kind: Straight line or constant factor per second.
    """

    from_rps: float
    to_rps: float
    kind: RampKind = RampKind.LINEAR

    def __post_init__(self) -> None:
        if not (self.from_rps == 0 and self.kind is RampKind.LINEAR):
            _check_positive(self.from_rps, "first rate")
        _check_positive(self.to_rps, "last rate")

    @property
    def label(self) -> str:
        """Return its name, which ``parse_shape`` reads back."""
        kind = "" if self.kind is RampKind.LINEAR else f",{self.kind}"
        return f"ramp:{format_number(self.from_rps)}-{format_number(self.to_rps)}{kind}"

    @property
    def rate_rps(self) -> float:
        """Return the mean rate over the ramp."""
        if self._is_straight:
            return self.from_rps / 2 + self.to_rps / 2
        return (self.to_rps - self.from_rps) / math.log(self.to_rps / self.from_rps)

    def duration_s(self, n: int) -> float:
        """Return how long ``n`` requests take on average."""
        return n / self.rate_rps

    def invert(self, n_expected: Offsets, *, n: int) -> Offsets:
        """Return the instants at which a ramp of ``n`` requests has ``n_expected`` expected arrivals behind it."""
        duration_s = self.duration_s(n)
        inside = np.minimum(n_expected, n)
        if self._is_straight:
            slope = (self.to_rps - self.from_rps) / duration_s
            rate_rps = np.sqrt(np.maximum(self.from_rps**2 + 2 * slope * inside, 0.0))  # the rate at that instant
            offsets_s = 2 * inside / (self.from_rps + rate_rps)
        else:
            growth = math.log(self.to_rps / self.from_rps) / duration_s
            offsets_s = np.log1p(inside * growth / self.from_rps) / growth
        after_s: Offsets = np.maximum(n_expected - n, 0.0) / self.to_rps
        return offsets_s + after_s

    @property
    def _is_straight(self) -> bool:
        """Tell whether the straight line's formulas hold; they do for an exponential ramp between equal rates too."""
        return self.kind is RampKind.LINEAR or math.isclose(self.from_rps, self.to_rps, rel_tol=1e-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Send at recorded instants.

    Attributes:
        name: Of the file, for the label.
        recorded_s: Recorded instants, ascending, the first at 0 or later.
        time_scale: Factor on every instant: 2 takes twice as long, at half the rate; 0.5 doubles the rate.
    """

    name: str
    recorded_s: tuple[float, ...]
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self.time_scale, "time scale")
        instants = np.asarray(self.recorded_s, dtype=np.float64)
        if not self.name or not instants.size:
            raise ValueError("a trace needs a name and at least one arrival")
        if not np.isfinite(instants).all() or instants[0] < 0 or (np.diff(instants) < 0).any():
            raise ValueError(f"trace {self.name}: arrivals must be finite, ascending and not negative")

    @property
    def label(self) -> str:
        """Return its name, which ``parse_shape`` reads back."""
        is_plain = self.time_scale == 1 and "*" not in self.name
        return f"trace:{self.name}" if is_plain else f"trace:{self.name}*{format_number(self.time_scale)}"

    @property
    def rate_rps(self) -> float | None:
        """Return arrivals per second from the first to the last; ``None`` when all fall on one instant."""
        span_s = (self.recorded_s[-1] - self.recorded_s[0]) * self.time_scale
        return (len(self.recorded_s) - 1) / span_s if span_s > 0 else None


LoadShape: TypeAlias = ClosedLoop | ConstantRate | PoissonRate | GammaRate | Ramp | Trace
"""Any way to put load on an engine."""


def arrival_offsets(shape: LoadShape, n: int, rng: np.random.Generator) -> Offsets:
    """Return the scheduled instant of each of ``n`` requests, counted from the begin of the load.

    The first request comes after a gap of its own, which a load need not wait for; a trace keeps its instants.
    The same generator state gives the same offsets.

    Raises:
        ValueError: ``n`` is below 1, the shape is a closed loop, which has no schedule, or the trace holds fewer arrivals.
    """
    if n < 1:
        raise ValueError(f"a load needs at least 1 request, got {n}")
    match shape:
        case ClosedLoop():
            raise ValueError(f"{shape.label}: a closed loop has no arrival instants")
        case ConstantRate():
            return np.arange(1, n + 1, dtype=np.float64) / shape.rate_rps
        case PoissonRate():
            return np.cumsum(rng.exponential(1 / shape.rate_rps, n))
        case GammaRate():
            return np.cumsum(rng.gamma(shape.burstiness, 1 / (shape.rate_rps * shape.burstiness), n))
        case Ramp():  # time-changed unit Poisson process: Cinlar, Introduction to Stochastic Processes, ch. 4
            return shape.invert(np.cumsum(rng.exponential(1.0, n)), n=n)
        case Trace():
            return _trace_offsets(shape, n)
        case _:
            assert_never(shape)


def format_number(value: float) -> str:
    """Return the shortest decimal text that reads back as ``value``; no exponent, whose minus would look like a range."""
    return np.format_float_positional(value, trim="-")


def _trace_offsets(trace: Trace, n: int) -> Offsets:
    if n > len(trace.recorded_s):
        raise ValueError(f"trace {trace.name} holds {len(trace.recorded_s)} arrivals, {n} were asked for")
    return np.asarray(trace.recorded_s[:n], dtype=np.float64) * trace.time_scale


def _check_positive(value: float, name: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"the {name} of a load must be a number above 0, got {value}")
