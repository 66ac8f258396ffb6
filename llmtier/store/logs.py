"""Rows of logs brought into the shape of prompt files.

Understands the gateway's traffic log, batch input files of the OpenAI API
(``custom_id`` and ``body``) and LiteLLM spend logs (``request_id``, ``startTime`` and
``messages`` or ``proxy_server_request``). Pure: rows in, rows out.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from llmtier.store.parquet import Row

LOG_TEXT_ADVICE = "the log holds no texts; set 'gateway.log_text: true' in llmtier.yaml and record again"
SPEND_TEXT_ADVICE = "the log holds no texts; set 'store_prompts_in_spend_logs: true' in LiteLLM and record again"


def adapt_row(row: Row) -> Row | None:
    """Return the row as a prompt file has it; ``None`` when a log kept no text of it.

    Raises:
        ValueError: It is a log's row whose JSON or instant cannot be read.
    """
    if "messages_json" in row:
        return _adapt_traffic(row)
    if isinstance(row.get("body"), dict) and "custom_id" in row:
        return _adapt_batch(row)
    if "startTime" in row and "request_id" in row:
        return _adapt_spend(row)
    return row


def text_advice(row: Row) -> str:
    """Say which setting would have kept the text of a log's row."""
    return LOG_TEXT_ADVICE if "messages_json" in row else SPEND_TEXT_ADVICE


def set_arrivals(rows: Sequence[Row]) -> list[Row]:
    """Replace the absolute ``received_at`` of each row that has one by ``arrival_s`` since the earliest."""
    instants = [row["received_at"] for row in rows if isinstance(row.get("received_at"), datetime)]
    if not instants:
        return list(rows)
    start = min(instants)
    return [_with_arrival(row, start) for row in rows]


def _with_arrival(row: Row, start: datetime) -> Row:
    received_at = row.get("received_at")
    if not isinstance(received_at, datetime):
        return row
    return {**row, "arrival_s": (received_at - start).total_seconds()}


def _adapt_traffic(row: Row) -> Row | None:
    if row["messages_json"] is None:
        return None
    return {
        "id": row.get("request_id"),
        "messages": _unpack(row["messages_json"]),
        "domain": row.get("domain"),
        "received_at": _parse_instant(row.get("received_at")),
    }


def _adapt_batch(row: Row) -> Row:
    body = row["body"]
    return {
        "id": row["custom_id"],
        "messages": body.get("messages"),
        "max_tokens": body.get("max_completion_tokens") or body.get("max_tokens"),
    }


def _adapt_spend(row: Row) -> Row | None:
    request = _unpack(row.get("proxy_server_request")) or {}
    messages = _unpack(row.get("messages")) or (request.get("messages") if isinstance(request, dict) else None)
    if not messages:
        return None
    return {"id": row["request_id"], "messages": messages, "received_at": _parse_instant(row["startTime"])}


def _unpack(value: Any) -> Any:  # noqa: ANN401 - a column of that log is JSON or its text
    return json.loads(value) if isinstance(value, str) and value else value


def _parse_instant(value: object) -> datetime:
    instant = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)
