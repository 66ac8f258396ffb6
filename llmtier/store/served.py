"""Requests of a log with who asked, when, and who answered: what re-asks are recognised by.

Reads the gateway's traffic log (a file or its folder), LiteLLM spend logs, and any Parquet, JSONL or CSV with columns ``key``,
``arrival_s`` and ``tier`` beside the prompt. Streams; of a traffic log without texts the digest of the messages serves.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from typing_extensions import override

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import Message
from llmtier.store.columns import ColumnMap
from llmtier.store.documents import shorten
from llmtier.store.parquet import Row
from llmtier.store.prompts import FileRow, adapt, parse_prompt, stream_rows

_COLUMNS = frozenset(
    {
        *("key", "tier"),
        *("key_sha256", "status", "prompt_sha256"),  # the gateway's own
        *("api_key", "user", "end_user", "model"),  # LiteLLM spend log
    }
)
_FAILED = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRequest:
    """One request; what the log does not say is ``None``.

    Attributes:
        key: Who asked: a digest of the client's key, or the user's own column.
        arrival_s: When, in seconds: since 1970 where the log has instants.
        tier: Who answered; ``None`` also where the request failed.
        messages: What was asked; ``None`` where the log keeps no text.
        digest: Of the messages, where the log has one.
    """

    key: str | None
    arrival_s: float | None
    tier: str | None
    messages: tuple[Message, ...] | None
    digest: str | None = None


class _ServedColumns(ColumnMap):
    """The columns of prompts, and those that say who asked and who answered."""

    @override
    def reads(self, name: str) -> bool:
        return name in _COLUMNS or super().reads(name)


def stream_served(path: Path) -> Iterator[ServedRequest]:
    """Yield every request of a log, one at a time.

    Raises:
        InputFileError: The file is absent, empty or malformed; says where.
    """
    for row in stream_rows(path, columns=_ServedColumns()):
        adapted = adapt(row)
        values = row.values
        yield ServedRequest(
            key=_find_key(values),
            arrival_s=_find_arrival(row),
            tier=_find_tier(values),
            messages=None if adapted is None else parse_prompt(adapted).messages,
            digest=_text(values.get("prompt_sha256")),
        )


def _find_key(values: Row) -> str | None:
    """Return who asked; in a spend log the key together with whom it names as the user."""
    for name in ("key", "key_sha256"):
        if name in values:
            return _text(values[name])
    parts = [_text(values.get(name)) for name in ("api_key", "user", "end_user")]
    return "|".join(part or "" for part in parts) if any(parts) else None


def _find_tier(values: Row) -> str | None:
    return None if _has_failed(values.get("status")) else _text(values.get("tier")) or _text(values.get("model"))


def _has_failed(status: object) -> bool:
    """Tell whether a request got no answer: by HTTP status, or by a spend log's word."""
    text = str(status)
    return int(text) >= _FAILED if text.isdecimal() else text.lower() == "failure"


def _find_arrival(row: FileRow) -> float | None:
    values = row.values
    stated = values.get("arrival_s")
    if isinstance(stated, int | float):
        return float(stated)
    found = values.get("received_at", values.get("startTime"))
    if found in {None, ""}:
        return None
    try:
        instant = found if isinstance(found, datetime) else datetime.fromisoformat(str(found))
    except ValueError as exc:
        raise _bad_instant(row, found) from exc
    return (instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)).timestamp()


def _bad_instant(row: FileRow, found: object) -> InputFileError:
    return row.error(f"expected a date and time such as 2026-03-01T12:00:00+00:00, got {shorten(found)}")


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)
