"""The served tiers and the gateway's own ledger: where each runs, whether it answers, what is in flight.

Mutable, owned by one event loop, never shared between threads. The counts are exact for this gateway,
which is why routing needs no scrape of the engines. Sends nothing: ``health.py`` asks the engines.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmtier.core.decision import MissReason
from llmtier.core.errors import PlanError
from llmtier.core.profile import TierProfile
from llmtier.serve.choose import AUTO_ALIASES, TierState

TIMEOUTS_UNTIL_UNHEALTHY = 3
"""A busy engine may miss one probe; three in a row is no load peak any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTier:
    """One tier and the engine behind it.

    Attributes:
        name: What clients may ask for.
        base_url: The engine, such as ``http://127.0.0.1:8101``, without ``/v1``.
        model_name: What the engine calls the model.
        api_key: Sent to the engine as a bearer token; ``None`` when it asks for none.
        profile: What was measured of it; ``None`` without a profile.
        unusable: Why ``profile`` does not describe what runs; ``None`` when it does.
        health_path: Asked for liveness; any answer below 500 counts.
    """

    name: str
    base_url: str
    model_name: str
    api_key: str | None = field(default=None, repr=False)
    profile: TierProfile | None = None
    unusable: MissReason | None = None
    health_path: str = "/health"


@dataclass(slots=True)
class _Ledger:
    n_in_flight: int = 0
    n_timeouts: int = 0
    is_healthy: bool = False
    was_healthy: bool = False


class TierPool:
    """The tiers by name, in the order given, each with its ledger.

    Raises:
        PlanError: A name is given twice or is an alias of routing, or there is no tier.
    """

    def __init__(self, tiers: Iterable[ServedTier]) -> None:
        self._tiers: dict[str, ServedTier] = {}
        for tier in tiers:
            if tier.name in self._tiers or tier.name in AUTO_ALIASES:
                raise PlanError(f"tier name {tier.name!r} is taken; give each served tier a name of its own")
            self._tiers[tier.name] = tier
        if not self._tiers:
            raise PlanError("a gateway needs at least one tier; add one under 'tiers' in the configuration")
        self._ledgers = {name: _Ledger() for name in self._tiers}

    @property
    def tiers(self) -> Mapping[str, ServedTier]:
        """Every served tier by name."""
        return self._tiers

    @property
    def is_ready(self) -> bool:
        """Every tier has answered once, and one answers now: a later loss of one tier is routed around."""
        ledgers = self._ledgers.values()
        return all(ledger.was_healthy for ledger in ledgers) and any(ledger.is_healthy for ledger in ledgers)

    def states(self) -> dict[str, TierState]:
        """Return what routing sees of each tier now."""
        return {
            name: TierState(
                name=name,
                profile=tier.profile,
                unusable=tier.unusable,
                is_healthy=self._ledgers[name].is_healthy,
                n_in_flight=self._ledgers[name].n_in_flight,
            )
            for name, tier in self._tiers.items()
        }

    def n_in_flight(self, name: str) -> int:
        """Return how many requests the gateway has on the tier now."""
        return self._ledgers[name].n_in_flight

    def is_healthy(self, name: str) -> bool:
        """Return whether the tier's engine answered last time."""
        return self._ledgers[name].is_healthy

    @contextmanager
    def serving(self, name: str) -> Iterator[None]:
        """Count one request on the tier for as long as the context lasts."""
        ledger = self._ledgers[name]
        ledger.n_in_flight += 1
        try:
            yield
        finally:
            ledger.n_in_flight -= 1

    def mark_alive(self, name: str) -> None:
        """Record that the engine answered."""
        ledger = self._ledgers[name]
        ledger.is_healthy = ledger.was_healthy = True
        ledger.n_timeouts = 0

    def mark_dead(self, name: str) -> None:
        """Record that nobody listens there, or that the engine says it is broken."""
        self._ledgers[name].is_healthy = False

    def mark_silent(self, name: str) -> None:
        """Record that a probe was not answered in time; too many in a row mean dead."""
        ledger = self._ledgers[name]
        ledger.n_timeouts += 1
        if ledger.n_timeouts >= TIMEOUTS_UNTIL_UNHEALTHY:
            ledger.is_healthy = False
