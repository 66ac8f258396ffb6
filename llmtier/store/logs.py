"""Rows of logs brought into the shape of prompt files.

Understands the gateway's traffic log, batch input files of the OpenAI API
(``custom_id`` and ``body``) and LiteLLM spend logs (``request_id``, ``startTime`` and
``messages`` or ``proxy_server_request``), whether JSON lines, Parquet or CSV held them; labels that a user
added to the rows stay. Pure: rows in, rows out.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from llmtier.store.parquet import Row

LOG_TEXT_ADVICE = "the log holds no texts; set 'gateway.log_text: true' in llmtier.yaml and record again"
SPEND_TEXT_ADVICE = "the log holds no texts; set 'store_prompts_in_spend_logs: true' in LiteLLM and record again"
BATCH_OUTPUT_ADVICE = (
    "it is a line of a batch's output, which holds no prompt; give the batch's input file, whose lines have 'body'"
)
_LABELS = ("domain", "answer", "scorer", "scores", "output_tokens_by_tier", "confidences", "weight", "rating")


def adapt_row(row: Row) -> Row | None:
    """Return the row as a prompt file has it; ``None`` when a log kept no text of it.

    Raises:
        ValueError: It is a log's row whose JSON or instant cannot be read, or one of a batch's output.
    """
    if "messages_json" in row:
        adapted = _adapt_traffic(row)
    elif "custom_id" in row and isinstance(row.get("body"), dict):
        adapted = _adapt_batch(row)
    elif "custom_id" in row and "response" in row:
        raise ValueError(BATCH_OUTPUT_ADVICE)
    elif "startTime" in row and "request_id" in row:
        adapted = _adapt_spend(row)
    else:
        return row
    return adapted and {**adapted, **{key: row[key] for key in _LABELS if row.get(key) is not None}}


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
        "received_at": _parse_instant(row.get("received_at")),
    }


def _adapt_batch(row: Row) -> Row:
    body = row["body"]
    return {
        "id": row["custom_id"],
        **_batch_text(body),
        "max_tokens": body.get("max_completion_tokens") or body.get("max_output_tokens") or body.get("max_tokens"),
    }


def _batch_text(body: Row) -> Row:
    """Return the text of a chat, a completion (``prompt``) or a response (``input``)."""
    text = body.get("prompt", body.get("input"))
    if body.get("messages") is None and isinstance(text, str):
        return {"prompt": text}
    return {"messages": body.get("messages") or text}


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
