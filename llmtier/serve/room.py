"""A decision meets the slots: whether ``auto`` takes its tier, one that has room, or a place in a queue.

Routing takes a tier at its knee for a miss like any other, so a dearer one that meets the need goes before it, and where
all are at theirs the fallback would take the dearest. Here slots have the last word: a tier that has room and meets the
need serves, and where none has any the cheapest that meets it is waited for. Pure; pins and rules are not moved.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmtier.core.decision import Decision, MissReason, Offer, Reason

_MOVABLE = frozenset({Reason.CHEAPEST_FEASIBLE, Reason.HIGHEST_UTILITY, Reason.FALLBACK, Reason.PINNED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Where a request goes for want of room.

    Attributes:
        tier: There.
        waits: Whether it has no room either, so that the request has to wait.
    """

    tier: str
    waits: bool


def find_room(decision: Decision, has_room: Callable[[str], bool], *, upgrades: bool = True) -> Move | None:
    """Return where a request for ``auto`` goes because of full tiers; ``None`` where they change nothing.

    A dearer tier that routing itself took because a cheaper one is at its knee is a move, too, so that it is counted.

    Args:
        decision: The request's.
        has_room: Tells of a tier whether a request could start there now.
        upgrades: Whether a tier that has room goes before waiting for a cheaper one.
    """
    tier, misses = decision.tier, decision.misses
    full = {miss.tier for miss in misses if miss.reason is MissReason.SATURATED} if misses else ()
    is_free = tier not in full and tier is not None and has_room(tier)
    if tier is None or decision.reason not in _MOVABLE or (is_free and not full):
        return None
    able = _find_able(decision)
    cheapest = able[0].tier if able else tier
    if not is_free:
        free = [offer.tier for offer in able if offer.tier not in full and has_room(offer.tier)]
        if free and (upgrades or cheapest in free):
            return Move(tier=free[0], waits=False)
        stays = cheapest == tier or decision.reason is Reason.PINNED  # the default tier is waited for itself
        return None if stays else Move(tier=cheapest, waits=True)
    if cheapest == tier or decision.reason is not Reason.CHEAPEST_FEASIBLE:
        return None
    waits = not upgrades and not has_room(cheapest)
    return Move(tier=cheapest if waits else tier, waits=waits)


def _find_able(decision: Decision) -> list[Offer]:
    """Return the offers that meet the need but for their tiers being full, the cheapest first."""
    unable = {miss.tier for miss in decision.misses if miss.reason is not MissReason.SATURATED}
    able = [offer for offer in decision.offers if offer.tier not in unable]
    return sorted(able, key=lambda offer: (offer.usd is None, offer.usd or 0.0, offer.n_in_flight, offer.tier))
