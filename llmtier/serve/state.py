"""What one gateway is made of, all of it passed in: nothing here is read from disk or the environment."""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from llmtier.core.policy import Policy
from llmtier.core.prompt import Prompt
from llmtier.core.requirement import Requirement
from llmtier.serve.log import TrafficLog
from llmtier.serve.metrics import Metrics
from llmtier.serve.pool import TierPool
from llmtier.serve.relay import Deadlines


class PromptScorer(Protocol):
    """The part of ``score.scorer.Scorer`` that routing needs."""

    def probabilities(self, prompt: Prompt) -> Mapping[str, float]:
        """Return P(correct) by tier name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of what a client may send and how often engines are asked for their health.

    Attributes:
        body_bytes: Longest request body.
        body_s: Longest wait for it.
        health_interval_s: Time between two health probes of a tier.
    """

    body_bytes: int = 10_000_000
    body_s: float = 30.0
    health_interval_s: float = 2.0


def utc_now() -> datetime:
    """Return the present instant."""
    return datetime.now(UTC)


def new_request_id() -> str:
    """Return an id that no other request has."""
    return f"req-{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppState:
    """Everything a gateway uses.

    Attributes:
        pool: The served tiers.
        metrics: Where requests are counted.
        policy: What ``auto`` obeys; ``None`` routes by profiles or to ``default_tier``.
        scorer: The policy's scorer; ``None`` without a policy.
        default_tier: Where ``auto`` goes without a policy.
        defaults: Limits of a request that states none.
        traffic: The traffic log, not yet started; ``None`` when none is kept.
        log_text: Whether the traffic log holds prompts.
        clock: Monotonic seconds, the pool's own; likewise ``now`` for stamps and ``new_id`` for request ids.
    """

    pool: TierPool
    metrics: Metrics
    policy: Policy | None = None
    scorer: PromptScorer | None = None
    default_tier: str | None = None
    defaults: Requirement = field(default_factory=Requirement)
    deadlines: Deadlines = field(default_factory=Deadlines)
    limits: Limits = field(default_factory=Limits)
    traffic: TrafficLog | None = None
    log_text: bool = False
    clock: Callable[[], float] = time.perf_counter
    now: Callable[[], datetime] = utc_now
    new_id: Callable[[], str] = new_request_id
