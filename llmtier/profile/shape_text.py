"""Load shapes as people type them: one text, one shape or a sweep of several.

Pure but for ``load_trace``, which the caller gives to read the file that a trace names.
``parse_shape(shape.label)`` returns the shape.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

from llmtier.profile.shapes import (
    ClosedLoop,
    ConstantRate,
    GammaRate,
    LoadShape,
    PoissonRate,
    Ramp,
    RampKind,
    Trace,
)

LoadTrace = Callable[[str], Sequence[float]]
"""Returns the arrival instants of the trace of that name in seconds, ascending."""

SHAPE_FORMS = (
    "closed:CONCURRENCY, constant:RATE, poisson:RATE, gamma:RATE,BURSTINESS, ramp:FROM-TO[,exponential], "
    "trace:FILE[*TIME_SCALE]; several with 1,2,4 or 1..8/4"
)

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})/(\d+)")
_RAMP = re.compile(rf"({_NUMBER})-({_NUMBER})(?:,(\w+))?")
_TRACE = re.compile(rf"(.+?)(?:\*({_NUMBER}))?")
_MAX_SWEEP = 1000  # a sweep of more points is a slip of the finger


def parse_shape(text: str, *, load_trace: LoadTrace | None = None) -> LoadShape:
    """Return the one shape that ``text`` names.

    Args:
        text: Such as ``poisson:2.5``.
        load_trace: Reads the file of ``trace:FILE``; without it such a text is refused.

    Raises:
        ValueError: It names none or several; the message quotes it and says what was expected.
    """
    shapes = parse_shapes(text, load_trace=load_trace)
    if len(shapes) != 1:
        raise ValueError(f"load shape {text!r}: names {len(shapes)} loads, expected one")
    return shapes[0]


def parse_shapes(text: str, *, load_trace: LoadTrace | None = None) -> tuple[LoadShape, ...]:
    """Return every shape that ``text`` names, in its order; arguments and errors as ``parse_shape``."""
    kind, _, rest = text.strip().partition(":")
    try:
        return _parse_kind(kind.strip().lower(), rest.strip(), load_trace)
    except ValueError as exc:
        raise ValueError(f"load shape {text!r}: {exc}") from exc


def _parse_kind(kind: str, rest: str, load_trace: LoadTrace | None) -> tuple[LoadShape, ...]:
    match kind:
        case "closed":
            return tuple(ClosedLoop(concurrency=_whole(value)) for value in _values(rest))
        case "constant":
            return tuple(ConstantRate(rate_rps=value) for value in _values(rest))
        case "poisson":
            return tuple(PoissonRate(rate_rps=value) for value in _values(rest))
        case "gamma":
            return _parse_gamma(rest)
        case "ramp":
            return (_parse_ramp(rest),)
        case "trace":
            return (_parse_trace(rest, load_trace),)
        case _:
            raise ValueError(f"expected one of {SHAPE_FORMS}")


def _parse_gamma(rest: str) -> tuple[LoadShape, ...]:
    rates, _, burstiness = rest.rpartition(",")
    if not rates or not re.fullmatch(_NUMBER, burstiness.strip()):
        raise ValueError("expected gamma:RATE,BURSTINESS, such as gamma:2.5,0.5")
    return tuple(GammaRate(rate_rps=rate, burstiness=float(burstiness)) for rate in _values(rates))


def _parse_ramp(rest: str) -> Ramp:
    found = _RAMP.fullmatch(rest)
    kinds = [str(kind) for kind in RampKind]
    if found is None or (found[3] or RampKind.LINEAR) not in kinds:
        raise ValueError(f"expected ramp:FROM-TO or ramp:FROM-TO,KIND with KIND one of {', '.join(kinds)}")
    kind = RampKind(found[3] or RampKind.LINEAR)
    return Ramp(from_rps=float(found[1]), to_rps=float(found[2]), kind=kind)


def _parse_trace(rest: str, load_trace: LoadTrace | None) -> Trace:
    found = _TRACE.fullmatch(rest)
    if found is None:
        raise ValueError("expected trace:FILE or trace:FILE*TIME_SCALE")
    if load_trace is None:
        raise ValueError("no trace can be read here")
    scale = float(found[2] or 1)
    return Trace(name=found[1], recorded_s=tuple(load_trace(found[1])), time_scale=scale)


def _values(text: str) -> list[float]:
    """Read ``3``, ``1,2,4`` or ``1..8/4``: four values from 1 to 8 at equal steps."""
    values = [value for part in text.split(",") for value in _part_values(part.strip())]
    if len(values) > _MAX_SWEEP:
        raise ValueError(f"a sweep has at most {_MAX_SWEEP} loads, got {len(values)}")
    if len(set(values)) != len(values):
        raise ValueError("each load may stand once")
    return values


def _part_values(part: str) -> list[float]:
    if re.fullmatch(_NUMBER, part):
        return [float(part)]
    found = _RANGE.fullmatch(part)
    if found is None:
        raise ValueError(f"expected a number above 0, or a range such as 1..8/4, got {part!r}")
    low, high, n = float(found[1]), float(found[2]), int(found[3])
    if n < 2 or n > _MAX_SWEEP or not low < high:
        raise ValueError(f"expected LOW..HIGH/N with LOW < HIGH and N from 2 to {_MAX_SWEEP}, got {part!r}")
    return [float(value) for value in np.linspace(low, high, n)]


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError(f"a concurrency is a whole number, got {value:g}")
    return int(value)
