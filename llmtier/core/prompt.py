"""Prompts and what came of them: messages, logged prompts, outcomes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class AnswerScorer(StrEnum):
    """How an answer is compared with the reference answer."""

    EXACT = "exact"
    NUMBER = "number"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request as data: what was asked and, where known, the right answer.

    Attributes:
        id: Unique within its file.
        messages: The conversation, oldest first; never empty.
        domain: The user's own label; ``None`` when absent.
        answer: Reference answer; ``None`` when unlabelled.
        scorer: How to compare with ``answer``.
        arrival_s: Seconds since the log began; ``None`` when unknown.
        max_tokens: Longest answer to ask for.
    """

    id: str
    messages: tuple[Message, ...]
    domain: str | None = None
    answer: str | None = None
    scorer: AnswerScorer = AnswerScorer.EXACT
    arrival_s: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError(f"prompt {self.id}: needs at least one message")

    @property
    def last_user_text(self) -> str:
        """Return the text of the last user turn, or of the last turn when no user spoke."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.content
        return self.messages[-1].content


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One prompt answered by one tier.

    Attributes:
        prompt_id: ``Prompt.id``.
        tier: Name of the tier that answered.
        score: In [0, 1]; ``None`` when there was no reference answer or no response.
        text: The answer; ``None`` when the request failed.
        n_input_tokens: As the engine reports; likewise ``n_output_tokens``.
        ttft_s: Time to first token; likewise ``e2el_s``.
        error: Why the request failed; ``None`` when it did not.
        mean_logprob: Mean natural log probability of the answer's tokens, at most 0; ``None`` when the engine gave none.
        min_logprob: The least of them.

    Raises:
        ValueError: The score is out of range.
    """

    prompt_id: str
    tier: str
    score: float | None = None
    text: str | None = None
    n_input_tokens: int | None = None
    n_output_tokens: int | None = None
    ttft_s: float | None = None
    e2el_s: float | None = None
    error: str | None = None
    mean_logprob: float | None = None
    min_logprob: float | None = None

    def __post_init__(self) -> None:
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise ValueError(f"outcome of {self.prompt_id} on {self.tier}: score must lie in [0, 1], got {self.score}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPrompt:
    """A prompt with its score on every tier that answered it: one row of an outcomes file.

    Attributes:
        prompt: What was asked.
        scores: Tier name to score in [0, 1]; a tier without a score is absent.
        output_tokens: Tier name to output tokens; may lack tiers.
        weight: How many prompts of the traffic the row stands for: one over the probability with which it was drawn.
        rating: The complexity that a self-assessing engine gave, in [0, 10]; ``None`` when not asked or not understood.
        confidences: Tier name to the mean log probability of its answer's tokens; may lack tiers.

    Raises:
        ValueError: The weight is not positive and finite, or the rating is out of range.
    """

    prompt: Prompt
    scores: Mapping[str, float]
    output_tokens: Mapping[str, int] = field(default_factory=dict)
    weight: float = 1.0
    rating: float | None = None
    confidences: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < math.inf:
            raise ValueError(f"prompt {self.prompt.id}: weight must be positive and finite, got {self.weight}")
        if self.rating is not None and not 0.0 <= self.rating <= 10.0:
            raise ValueError(f"prompt {self.prompt.id}: rating must lie in [0, 10], got {self.rating}")
