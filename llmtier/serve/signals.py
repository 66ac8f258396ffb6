"""The signals of a request that a scorer reads beside the text: an embedding made here, an engine's rating.

An embedding takes milliseconds of a processor and is made in a thread; a rating is a request to a tier and is
asked only where it could change the choice. A signal that cannot be had in time is ``None``: the scorer then falls
back, and the failure is counted.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmtier.core.decision import Objective
from llmtier.core.errors import LlmtierError
from llmtier.core.policy import Policy
from llmtier.core.prompt import Message, Prompt
from llmtier.score.cache import ScoreCache
from llmtier.score.self_assess import MAX_RATING_TOKENS, build_rating_messages, needs_rating, parse_rating
from llmtier.score.signals import Signal, Signals
from llmtier.score.text import scored_text
from llmtier.serve.http_client import UpstreamBrokenError, UpstreamClient, UpstreamConnectError
from llmtier.serve.pool import ServedTier
from llmtier.serve.watch import authorization

Embed = Callable[[str], NDArray[np.float32] | None]
Ask = Callable[[tuple[Message, ...]], Awaitable[str]]

_MAX_RATING_BYTES = 1 << 20
_EMBEDDING_TIMEOUT_S = 5.0  # it takes milliseconds; a thread that hangs must not hold requests


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalPlan:
    """How a gateway gets the signals that its scorer reads.

    Attributes:
        reads: The signals that the scorer makes use of.
        embed: Text to embedding; ``None`` without an embedder.
        rater: Name of the tier that rates prompts; ``None`` when none does.
        rating_band: How far from the policy's gap a rating is still asked for; infinity asks always.
        rating_timeout_s: Longest wait for a rating.
    """

    reads: frozenset[Signal] = frozenset()
    embed: Embed | None = None
    rater: str | None = None
    rating_band: float = math.inf
    rating_timeout_s: float = 2.0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to get."""
        embeds = Signal.EMBEDDING in self.reads and self.embed is not None
        return not embeds and not (Signal.RATING in self.reads and self.rater is not None)


class SignalReader:
    """Scores prompts with the signals that their scorer reads.

    Args:
        plan: What is to be got, and how.
        scores: The scorer behind its cache.
        policy: Whose gap the band lies around; ``None`` rates every prompt.
        ask: Sends a conversation to the rater and returns its answer's text; ``None`` without a rater.
        on_failure: Told of each signal that could not be had.
    """

    def __init__(
        self,
        plan: SignalPlan,
        scores: ScoreCache,
        *,
        policy: Policy | None,
        ask: Ask | None,
        on_failure: Callable[[Signal], None],
    ) -> None:
        self._plan = plan
        self._scores = scores
        self._policy = policy
        self._ask = ask
        self._on_failure = on_failure

    async def probabilities(self, prompt: Prompt) -> Mapping[str, float]:
        """Return P(correct) by tier."""
        plan = self._plan
        if plan.is_idle:
            return self._scores.probabilities(prompt)
        embedding = None
        if Signal.EMBEDDING in plan.reads and plan.embed is not None:
            rates = Signal.RATING in plan.reads and self._ask is not None
            if not rates and (known := self._scores.find(prompt)) is not None:
                return known
            embedding = await self._embed(plan.embed, prompt)
        unrated = self._scores.probabilities(prompt, Signals(embedding=embedding))
        if Signal.RATING not in plan.reads or self._ask is None or not self._is_close(prompt, unrated):
            return unrated
        rating = await self._rate(self._ask, prompt)
        return self._scores.probabilities(prompt, Signals(embedding=embedding, rating=rating))

    def _is_close(self, prompt: Prompt, probabilities: Mapping[str, float]) -> bool:
        """Tell whether a rating could move the prompt to another tier."""
        policy = self._policy
        if policy is None or policy.reference not in probabilities or policy.objective is Objective.UTILITY:
            return True
        gap = policy.gap_of(prompt.domain)
        if gap is None:
            return False
        own = probabilities[policy.reference]
        gains = [own - value for tier, value in probabilities.items() if tier != policy.reference]
        return any(needs_rating(gain, gap=gap, band=self._plan.rating_band) for gain in gains or [0.0])

    async def _embed(self, embed: Embed, prompt: Prompt) -> NDArray[np.float32] | None:
        try:
            async with asyncio.timeout(_EMBEDDING_TIMEOUT_S):
                return await asyncio.to_thread(embed, scored_text(prompt))
        except (LlmtierError, TimeoutError):
            self._on_failure(Signal.EMBEDDING)
            return None

    async def _rate(self, ask: Ask, prompt: Prompt) -> float | None:
        try:
            async with asyncio.timeout(self._plan.rating_timeout_s):
                rating = parse_rating(await ask(build_rating_messages(scored_text(prompt))))
        except (UpstreamConnectError, UpstreamBrokenError, TimeoutError, msgspec.DecodeError):
            rating = None
        if rating is None:
            self._on_failure(Signal.RATING)
        return rating


class _Answer(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Answer


class _Completion(msgspec.Struct):
    choices: list[_Choice]


def make_asker(client: UpstreamClient, tier: ServedTier) -> Ask:
    """Return what asks a tier for a rating: two tokens at temperature 0.

    It raises what ``client`` raises, and likewise when the tier refuses.
    """
    headers = authorization(tier)

    async def ask(messages: tuple[Message, ...]) -> str:
        body = msgspec.json.encode(
            {
                "model": tier.model_name,
                "messages": [{"role": message.role, "content": message.content} for message in messages],
                "max_tokens": MAX_RATING_TOKENS,
                "temperature": 0,
            }
        )
        answer = await client.send("/v1/chat/completions", body, headers=headers)
        try:
            document = await answer.read_whole(limit_bytes=_MAX_RATING_BYTES)
        finally:
            answer.close()
        if answer.status >= 300:
            raise UpstreamBrokenError(had_bytes=True)
        found = msgspec.json.decode(document, type=_Completion)
        return (found.choices[0].message.content or "") if found.choices else ""

    return ask
