"""The relay's two ends of a stream that may be carried on: what keeps the first part, and what joins the second to it.

Both are an ``SseRelay`` to whoever moves the bytes. Only streams of a gateway whose configuration allows to carry on
go through them. Do no I/O.
"""

import re
from collections.abc import Callable

from typing_extensions import override

from llmtier.serve.resume_log import LIMIT_BYTES, ResumeLog
from llmtier.serve.resume_splice import Splicer
from llmtier.serve.sse_relay import SseRelay

_IDS = re.compile(rb'("(?:prompt_)?token_ids":)\s*\[[0-9, ]*\]')
"""Cannot match inside generated text, whose quotes are escaped."""


class KeptRelay(SseRelay):
    """Relays the first engine's stream and keeps what the client was sent.

    An error that the engine sends inside the stream is withheld with all that follows, since the stream may go on
    without it; the answer then ends as one that was cut.

    Args:
        strips_usage: As for ``SseRelay``.
        strips_ids: Whether token ids are the gateway's own wish, and no business of the client's.

    Attributes:
        log: What was sent, token ids included.
        withheld: The engine's error and what followed; empty without one.
    """

    def __init__(self, *, strips_usage: bool, strips_ids: bool) -> None:
        super().__init__(strips_usage=strips_usage)
        self.log = ResumeLog(limit_bytes=LIMIT_BYTES)
        self.withheld = b""
        self._strips_ids = strips_ids

    @override
    def feed(self, piece: bytes) -> bytes:
        """Take what arrived; return what goes to the client, possibly nothing."""
        events = super().feed(piece)
        self.log.note(events)
        return strip_ids(events) if self._strips_ids else events

    @override
    def _inspect(self, events: bytes) -> bytes:
        if self.withheld:
            self._withhold(events)
            return b""
        return super()._inspect(events)

    @override
    def _absorb(self, event: bytes) -> bool:
        if self.withheld:
            self._withhold(event)
            return True
        is_dropped = super()._absorb(event)
        if self.has_error:
            self.withheld, self._head = event, b""  # from now on every event is looked into
        return is_dropped or self.has_error

    def _withhold(self, events: bytes) -> None:
        """Keep what follows an error, usually the end; an engine that goes on and on is not kept up with."""
        if len(self.withheld) < LIMIT_BYTES:
            self.withheld += events


class SplicedRelay(SseRelay):
    """Relays the second engine's stream as the rest of the first one's.

    Args:
        splicer: Joins it.
        strips_usage: As for ``SseRelay``.
        strips_ids: As for ``KeptRelay``.
        on_misfit: Called when it turns out not to be the rest; nothing is passed on from then on.
    """

    def __init__(
        self, splicer: Splicer, *, strips_usage: bool, strips_ids: bool, on_misfit: Callable[[], None]
    ) -> None:
        super().__init__(strips_usage=strips_usage)
        self._splicer = splicer
        self._strips_ids = strips_ids
        self._on_misfit = on_misfit

    @override
    def feed(self, piece: bytes) -> bytes:
        """Take what arrived; return what goes to the client, possibly nothing."""
        events = super().feed(self._splicer.feed(piece))
        if self._splicer.error is not None:
            self._on_misfit()
        return strip_ids(events) if self._strips_ids else events


def strip_ids(events: bytes) -> bytes:
    """Return events as vLLM sends them to whoever did not ask for token ids."""
    return _IDS.sub(rb"\1null", events) if b"token_ids" in events else events
