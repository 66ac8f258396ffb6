"""Time as a parameter: what sleeps asks a clock, so that a test can bring its own."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock that can be waited on."""

    def now_s(self) -> float:
        """Return seconds since an arbitrary instant."""

    async def sleep(self, duration_s: float) -> None:
        """Wait; other tasks run meanwhile."""


class SystemClock:
    """The machine's own clock; asyncio rounds sleeps up to the next millisecond."""

    def now_s(self) -> float:
        """Return ``time.perf_counter()``."""
        return time.perf_counter()

    async def sleep(self, duration_s: float) -> None:
        """Wait on the running event loop."""
        await asyncio.sleep(duration_s)
