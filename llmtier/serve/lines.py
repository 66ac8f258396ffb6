"""One line per request on standard error: JSON for machines, ``key=value`` for people.

Made from the cells of a traffic-log row, in the writer thread. A standard error that nobody reads blocks no request and
no thread: what a pipe cannot take waits, up to a bound, and whole lines are dropped and counted beyond. Holds no prompt.
"""

import os
import select
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum

import msgspec

from llmtier.store.traffic import TRAFFIC_COLUMNS
from llmtier.store.traffic_buffer import Cells

LOGGER_NAME = "llmtier.serve.record"
"""As whose the lines are written, whichever way they take."""

FIELDS = (
    *("request_id", "tier", "replica", "reason", "rule", "outcome", "status", "misses", "need_accuracy", "need_ttft_s"),
    *("need_tpot_s", "need_e2el_s", "is_met", "n_attempts", "resumed", "overhead_s", "ttft_s", "tpot_s", "e2el_s"),
    *("n_input_tokens", "n_output_tokens", "usd"),
)
"""What a line says, by the traffic log's names."""

_PIPE_BYTES = 4096
"""A pipe that is ready takes as much at once, and does not mix it with other processes' lines: POSIX's PIPE_BUF on Linux."""

_TRY_BYTES = 8 * _PIPE_BYTES

_PLACES = {column.name: place for place, column in enumerate(TRAFFIC_COLUMNS)}
_AT = tuple(_PLACES[name] for name in FIELDS)
_RECEIVED_AT = _PLACES["received_at"]
_ENCODER = msgspec.json.Encoder()


class LineFormat(StrEnum):
    """Who reads the lines."""

    JSON = "json"
    TEXT = "text"


class LineWriter:
    """Writes lines to a descriptor without ever waiting for it; for one thread.

    Args:
        descriptor: Standard error, usually; it stays open.
        format: For whom.
        on_dropped: Called with the number of lines lost; must be safe from any thread.
        capacity_bytes: What may wait for a reader.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        format: LineFormat = LineFormat.JSON,  # noqa: A002 - the field's word
        on_dropped: Callable[[int], None],
        capacity_bytes: int = 1024 * 1024,
    ) -> None:
        self._descriptor = descriptor
        self._make = make_json_line if format is LineFormat.JSON else make_text_line
        self._on_dropped = on_dropped
        self._capacity_bytes = capacity_bytes
        self._waiting: list[bytes] = []
        self._n_bytes = 0
        self._next_try_bytes = _TRY_BYTES
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def put(self, cells: Cells) -> None:
        """Take one request's line, or drop and count it when too many wait."""
        line = self._make(cells)
        if self._n_bytes + len(line) > self._capacity_bytes:
            self._on_dropped(1)
            return
        self._waiting.append(line)
        self._n_bytes += len(line)
        if self._n_bytes >= self._next_try_bytes:
            self.flush()

    def flush(self) -> None:
        """Write as many lines as the descriptor takes now; ``put`` does so too when much has gathered."""
        n_written = 0
        while n_written < len(self._waiting) and self._is_ready():
            end, piece = self._next_piece(n_written)
            if not self._write(piece):
                break
            n_written = end
        if n_written:
            del self._waiting[:n_written]
            self._n_bytes = sum(map(len, self._waiting))
        self._next_try_bytes = self._n_bytes + _TRY_BYTES

    def close(self) -> None:
        """Write what can be written and count the rest as lost."""
        self.flush()
        if self._waiting:
            self._on_dropped(len(self._waiting))
            self._waiting.clear()
            self._n_bytes = 0

    def _next_piece(self, start: int) -> tuple[int, bytes]:
        """Return whole lines that fit into a pipe at once, at least one, and where the next begin."""
        end, n_bytes = start, 0
        while end < len(self._waiting) and (end == start or n_bytes + len(self._waiting[end]) <= _PIPE_BYTES):
            n_bytes += len(self._waiting[end])
            end += 1
        return end, b"".join(self._waiting[start:end])

    def _is_ready(self) -> bool:
        return any(event & select.POLLOUT for _, event in self._poll.poll(0))

    def _write(self, piece: bytes) -> bool:
        """Write a piece wholly; a line longer than a pipe's bound may wait for a reader."""
        try:
            while piece:
                piece = piece[os.write(self._descriptor, piece) :]
        except OSError:  # nobody reads any more, or a full disk: counted when the bound is reached
            return False
        return True


def make_json_line(cells: Cells) -> bytes:
    """Return one JSON object as ``cli.logs`` writes them, ``time`` being the request's arrival."""
    line: dict[str, object] = {
        "time": cells[_RECEIVED_AT],
        "level": "info",
        "logger": LOGGER_NAME,
        "event": "request",
    }
    for name, place in zip(FIELDS, _AT, strict=True):
        line[name] = cells[place]
    return _ENCODER.encode(line) + b"\n"


def make_text_line(cells: Cells) -> bytes:
    """Return ``12:30:01 request key=value``, what is unknown left out."""
    stamp = datetime.fromisoformat(str(cells[_RECEIVED_AT])).astimezone().strftime("%H:%M:%S")
    known = [(name, cells[place]) for name, place in zip(FIELDS, _AT, strict=True) if cells[place] not in (None, "")]
    fields = "".join(f" {name}={_shorten(value)}" for name, value in known)
    return f"{stamp} request{fields}\n".encode(errors="replace")


def _shorten(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
