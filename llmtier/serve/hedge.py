"""Whether to ask a second tier for a first token that is overdue. Off by default; decides, and sends nothing (``race.py``).

A hedge pays where one engine is slow for a reason of its own and another is idle. It makes things worse where load is
the reason, so it needs somebody idle, a budget that no outage can stretch, and a limit that can still be met. The
loser must be cancelled at once. Instants are passed in.

Idea: Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013: defer the second request until the first has been
outstanding for longer than its expected 95th percentile.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from llmtier.core.decision import Decision, Offer
from llmtier.core.requirement import Requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeSettings:
    """When a request may be asked for twice.

    Attributes:
        is_on: Whether at all.
        budget_share: Hedges per request, over any time.
        max_saved: Hedges that a quiet time may save up.
        max_prompt_tokens: Longest prompt: a long one costs the second engine as much as the first.
        max_load_share: Share of its limit that a tier may have in flight to count as idle.
    """

    is_on: bool = False
    budget_share: float = 0.05
    max_saved: float = 5.0
    max_prompt_tokens: int = 2048
    max_load_share: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.budget_share <= 1 and 0 <= self.max_load_share <= 1):
            raise ValueError(f"shares must lie in [0, 1], got {self.budget_share} and {self.max_load_share}")
        if not (self.max_saved >= 1 and self.max_prompt_tokens >= 0):
            raise ValueError(
                f"max_saved must be >= 1 and max_prompt_tokens >= 0, got {self.max_saved} and {self.max_prompt_tokens}"
            )


class HedgeBudget:
    """A token bucket that requests fill and hedges empty; it starts empty, so the share holds from the first on.

    Args:
        share: Hedges per request.
        max_saved: Most that it holds.
    """

    __slots__ = ("_max_saved", "_saved", "_share")

    def __init__(self, share: float, max_saved: float) -> None:
        self._share = share
        self._max_saved = max_saved
        self._saved = 0.0

    def note_request(self) -> None:
        """Count one request."""
        self._saved = min(self._saved + self._share, self._max_saved)

    def take(self) -> bool:
        """Spend one hedge; ``False`` when there is none to spend."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeCandidate:
    """A tier or replica that could be asked as well.

    Attributes:
        offer: What it would do now.
        max_in_flight: Its limit; ``None`` when unknown, and then it is idle only with nothing in flight.
        n_waiting: Requests that wait for it.
    """

    offer: Offer
    max_in_flight: int | None = None
    n_waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """A request without a first byte.

    Attributes:
        received_s: When it arrived; its limits run from there.
        sent_s: When it was sent to the first tier.
        limits: What it asked for.
        offer: What the first tier was predicted to do; ``None`` when it was not.
        prompt_tokens: Estimated length of its prompt.
        is_whole: Whether its answer comes in one piece, so that its first byte is as late as its last.
    """

    received_s: float
    sent_s: float
    limits: Requirement
    offer: Offer | None
    prompt_tokens: int
    is_whole: bool = False

    @property
    def predicted_s(self) -> float | None:
        """Predicted p95 of the time to its first byte; ``None`` when unknown."""
        if self.offer is None:
            return None
        return self.offer.e2el_s if self.is_whole else self.offer.ttft_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """Ask this one as well, now; whichever sends the first byte serves.

    Attributes:
        tier: Whom to ask.
    """

    tier: str


class NoHedge(StrEnum):
    """Why nobody else is asked; words for a metric."""

    OFF = "off"
    UNPREDICTED = "unpredicted"  # nobody knows when it is late
    EARLY = "early"
    LONG_PROMPT = "long-prompt"
    NOBODY_IDLE = "nobody-idle"
    TOO_LATE = "too-late"  # no idle tier can meet the limit any more
    BUDGET = "budget"


class Hedger:
    """Decides on hedges of one process and keeps their budget.

    Args:
        settings: When.
    """

    def __init__(self, settings: HedgeSettings) -> None:
        self._settings = settings
        self._budget = HedgeBudget(settings.budget_share, settings.max_saved)

    def note_request(self) -> None:
        """Count one request, once however often it is sent."""
        self._budget.note_request()

    def due_s(self, late: Late) -> float | None:
        """Return the instant at which a missing first byte is late: the tier's predicted p95; ``None`` for never."""
        predicted_s = late.predicted_s
        return None if predicted_s is None or self._find_bar(late) is not None else late.sent_s + predicted_s

    def decide(self, late: Late, candidates: Iterable[HedgeCandidate], *, now_s: float) -> Hedge | NoHedge:
        """Return whom to ask as well, or why nobody; a hedge has been paid for, so it is to be sent.

        Args:
            late: The request.
            candidates: Those that may serve it, the first tier left out, the best first.
            now_s: Now.
        """
        bar = self._find_bar(late)
        if bar is not None:
            return bar
        due_s = self.due_s(late)
        if due_s is not None and now_s < due_s:
            return NoHedge.EARLY
        idle = [candidate for candidate in candidates if self._is_idle(candidate)]
        if not idle:
            return NoHedge.NOBODY_IDLE
        in_time = [each for each in idle if _is_attainable(late.limits, each.offer, spent_s=now_s - late.received_s)]
        if not in_time:
            return NoHedge.TOO_LATE
        return Hedge(tier=in_time[0].offer.tier) if self._budget.take() else NoHedge.BUDGET

    def _find_bar(self, late: Late) -> NoHedge | None:
        """Return what rules a hedge out whatever comes; ``None`` when nothing does."""
        if not self._settings.is_on:
            return NoHedge.OFF
        if late.predicted_s is None:
            return NoHedge.UNPREDICTED
        return NoHedge.LONG_PROMPT if late.prompt_tokens > self._settings.max_prompt_tokens else None

    def _is_idle(self, candidate: HedgeCandidate) -> bool:
        offer, limit = candidate.offer, candidate.max_in_flight
        if candidate.n_waiting or not offer.is_healthy or offer.unusable is not None:
            return False
        return offer.n_in_flight <= (0.0 if limit is None else self._settings.max_load_share * limit)


def eligible_offers(decision: Decision, *, tried: Iterable[str]) -> list[Offer]:
    """Return the offers that met every need, the cheapest first, those in ``tried`` left out.

    A hedge is a cost without an answer, so it is no reason to break a need.
    """
    barred = {miss.tier for miss in decision.misses} | set(tried)
    left = [offer for offer in decision.offers if offer.tier not in barred]
    return sorted(left, key=lambda offer: (offer.usd is None, offer.usd or 0.0, offer.n_in_flight, offer.tier))


def _is_attainable(limits: Requirement, offer: Offer, *, spent_s: float) -> bool:
    """Return whether a tier that starts now would still meet the limits; unknown never does."""
    pairs = ((limits.ttft_s, offer.ttft_s), (limits.e2el_s, offer.e2el_s))
    return all(limit is None or (time is not None and spent_s + time <= limit) for limit, time in pairs)
