"""What of a stream the client already has: kept raw while it runs, decoded only if the engine dies.

``ResumeLog`` is on the path of every piece and only appends. ``read_sent`` is for the rare failure: it turns those
bytes into the pieces of text, the tokens and the identity that a continuation must carry on. Of an event that was
cut, nothing counts: the relay passes whole events on. Does no I/O.
"""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from llmtier.core.errors import EngineRequestError
from llmtier.engine.sse import SseParser
from llmtier.engine.wire import Usage

LIMIT_BYTES = 256 * 1024
"""Longest stream that is kept: some 1,000 tokens of a chat at vLLM's 220 to 260 bytes each."""

Raw = msgspec.Raw


class RefusalReason(StrEnum):
    """Why a broken stream is not resumed; a label of the metric."""

    ENDPOINT = "endpoint"  # neither chat nor completions
    NOT_A_STREAM = "not_a_stream"
    TOO_LONG = "too_long"  # more than the log keeps
    NOTHING_SENT = "nothing_sent"  # fail-over is the right answer
    ERROR_SENT = "error_sent"
    MALFORMED = "malformed"  # events that cannot be read
    SEVERAL_ANSWERS = "several_answers"
    TOOLS = "tools"
    LOGPROBS = "logprobs"
    GRAMMAR = "grammar"  # JSON or another form is enforced: the state of its matcher is lost
    REASONING = "reasoning"
    PENALTY = "penalty"  # counts generated tokens, which become prompt
    STOP = "stop"  # a stop sequence may span the cut
    SEED = "seed"  # the client expects one certain sample
    MIN_TOKENS = "min_tokens"
    PROMPT = "prompt"  # not one text, nor one list of token ids
    SEAM = "seam"  # text alone cannot be cut here
    FIELD = "field"  # one that is not known to survive
    INEXACT = "inexact"  # only the text is known, and that is not enough here


class UnreadableError(EngineRequestError):
    """What was sent is not the beginning of a stream that can be carried on.

    Args:
        reason: Why.
    """

    def __init__(self, reason: RefusalReason) -> None:
        self.reason = reason
        super().__init__(f"the stream cannot be carried on: {reason.value}")


class ResumeLog:
    """The bytes that one client was sent, up to a limit.

    Args:
        limit_bytes: Beyond this nothing is kept, and the stream is not resumable.
    """

    __slots__ = ("_data", "_room_bytes")

    def __init__(self, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._data = bytearray()
        self._room_bytes = limit_bytes

    @property
    def is_overfull(self) -> bool:
        """Whether more was sent than is kept."""
        return self._room_bytes < 0

    @property
    def data(self) -> bytes:
        """All that was sent; empty once overfull."""
        return bytes(self._data)

    def note(self, piece: bytes) -> None:
        """Keep what goes to the client, as it goes."""
        if self._room_bytes < 0:
            return
        self._room_bytes -= len(piece)
        if self._room_bytes < 0:
            self._data = bytearray()
        else:
            self._data += piece


@dataclass(frozen=True, slots=True, kw_only=True)
class SentPiece:
    """What one event added.

    Attributes:
        text: May be empty where tokens make no whole character yet.
        n_tokens: At least; exact where the engine told.
        token_ids: ``None`` unless the engine was asked for them.
    """

    text: str
    n_tokens: int
    token_ids: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The beginning of an answer, as its client has it.

    Attributes:
        id: Of the answer; likewise ``created`` and ``model``. ``None`` where the engine sent none.
        pieces: Up to the last that has text: tokens without text yet are generated again.
        prompt_ids: ``None`` unless the engine was asked for them.
        n_prompt_tokens: ``None`` where the engine did not tell.
        has_role: Whether the role was sent.
        finish_reason: ``None`` until it is sent.
        has_usage: Whether the closing usage was sent.
        is_done: Whether ``[DONE]`` was sent.
    """

    id: str | None
    created: int | None
    model: str | None
    pieces: tuple[SentPiece, ...]
    prompt_ids: tuple[int, ...] | None
    n_prompt_tokens: int | None
    has_role: bool
    finish_reason: str | None
    has_usage: bool
    is_done: bool

    @property
    def text(self) -> str:
        """All that was generated."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def n_tokens(self) -> int:
        """Tokens in ``pieces``, at least."""
        return sum(piece.n_tokens for piece in self.pieces)

    @property
    def token_ids(self) -> tuple[int, ...] | None:
        """Ids of all tokens in ``pieces``; ``None`` unless each event told its own."""
        lists = [piece.token_ids for piece in self.pieces]
        if any(ids is None for ids in lists):
            return None
        return tuple(token for ids in lists if ids is not None for token in ids)


class _Delta(msgspec.Struct, gc=False):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Raw] | None = None
    function_call: Raw = Raw()
    refusal: str | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    logprobs: Raw = Raw()
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    created: int | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Raw = Raw()
    prompt_token_ids: tuple[int, ...] | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)


class _Reader:
    """Collects ``Sent`` from chunks."""

    def __init__(self) -> None:
        self._first: _Chunk | None = None
        self._pieces: list[SentPiece] = []
        self._n_told_tokens = 0
        self._prompt_ids: tuple[int, ...] | None = None
        self._n_prompt_tokens: int | None = None
        self._has_role = False
        self._finish_reason: str | None = None
        self._has_usage = False

    def take(self, chunk: _Chunk) -> None:
        if _is_given(chunk.error):
            raise UnreadableError(RefusalReason.ERROR_SENT)
        self._first = self._first or chunk
        if chunk.usage is not None and chunk.usage.prompt_tokens is not None:
            self._n_prompt_tokens = chunk.usage.prompt_tokens
        choices = chunk.choices or []
        self._has_usage = self._has_usage or (not choices and chunk.usage is not None)
        for choice in choices:
            _check(choice)
            self._prompt_ids = self._prompt_ids or chunk.prompt_token_ids or choice.prompt_token_ids
            self._has_role = self._has_role or bool(choice.delta and choice.delta.role)
            self._finish_reason = choice.finish_reason or self._finish_reason
            self._add(choice, chunk.usage)

    def _add(self, choice: _Choice, usage: Usage | None) -> None:
        text = (choice.delta.content if choice.delta is not None else choice.text) or ""
        n_tokens = int(bool(text))  # an engine that lags behind sends several at once
        if usage is not None and usage.completion_tokens is not None:
            n_tokens = usage.completion_tokens - self._n_told_tokens
        elif choice.token_ids is not None:
            n_tokens = len(choice.token_ids)
        self._n_told_tokens += n_tokens
        if text or n_tokens > 0:
            self._pieces.append(SentPiece(text=text, n_tokens=n_tokens, token_ids=choice.token_ids))

    def end(self, *, is_done: bool) -> Sent:
        if self._first is None and not is_done:
            raise UnreadableError(RefusalReason.NOTHING_SENT)
        first = self._first or _Chunk()
        while self._pieces and not self._pieces[-1].text and self._finish_reason is None:
            self._pieces.pop()
        n_prompt_tokens = self._n_prompt_tokens
        if n_prompt_tokens is None and self._prompt_ids is not None:
            n_prompt_tokens = len(self._prompt_ids)
        return Sent(
            id=first.id,
            created=first.created,
            model=first.model,
            pieces=tuple(self._pieces),
            prompt_ids=self._prompt_ids,
            n_prompt_tokens=n_prompt_tokens,
            has_role=self._has_role,
            finish_reason=self._finish_reason,
            has_usage=self._has_usage,
            is_done=is_done,
        )


def read_sent(data: bytes) -> Sent:
    """Decode what a client was sent.

    Raises:
        UnreadableError: It holds what a continuation could not carry on, or is nothing yet.
    """
    reader = _Reader()
    try:
        for event in SseParser().feed(data):
            if event.data == "[DONE]":
                return reader.end(is_done=True)
            reader.take(_CHUNK.decode(event.data))
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise UnreadableError(RefusalReason.MALFORMED) from exc
    return reader.end(is_done=False)


def check_chunk(data: str) -> None:
    """Check that an event of a continuation adds nothing but text.

    Raises:
        UnreadableError: It adds something else.
        msgspec.MsgspecError: It is no chunk.
    """
    for choice in _CHUNK.decode(data).choices or []:
        _check(choice)


def _check(choice: _Choice) -> None:
    """Refuse an event of which more than text would have to be carried on."""
    if choice.index != 0:
        raise UnreadableError(RefusalReason.SEVERAL_ANSWERS)
    if _is_given(choice.logprobs):
        raise UnreadableError(RefusalReason.LOGPROBS)
    delta = choice.delta
    if delta is None:
        return
    if delta.tool_calls or _is_given(delta.function_call):
        raise UnreadableError(RefusalReason.TOOLS)
    if delta.reasoning or delta.reasoning_content:
        raise UnreadableError(RefusalReason.REASONING)
    if delta.refusal:
        raise UnreadableError(RefusalReason.FIELD)


def _is_given(value: msgspec.Raw) -> bool:
    return bytes(value) not in (b"", b"null")
