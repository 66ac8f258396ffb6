"""What a measurement tells those who watch it. Holds data."""

from collections.abc import Callable
from dataclasses import dataclass

from llmtier.core.profile import LoadPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class PointStarted:
    """A load point begins; ``purpose`` says why it is wanted, ``n_left`` counts the points that are to come."""

    tier: str
    shape: str
    purpose: str
    n_requests: int
    n_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PointDone:
    """A load point ended with these numbers."""

    tier: str
    purpose: str
    point: LoadPoint
    is_resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyProgress:
    """``n_done`` of ``n_total`` answers came; ``score_sum`` of them, failures as 0, so far."""

    tier: str
    n_done: int
    n_total: int
    score_sum: float


ProfileEvent = PointStarted | PointDone | AccuracyProgress
OnEvent = Callable[[ProfileEvent], None]
"""Called on the event loop, never while a load point is measured; it must be quick."""
