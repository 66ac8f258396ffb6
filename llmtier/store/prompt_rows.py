"""One prompt as one row: the shape that prompt files and outcome files share.

Turns rows of JSON lines or Parquet into ``Prompt`` and back; ``logs`` brings foreign rows into
this shape first. Touches no file.
"""

import json
import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from llmtier.core.prompt import AnswerScorer, Message, Prompt
from llmtier.store.parquet import Column, Row

PROMPT_COLUMNS = (
    Column("id", "string"),
    Column("messages", "messages"),
    Column("domain", "string", nullable=True),
    Column("answer", "string", nullable=True),
    Column("scorer", "string"),
    Column("arrival_s", "float64", unit="s", nullable=True),
    Column("max_tokens", "int64", unit="tokens", nullable=True),
)
_PLAIN_TYPES = (
    ("id", str),
    ("domain", str),
    ("answer", str),
    ("scorer", str),
    ("arrival_s", float),
    ("max_tokens", int),
)
_SCORERS = {scorer.value: scorer for scorer in AnswerScorer}


def _join_parts(content: Any) -> Any:  # noqa: ANN401 - whatever the file held; Pydantic checks the result
    """Return the text of a content that is a list of text parts, as the OpenAI API allows."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def _as_text(answer: Any) -> Any:  # noqa: ANN401 - as above
    """Return an answer that was written as a number or a document as its JSON text."""
    return answer if answer is None or isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, default=str)


def _default_scorer(scorer: Any) -> Any:  # noqa: ANN401 - as above
    return AnswerScorer.EXACT if scorer is None else scorer


class _MessageRow(BaseModel):
    role: str = Field(min_length=1)
    content: Annotated[str, BeforeValidator(_join_parts)]

    @model_validator(mode="before")
    @classmethod
    def _fill_call(cls, turn: Any) -> Any:  # noqa: ANN401 - as above
        """Give a turn that calls tools, whose content the API leaves null, no text instead."""
        if isinstance(turn, dict) and turn.get("tool_calls") and turn.get("content") is None:
            return {**turn, "content": ""}
        return turn


class PromptRow(BaseModel):
    """The keys that are read of a row; the others are left aside."""

    model_config = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)

    id: str | None = Field(default=None, min_length=1)
    messages: list[_MessageRow] | None = Field(default=None, min_length=1)
    prompt: str | None = None
    domain: str | None = None
    answer: Annotated[str | None, BeforeValidator(_as_text)] = None
    scorer: Annotated[AnswerScorer, BeforeValidator(_default_scorer)] = AnswerScorer.EXACT
    arrival_s: float | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)

    def to_prompt(self, *, default_id: str) -> Prompt:
        """Return the prompt.

        Raises:
            ValueError: It has neither ``messages`` nor ``prompt``, or both.
        """
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("expected either 'messages' (a list of role and content) or 'prompt' (a string)")
        if self.messages is None:
            messages: tuple[Message, ...] = (Message(role="user", content=self.prompt or ""),)
        else:
            messages = tuple(Message(role=row.role, content=row.content) for row in self.messages)
        return Prompt(
            id=default_id if self.id is None else self.id,
            messages=messages,
            domain=self.domain,
            answer=self.answer,
            scorer=self.scorer,
            arrival_s=self.arrival_s,
            max_tokens=self.max_tokens,
        )


def plain_prompt(row: Row, *, default_id: str) -> Prompt | None:
    """Return the prompt of a row whose values are of the right types already, a tenth of what ``PromptRow`` takes.

    ``None`` when anything is out of the ordinary: ``PromptRow`` then coerces it, or says what is wrong.
    """
    messages = _plain_messages(row)
    for key, kind in _PLAIN_TYPES:
        value = row.get(key)
        if value is not None and type(value) is not kind:
            return None
    name, scorer, arrival_s = (
        row.get("id"),
        _SCORERS.get(AnswerScorer.EXACT if row.get("scorer") is None else row["scorer"]),
        row.get("arrival_s"),
    )
    max_tokens = row.get("max_tokens")
    is_in_range = (arrival_s is None or 0 <= arrival_s < math.inf) and (max_tokens is None or max_tokens >= 1)
    if messages is None or scorer is None or name == "" or not is_in_range:
        return None
    return Prompt(
        id=default_id if name is None else name,
        messages=messages,
        domain=row.get("domain"),
        answer=row.get("answer"),
        scorer=scorer,
        arrival_s=arrival_s,
        max_tokens=max_tokens,
    )


def _plain_messages(row: Row) -> tuple[Message, ...] | None:
    """Return the messages; ``None`` where they are not exactly a text, or a list of roles and texts."""
    text, turns = row.get("prompt"), row.get("messages")
    if turns is None:
        return (Message(role="user", content=text),) if type(text) is str else None
    if text is not None or type(turns) is not list or not turns:
        return None
    messages: list[Message] = []
    for turn in turns:
        if type(turn) is not dict:
            return None
        role, content = turn.get("role"), turn.get("content")
        if type(role) is not str or not role or type(content) is not str:
            return None
        messages.append(Message(role=role, content=content))
    return tuple(messages)


def to_row(prompt: Prompt) -> Row:
    """Return the row of a prompt, every key present."""
    return {
        "id": prompt.id,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "domain": prompt.domain,
        "answer": prompt.answer,
        "scorer": prompt.scorer.value,
        "arrival_s": prompt.arrival_s,
        "max_tokens": prompt.max_tokens,
    }
