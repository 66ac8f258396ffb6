"""The text of a prompt, whichever endpoint it was posted to: what scorers read and how long it is.

Reads the bytes of the fields that hold it (``messages``, ``prompt``, ``input``, ``instructions``). Media that
the engine would fetch from a URL of the client's are refused unless allowed: an engine inside a network is a
way into it. Holds no opinion on anything else in the body.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from llmtier.core.prompt import Message
from llmtier.serve.caps import Caps
from llmtier.serve.refusal import RequestRefusedError
from llmtier.store.permissions import Permission

CHARACTERS_PER_TOKEN = 6
"""Deliberately above English's 4 or so: a prompt is refused for length only when it surely does not fit."""

Fields = Mapping[str, msgspec.Raw]


class PromptText(NamedTuple):
    """The text and its least length: exact for token ids, else estimated from the characters."""

    messages: tuple[Message, ...]
    n_tokens: int


class _Url(msgspec.Struct, gc=False):
    url: str | None = None


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    image_url: str | _Url | None = None
    audio_url: str | _Url | None = None
    video_url: str | _Url | None = None
    file_url: str | _Url | None = None


class _Turn(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Part] | None = None


class _Item(msgspec.Struct, gc=False):
    role: str | None = None
    content: str | list[_Part] | None = None
    output: str | list[_Part] | None = None  # of a tool


_PLAIN_TURNS = msgspec.json.Decoder(tuple[Message, ...])
_TURNS = msgspec.json.Decoder(list[_Turn] | None)
_ITEMS = msgspec.json.Decoder(str | list[_Item] | None)
_TEXT = msgspec.json.Decoder(str | None)
_INPUTS = msgspec.json.Decoder(str | list[str | int | list[int]] | None)

_NOTHING = msgspec.Raw(b"null")


def read_chat(fields: Fields, caps: Caps) -> PromptText:
    """Read ``messages``.

    Raises:
        msgspec.MsgspecError: It is of another shape.
        RequestRefusedError: 400; it is empty, or names media by URL.
    """
    value = fields.get("messages", _NOTHING)
    try:
        messages = _PLAIN_TURNS.decode(value)  # every content a string: by far the most
    except msgspec.ValidationError:
        turns = _TURNS.decode(value) or []
        messages = tuple(Message(role=turn.role, content=_join(turn.content, caps)) for turn in turns)
    if not messages:
        raise RequestRefusedError("messages must hold at least one message", param="messages")
    return PromptText(messages, _count([message.content for message in messages]))


def read_responses(fields: Fields, caps: Caps) -> PromptText:
    """Read ``input`` and ``instructions``; raises as ``read_chat`` does."""
    given = _ITEMS.decode(fields.get("input", _NOTHING))
    instructions = _TEXT.decode(fields.get("instructions", _NOTHING))
    if not given:
        raise RequestRefusedError("input must not be empty", param="input")
    messages = [] if not instructions else [Message(role="system", content=instructions)]
    if isinstance(given, str):
        messages.append(Message(role="user", content=given))
    else:
        messages.extend(message for item in given if (message := _read_item(item, caps)) is not None)
    return PromptText(tuple(messages), _count([message.content for message in messages]))


def read_inputs(name: str, fields: Fields, caps: Caps) -> PromptText:
    """Read the prompts of a completion or the texts to embed; raises as ``read_chat`` does."""
    given = _INPUTS.decode(fields.get(name, _NOTHING))
    if not given:
        raise RequestRefusedError(f"{name} must not be empty", param=name)
    inputs = [given] if isinstance(given, str) else given
    if isinstance(inputs[0], int):
        return PromptText((), len(inputs))
    if len(inputs) > caps.inputs:
        message = f"{name} may hold at most {caps.inputs} entries, got {len(inputs)}"
        raise RequestRefusedError(message, param=name)
    texts = [text for text in inputs if isinstance(text, str)]
    if texts:  # each is a sequence of its own in the engine's context
        joined = Message(role="user", content="\n".join(texts))
        return PromptText((joined,), max(map(len, texts)) // CHARACTERS_PER_TOKEN)
    return PromptText((), max(len(ids) for ids in inputs if isinstance(ids, list)))


def _read_item(item: _Item, caps: Caps) -> Message | None:
    if item.output is not None:
        return Message(role="tool", content=_join(item.output, caps))
    if item.content is None:
        return None
    return Message(role=item.role or "user", content=_join(item.content, caps))


def _join(content: str | list[_Part] | None, caps: Caps) -> str:
    if not isinstance(content, list):
        return content or ""
    if Permission.MEDIA_URLS not in caps.allowed:
        for part in content:
            _check_media(part)
    return "\n".join(part.text for part in content if part.text is not None)


def _check_media(part: _Part) -> None:
    for media in (part.image_url, part.audio_url, part.video_url, part.file_url):
        url = media.url if isinstance(media, _Url) else media
        if url is not None and not url.startswith("data:"):
            message = "media by URL are not fetched here: send them as 'data:' URLs, or allow 'media_urls'"
            raise RequestRefusedError(message, code="field_not_allowed", param="messages")


def _count(texts: Sequence[str]) -> int:
    return sum(map(len, texts)) // CHARACTERS_PER_TOKEN
