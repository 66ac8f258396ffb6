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

_MOST_TRIES = 8
"""Events with text from which a stream's form is sought; where several come at once there is none to find."""

_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_CONTENT = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments|delta)"\s*:\s*"[^"]')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,32})"')
_LAST_TYPES = frozenset({"response.completed", "response.failed", "response.incomplete"})


class _ResponsesUsage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Response(msgspec.Struct, gc=False):
    usage: _ResponsesUsage | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class _ResponsesEvent(msgspec.Struct, gc=False):
    type: str | None = None
    response: _Response | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)
_RESPONSES_EVENT = msgspec.json.Decoder(_ResponsesEvent)
_RESPONSE = msgspec.json.Decoder(_Response)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_usage(document: bytes, *, is_responses: bool = False) -> Usage | None:
    """Return the usage of a whole (not streamed) answer; ``None`` when it holds none."""
    try:
        if is_responses:
            return _translate(_RESPONSE.decode(document).usage)
        return _CHUNK.decode(document).usage
    except _UNREADABLE:
        return None


def read_finish_reason(document: bytes) -> str | None:
    """Return why the first choice of an answer, or of an event, ended; ``None`` when it does not say.

    Generated text cannot be mistaken for it: quotes in that are escaped.
    """
    found = _FINISH.search(document)
    return None if found is None else found[1].decode()


class SseRelay:
    """The state of one relayed stream.

    Args:
        strips_usage: Drop the chunk that holds nothing but usage.
        is_responses: Whether it is a stream of the responses endpoint, which has an end of its own.

    Attributes:
        usage: Last usage seen; ``None`` until then.
        is_done: Whether the last event came: ``[DONE]``, or that of a response.
        has_error: Whether the engine sent an error event.
        has_content: Whether generated text came.
        finish_reason: Why the first choice ended; ``None`` until it has.
        is_mid_event: Whether the client has a part of an event whose end has not come.
    """

    def __init__(self, *, strips_usage: bool, is_responses: bool = False) -> None:
        self.usage: Usage | None = None
        self.is_done = False
        self.has_error = False
        self.has_content = False
        self.finish_reason: str | None = None
        self.is_mid_event = False
        self._strips_usage = strips_usage
        self._is_responses = is_responses
        self._has_mark = _has_responses_mark if is_responses else _has_mark
        self._held = b""
        self._head = self._tail = b""  # of an event that held text and nothing to look into; empty until one came
        self._n_tries = 0

    def feed(self, piece: bytes) -> bytes:
        """Take what arrived; return what goes to the client, possibly nothing."""
        at = len(self._head)
        if at and not self._held and piece.startswith(self._head) and piece.endswith(self._tail):
            n_text = len(piece) - len(self._tail)  # the first quote ends the text, so only the text differs
            if (
                piece.find(b'"', at) == n_text
                and piece.find(b"\n", at, n_text) < 0
                and piece.find(b"\r", at, n_text) < 0
            ):
                return piece
        data = self._held + piece if self._held else piece
        cut = _find_cut(data)
        if cut:
            self.is_mid_event = False
        elif len(data) > MAX_HELD_BYTES:
            cut, self.is_mid_event = len(data), True
        self._held = data[cut:]
        return self._inspect(data[:cut])

    def finish(self) -> bytes:
        """Return what is left when the stream ended without a last blank line."""
        rest, self._held = self._held, b""
        return self._inspect(rest)

    def _inspect(self, events: bytes) -> bytes:
        if self._n_tries < _MOST_TRIES and (found := _CONTENT.search(events)):
            self.has_content = True
            self._learn_form(events, found.end() - 1)
        if not self._has_mark(events):
            return events
        return b"".join(event for event in _split_events(events) if not self._absorb(event))

    def _learn_form(self, events: bytes, at: int) -> None:
        """Keep what stands around the text of a lone event, which begins at ``at``: most events differ in it alone."""
        self._n_tries += 1
        end = events.find(b'"', at)
        if events.endswith(b"\n\n") and events.count(b"\n\n") == 1 and not self._has_mark(events) and end > 0:
            self._head, self._tail, self._n_tries = events[:at], events[end:], _MOST_TRIES

    def _absorb(self, event: bytes) -> bool:
        """Note what ``event`` tells; return whether it is to be dropped."""
        if not self._has_mark(event):
            return False
        payload = _read_data(event)
        if payload == b"[DONE]":
            self.is_done = True
            return False
        try:
            return self._absorb_response(payload) if self._is_responses else self._absorb_chunk(payload)
        except _UNREADABLE:
            return False

    def _absorb_chunk(self, payload: bytes) -> bool:
        if self.finish_reason is None:
            self.finish_reason = read_finish_reason(payload)
        chunk = _CHUNK.decode(payload)
        self.has_error = self.has_error or bytes(chunk.error) not in (b"", b"null")
        if chunk.usage is None:
            return False
        self.usage = chunk.usage
        return self._strips_usage and not chunk.choices

    def _absorb_response(self, payload: bytes) -> bool:
        event = _RESPONSES_EVENT.decode(payload)
        self.has_error = self.has_error or event.type in {"error", "response.failed"}
        if event.type in _LAST_TYPES:
            self.is_done = True
            self.finish_reason = (event.type or "").removeprefix("response.")
            self.usage = None if event.response is None else _translate(event.response.usage)
        return False


def _translate(usage: _ResponsesUsage | None) -> Usage | None:
    return None if usage is None else Usage(prompt_tokens=usage.input_tokens, completion_tokens=usage.output_tokens)


def _has_mark(events: bytes) -> bool:
    """Tell whether chunks may hold usage, an error, a reason to finish or the end."""
    return (
        b'"finish_reason":"' in events
        or b"[DONE]" in events
        or b'"error"' in events
        or (b'"usage"' in events and events.count(b'"usage"') != events.count(b'"usage":null'))
        or b'"finish_reason": "' in events
    )


def _has_responses_mark(events: bytes) -> bool:
    """Tell whether events of the responses endpoint may hold an error or the end."""
    return (
        b'"response.completed"' in events
        or b'"error"' in events
        or b'"response.incomplete"' in events
        or b'"response.failed"' in events
        or b"[DONE]" in events
    )


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
