"""What a streamed answer adds up to: text, instants, token counts.

Pure: takes bytes and the instants at which they arrived, gives a Completion.
The first token is the first chunk with content or reasoning; role chunks and
empty deltas are none. Log probabilities are read when asked for, from chat streams only.
"""

import math
from dataclasses import dataclass, field

import msgspec

from llmtier.core.errors import EngineRequestError
from llmtier.core.timing import RequestTiming
from llmtier.engine.sse import SseParser
from llmtier.engine.wire import CHUNK_DECODER, Choice, Chunk, Delta, error_text, quote

_DONE = "[DONE]"
_DONE_BYTES = b"[DONE]"


class _TokenLogprob(msgspec.Struct, gc=False):
    logprob: float


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_TokenLogprob] | None = None


class _LogprobChoice(msgspec.Struct, gc=False):
    delta: Delta | None = None
    logprobs: _Logprobs | None = None


class _LogprobChunk(msgspec.Struct, gc=False):
    choices: list[_LogprobChoice] = []


# Apart from CHUNK_DECODER: the load client reads nearly every chunk without them, and pays for each field decoded.
_LOGPROBS_DECODER = msgspec.json.Decoder(_LogprobChunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer.

    Attributes:
        text: The content, without reasoning.
        timing: Its instants, on ``time.perf_counter``.
        n_input_tokens: As the engine reports; ``None`` when unreported.
        finish_reason: Such as ``stop`` or ``length``; ``None`` when the engine gave none.
        logprobs: Natural log probability of each token outside the reasoning, at most 0; empty when not asked for
            or not given.
    """

    text: str
    timing: RequestTiming
    n_input_tokens: int | None
    finish_reason: str | None
    logprobs: tuple[float, ...] = ()

    @property
    def mean_logprob(self) -> float | None:
        """The mean over the tokens; ``None`` without any."""
        return math.fsum(self.logprobs) / len(self.logprobs) if self.logprobs else None


@dataclass(slots=True, kw_only=True)
class StreamedAnswer:
    """A stream so far; feed it with ``take``, then ``finish``.

    Attributes:
        reads_logprobs: Whether the request asked for log probabilities.
        is_done: Whether ``[DONE]`` has come.
        finish_reason: As the engine gave it.
    """

    reads_logprobs: bool = False
    is_done: bool = False
    finish_reason: str | None = None
    _logprobs: list[float] = field(default_factory=list)
    _parser: SseParser = field(default_factory=SseParser)
    _texts: list[str] = field(default_factory=list)
    _content_s: list[float] = field(default_factory=list)
    _n_input_tokens: int | None = None
    _n_output_tokens: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the engine said that it had finished."""
        return self.is_done or self.finish_reason is not None

    @property
    def n_chunks(self) -> int:
        """Content chunks so far."""
        return len(self._content_s)

    def take(self, data: bytes, arrived_s: float) -> None:
        """Add the bytes that arrived at ``arrived_s``.

        Raises:
            EngineRequestError: The engine reported an error inside the stream, or an event is malformed.
        """
        for event in self._parser.feed(data):
            if event.data == _DONE:
                self.is_done = True
            elif not self.is_done:
                self._take_chunk(self._decode(event.data), arrived_s)

    def take_document(self, document: bytes, arrived_s: float) -> None:
        """Add one event's data, already cut out of its stream; otherwise as ``take``."""
        if self.is_done or document == _DONE_BYTES:
            self.is_done = True
            return
        chunk = self._decode(document)
        if len(chunk.choices) == 1 and chunk.usage is None and chunk.error is None:
            self._take_choice(chunk.choices[0], arrived_s)  # nearly every chunk of a stream
        else:
            self._take_chunk(chunk, arrived_s)

    def finish(self, *, scheduled_s: float, sent_s: float, done_s: float) -> Completion:
        """Return the whole answer."""
        timing = RequestTiming(
            scheduled_s=scheduled_s,
            sent_s=sent_s,
            content_s=tuple(self._content_s),
            done_s=done_s,
            n_output_tokens=self._n_output_tokens,
        )
        return Completion(
            text="".join(self._texts),
            timing=timing,
            n_input_tokens=self._n_input_tokens,
            finish_reason=self.finish_reason,
            logprobs=tuple(self._logprobs),
        )

    def _decode(self, data: str | bytes) -> Chunk:
        if self.reads_logprobs:
            self._logprobs += _read_logprobs(data)
        try:
            return CHUNK_DECODER.decode(data)
        except msgspec.DecodeError as error:
            quoted = quote(data if isinstance(data, bytes) else data.encode())
            raise EngineRequestError(
                f"malformed chunk after {self.n_chunks} chunks: {error}: {quoted}", status=200
            ) from error

    def _take_chunk(self, chunk: Chunk, arrived_s: float) -> None:
        if chunk.error is not None:
            raise EngineRequestError(
                f"engine error after {self.n_chunks} chunks: {error_text(chunk.error)}", status=200
            )
        if chunk.usage is not None:
            self._n_input_tokens = chunk.usage.prompt_tokens
            self._n_output_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            self._take_choice(choice, arrived_s)

    def _take_choice(self, choice: Choice, arrived_s: float) -> None:
        delta = choice.delta
        text = choice.text or (None if delta is None else delta.content)
        if text:
            self._texts.append(text)
            self._content_s.append(arrived_s)
        elif delta is not None and (delta.reasoning or delta.reasoning_content):
            self._content_s.append(arrived_s)
        if choice.finish_reason is not None:
            self.finish_reason = choice.finish_reason


def _read_logprobs(data: str | bytes) -> list[float]:
    """Return the log probabilities of a chunk's tokens; of an unknown shape none, for the answer is good without."""
    try:
        choices = _LOGPROBS_DECODER.decode(data).choices
    except msgspec.DecodeError:
        return []
    return [
        min(token.logprob, 0.0)  # rounding lets a certain token come out a hair above 0
        for choice in choices
        if choice.logprobs is not None and not _is_reasoning(choice.delta)
        for token in choice.logprobs.content or ()
    ]


def _is_reasoning(delta: Delta | None) -> bool:
    return delta is not None and bool(delta.reasoning or delta.reasoning_content) and not delta.content
