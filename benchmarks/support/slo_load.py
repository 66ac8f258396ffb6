"""Requests with limits around what the gateway last predicted, put on it by a Poisson process, and what the client saw.

Prompts come from a traffic file; most requests are for ``auto``, the others name a tier, whose predictions are then
seen without being chosen for. The limits go along in the body's ``llmtier`` object, which means what the headers of the
same names mean. Instants are the kernel's stamps on the client's sockets; what the gateway says is in its headers.
"""

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmtier.engine.exchange import decode_exchange
from llmtier.engine.load_client import LoadClient
from llmtier.engine.load_connection import Exchange
from llmtier.serve.run import run_in_loop

CHAT_PATH = "/v1/chat/completions"
ROUTED = "auto"
TIER_SHARES = 0.15
"""Share of requests that name each of two tiers; the rest is routed."""

STREAM_SHARE = 0.7
MAX_TOKENS = ((8, 0.2), (24, 0.2), (64, 0.3), (128, 0.3))
"""Longest answers, with shares."""

CLOSE_SHARE, CLOSE_SPREAD, FAR_SPREAD = 0.6, 0.12, 0.6
"""Limits lie at exp(normal) times the latest prediction: so many with the first spread, the others with the second."""

_KEEP = 0.8  # weight of the older predictions in a reference
_FIRST_S = {"ttft": 0.03, "e2el": 0.3}  # references before any prediction has been seen
_HEADER = re.compile(rb"^x-llmtier-([a-z0-9-]+):[ \t]*(.*?)\r?$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        prompt: Its number in the traffic file.
        model: A tier, or ``auto``.
        is_stream: Whether the answer is to be streamed.
        max_tokens: Longest answer.
        ttft_s: Limit; ``None`` without one. Likewise ``e2el_s``.
    """

    prompt: int
    model: str
    is_stream: bool
    max_tokens: int
    ttft_s: float | None = None
    e2el_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request as the client saw it; ``None`` where there was nothing to see.

    Attributes:
        ask: What was asked.
        load: Name of the load.
        at_s: When it was to be sent, since the client began.
        late_s: How much later it was sent.
        request_id: The gateway's; likewise ``tier`` and ``reason``.
        predicted_ttft_s: From the headers; likewise ``predicted_e2el_s``.
        ttft_s: From sending to the first content of a stream.
        e2el_s: From sending to the end of the answer; of a stream that is the event after its last content.
        failure: Why there was no answer.
    """

    ask: Ask
    load: str
    at_s: float
    late_s: float
    request_id: str | None = None
    tier: str | None = None
    reason: str | None = None
    predicted_ttft_s: float | None = None
    predicted_e2el_s: float | None = None
    ttft_s: float | None = None
    e2el_s: float | None = None
    failure: str | None = None


@dataclass(slots=True)
class Drawer:
    """Draws requests; knows what the gateway predicted of late.

    Attributes:
        bodies: Messages as JSON, by prompt.
        tiers: What may be named.
        rng: For all draws.
    """

    bodies: Sequence[str]
    tiers: Sequence[str]
    rng: np.random.Generator
    _references: dict[tuple[str, str, int], float] = field(default_factory=dict)
    _tier_of: dict[int, str] = field(default_factory=dict)

    def draw(self, *, has_limits: bool) -> Ask:
        """Return the next request."""
        rng = self.rng
        at = int(rng.random() / TIER_SHARES)
        model = self.tiers[at] if at < len(self.tiers) else ROUTED
        prompt = int(rng.integers(len(self.bodies)))
        is_stream = bool(rng.random() < STREAM_SHARE)
        lengths, shares = zip(*MAX_TOKENS, strict=True)
        most = int(rng.choice(lengths, p=shares))
        if not has_limits:
            return Ask(prompt=prompt, model=model, is_stream=is_stream, max_tokens=most)
        tier = self._tier_of.get(prompt, self.tiers[-1]) if model == ROUTED else model
        kind = int(rng.integers(3)) if is_stream else 1
        ttft_s = self._limit("ttft", tier, 0) if kind != 1 else None
        e2el_s = self._limit("e2el", tier, most) if kind != 0 else None
        return Ask(prompt=prompt, model=model, is_stream=is_stream, max_tokens=most, ttft_s=ttft_s, e2el_s=e2el_s)

    def learn(self, ask: Ask, said: Mapping[str, str]) -> None:
        """Take the headers of an answer."""
        tier = said.get("tier")
        if tier is None:
            return
        if ask.model == ROUTED and ask.ttft_s is None and ask.e2el_s is None:
            self._tier_of[ask.prompt] = tier
        for name, most in (("ttft", 0), ("e2el", ask.max_tokens)):
            new_s = _to_seconds(said.get(f"predicted-{name}-ms"))
            if new_s is not None:
                key = (name, tier, most)
                self._references[key] = _KEEP * self._references.get(key, new_s) + (1 - _KEEP) * new_s

    def write(self, ask: Ask) -> bytes:
        """Return the body."""
        limits = {"ttft_ms": ask.ttft_s, "e2el_ms": ask.e2el_s}
        stated = {name: round(value * 1000.0, 2) for name, value in limits.items() if value is not None}
        fields: dict[str, object] = {"model": ask.model, "max_tokens": ask.max_tokens, "temperature": 0.0}
        if ask.is_stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        if stated:
            fields["llmtier"] = stated
        return f'{{"messages":{self.bodies[ask.prompt]},{json.dumps(fields)[1:]}'.encode()

    def _limit(self, name: str, tier: str, most: int) -> float:
        spread = CLOSE_SPREAD if self.rng.random() < CLOSE_SHARE else FAR_SPREAD
        reference_s = self._references.get((name, tier, most), _FIRST_S[name])
        return round(reference_s * float(np.exp(self.rng.normal(0.0, spread))), 5)


def read_bodies(path: Path) -> list[str]:
    """Return the messages of each prompt as JSON."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.dumps(json.loads(line)["messages"]) for line in lines]


@dataclass(slots=True)
class Client:
    """Puts loads on a gateway.

    Attributes:
        url: Of the gateway.
        drawer: Draws the requests.
        begun_s: Instant from which ``Seen.at_s`` counts.
    """

    url: str
    drawer: Drawer
    begun_s: float = field(default_factory=time.perf_counter)

    def closed(self, load: str, *, n_connections: int, seconds: float, has_limits: bool) -> list[Seen]:
        """Keep so many requests in flight for so long."""
        return run_in_loop(self._closed(load, n_connections, seconds, has_limits=has_limits))

    def poisson(self, load: str, *, rate_rps: float, seconds: float) -> list[Seen]:
        """Send at random instants, whatever is still under way."""
        return run_in_loop(self._poisson(load, rate_rps, seconds))

    async def _closed(self, load: str, n_connections: int, seconds: float, *, has_limits: bool) -> list[Seen]:
        ends_s = time.perf_counter() + seconds
        found: list[tuple[Ask, Exchange]] = []

        async def work(client: LoadClient) -> None:
            while time.perf_counter() < ends_s:
                await self._ask(client, self.drawer.draw(has_limits=has_limits), None, found)

        async with LoadClient(self.url) as client, asyncio.TaskGroup() as tasks:
            for _ in range(n_connections):
                tasks.create_task(work(client))
        return [self._see(load, ask, exchange) for ask, exchange in found]

    async def _poisson(self, load: str, rate_rps: float, seconds: float) -> list[Seen]:
        found: list[tuple[Ask, Exchange]] = []
        rng = self.drawer.rng
        async with LoadClient(self.url) as client, asyncio.TaskGroup() as tasks:
            at_s = time.perf_counter() + 0.1
            ends_s = at_s + seconds
            while (at_s := at_s + float(rng.exponential(1.0 / rate_rps))) < ends_s:
                await asyncio.sleep(max(at_s - time.perf_counter(), 0.0))
                tasks.create_task(self._ask(client, self.drawer.draw(has_limits=True), at_s, found))
        return [self._see(load, ask, exchange) for ask, exchange in found]

    async def _ask(self, client: LoadClient, ask: Ask, at_s: float | None, found: list[tuple[Ask, Exchange]]) -> None:
        exchange = await client.send(self.drawer.write(ask), path=CHAT_PATH, scheduled_s=at_s)
        found.append((ask, exchange))
        self.drawer.learn(ask, read_said(exchange))

    def _see(self, load: str, ask: Ask, exchange: Exchange) -> Seen:
        said = read_said(exchange)
        ttft_s, e2el_s, failure = _measure(ask, exchange)
        return Seen(
            ask=ask,
            load=load,
            at_s=exchange.scheduled_s - self.begun_s,
            late_s=exchange.sent_s - exchange.scheduled_s,
            request_id=said.get("request-id"),
            tier=said.get("tier"),
            reason=said.get("reason"),
            predicted_ttft_s=_to_seconds(said.get("predicted-ttft-ms")),
            predicted_e2el_s=_to_seconds(said.get("predicted-e2el-ms")),
            ttft_s=ttft_s,
            e2el_s=e2el_s,
            failure=failure,
        )


def read_said(exchange: Exchange) -> dict[str, str]:
    """Return the gateway's own headers, without their prefix."""
    head = b"".join(exchange.pieces[:3]).partition(b"\r\n\r\n")[0]
    return {name.decode().lower(): value.decode() for name, value in _HEADER.findall(head)}


def _measure(ask: Ask, exchange: Exchange) -> tuple[float | None, float | None, str | None]:
    """Return TTFT, E2EL and why there was no answer."""
    if ask.is_stream:
        answer = decode_exchange(exchange)
        content_s = answer.completion.timing.content_s
        if answer.failure is not None:
            return None, None, answer.failure
        ttft_s = content_s[0] - exchange.sent_s if content_s else None
        return ttft_s, exchange.done_s - exchange.sent_s, None
    if exchange.failure is not None or exchange.status != 200:
        return None, None, exchange.failure or f"HTTP {exchange.status}"
    return None, exchange.done_s - exchange.sent_s, None


def _to_seconds(milliseconds: str | None) -> float | None:
    return None if milliseconds is None else float(milliseconds) / 1000.0
