"""What is sent: requests of a load as data, and an endless supply of them from prompts.

Reads no file and sends nothing. Texts of asked lengths are ``synthetic``'s matter, talks of several
turns ``conversation``'s. Every supply is a function of its seed: the same seed asks the same.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from llmtier.core.prompt import Message, Prompt
from llmtier.store.text import replace_surrogates

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One request that is ready to be sent to any tier.

    Attributes:
        id: Unique within its supply.
        path: Of the endpoint.
        fields: Of the request's body, ``model`` and the stream's own left out.
        prompt_id: ``Prompt.id``, or which text it was made of.
        n_input_tokens: Expected length of the prompt; ``None`` when nobody knows. The engine's ``usage`` decides.
        n_output_tokens: Expected length of the answer; ``None`` when the engine ends it where it likes.
        session: Conversation it belongs to; ``None`` for a single request.
        turn: Number of it in its conversation, from 0.
    """

    id: str
    path: str
    fields: Mapping[str, object]
    prompt_id: str
    n_input_tokens: int | None = None
    n_output_tokens: int | None = None
    session: str | None = None
    turn: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStyle:
    """How requests are put to an engine.

    Attributes:
        is_chat: Chat completions; else raw completions, for engines without a chat template.
        accepts_ignore_eos: Whether the engine takes vLLM's ``ignore_eos`` and ``min_tokens``, so that an answer has
            exactly the asked length. Without them ``max_tokens`` is an upper limit only.
    """

    is_chat: bool = True
    accepts_ignore_eos: bool = False

    @property
    def path(self) -> str:
        """Return the endpoint's path."""
        return CHAT_PATH if self.is_chat else COMPLETION_PATH

    def fields(self, messages: Sequence[Message], *, max_tokens: int, is_exact: bool) -> dict[str, object]:
        """Return a body's fields; raw completions get the texts of all messages, a line feed between them."""
        text: dict[str, object]
        if self.is_chat:
            text = {"messages": [{"role": message.role, "content": message.content} for message in messages]}
        else:
            text = {"prompt": "\n".join(message.content for message in messages)}
        exact = {"ignore_eos": True, "min_tokens": max_tokens} if is_exact and self.accepts_ignore_eos else {}
        return {**text, "max_tokens": max_tokens, "temperature": 0.0, **exact}

    def expected_output_tokens(self, max_tokens: int) -> int | None:
        """Return the length that an answer asked for exactly will have; ``None`` when the engine may end it sooner."""
        return max_tokens if self.accepts_ignore_eos else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """An endless supply of requests from an evaluation set or a log.

    Iterate it once and share that iterator among all load points: a point then repeats prompts of another, which
    the engine may hold in its prefix cache, only when the set is used up.

    Attributes:
        prompts: At least one.
        max_tokens: Longest answer, for prompts that name none.
        seed: Of the order; ``None`` keeps the file's order, as the replay of a log wants it.
        style: How they are put. Answers end where the engine ends them.
    """

    prompts: Sequence[Prompt]
    max_tokens: int
    seed: int | None
    style: RequestStyle = field(default_factory=RequestStyle)

    def __post_init__(self) -> None:
        if not self.prompts or self.max_tokens < 1:
            raise ValueError("a workload needs at least one prompt and max_tokens of at least 1")

    def __iter__(self) -> Iterator[WorkItem]:
        prompts = itertools.cycle(self.prompts) if self.seed is None else cycle_prompts(self.prompts, seed=self.seed)
        for number, prompt in enumerate(prompts):
            max_tokens = prompt.max_tokens or self.max_tokens
            yield WorkItem(
                id=f"{number}-{prompt.id}",
                path=self.style.path,
                fields=self.style.fields(prompt.messages, max_tokens=max_tokens, is_exact=False),
                prompt_id=prompt.id,
            )


def cycle_prompts(prompts: Sequence[Prompt], *, seed: int) -> Iterator[Prompt]:
    """Yield ``prompts`` in one random order, over and over; none comes twice before all have come."""
    order = np.random.default_rng(seed).permutation(len(prompts))
    return itertools.cycle([prompts[index] for index in order])


def encode(item: WorkItem, model_name: str) -> bytes:
    """Return the body of a request that streams and reports its token counts.

    Lone surrogates, which UTF-8 cannot hold, become U+FFFD.
    """
    document = {"model": model_name, **item.fields, "stream": True, "stream_options": {"include_usage": True}}
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:
        return msgspec.json.encode(replace_surrogates(document))
