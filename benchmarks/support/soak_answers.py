"""The bytes of an engine's answers on each endpoint, for a tale: whole, or event by event."""

import json
from collections.abc import Sequence
from typing import Any

from support.soak_text import Tale

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, RESPONSES = "/v1/embeddings", "/v1/responses"
MALFORMED = b"data: {not json}\n\n"
ERROR_EVENT = b'data: {"error":{"message":"EngineCore encountered an issue","type":"InternalServerError","param":null,"code":500}}\n\n'


def write_event(document: dict[str, Any], name: str | None = None) -> bytes:
    """Return one event; characters beyond ASCII stand for themselves."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def write_error(status: int) -> bytes:
    """Return the body of a refusal."""
    kind = "rate_limit_error" if status == 429 else "server_error"
    return json.dumps({"error": {"message": "as scripted", "type": kind, "param": None, "code": status}}).encode()


def write_whole(path: str, tale: Tale, pieces: Sequence[str], *, logprobs: object = None) -> bytes:
    """Return an answer that is not streamed."""
    text = "".join(pieces)
    counts = {"prompt_tokens": 3, "completion_tokens": len(pieces), "total_tokens": 3 + len(pieces)}
    if path == EMBEDDINGS:
        data = [{"object": "embedding", "index": 0, "embedding": tale.vector}]
        document = {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
        return json.dumps(document).encode()
    if path == RESPONSES:
        return json.dumps(_response(tale, text, len(pieces)), ensure_ascii=False).encode()
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": logprobs}
    choice |= {"message": {"role": "assistant", "content": text}} if path == CHAT else {"text": text}
    document = {"id": tale.id, "object": "x", "created": 1, "model": "m", "choices": [choice], "usage": counts}
    return json.dumps(document, ensure_ascii=False).encode()


def write_events(
    path: str, tale: Tale, pieces: Sequence[str], *, wants_usage: bool, logprobs: object = None
) -> list[bytes]:
    """Return the events of a streamed answer; the last is the end that the endpoint knows."""
    if path == RESPONSES:
        return _response_events(tale, pieces)
    base = {"id": tale.id, "object": "x", "created": 1, "model": "m"}
    is_chat = path == CHAT

    def chunk(text: str, end: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "finish_reason": end, "logprobs": logprobs}
        choice |= {"delta": {"content": text}} if is_chat else {"text": text}
        return write_event({**base, "choices": [choice]})

    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    events = [write_event({**base, "choices": [role]})] if is_chat else []
    events += [*map(chunk, pieces), chunk("", "stop")]
    if wants_usage:
        counts = {"prompt_tokens": 3, "completion_tokens": len(pieces), "total_tokens": 3 + len(pieces)}
        events.append(write_event({**base, "choices": [], "usage": counts}))
    return [*events, b"data: [DONE]\n\n"]


def _response(tale: Tale, text: str, n_tokens: int) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": [part]}
    usage = {"input_tokens": 3, "output_tokens": n_tokens, "total_tokens": 3 + n_tokens}
    return {"id": tale.id, "object": "response", "status": "completed", "output": [message], "usage": usage}


def _response_events(tale: Tale, pieces: Sequence[str]) -> list[bytes]:
    def event(kind: str, **more: object) -> bytes:
        return write_event({"type": kind, **more}, kind)

    created = event("response.created", response={"id": tale.id, "status": "in_progress"})
    deltas = [event("response.output_text.delta", item_id="msg", output_index=0, delta=piece) for piece in pieces]
    whole = _response(tale, "".join(pieces), len(pieces))
    return [created, *deltas, event("response.completed", response=whole)]
