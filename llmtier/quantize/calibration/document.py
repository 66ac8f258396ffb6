"""One row of a source to one document of a calibration set: columns mapped, roles named as the engine names them.

Pure. Documents are ``{"messages": [...]}`` or ``{"text": ...}`` with a ``domain``; the chat template is applied by the
quantizer, whose model it belongs to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmtier.store.calibration_recipe import COLUMN, FieldMapping, template_columns
from llmtier.store.documents import shorten

Row = Mapping[str, Any]
Document = dict[str, Any]

ROLES: Mapping[str, str] = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Roles as other collections of chats spell them."""
CHAT_COLUMNS = ("messages", "conversations", "conversation")
PROMPT_COLUMNS = ("prompt", "question", "instruction")
ANSWER_COLUMNS = ("answer", "response", "output", "completion")
BYTES_PER_TOKEN = 4  # of English text in the vocabularies of 2026; docs/calibration.md says how far off it may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How the rows of one source become documents.

    Attributes:
        domain: Label of each document.
        fields: Which columns hold what; ``None`` goes by the usual names.
        template: Text with columns in braces; ``None`` without one.
        system_prompt: Put before chats without a system turn; ``None`` when there is none.
    """

    domain: str
    fields: FieldMapping | None = None
    template: str | None = None
    system_prompt: str | None = None

    def to_document(self, row: Row) -> Document | None:
        """Return the document of a row; ``None`` when what stands there is not text, such as an image or a tool call.

        Raises:
            ValueError: A column is missing or of the wrong kind.
        """
        if self.template is not None:
            return self._text(fill(self.template, row))
        fields = self.fields or guess_fields(row)
        if fields.text is not None:
            return self._text(text_of(row, fields.text))
        messages = chat_of(row, fields)
        return None if messages is None else self._chat(messages)

    def _text(self, text: str | None) -> Document | None:
        return None if text is None else {"text": text, "domain": self.domain}

    def _chat(self, messages: list[dict[str, str]]) -> Document:
        if self.system_prompt is not None and all(message["role"] != "system" for message in messages):
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        return {"messages": messages, "domain": self.domain}


def guess_fields(row: Row) -> FieldMapping:
    """Return the mapping that the names of a row's columns suggest.

    Raises:
        ValueError: They suggest none; names them.
    """
    for name in CHAT_COLUMNS:
        if isinstance(row.get(name), list):
            return FieldMapping(messages=name)
    if row.get("text") is not None:
        return FieldMapping(text="text")
    user = next((name for name in PROMPT_COLUMNS if isinstance(row.get(name), str)), None)
    if user is None:
        names = shorten(", ".join(row), limit=200)
        raise ValueError(f"expected 'messages', 'text' or 'prompt', found {names}; name the columns in [source.fields]")
    assistant = next((name for name in ANSWER_COLUMNS if isinstance(row.get(name), str)), None)
    return FieldMapping(user=user, assistant=assistant)


def chat_of(row: Row, fields: FieldMapping) -> list[dict[str, str]] | None:
    """Return a row's turns; ``None`` when one is not text.

    Raises:
        ValueError: A column is missing or is no list of turns.
    """
    if fields.messages is not None:
        return normalise_turns(column(row, fields.messages), fields.messages)
    named = (("system", fields.system), ("user", fields.user), ("assistant", fields.assistant))
    texts = [(role, text_of(row, name)) for role, name in named if name is not None]
    turns = [{"role": role, "content": text} for role, text in texts if text is not None]
    return turns if any(turn["role"] == "user" for turn in turns) else None


def normalise_turns(turns: object, name: str) -> list[dict[str, str]] | None:
    """Return turns as ``role`` and ``content``; ``None`` when one is not text.

    Raises:
        ValueError: It is no list of turns.
    """
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{name}: expected a list of turns, got {shorten(turns)}")
    found = [normalise_turn(turn, place=f"{name}[{index}]") for index, turn in enumerate(turns)]
    texts = [turn for turn in found if turn is not None]
    return texts if len(texts) == len(turns) else None


def normalise_turn(turn: object, *, place: str) -> dict[str, str] | None:
    """Return one turn as ``role`` and ``content``; ``None`` when it is not text.

    Raises:
        ValueError: It is no turn.
    """
    if not isinstance(turn, dict) or not turn.keys() & {"content", "value", "tool_calls"}:
        raise ValueError(f"{place}: expected a turn with role and content, got {shorten(turn)}")
    role, content = turn.get("role", turn.get("from")), join_parts(turn.get("content", turn.get("value")))
    if not isinstance(role, str) or not role:
        raise ValueError(f"{place}.role: expected a text, got {shorten(role)}")
    if isinstance(content, str):
        return {"role": ROLES.get(role, role), "content": content}
    if content is None or isinstance(content, list):  # a call of a tool, an image
        return None
    raise ValueError(f"{place}.content: expected a text, got {shorten(content)}")


def join_parts(content: object) -> object:
    """Return the text of a content that is a list of text parts; anything else as it is."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    return content


def fill(template: str, row: Row) -> str | None:
    """Return the template with the row's columns in it; ``None`` when one is null.

    Raises:
        ValueError: The row lacks a column.
    """
    values = {name: column(row, name) for name in template_columns(template)}
    if any(value is None for value in values.values()):
        return None
    return COLUMN.sub(lambda match: str(values[match[1]]), template)


def text_of(row: Row, name: str) -> str | None:
    """Return the text in a column; ``None`` where it is null.

    Raises:
        ValueError: There is no such column, or it holds something else.
    """
    value = column(row, name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name}: expected a text, got {shorten(value)}")
    return value


def column(row: Row, name: str) -> Any:  # noqa: ANN401 - whatever the row holds
    """Return a column's value.

    Raises:
        ValueError: There is no such column; names those that there are.
    """
    if name not in row:
        raise ValueError(f"no column {name!r}; there are: {shorten(', '.join(row), limit=200)}")
    return row[name]


def full_text(document: Mapping[str, Any]) -> str:
    """Return all that a document says, turn after turn."""
    messages = document.get("messages")
    return str(document["text"]) if messages is None else "\n".join(message["content"] for message in messages)


def own_text(document: Mapping[str, Any]) -> str:
    """Return what sets a document apart: all but the system prompt, which a service's chats have in common."""
    messages = document.get("messages")
    if messages is None:
        return str(document["text"])
    return "\n".join(message["content"] for message in messages if message["role"] != "system")


def unprompted_text(document: Mapping[str, Any], system_prompt: str | None) -> str:
    """Return all that a document says but the recipe's own system prompt, which is not the row's."""
    messages = document.get("messages")
    if messages is None or system_prompt is None or messages[0]["content"] != system_prompt:
        return full_text(document)
    return full_text({"messages": messages[1:]})


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, without a tokenizer."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)
