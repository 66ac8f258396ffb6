"""What one request needs: latency limits, an accuracy floor, and what it may cost."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """The need of one request; ``None`` means no limit.

    Attributes:
        ttft_s: Highest time to first token.
        tpot_s: Highest time per output token.
        e2el_s: Highest end-to-end latency.
        accuracy: Lowest P(correct), in [0, 1].
        context_tokens: Prompt plus output tokens that must fit.
        usd: Highest price of the request.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None
    accuracy: float | None = None
    context_tokens: int | None = None
    usd: float | None = None

    def __post_init__(self) -> None:
        for name, value in (
            ("ttft_s", self.ttft_s),
            ("tpot_s", self.tpot_s),
            ("e2el_s", self.e2el_s),
            ("accuracy", self.accuracy),
            ("context_tokens", self.context_tokens),
            ("usd", self.usd),
        ):
            if value is not None and not value >= 0:  # also refuses NaN
                raise ValueError(f"{name} must be >= 0, got {value}")
        if self.accuracy is not None and not self.accuracy <= 1:
            raise ValueError(f"accuracy must lie in [0, 1], got {self.accuracy}")
