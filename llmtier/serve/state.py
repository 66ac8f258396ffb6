"""What one gateway is made of, all of it passed in: nothing here is read from disk or the environment."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from llmtier.core.policy import Policy
from llmtier.core.requirement import Requirement
from llmtier.route.rules import RuleBook
from llmtier.score.cache import CAPACITY, PromptScorer
from llmtier.serve.log import TrafficLog
from llmtier.serve.metrics import Metrics
from llmtier.serve.pool import TierPool
from llmtier.serve.relay import Deadlines
from llmtier.serve.signals import SignalPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of what a client may send, how often engines are asked for their health, and what is kept.

    Attributes:
        body_bytes: Longest request body.
        body_s: Longest wait for it.
        health_interval_s: Time between two health probes of a tier.
        cached_scores: Prompts whose scores are remembered; 0 remembers none.
    """

    body_bytes: int = 10_000_000
    body_s: float = 30.0
    health_interval_s: float = 2.0
    cached_scores: int = CAPACITY


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
        signals: How the signals are got that the scorer reads.
        rules: The user's own, which come before the scorer; ``None`` when there are none.
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
    signals: SignalPlan = field(default_factory=SignalPlan)
    rules: RuleBook | None = None
    default_tier: str | None = None
    defaults: Requirement = field(default_factory=Requirement)
    deadlines: Deadlines = field(default_factory=Deadlines)
    limits: Limits = field(default_factory=Limits)
    traffic: TrafficLog | None = None
    log_text: bool = False
    clock: Callable[[], float] = time.perf_counter
    now: Callable[[], datetime] = utc_now
    new_id: Callable[[], str] = new_request_id
