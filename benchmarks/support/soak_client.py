"""The clients of the soak: send at random instants whatever is still under way, read, and some of them leave.

Keeps connections alive as client libraries do. What came is judged as soon as it ends, so that memory stays small.
"""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Self

import aiohttp

from support.soak_ask import Ask, Drawer
from support.soak_judge import BAD, Outcome, Seen, Verdict, judge

PATIENCE_S = 40.0
"""How long a client waits for an end before it is counted as none."""

MAX_EXAMPLES = 40
SLOW_BYTES, SLOW_PAUSE_S = 65_536, 0.04


@dataclass(slots=True, kw_only=True)
class Bad:
    """A request that ended as none may.

    Attributes:
        id: Its own.
        verdict: How.
        path: The endpoint.
        model: What was asked for.
        is_stream: Whether as events; likewise ``is_slow``.
        begun_s: Since the load began.
        took_s: To its end.
        tail: The last bytes that came.
    """

    id: str
    verdict: Verdict
    path: str
    model: str
    is_stream: bool
    is_slow: bool
    begun_s: float
    took_s: float
    tail: str


@dataclass(slots=True)
class Tally:
    """What became of all requests.

    Attributes:
        outcomes: How many ended so; likewise ``reasons`` by outcome and reason, and ``endpoints`` by endpoint.
        shed_without_retry: Refusals with 429 or 503 that do not say when to ask again.
        left_s: When the client of an id left before the end.
        cut_s: When the connections broke that a killed worker's end explains.
        bad: The first requests that ended as none may.
        bad_ids: All of them.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    reasons: Counter[tuple[Outcome, str]] = field(default_factory=Counter)
    endpoints: Counter[str] = field(default_factory=Counter)
    shed_without_retry: int = 0
    left_s: dict[str, float] = field(default_factory=dict)
    cut_s: list[float] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    bad_ids: dict[str, str] = field(default_factory=dict)

    def take(self, seen: Seen, verdict: Verdict, *, begun_s: float) -> None:
        """Count one."""
        self.outcomes[verdict.outcome] += 1
        self.reasons[verdict.outcome, verdict.why] += 1
        self.endpoints[seen.ask.path + (" stream" if seen.ask.is_stream else "")] += 1
        if seen.has_left:
            self.left_s[seen.ask.tale.id] = seen.ended_s
        if verdict.outcome is Outcome.CUT_BY_KILL:
            self.cut_s.append(seen.ended_s)
        if seen.status in {429, 503} and seen.retry_after is None:
            self.shed_without_retry += 1
        if verdict.outcome in BAD:
            self.bad_ids[seen.ask.tale.id] = f"{verdict.outcome}: {verdict.why}"
            if len(self.bad) < MAX_EXAMPLES:
                self.bad.append(_describe(seen, verdict, begun_s))


class Clients:
    """Everyone who asks one gateway.

    Args:
        url: The gateway's.
        rng: For all draws.
        kills_s: Instants at which workers were killed; read when a request ends.

    Attributes:
        tally: What became of their requests.
        begun_s: When they came, on the monotonic clock.
    """

    def __init__(self, url: str, rng: Random, kills_s: list[float]) -> None:
        self.tally = Tally()
        self._url = url
        self._rng = rng
        self._drawer = Drawer(rng)
        self._kills_s = kills_s
        self.begun_s = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def n_open(self) -> int:
        """Requests under way."""
        return len(self._tasks)

    async def load(self, rate_rps: float, seconds: float) -> None:
        """Send for so long; requests may be under way afterwards."""
        loop = asyncio.get_running_loop()
        at_s = time.monotonic()
        ends_s = at_s + seconds
        while (at_s := at_s + self._rng.expovariate(rate_rps)) < ends_s:
            await asyncio.sleep(max(at_s - time.monotonic(), 0.0))
            task = loop.create_task(self._ask(self._drawer.draw()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def rest(self) -> None:
        """Wait for the end of everything under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def __aenter__(self) -> Self:
        """Open."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15.0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(self._url, connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        await self._session.close()

    async def _ask(self, ask: Ask) -> None:
        seen = Seen(ask=ask, sent_s=time.monotonic())
        try:
            async with asyncio.timeout(ask.leaves_after_s or PATIENCE_S):
                await self._exchange(seen)
        except TimeoutError:
            seen.has_left, seen.is_late = ask.leaves_after_s is not None, ask.leaves_after_s is None
        except (aiohttp.ClientError, OSError) as error:
            seen.cut = f"{type(error).__name__}: {error}"[:100]
        seen.ended_s = time.monotonic()
        self.tally.take(seen, judge(seen, self._kills_s), begun_s=self.begun_s)

    async def _exchange(self, seen: Seen) -> None:
        ask = seen.ask
        async with self._session.post(ask.path, data=ask.body, headers=ask.headers) as answer:
            seen.status, seen.retry_after = answer.status, answer.headers.get("retry-after")
            try:
                async for piece in answer.content.iter_any():
                    seen.body += piece
                    if ask.is_slow:
                        await asyncio.sleep(SLOW_PAUSE_S * len(piece) / SLOW_BYTES)
            except asyncio.CancelledError:
                _leave(answer, is_reset=ask.leaves_by_reset)
                raise


def _leave(answer: aiohttp.ClientResponse, *, is_reset: bool) -> None:
    connection = answer.connection
    if is_reset and connection is not None and connection.transport is not None:
        with suppress(OSError):
            connection.transport.abort()
    answer.close()


def _describe(seen: Seen, verdict: Verdict, begun_s: float) -> Bad:
    return Bad(
        id=seen.ask.tale.id,
        verdict=verdict,
        path=seen.ask.path,
        model=seen.ask.model,
        is_stream=seen.ask.is_stream,
        is_slow=seen.ask.is_slow,
        begun_s=round(seen.sent_s - begun_s, 2),
        took_s=round(seen.ended_s - seen.sent_s, 3),
        tail=seen.body[-160:].decode(errors="replace"),
    )
