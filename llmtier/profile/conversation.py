"""Talks of several turns: what a user says next depends on what the engine answered.

Pure: answers in, requests out; whoever sends them waits for the answer and the think time between.
Turn k carries every earlier turn and the engine's real answers, so prompts grow, and an engine with a
prefix cache has seen most of each.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmtier.core.prompt import Message, Prompt
from llmtier.profile.lengths import SyntheticLengths
from llmtier.profile.synthetic import TextMaker, WordBudget
from llmtier.profile.workload import RequestStyle, WorkItem, cycle_prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What a user says once.

    Attributes:
        content: Its text.
        max_tokens: Longest answer.
        is_exact: Whether the answer shall have that very length.
        n_tokens: Length of ``content``, about; ``None`` when unknown.
        think_s: Pause between the answer before it and its scheduled instant; 0 for the first.
    """

    content: str
    max_tokens: int
    is_exact: bool = False
    n_tokens: int | None = None
    think_s: float = 0.0


class Conversation:
    """One talk, asked turn by turn.

    Args:
        session: Its name, which its requests carry.
        turns: What the user says, at least one turn.
        style: How requests are put.
        opening: Messages before the first turn, such as a system prompt.
    """

    def __init__(
        self, session: str, turns: Sequence[Turn], *, style: RequestStyle, opening: Sequence[Message] = ()
    ) -> None:
        if not turns:
            raise ValueError(f"conversation {session}: needs at least one turn")
        self.session = session
        self.turns = tuple(turns)
        self._style = style
        self._messages = list(opening)
        self._n_context_tokens: int | None = None if opening else 0
        self._n_asked = 0

    @property
    def next_think_s(self) -> float | None:
        """Pause before the next turn; ``None`` when there is none."""
        return self.turns[self._n_asked].think_s if self._n_asked < len(self.turns) else None

    def next_item(self, previous_answer: str | None = None) -> WorkItem | None:
        """Return the next request; ``None`` when the talk is over.

        Args:
            previous_answer: What the engine said to the turn before; ``None`` before the first turn, and when the
                request failed, which ends the talk.
        """
        if previous_answer is not None and self._n_asked == 0:
            raise ValueError(f"conversation {self.session}: an answer came before the first turn")
        if self._n_asked == len(self.turns) or (previous_answer is None and self._n_asked > 0):
            self._n_asked = len(self.turns)
            return None
        if previous_answer is not None:
            self._messages.append(Message(role="assistant", content=previous_answer))
        turn = self.turns[self._n_asked]
        self._messages.append(Message(role="user", content=turn.content))
        item = self._to_item(turn)
        self._n_asked += 1
        return item

    def _to_item(self, turn: Turn) -> WorkItem:
        n_output_tokens = self._style.expected_output_tokens(turn.max_tokens) if turn.is_exact else None
        n_input_tokens = _add(self._n_context_tokens, turn.n_tokens)
        self._n_context_tokens = _add(n_input_tokens, n_output_tokens)
        name = f"{self.session}-{self._n_asked}"
        return WorkItem(
            id=name,
            path=self._style.path,
            fields=self._style.fields(self._messages, max_tokens=turn.max_tokens, is_exact=turn.is_exact),
            prompt_id=name,
            n_input_tokens=n_input_tokens,
            n_output_tokens=n_output_tokens,
            session=self.session,
            turn=self._n_asked,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticTalks:
    """An endless supply of talks whose turns have lengths by a law.

    Attributes:
        n_turns: Of each talk.
        lengths: Of what the user adds in a turn, and of each answer.
        budget: Of the engine; its fixed tokens are counted for every turn.
        seed: Of lengths, words and pauses.
        mean_think_s: Mean pause between an answer and the next turn; pauses are exponential.
        style: How requests are put.
    """

    n_turns: int
    lengths: SyntheticLengths
    budget: WordBudget
    seed: int
    mean_think_s: float = 0.0
    style: RequestStyle = field(default_factory=RequestStyle)

    def __post_init__(self) -> None:
        if self.n_turns < 1 or not (np.isfinite(self.mean_think_s) and self.mean_think_s >= 0):
            raise ValueError("conversations need n_turns of at least 1 and a finite mean_think_s of at least 0")

    def __iter__(self) -> Iterator[Conversation]:
        rng = np.random.default_rng([self.seed, 2])
        texts = TextMaker(self.budget, seed=self.seed)
        for number in itertools.count():
            turns = [self._draw_turn(rng, texts, is_first=index == 0) for index in range(self.n_turns)]
            yield Conversation(f"talk-{number}", turns, style=self.style)

    def _draw_turn(self, rng: np.random.Generator, texts: TextMaker, *, is_first: bool) -> Turn:
        text = texts.make(self.lengths.input.draw(rng))
        return Turn(
            content=text.content,
            max_tokens=self.lengths.output.draw(rng),
            is_exact=True,
            n_tokens=text.n_tokens,
            think_s=0.0 if is_first else float(rng.exponential(self.mean_think_s)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedTalks:
    """An endless supply of talks from logged conversations: the users' turns, answered anew.

    Attributes:
        prompts: Each with at least one user turn; recorded answers are left out.
        max_tokens: Longest answer, for prompts that name none.
        seed: Of the order.
        style: How requests are put.
    """

    prompts: Sequence[Prompt]
    max_tokens: int
    seed: int
    style: RequestStyle = field(default_factory=RequestStyle)

    def __post_init__(self) -> None:
        silent = [prompt.id for prompt in self.prompts if not _user_turns(prompt.messages)]
        if silent or not self.prompts or self.max_tokens < 1:
            found = (
                f"prompt {silent[0]} has none" if silent else f"{len(self.prompts)} prompts, {self.max_tokens} tokens"
            )
            raise ValueError(f"conversations need prompts with a user turn and max_tokens of at least 1: {found}")

    def __iter__(self) -> Iterator[Conversation]:
        for number, prompt in enumerate(cycle_prompts(self.prompts, seed=self.seed)):
            max_tokens = prompt.max_tokens or self.max_tokens
            turns = [Turn(content=text, max_tokens=max_tokens) for text in _user_turns(prompt.messages)]
            before = itertools.takewhile(lambda message: message.role != "user", prompt.messages)
            opening = [message for message in before if message.role != "assistant"]
            yield Conversation(f"{number}-{prompt.id}", turns, style=self.style, opening=opening)


def _user_turns(messages: Iterable[Message]) -> list[str]:
    return [message.content for message in messages if message.role == "user"]


def _add(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left + right
