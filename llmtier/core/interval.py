"""A two-sided interval around an estimate, with the confidence it was made for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Bounds of an estimate at a stated confidence in (0, 1)."""

    low: float
    high: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not self.low <= self.high:  # also refuses NaN
            raise ValueError(f"interval needs low <= high, got {self.low} and {self.high}")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must lie in (0, 1), got {self.confidence}")

    def as_list(self) -> list[float]:
        """Return ``[low, high]``, the form every JSON document uses."""
        return [self.low, self.high]
