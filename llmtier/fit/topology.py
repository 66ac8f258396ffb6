"""Which tiers may stand in one policy: those that do not disturb each other on a device.

Reads profiles; decides nothing about accuracy or cost. Two engines on the same cores or GPU slow
each other down, and a profile of one alone says nothing of both together.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from llmtier.core.device import Device, parse_device
from llmtier.core.errors import PlanError
from llmtier.core.profile import TierProfile

_DEVICELESS = frozenset({"mock", "openai"})
"""Engines that use no device of this machine: scripted ones and servers behind a URL."""

MAX_OTHERS = 8
"""Most tiers beside the reference: every subset of them is tried, 256 at most."""


def may_stand_together(a: TierProfile, b: TierProfile) -> bool:
    """Return whether both were measured as they would run side by side.

    Raises:
        PlanError: When a profile names no device that can be read.
    """
    if a.engine.name in _DEVICELESS or b.engine.name in _DEVICELESS:
        return True
    are_profiled_together = b.tier in a.co_tenants and a.tier in b.co_tenants
    return are_profiled_together or not _device_of(a).shares_with(_device_of(b))


def tier_sets(profiles: Mapping[str, TierProfile], reference: str) -> Iterator[tuple[str, ...]]:
    """Yield each set of tiers that may stand together and contains the reference, small ones first.

    Raises:
        PlanError: When more than ``MAX_OTHERS`` tiers could join the reference, or a device cannot be read.
    """
    own = profiles[reference]
    others = [tier for tier in sorted(profiles) if tier != reference and may_stand_together(profiles[tier], own)]
    _check_size(others, reference)
    for size in range(len(others) + 1):
        for chosen in itertools.combinations(others, size):
            if _all_together(chosen, profiles):
                yield (reference, *chosen)


def subsets(tiers: Sequence[str], reference: str) -> list[tuple[str, ...]]:
    """Return each set of tiers that contains the reference, small ones first; for tiers of which no device is known.

    Raises:
        PlanError: More than ``MAX_OTHERS`` tiers could join the reference.
    """
    others = [tier for tier in tiers if tier != reference]
    _check_size(others, reference)
    return [(reference, *chosen) for size in range(len(others) + 1) for chosen in itertools.combinations(others, size)]


def _check_size(others: Sequence[str], reference: str) -> None:
    if len(others) > MAX_OTHERS:
        raise PlanError(
            f"{len(others)} tiers beside the reference {reference} are more than the {MAX_OTHERS} that can be "
            f"weighed against each other; name fewer: {', '.join(others)}"
        )


def _all_together(tiers: Sequence[str], profiles: Mapping[str, TierProfile]) -> bool:
    return all(may_stand_together(profiles[a], profiles[b]) for a, b in itertools.combinations(tiers, 2))


def _device_of(profile: TierProfile) -> Device:
    try:
        return parse_device(profile.device)
    except ValueError as exc:
        raise PlanError(f"profile of {profile.tier}: {exc}; run 'llmtier profile --tier {profile.tier}'") from exc
