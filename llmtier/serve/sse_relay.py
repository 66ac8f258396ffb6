"""Relay an SSE byte stream whole event by whole event, without decoding the events.

Sans-I/O: bytes in, bytes out. The output is the input, whatever the cuts, less the usage chunk when the
gateway asked for it and the client did not. Cutting at event boundaries means that an error event can
follow at any time and still be well formed. Only an event that may hold usage, an error or the end
is looked into; a quoted word inside generated text is escaped in JSON, so it never looks like a key.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html and, for usage,
https://platform.openai.com/docs/api-reference/chat/create (``stream_options``).
"""

import re

import msgspec

from llmtier.engine.wire import Usage

MAX_HELD_BYTES = 1 << 20
"""An unfinished event longer than this is no usage chunk and is passed on as it is."""

_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_MARKS = (b'"usage"', b'"error"', b"[DONE]")
_CONTENT = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments)"\s*:\s*"[^"]')


class _Chunk(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_CHUNK = msgspec.json.Decoder(_Chunk)


def read_usage(document: bytes) -> Usage | None:
    """Return the usage of a whole (not streamed) response; ``None`` when it holds none."""
    try:
        return _CHUNK.decode(document).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class SseRelay:
    """The state of one relayed stream.

    Args:
        strips_usage: Drop the chunk that holds nothing but usage.

    Attributes:
        usage: Last usage seen; ``None`` until then.
        is_done: Whether ``[DONE]`` came.
        has_error: Whether the engine sent an error event.
        has_content: Whether generated text came.
    """

    def __init__(self, *, strips_usage: bool) -> None:
        self.usage: Usage | None = None
        self.is_done = False
        self.has_error = False
        self.has_content = False
        self._strips_usage = strips_usage
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """Take what arrived; return what goes to the client, possibly nothing."""
        data = self._held + piece if self._held else piece
        cut = _find_cut(data)
        if cut == 0 and len(data) > MAX_HELD_BYTES:
            cut = len(data)
        self._held = data[cut:]
        return self._inspect(data[:cut])

    def finish(self) -> bytes:
        """Return what is left when the stream ended without a last blank line."""
        rest, self._held = self._held, b""
        return self._inspect(rest)

    def _inspect(self, events: bytes) -> bytes:
        if not self.has_content and _CONTENT.search(events):
            self.has_content = True
        if not _has_mark(events):
            return events
        return b"".join(event for event in _split_events(events) if not self._absorb(event))

    def _absorb(self, event: bytes) -> bool:
        """Note what ``event`` tells; return whether it is to be dropped."""
        if not _has_mark(event):
            return False
        payload = _read_data(event)
        if payload == b"[DONE]":
            self.is_done = True
            return False
        try:
            chunk = _CHUNK.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        self.has_error = self.has_error or bytes(chunk.error) not in (b"", b"null")
        if chunk.usage is None:
            return False
        self.usage = chunk.usage
        return self._strips_usage and not chunk.choices


def _has_mark(events: bytes) -> bool:
    return any(mark in events for mark in _MARKS)


def _find_cut(data: bytes) -> int:
    """Return the index just after the last event boundary; 0 when there is none."""
    if data.endswith(b"\n\n"):  # what engines send, nearly always
        return len(data)
    return max(
        data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0,
        data.rfind(b"\r\n\r\n") + 4 if b"\r\n\r\n" in data else 0,
        data.rfind(b"\r\r") + 2 if b"\r\r" in data else 0,
    )


def _split_events(events: bytes) -> list[bytes]:
    ends = [match.end() for match in _BOUNDARY.finditer(events)]
    starts = [0, *ends]
    return [events[start:end] for start, end in zip(starts, [*ends, len(events)], strict=True)]


def _read_data(event: bytes) -> bytes:
    lines = (line for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(line[5:].strip() for line in lines)
