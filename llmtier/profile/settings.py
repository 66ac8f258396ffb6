"""What is known of a tier before it is measured, and how much is to be measured. Holds data."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmtier.core.prompt import Prompt
from llmtier.core.requirement import Requirement
from llmtier.core.tier import EngineIdentity
from llmtier.profile.lengths import SyntheticLengths
from llmtier.profile.shapes import LoadShape
from llmtier.profile.synthetic import SharedPrefix
from llmtier.store.arrivals import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFacts:
    """What is known of a tier before anything is measured; see ``TierProfile`` for each.

    Attributes:
        max_batched_tokens: Prompt tokens that one engine step takes; ``None`` when unknown.
    """

    tier: str
    checkpoint_digest: str | None
    engine: EngineIdentity
    hardware_fingerprint: str
    device: str
    co_tenants: tuple[str, ...] = ()
    context_tokens: int | None = None
    usd_per_hour: float | None = None
    max_batched_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings:
    """What is measured, and how much of it.

    Attributes:
        shapes: Load points to report.
        requests_per_point: Counted requests at each.
        warmup_requests: Requests before them.
        max_tokens: Longest answer, for prompts that name none.
        max_input_tokens: Longest synthetic prompt.
        concurrency: Of the latency model's closed loops.
        seed: Of every random choice.
        precision: Largest relative half width of the mean E2EL's 95 % interval; ``None`` takes what comes.
        budget_s: Longest repeat of a point for the sake of ``precision``.
        lengths: Synthetic requests in place of prompts.
        arrivals: Lengths of a trace's requests, for a ``Trace`` shape.
        has_latency_model: Whether a latency model is fitted.
        prefix: What synthetic prompts share; ``None`` makes each distinct.
        n_turns: Turns of synthetic conversations, for closed loops; 1 sends single requests.
        slo: Limits that the highest rate is searched for; ``None`` searches nothing.
    """

    shapes: tuple[LoadShape, ...]
    requests_per_point: int
    warmup_requests: int
    max_tokens: int
    concurrency: tuple[int, ...]
    seed: int
    max_input_tokens: int = 512
    precision: float | None = None
    budget_s: float = 600.0
    lengths: SyntheticLengths | None = None
    arrivals: tuple[Arrival, ...] = ()
    has_latency_model: bool = True
    slo: Requirement | None = None
    prefix: SharedPrefix | None = None
    n_turns: int = 1

    def __post_init__(self) -> None:
        if not self.shapes or self.requests_per_point < 1 or self.max_tokens < 1 or self.warmup_requests < 0:
            raise ValueError("a profile needs shapes, requests_per_point and max_tokens >= 1, warmup_requests >= 0")
        if self.n_turns < 1:
            raise ValueError(f"a conversation has at least one turn, got {self.n_turns}")
        if self.precision is not None and not 0 < self.precision < 1:
            raise ValueError(f"precision is a share between 0 and 1, got {self.precision}")

    @property
    def needs_manners(self) -> bool:
        """Whether synthetic requests are sent."""
        return self.has_latency_model or self.lengths is not None or bool(self.arrivals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The prompts that are sent and scored.

    Attributes:
        prompts: At least one.
        digest: sha256 of the file they come from.
    """

    prompts: Sequence[Prompt]
    digest: str
