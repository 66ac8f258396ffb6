"""Which load points a latency model is fitted, calibrated and judged on. Pure.

The coefficients are told apart only when prompt length, context and concurrency vary independently: closed loops
from one request to the highest concurrency, each with short prompts and with long ones. Residuals come from Poisson
arrivals below capacity, which no fit has seen, and other Poisson arrivals judge the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmtier.profile.lengths import SyntheticLengths, UniformLength
from llmtier.profile.point import PointSpec
from llmtier.profile.shapes import ClosedLoop, PoissonRate

LOAD_SHARES = (0.5, 0.8)
"""Of the capacity: an ordinary hour and a busy one."""

_LEAST_REQUESTS = 24
_TURNS = 4  # requests per worker of a closed loop: fewer, and most of it is beginning and end


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthRegimes:
    """Lengths that the design covers.

    Attributes:
        short: Short prompts.
        long: Long prompts, with answers as long.
        mixed: Everything between: what calibration and judgement send when there is no real traffic to send.
    """

    short: SyntheticLengths
    long: SyntheticLengths
    mixed: SyntheticLengths


def choose_regimes(*, max_input_tokens: int, max_output_tokens: int, context_tokens: int | None) -> LengthRegimes:
    """Return length ranges that fit the engine's context.

    Args:
        max_input_tokens: Longest prompt wanted.
        max_output_tokens: Longest answer wanted.
        context_tokens: The engine's limit for both; ``None`` when unknown.
    """
    # A tenth is left free: random words come to more tokens than was reckoned now and then.
    limit = max_input_tokens + max_output_tokens if context_tokens is None else context_tokens * 9 // 10
    longest_output = max(min(max_output_tokens, limit // 3), 8)
    longest_input = max(min(max_input_tokens, limit - longest_output), 16)
    output = UniformLength(low_tokens=max(longest_output // 4, 4), high_tokens=longest_output)
    shortest = min(16, longest_input)
    middle = max(longest_input // 4, shortest)

    def lengths(low: int, high: int) -> SyntheticLengths:
        return SyntheticLengths(input=UniformLength(low_tokens=low, high_tokens=high), output=output)

    return LengthRegimes(
        short=lengths(shortest, middle),
        long=lengths(max(longest_input * 5 // 8, shortest), longest_input),
        mixed=lengths(shortest, longest_input),
    )


def fit_specs(concurrency: Sequence[int], *, n_requests: int, seed: int) -> list[PointSpec]:
    """Return the closed loops of one regime: 1, and each of ``concurrency``.

    Args:
        concurrency: Requests in flight.
        n_requests: Wanted per point; loops of many workers get more, since each worker needs some turns.
        seed: Of the points.
    """
    counts = sorted({1, *concurrency})
    return [
        PointSpec(
            shape=ClosedLoop(concurrency=count),
            n_requests=max(n_requests // 2, _TURNS * count, _LEAST_REQUESTS),
            warmup_requests=count,
            seed=seed,
        )
        for count in counts
    ]


def poisson_specs(capacity_rps: float, *, n_requests: int, warmup_requests: int, seed: int) -> list[PointSpec]:
    """Return Poisson arrivals at ``LOAD_SHARES`` of a capacity."""
    return [
        PointSpec(
            shape=PoissonRate(rate_rps=float(f"{share * capacity_rps:.4g}")),
            n_requests=n_requests,
            warmup_requests=warmup_requests,
            seed=seed + index,
        )
        for index, share in enumerate(LOAD_SHARES)
    ]
