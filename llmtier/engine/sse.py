"""A parser of server-sent events that does no input or output of its own.

Bytes in, however they were cut; events out. It follows the event stream
interpretation of the WHATWG HTML standard, section 9.2.6
(https://html.spec.whatwg.org/multipage/server-sent-events.html), except that
``retry`` fields are ignored: nothing here reconnects.
"""

import re
from dataclasses import dataclass

from llmtier.core.errors import EngineRequestError

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Longest line, and longest event, that is accepted: a server cannot make us hold more."""

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class SseEvent:
    """One dispatched event.

    Attributes:
        data: The data lines, joined by line feeds.
        event: The event's type.
        last_event_id: The id that was in force; empty when none was sent.
    """

    data: str
    event: str = "message"
    last_event_id: str = ""


class SseParser:
    """Turns one response's bytes into events; use one parser per response.

    Args:
        max_event_bytes: Limit of one line and of all lines of one event.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._partial: list[bytes] = []
        self._n_partial_bytes = 0
        self._n_event_bytes = 0
        self._ended_with_cr = False
        self._is_first_line = True
        self._data: list[str] = []
        self._event = ""
        self._last_event_id = ""

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take the next bytes and return the events that they complete.

        Raises:
            EngineRequestError: A line or an event outgrew the limit.
        """
        if not data:
            return []
        if self._ended_with_cr and data.startswith(b"\n"):
            data = data[1:]  # the second half of a CRLF that was cut in two
            self._ended_with_cr = False
            if not data:
                return []
        self._ended_with_cr = data.endswith(b"\r")
        *lines, rest = _LINE_END.split(data)
        events = [event for line in lines if (event := self._end_line(line)) is not None]
        self._hold(rest)
        return events

    def close(self) -> bool:
        """End the stream; return whether an unfinished event was thrown away, as the standard asks."""
        had_rest = bool(self._n_partial_bytes or self._data)
        self._partial.clear()
        self._n_partial_bytes = 0
        self._reset_event()
        return had_rest

    def _hold(self, piece: bytes) -> None:
        self._n_partial_bytes += len(piece)
        if self._n_partial_bytes + self._n_event_bytes > self._max_event_bytes:
            raise EngineRequestError(
                f"event stream: one event is longer than {self._max_event_bytes} bytes; is this an OpenAI-compatible URL?"
            )
        if piece:
            self._partial.append(piece)

    def _end_line(self, piece: bytes) -> SseEvent | None:
        self._hold(piece)
        line = b"".join(self._partial)
        self._partial.clear()
        self._n_partial_bytes = 0
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._dispatch()
        self._take_field(line)
        return None

    def _take_field(self, line: bytes) -> None:
        name, _, raw = line.partition(b":")
        value = raw.removeprefix(b" ").decode("utf-8", errors="replace")
        match name:
            case b"data":
                self._data.append(value)
                self._n_event_bytes += len(line) + 1
            case b"event":
                self._event = value
            case b"id" if "\0" not in value:
                self._last_event_id = value
            case _:
                pass  # a comment (empty name) or a field the standard says to ignore

    def _dispatch(self) -> SseEvent | None:
        data, event = self._data, self._event
        self._reset_event()
        if not data:
            return None
        return SseEvent(data="\n".join(data), event=event or "message", last_event_id=self._last_event_id)

    def _reset_event(self) -> None:
        self._data = []
        self._event = ""
        self._n_event_bytes = 0
