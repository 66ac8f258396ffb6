"""A site: one engine of a tier. A tier has one, or several that serve the same model the same way: its replicas.

Holds what a site is called and which of several a conversation goes to. Routing, records and headers speak of tiers;
connections, health, breakers and ledgers are each site's own. Sends nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmtier.serve.stickiness import pick_replica

_MARK = "#"  # no tier's name may have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One engine.

    Attributes:
        name: The tier's for its first site, ``tier#2`` for the second.
        tier: Whose.
        base_url: Without ``/v1``.
        model_name: What the engine calls the model.
        api_key: As a bearer token; ``None`` when it asks for none.
        health_path: Asked for liveness.
        replica: Number from 1 on; ``None`` for the only site of its tier.
    """

    name: str
    tier: str
    base_url: str
    model_name: str
    api_key: str | None = field(default=None, repr=False)
    health_path: str = "/health"
    replica: int | None = None


def name_site(tier: str, number: int) -> str:
    """Return what the ``number``-th site of a tier is called, counted from 1."""
    return tier if number == 1 else f"{tier}{_MARK}{number}"


def group_sites(names: Iterable[str]) -> dict[str, list[str]]:
    """Return tier to names of its sites."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(_MARK)[0], []).append(name)
    return groups


def order_sites(loads: Mapping[str, float], conversation: bytes | None) -> list[str]:
    """Return sites in the order in which they should be asked.

    The least busy first; before it the one where a conversation's prefix is cached, unless that is clearly busier:
    a cold prefix costs less than a long wait.

    Args:
        loads: Site to requests on it, those first that win a tie.
        conversation: As ``stickiness.identify`` knows it; ``None`` outside of one.
    """
    ordered = sorted(loads, key=loads.__getitem__)
    if conversation is None or len(ordered) < 2:
        return ordered
    home = pick_replica(conversation, ordered)
    if loads[home] <= 2 * loads[ordered[0]] + 2:
        ordered.remove(home)
        ordered.insert(0, home)
    return ordered
