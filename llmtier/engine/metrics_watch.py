"""Watches an engine's metrics page while a load point runs.

Reads the page at the start, every ``period_s`` and at the end; parses only after the point, because
parsing (9 ms for vLLM's page) on the loop that takes the instants would show up in them. Never fails a point:
what could not be read is ``None`` with a reason.
"""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

import aiohttp

from llmtier.core.engine_delta import EngineDelta
from llmtier.core.errors import EngineRequestError
from llmtier.engine.metrics_page import delta, fetch_page, read_snapshot

# Asking vLLM 0.32 for its 51 kB took 22 ms on a busy 2-core machine, in which its front end streams nothing.
PERIOD_S = 5.0


class MetricsWatch:
    """An asynchronous context manager around one load point.

    Args:
        base_url: Of the engine.
        api_key: Sent as a bearer token.
        period_s: Between two pages; ``None`` reads the first and the last only.

    Attributes:
        delta: What the counters say; ``None`` until the end, and when there is a ``reason``.
        reason: Why there is no ``delta``, such as an engine that was restarted.
    """

    def __init__(self, base_url: str, api_key: str | None = None, *, period_s: float | None = PERIOD_S) -> None:
        self.delta: EngineDelta | None = None
        self.reason: str | None = None
        self._base_url = base_url
        self._api_key = api_key
        self._period_s = period_s
        self._pages: list[str] = []
        self._session: aiohttp.ClientSession | None = None
        self._polling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Read the first page and start to poll."""
        self._session = aiohttp.ClientSession()
        try:
            await self._take()
        except BaseException:
            await self._session.close()
            raise
        if self.reason is None and self._period_s is not None:
            self._polling = asyncio.create_task(self._poll(self._period_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read the last page and subtract; a point that was broken off has no delta."""
        try:
            await self._stop_polling()
            if kind is not None:
                self.reason = self.reason or "the point was broken off"
            elif self.reason is None:
                await self._take()
        finally:
            if self._session is not None:
                await self._session.close()
        if self.reason is None:
            self._conclude()

    async def _take(self) -> None:
        try:
            page = await fetch_page(self._base_url, self._api_key, session=self._session)
        except EngineRequestError as error:
            self.reason = str(error)
            return
        if page is None:
            self.reason = "the engine shows no metrics page"
        else:
            self._pages.append(page)

    async def _poll(self, period_s: float) -> None:
        """Collect pages until cancelled; one that does not come is left out."""
        while True:
            await asyncio.sleep(period_s)
            with suppress(EngineRequestError):
                page = await fetch_page(self._base_url, self._api_key, session=self._session)
                if page is not None:
                    self._pages.append(page)

    async def _stop_polling(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])

    def _conclude(self) -> None:
        try:
            first, *between, last = [read_snapshot(page) for page in self._pages]
            if first.is_empty:
                self.reason = "the metrics page shows none of the counters that are known of vLLM and llama.cpp"
            else:
                self.delta = delta(first, last, between=between)
        except EngineRequestError as error:
            self.reason = str(error)
