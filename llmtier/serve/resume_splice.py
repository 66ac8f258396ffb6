"""Join the stream of a second engine to what the client already has, so that it reads one valid stream.

Bytes in, bytes out; each event goes out under the first stream's ``id``, ``created`` and ``model``, without a
second role. Text that is generated again before the seam is compared with what was sent and left out; where it
differs, the splice fails rather than join two answers. Errors are withheld, so that the caller decides whether to
try once more. Does no I/O.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from llmtier.core.errors import EngineRequestError
from llmtier.engine.sse import SseParser
from llmtier.engine.wire import failure_text
from llmtier.serve.resume_log import Sent, UnreadableError, check_chunk

DONE = b"data: [DONE]\n\n"

_DOCUMENT = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """Where and under what shape a continuation joins.

    Attributes:
        sent: What the client has.
        is_chat: Whether it reads chat chunks.
        overlap: The end of what was sent, which the continuation generates again.
        n_resent_tokens: Generated tokens that the second engine got as prompt.
    """

    sent: Sent
    is_chat: bool
    overlap: str = ""
    n_resent_tokens: int = 0


class Splicer:
    """Rewrites the events of one continuation.

    Args:
        seam: Where it joins.

    Attributes:
        error: Why this continuation cannot go on; ``None`` while it can. Nothing is returned from then on.
        is_done: Whether ``[DONE]`` went out.
    """

    def __init__(self, seam: Seam) -> None:
        self.error: str | None = None
        self.is_done = False
        self._seam = seam
        self._parser = SseParser()
        self._due = seam.overlap
        self._is_finished = False
        self._owes_role = seam.is_chat and not seam.sent.has_role and not seam.sent.pieces

    def feed(self, piece: bytes) -> bytes:
        """Take what arrived; return what goes to the client, whole events only, possibly nothing."""
        if self._is_over():
            return b""
        out: list[bytes] = []
        try:
            for event in self._parser.feed(piece):
                out.append(self._take(event.data))
                if self._is_over():
                    break
        except UnreadableError as exc:
            self.error = f"the continuation adds more than text: {exc.reason.value}"
        except (msgspec.MsgspecError, RecursionError, EngineRequestError):
            self.error = "the continuation is not a stream of chunks"
        return b"".join(out)

    def _is_over(self) -> bool:
        return self.error is not None or self.is_done

    def _take(self, data: str) -> bytes:
        if data == "[DONE]":
            return self._end()
        chunk = _DOCUMENT.decode(data)
        if chunk.get("error") is not None:
            self.error = f"the continuing engine failed: {failure_text(data.encode())}"
            return b""
        check_chunk(data)
        choices = chunk.get("choices") or []
        if choices:
            is_kept = not self._is_finished and self._rewrite_choice(chunk, choices[0])
        else:
            is_kept = chunk.get("usage") is not None and not self._seam.sent.has_usage
        if not is_kept or self.error is not None:
            return b""
        self._rewrite_frame(chunk)
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _end(self) -> bytes:
        if not self._is_finished:
            self.error = "the continuation ended without a finish reason"
            return b""
        self.is_done = True
        return DONE

    def _rewrite_choice(self, chunk: dict[str, Any], choice: dict[str, Any]) -> bool:
        """Return whether the client is to see this chunk."""
        delta = choice.pop("delta", None) or {}
        given = choice.pop("text", None) or delta.get("content") or ""
        text = self._pass_overlap(given)
        self._is_finished = choice.get("finish_reason") is not None
        if self._is_finished and self._due:
            self.error = "the continuation ended before the place of the cut"
        choice.pop("prompt_token_ids", None)
        if text != given:
            choice["token_ids"] = None
        has_role = self._owes_role
        if self._seam.is_chat:
            choice["delta"] = self._make_delta(delta, text)
            chunk["object"] = "chat.completion.chunk"
        else:
            choice["text"] = text
        chunk["choices"] = [choice]
        return bool(text or self._is_finished or has_role)

    def _make_delta(self, delta: dict[str, Any], text: str) -> dict[str, Any]:
        kept = {key: value for key, value in delta.items() if key not in {"role", "content"}}
        if self._owes_role:
            self._owes_role = False
            kept["role"] = delta.get("role") or "assistant"
        return {**kept, "content": text}

    def _pass_overlap(self, text: str) -> str:
        """Return what of ``text`` lies beyond the seam."""
        due = self._due
        if text.startswith(due):
            self._due = ""
            return text[len(due) :]
        if not due.startswith(text):
            self.error = "the continuation differs from what was sent before the cut"
            return ""
        self._due = due[len(text) :]
        return ""

    def _rewrite_frame(self, chunk: dict[str, Any]) -> None:
        sent = self._seam.sent
        known = {"id": sent.id, "created": sent.created, "model": sent.model}
        chunk.update({key: value for key, value in known.items() if value is not None})
        chunk.pop("prompt_token_ids", None)
        chunk.pop("prompt_text", None)
        usage = chunk.get("usage")
        if usage is not None:
            self._correct(usage)

    def _correct(self, usage: dict[str, Any]) -> None:
        """Count as if one engine had answered: the first's prompt, and the tokens of both."""
        n_resent = self._seam.n_resent_tokens
        n_prompt, n_completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        first = self._seam.sent.n_prompt_tokens
        if first is None and n_prompt is not None:
            first = max(n_prompt - n_resent, 0)
        usage["prompt_tokens"] = first
        if n_completion is not None:
            usage["completion_tokens"] = n_completion + n_resent
            if first is not None:
                usage["total_tokens"] = first + n_completion + n_resent


def close_stream(seam: Seam, *, wants_usage: bool) -> bytes:
    """Return the end of an answer that needs no engine any more: all of it was sent, or its length is used up."""
    sent = seam.sent
    frame: dict[str, Any] = {
        "id": sent.id,
        "object": "chat.completion.chunk" if seam.is_chat else "text_completion",
        "created": sent.created,
        "model": sent.model,
    }
    out = b""
    if sent.finish_reason is None:
        body: dict[str, Any] = {"delta": {}} if seam.is_chat else {"text": ""}
        out += _event({**frame, "choices": [{"index": 0, **body, "finish_reason": "length"}]})
    if wants_usage and not sent.has_usage and sent.n_prompt_tokens is not None:
        counts = {"prompt_tokens": sent.n_prompt_tokens, "completion_tokens": sent.n_tokens}
        counts["total_tokens"] = sent.n_prompt_tokens + sent.n_tokens
        out += _event({**frame, "choices": [], "usage": counts})
    return out + DONE


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
