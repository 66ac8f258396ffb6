"""Ask for the log probabilities of an answer's tokens, and do without where an engine refuses them.

Reads and writes nothing itself: wraps a client of the engine. Some servers answer 400 to ``logprobs``
(reasoning models behind an API, older llama.cpp); their answers are still wanted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from llmtier.core.errors import EngineRequestError
from llmtier.core.prompt import Message
from llmtier.engine.stream import Completion

_FIELDS: Mapping[str, object] = {"logprobs": True}
_REFUSALS = (400, 422)  # 422: servers built on FastAPI that do not translate its validation errors


class FieldsClient(Protocol):
    """What is needed of ``engine.client.EngineClient``."""

    async def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None,
        temperature: float = 0.0,
        scheduled_s: float | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> Completion:
        """Ask for a chat completion with ``extra`` fields in the body, else raise ``EngineRequestError``."""


class LogprobsClient:
    """A client whose completions carry log probabilities where the engine allows; one per engine and run.

    Args:
        client: The engine's client.
        on_refusal: Told once, with the engine's words, when the engine answers only without log probabilities.
    """

    def __init__(self, client: FieldsClient, *, on_refusal: Callable[[EngineRequestError], None]) -> None:
        self._client = client
        self._on_refusal = on_refusal
        self._allows: bool | None = None  # unknown before the first answer

    async def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None,
        temperature: float = 0.0,
        scheduled_s: float | None = None,
    ) -> Completion:
        """Ask with log probabilities; a refusal before any such answer is asked again without."""

        async def ask(fields: Mapping[str, object] | None) -> Completion:
            return await self._client.stream_chat(
                messages, max_tokens=max_tokens, temperature=temperature, scheduled_s=scheduled_s, extra=fields
            )

        if self._allows is False:
            return await ask(None)
        try:
            completion = await ask(_FIELDS)
        except EngineRequestError as error:
            if self._allows or error.status not in _REFUSALS:
                raise
            completion = await ask(None)  # raises again when it was the prompt that was refused
            self._note_refusal(error)
            return completion
        self._allows = True
        return completion

    def _note_refusal(self, error: EngineRequestError) -> None:
        """Remember a refusal; requests that were under way at the same time find it noted."""
        if self._allows is None:
            self._allows = False
            self._on_refusal(error)
