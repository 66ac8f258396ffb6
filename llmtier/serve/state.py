"""What one gateway is made of, all of it passed in: nothing here is read from disk or the environment."""

import itertools
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from llmtier.core.policy import Policy
from llmtier.core.requirement import Requirement
from llmtier.route.rules import RuleBook
from llmtier.score.cache import CAPACITY, PromptScorer
from llmtier.serve.admission_plan import AdmissionSettings
from llmtier.serve.caps import Caps
from llmtier.serve.hedge import HedgeSettings
from llmtier.serve.http_server import ServerLimits
from llmtier.serve.keys import KeyRing
from llmtier.serve.log import TrafficLog
from llmtier.serve.metrics import Metrics
from llmtier.serve.pool import TierPool
from llmtier.serve.relay import Deadlines
from llmtier.serve.resume import ResumeMode
from llmtier.serve.signals import SignalPlan
from llmtier.serve.watch import WatchPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of what a client may send, and of what is kept.

    Attributes:
        server: Of heads, bodies and connections.
        cached_scores: Prompts whose scores are remembered; 0 remembers none.
    """

    server: ServerLimits = field(default_factory=ServerLimits)
    cached_scores: int = CAPACITY


def utc_now() -> datetime:
    """Return the present instant."""
    return datetime.now(UTC)


def number_requests() -> Callable[[], str]:
    """Return what makes ids that no other request has: a random part for this process, and a number."""
    start = f"req-{secrets.token_hex(8)}-"
    numbers = itertools.count(1)
    return lambda: f"{start}{next(numbers):x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppState:
    """Everything a gateway uses.

    Attributes:
        pool: The served tiers.
        metrics: Where requests are counted.
        policy: What ``auto`` obeys; ``None`` routes by profiles or to ``default_tier``.
        policy_digest: sha256 of the policy's file; ``None`` where it came from none.
        scorer: The policy's scorer; ``None`` without a policy.
        signals: How the signals are got that the scorer reads.
        rules: The user's own, which come before the scorer; ``None`` when there are none.
        default_tier: Where ``auto`` goes without a policy.
        safe_tier: Where requests go when routing itself fails; ``None`` takes the policy's reference, else the default.
        defaults: Limits of a request that states none.
        classes: SLO classes by name.
        keys: Who may ask; ``None`` asks nobody for a key.
        caps: What a body may hold.
        admission: The bounds of waiting for a tier.
        sticky_s: How long a conversation stays on its tier; 0 chooses anew each turn.
        hedge: When a late first byte is asked for twice; ``None`` for never.
        resume: How broken streams are carried on; ``None`` leaves them broken.
        traffic: The traffic log, not yet started; ``None`` when none is kept.
        log_text: Whether the traffic log holds prompts.
        watch: How often this process asks the engines how they are; ``None`` leaves that to another process.
        reload: Reads the configuration anew and returns what is to be in force, pool and metrics being the same;
            blocks, so it runs in a thread. ``None`` where nothing can be read anew.
        page: Gets the metrics page of the whole gateway; ``None`` where this process is all of it.
        clock: Monotonic seconds, the pool's own; likewise ``now`` for stamps and ``new_id`` for request ids.
    """

    pool: TierPool
    metrics: Metrics
    policy: Policy | None = None
    policy_digest: str | None = None
    scorer: PromptScorer | None = None
    signals: SignalPlan = field(default_factory=SignalPlan)
    rules: RuleBook | None = None
    default_tier: str | None = None
    safe_tier: str | None = None
    defaults: Requirement = field(default_factory=Requirement)
    classes: Mapping[str, Requirement] = field(default_factory=dict)
    keys: KeyRing | None = None
    caps: Caps = field(default_factory=Caps)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    sticky_s: float = 0.0
    deadlines: Deadlines = field(default_factory=Deadlines)
    limits: Limits = field(default_factory=Limits)
    hedge: HedgeSettings | None = None
    resume: ResumeMode | None = None
    traffic: TrafficLog | None = None
    log_text: bool = False
    watch: WatchPlan | None = field(default_factory=WatchPlan)
    reload: Callable[["AppState"], "AppState"] | None = None
    page: Callable[[], Awaitable[bytes]] | None = None
    clock: Callable[[], float] = time.perf_counter
    now: Callable[[], datetime] = utc_now
    new_id: Callable[[], str] = field(default_factory=number_requests)
