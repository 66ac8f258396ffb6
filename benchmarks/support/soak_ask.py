"""What the soak's client asks for: endpoints, sizes, tiers, and how it behaves as a reader."""

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from support.soak_answers import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from support.soak_text import Tale

TIERS = ("small", "medium", "large")
ROUTED = "auto"
RULE_HEADER = "x-soak-tier"
"""Moves a routed request to the tier it names by a rule, so that every tier is one that others stand in for."""

ENDPOINTS = {CHAT: 0.55, COMPLETIONS: 0.2, RESPONSES: 0.15, EMBEDDINGS: 0.1}
STREAM_SHARE = 0.65
ROUTED_SHARE = 0.7
LEAVE_SHARE, SLOW_SHARE, HUGE_SHARE, DEADLINE_SHARE = 0.05, 0.003, 0.01, 0.1
SLOW_PIECES, SLOW_PAD = 200, 40_000  # 8 MB: more than the sockets of both ends hold
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        tale: What its answer must be.
        path: The endpoint.
        model: A tier, or ``auto``.
        rule_tier: Whom a rule shall pin it to; ``None`` leaves it to the default.
        is_stream: Whether as events; likewise ``wants_usage``.
        n_prompt_chars: Of filling in the prompt.
        is_greedy: Whether temperature is 0.
        e2el_s: Limit that is stated; ``None`` without one.
        leaves_after_s: When the client leaves, since it sent; ``None`` when it stays to the end.
        leaves_by_reset: By RST, not FIN.
        is_slow: Whether it reads slowly.
        is_last: Whether it closes its connection after the answer.
    """

    tale: Tale
    path: str
    model: str
    rule_tier: str | None
    is_stream: bool
    wants_usage: bool
    n_prompt_chars: int
    is_greedy: bool
    e2el_s: float | None
    leaves_after_s: float | None
    leaves_by_reset: bool
    is_slow: bool
    is_last: bool

    @property
    def headers(self) -> dict[str, str]:
        """What goes along beside the body."""
        found = {"content-type": "application/json"}
        if self.rule_tier is not None:
            found[RULE_HEADER] = self.rule_tier
        if self.e2el_s is not None:
            found["x-llmtier-e2el-ms"] = f"{self.e2el_s * 1000:.0f}"
        if self.is_last:
            found["connection"] = "close"
        return found

    @property
    def body(self) -> bytes:
        """The JSON document."""
        text = self.tale.order + "why " * (self.n_prompt_chars // 4)
        fields: dict[str, Any] = {"model": self.model}
        if self.path == CHAT:
            fields["messages"] = [{"role": "system", "content": "Tell."}, {"role": "user", "content": text}]
        else:
            fields["prompt" if self.path == COMPLETIONS else "input"] = text
        if self.path != EMBEDDINGS:
            fields["max_output_tokens" if self.path == RESPONSES else "max_tokens"] = self.tale.n_pieces + 50
            fields["temperature"] = 0.0 if self.is_greedy else 0.7
        if self.is_stream:
            fields["stream"] = True
            if self.wants_usage:
                fields["stream_options"] = {"include_usage": True}
        return json.dumps(fields).encode()


class Drawer:
    """Draws requests, no two with one id.

    Args:
        rng: For all draws.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._n_drawn = 0

    def draw(self) -> Ask:
        """Return the next request."""
        rng = self._rng
        path = rng.choices(list(ENDPOINTS), list(ENDPOINTS.values()))[0]
        is_stream = path != EMBEDDINGS and rng.random() < STREAM_SHARE
        is_slow = is_stream and rng.random() < SLOW_SHARE
        # Vectors of two tiers cannot be compared, so an embedding names its tier.
        is_routed = path != EMBEDDINGS and rng.random() < ROUTED_SHARE
        leaves = not is_slow and rng.random() < LEAVE_SHARE
        return Ask(
            tale=self._draw_tale(is_slow=is_slow),
            path=path,
            model=ROUTED if is_routed else rng.choice(TIERS),
            rule_tier=rng.choice((None, *TIERS[1:])) if is_routed else None,
            is_stream=is_stream,
            wants_usage=is_stream and path != RESPONSES and rng.random() < 0.5,
            n_prompt_chars=MEGABYTE if rng.random() < HUGE_SHARE else int(rng.lognormvariate(6.5, 1.5)),
            is_greedy=rng.random() < 0.5,
            e2el_s=round(rng.uniform(0.05, 5.0), 3) if rng.random() < DEADLINE_SHARE else None,
            leaves_after_s=rng.expovariate(1 / 0.15) if leaves else None,
            leaves_by_reset=rng.random() < 0.5,
            is_slow=is_slow,
            is_last=rng.random() < 0.2,
        )

    def _draw_tale(self, *, is_slow: bool) -> Tale:
        rng = self._rng
        self._n_drawn += 1
        name = f"{self._n_drawn:06x}{rng.getrandbits(24):06x}"
        if is_slow:
            return Tale(id=name, n_pieces=SLOW_PIECES, n_pad=SLOW_PAD)
        n_pieces = min(max(int(rng.lognormvariate(2.7, 0.9)), 1), 150)
        return Tale(id=name, n_pieces=n_pieces, n_pad=rng.choice((0, 0, 4, 40, 2000)))
