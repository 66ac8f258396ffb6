"""The served tiers: where each runs, whether it answers, and the ledger of what is on it.

Mutable, owned by one event loop, never shared between threads. The counts (``ledger.py``) are exact for this
gateway, which is why routing needs no scrape of the engines. Sends nothing: ``health.py`` asks the engines.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmtier.core.decision import MissReason
from llmtier.core.errors import PlanError
from llmtier.core.profile import TierProfile
from llmtier.serve.choose import AUTO_ALIASES, TierState
from llmtier.serve.ledger import Flight, PromptSize, TierLedger

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
class _Liveness:
    n_timeouts: int = 0
    is_healthy: bool = False
    was_healthy: bool = False


class TierPool:
    """The tiers by name, in the order given, each with its ledger.

    Args:
        tiers: What is served.
        clock: Monotonic seconds, the same as the gateway's.

    Raises:
        PlanError: A name is given twice or is an alias of routing, or there is no tier.
    """

    def __init__(self, tiers: Iterable[ServedTier], *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._tiers: dict[str, ServedTier] = {}
        for tier in tiers:
            if tier.name in self._tiers or tier.name in AUTO_ALIASES:
                raise PlanError(f"tier name {tier.name!r} is taken; give each served tier a name of its own")
            self._tiers[tier.name] = tier
        if not self._tiers:
            raise PlanError("a gateway needs at least one tier; add one under 'tiers' in the configuration")
        self._liveness = {name: _Liveness() for name in self._tiers}
        self._ledgers = {name: TierLedger() for name in self._tiers}

    @property
    def tiers(self) -> Mapping[str, ServedTier]:
        """Every served tier by name."""
        return self._tiers

    @property
    def is_ready(self) -> bool:
        """Every tier has answered once, and one answers now: a later loss of one tier is routed around."""
        tiers = self._liveness.values()
        return all(tier.was_healthy for tier in tiers) and any(tier.is_healthy for tier in tiers)

    def states(self) -> dict[str, TierState]:
        """Return what routing sees of each tier now."""
        now_s = self._clock()
        return {
            name: TierState(
                name=name,
                profile=tier.profile,
                unusable=tier.unusable,
                is_healthy=self._liveness[name].is_healthy,
                load=self._ledgers[name].state(now_s, co_tenants=self._co_tenants(tier)),
                tokens_per_character=self._ledgers[name].tokens_per_character,
            )
            for name, tier in self._tiers.items()
        }

    def n_in_flight(self, name: str) -> int:
        """Return how many requests the gateway has on the tier now."""
        return self._ledgers[name].n_in_flight

    def is_healthy(self, name: str) -> bool:
        """Return whether the tier's engine answered last time."""
        return self._liveness[name].is_healthy

    @contextmanager
    def serving(self, name: str, size: PromptSize, *, is_stream: bool) -> Iterator[Flight]:
        """Count one request on the tier for as long as the context lasts, and lend what it is counted by."""
        ledger = self._ledgers[name]
        flight = ledger.begin(size, now_s=self._clock(), is_stream=is_stream)
        try:
            yield flight
        finally:
            ledger.end(flight)

    def mark_alive(self, name: str) -> None:
        """Record that the engine answered."""
        liveness = self._liveness[name]
        liveness.is_healthy = liveness.was_healthy = True
        liveness.n_timeouts = 0

    def mark_dead(self, name: str) -> None:
        """Record that nobody listens there, or that the engine says it is broken."""
        self._liveness[name].is_healthy = False

    def mark_silent(self, name: str) -> None:
        """Record that a probe was not answered in time; too many in a row mean dead."""
        liveness = self._liveness[name]
        liveness.n_timeouts += 1
        if liveness.n_timeouts >= TIMEOUTS_UNTIL_UNHEALTHY:
            liveness.is_healthy = False

    def _co_tenants(self, tier: ServedTier) -> tuple[tuple[str, float], ...]:
        """Return, of the tiers that share the device and are served here, whether each is at work: 0 or 1."""
        names = () if tier.profile is None else tier.profile.co_tenants
        return tuple((name, float(self._ledgers[name].n_in_flight > 0)) for name in names if name in self._ledgers)
