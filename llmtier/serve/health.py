"""Ask each engine whether it lives, for ever, and write the answer into the pool.

Reads ``GET <health_path>`` of every tier; writes the pool's flags. One slow engine delays no other.
"""

import asyncio
import logging

import aiohttp

from llmtier.serve.pool import ServedTier, TierPool

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 10.0
"""An engine that computes a long prefill answers late; a shorter limit would call it dead."""


async def watch_health(session: aiohttp.ClientSession, pool: TierPool, *, interval_s: float) -> None:
    """Probe every tier each ``interval_s`` until cancelled."""
    async with asyncio.TaskGroup() as group:
        for tier in pool.tiers.values():
            group.create_task(_watch_tier(session, pool, tier, interval_s=interval_s))


async def probe_tiers(session: aiohttp.ClientSession, pool: TierPool, *, timeout_s: float = PROBE_TIMEOUT_S) -> None:
    """Probe every tier once."""
    async with asyncio.TaskGroup() as group:
        for tier in pool.tiers.values():
            group.create_task(_probe_tier(session, pool, tier, timeout_s=timeout_s))


async def _watch_tier(session: aiohttp.ClientSession, pool: TierPool, tier: ServedTier, *, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        was_healthy = pool.is_healthy(tier.name)
        await _probe_tier(session, pool, tier, timeout_s=PROBE_TIMEOUT_S)
        if pool.is_healthy(tier.name) != was_healthy:
            logger.warning("tier health changed", extra={"tier": tier.name, "is_healthy": not was_healthy})


async def _probe_tier(session: aiohttp.ClientSession, pool: TierPool, tier: ServedTier, *, timeout_s: float) -> None:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with session.get(tier.base_url + tier.health_path, timeout=timeout, allow_redirects=False) as response:
            is_alive = response.status < 500
    except TimeoutError:
        pool.mark_silent(tier.name)
    except (aiohttp.ClientError, OSError):
        pool.mark_dead(tier.name)
    else:
        pool.mark_alive(tier.name) if is_alive else pool.mark_dead(tier.name)
