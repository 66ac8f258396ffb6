"""Whether an answer that an engine calls a success is one: signs of broken kernels and dead engines behind HTTP 200.

Reads whole answers as bytes, vectors among them; ``stream_check.py`` does the same for streams. Judges no quality, and
lets pass what a healthy engine could have been asked for. What the signs (``Complaint``) rest on:

* vLLM takes token 0 where all logits are NaN, again and again: ``!`` in the vocabularies of GPT-2, Llama 3 and Qwen
  (vllm#13035), a token without text in those of Gemma and Llama 2, the end of text in that of GPT-NeoX.
* NaN becomes ``null`` where Pydantic writes the JSON, and a bare ``NaN`` where Python's own encoder does. Neither can
  be the log-probability of a token that was taken. ``null`` among the alternatives may be minus infinity and is let
  pass; a bare literal nowhere, since no client could read the answer.
* An end of text at once is a good answer to a completion (nothing may be missing), where a stop string can have
  matched, where a message is continued, and where thoughts are hidden. To a chat it is none.
"""

import base64
import binascii
import json
import math
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from llmtier.serve.wire import Endpoint

FEWEST_REPEATS = 64
"""Tokens in a run before it counts: 100 dashes that someone asked for are a few tokens of many dashes each."""

REPEATED_SHARE = 0.95
"""Of an answer's tokens in that run; the others are what a template, or a first good step, put before it."""

_LONGEST_UNIT = 24
"""Characters of the token that is repeated; longer ones are runs of spaces and the like, whose unit is one."""

_FEWEST_UNSEEN = 16
"""Tokens without any text: more than one special token, or parts of one character, explain."""


class Complaint(StrEnum):
    """What is wrong with an answer."""

    EMPTY = "empty"
    NAN = "nan"
    REPETITION = "repetition"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a request allows its answer to be.

    Attributes:
        may_stop_at_once: It may end before its first character.
        hides_thoughts: Tokens may leave no text.
        echoes: The prompt comes before it; the first token of that has no log-probability.
    """

    may_stop_at_once: bool = False
    hides_thoughts: bool = False
    echoes: bool = False


class _Details(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class AnswerUsage(msgspec.Struct, gc=False):
    """The tokens of an answer, of all its choices together."""

    completion_tokens: int | None = None
    output_tokens: int | None = None
    completion_tokens_details: _Details | None = None

    @property
    def has_thoughts(self) -> bool:
        """Whether some of them are known to be thoughts."""
        return self.completion_tokens_details is not None and bool(self.completion_tokens_details.reasoning_tokens)


class Message(msgspec.Struct, gc=False):
    """What a message, or a chunk's part of one, may hold that a client can use."""

    content: str | list[msgspec.Raw] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw = msgspec.Raw()
    audio: msgspec.Raw = msgspec.Raw()

    @property
    def text(self) -> str:
        """Thoughts, then content."""
        thoughts = self.reasoning or self.reasoning_content or ""
        return thoughts + self.content if isinstance(self.content, str) else thoughts

    @property
    def is_empty(self) -> bool:
        """Whether a client gets nothing."""
        if self.content or self.reasoning or self.reasoning_content or self.tool_calls or self.refusal:
            return False
        return is_absent(self.function_call) and is_absent(self.audio)


class Choice(msgspec.Struct, gc=False):
    """One alternative of a whole answer, or a chunk's part of one.

    ``stop_reason`` is vLLM's and ``matched_stop`` SGLang's word for the stop string, or token, that was found.
    """

    index: int = 0
    text: str | None = None
    message: Message | None = None
    delta: Message | None = None
    logprobs: msgspec.Raw = msgspec.Raw()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None

    @property
    def written(self) -> str:
        """All of its text."""
        message = self.message or self.delta
        return (self.text or "") if message is None else message.text

    @property
    def is_empty(self) -> bool:
        """Whether a client gets nothing."""
        message = self.message or self.delta
        return not self.text if message is None else message.is_empty

    def may_be_empty(self, expected: Expected) -> bool:
        """Return whether its end, if it told one, explains that it is empty; not counting tokens."""
        match self.finish_reason:
            case "stop" | None:
                at_once = expected.may_stop_at_once or expected.hides_thoughts
                return at_once or self.stop_reason is not None or isinstance(self.matched_stop, str)
            case "abort" | "error":
                return False
            case _:  # "length" is for the count of tokens to say; "content_filter" and the like speak for themselves
                return True


class _Answer(msgspec.Struct, gc=False):
    error: msgspec.Raw = msgspec.Raw()
    choices: list[Choice] | None = None
    output: list[msgspec.Raw] | None = None
    usage: AnswerUsage | None = None


class _Part(msgspec.Struct, gc=False):
    text: str | None = None


class _Item(msgspec.Struct, gc=False):
    content: list[_Part] | None = None


class _TokenLogprob(msgspec.Struct, gc=False):
    logprob: float | None = 0.0


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_TokenLogprob] | None = None
    token_logprobs: list[float | None] | None = None


class _Vector(msgspec.Struct, gc=False):
    embedding: list[float | None] | str | None = None


class _Vectors(msgspec.Struct, gc=False):
    error: msgspec.Raw = msgspec.Raw()
    data: list[_Vector] | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_ITEM = msgspec.json.Decoder(_Item)
_LOGPROBS = msgspec.json.Decoder(_Logprobs)
_VECTORS = msgspec.json.Decoder(_Vectors)
_SUSPECT_START = re.compile(
    rb'"error"|"data"\s*:\s*\[\s*\]|"embedding"\s*:\s*'
    rb'(?:\[\s*(?:-?0(?:\.0*)?(?:[eE][-+]?\d+)?\s*[],]|\])|"(?:AA|//|"))'
)
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises."""

_N_START_BYTES = 512
"""Of an answer with vectors, in which the first of them begins."""

_PLAIN = Expected()
_NOTHING = (b"", b"null", b"false", b"[]", b'""')
_STOPS = ("stop", "stop_token_ids", "continue_final_message")


def expect(endpoint: Endpoint, fields: Mapping[str, msgspec.Raw]) -> Expected:
    """Return what a request allows its answer to be.

    Args:
        endpoint: Where it was posted.
        fields: The top level of its body.
    """
    is_completion = endpoint is Endpoint.COMPLETIONS
    may_stop = is_completion or any(name in fields and bytes(fields[name]) not in _NOTHING for name in _STOPS)
    hides = "include_reasoning" in fields and bytes(fields["include_reasoning"]) == b"false"
    echoes = is_completion and "echo" in fields and bytes(fields["echo"]) == b"true"
    if not (may_stop or hides or echoes):
        return _PLAIN
    return Expected(may_stop_at_once=may_stop, hides_thoughts=hides, echoes=echoes)


def check_answer(body: bytes, expected: Expected = _PLAIN) -> Complaint | None:
    """Return what is wrong with a whole answer to a chat, a completion or a Responses request.

    A run of one token is complained about only when it is the whole answer, by the engine's own count of tokens;
    several choices must all be empty, or all be runs: one request's kernels fail together. JSON that is not an answer's
    is left to others, and so is a Responses answer without text.

    Args:
        body: Of an answer with a status below 300.
        expected: What the request allows it to be.
    """
    try:
        answer = _ANSWER.decode(body)
    except UNREADABLE:
        return Complaint.NAN if has_bare_nan(body) else None
    if not is_absent(answer.error):
        return Complaint.ERROR
    if answer.choices is None:
        return _check_output(answer)
    if any(has_nan(choice.logprobs, expected) for choice in answer.choices):
        return Complaint.NAN
    if all(choice.is_empty for choice in answer.choices):
        return Complaint.EMPTY if is_worthless(answer.choices, answer.usage, expected) else None
    n_tokens = None if answer.usage is None else answer.usage.completion_tokens
    return Complaint.REPETITION if _is_run(answer.choices, n_tokens) else None


def _check_output(answer: _Answer) -> Complaint | None:
    """Return what is wrong with a Responses answer."""
    if answer.output == []:
        return Complaint.EMPTY
    n_tokens = None if answer.usage is None else answer.usage.output_tokens
    if answer.output is None or n_tokens is None or n_tokens < FEWEST_REPEATS:
        return None
    try:
        items = [_ITEM.decode(item) for item in answer.output]
    except UNREADABLE:
        return None
    text = "".join(part.text or "" for item in items for part in item.content or ())
    return Complaint.REPETITION if _is_run([Choice(text=text)], n_tokens) else None


def is_worthless(choices: list[Choice], usage: AnswerUsage | None, expected: Expected) -> bool:
    """Return whether an answer without any text is none; ``choices`` say how each of it ended."""
    if not choices:
        return True
    n_tokens = 0 if usage is None else usage.completion_tokens or 0
    has_thoughts = expected.hides_thoughts or (usage is not None and usage.has_thoughts)
    if not has_thoughts and n_tokens >= _FEWEST_UNSEEN * len(choices) and _ran_to_length(choices):
        return True
    return not has_thoughts and not any(choice.may_be_empty(expected) for choice in choices)


def _ran_to_length(choices: list[Choice]) -> bool:
    return all(choice.finish_reason == "length" for choice in choices)


def is_absent(value: msgspec.Raw) -> bool:
    """Return whether a field is not there or ``null``."""
    return bytes(value) in (b"", b"null")


def has_nan(logprobs: msgspec.Raw, expected: Expected) -> bool:
    """Return whether a token that was taken lacks its log-probability."""
    data = bytes(logprobs)
    if data in (b"", b"null") or b"null" not in data:
        return False
    try:
        given = _LOGPROBS.decode(data)
    except UNREADABLE:
        return False
    numbers = (given.token_logprobs or [])[1 if expected.echoes else 0 :]
    return None in numbers or any(token.logprob is None for token in given.content or [])


def has_bare_nan(document: bytes) -> bool:
    """Return whether JSON that could not be decoded is JSON but for ``NaN``, ``Infinity`` or ``-Infinity``."""
    if b"NaN" not in document and b"Infinity" not in document:
        return False
    found: list[str] = []
    keep: Callable[[str], None] = found.append
    try:
        json.loads(document, parse_constant=keep)
    except (ValueError, RecursionError):
        return False
    return bool(found)


def _is_run(choices: list[Choice], n_tokens: int | None) -> bool:
    """Return whether all of every choice is one token again and again."""
    if n_tokens is None or n_tokens < FEWEST_REPEATS * len(choices):
        return False
    n_units = 0
    for choice in choices:
        text = choice.written
        unit = find_unit(text)
        if unit is None:
            return False
        n = count_at_end(text, unit)
        if n < FEWEST_REPEATS or n * len(unit) < REPEATED_SHARE * len(text):
            return False
        n_units += n
    return n_units >= REPEATED_SHARE * n_tokens  # fewer: what is repeated is longer than a token


def find_unit(text: str) -> str | None:
    """Return the shortest string whose repetition are the last 64 characters; ``None`` when there is none."""
    tail = text[-FEWEST_REPEATS:]
    if len(tail) < FEWEST_REPEATS:
        return None
    last = tail[-1]
    for length in range(1, _LONGEST_UNIT + 1):
        if tail[-1 - length] == last and tail[length:] == tail[:-length]:
            return tail[-length:]
    return None


def count_at_end(text: str, unit: str) -> int:
    """Return how many times in a row ``unit`` stands at the end of ``text``."""
    n, end = 0, len(text)
    while text.endswith(unit, 0, end):
        n, end = n + 1, end - len(unit)
    return n


def check_vectors(body: bytes) -> Complaint | None:
    """Return what is wrong with an answer to an embeddings request.

    Decoded only where it holds ``null`` or a bare ``NaN``, or where its first vector begins with a zero or, in base64,
    as zeros and NaN do: a NaN in the midst of numbers in base64 is not seen. Vectors of nothing but zeros must be all
    there are: some engines answer an empty text so.
    """
    if not _is_suspect(body):
        return None
    try:
        answer = _VECTORS.decode(body)
    except UNREADABLE:
        return Complaint.NAN if has_bare_nan(body) else None
    if not is_absent(answer.error):
        return Complaint.ERROR
    if answer.data is None:
        return None
    vectors = [_read_vector(item.embedding) for item in answer.data]
    if any(vector is None or not all(map(math.isfinite, vector)) for vector in vectors):
        return Complaint.NAN
    return None if any(map(any, (vector for vector in vectors if vector is not None))) else Complaint.EMPTY


def _is_suspect(body: bytes) -> bool:
    """Return whether an answer with vectors is worth decoding."""
    has_bare = (b"N" in body and b"NaN" in body) or (b"I" in body and b"Infinity" in body)  # one byte is found faster
    return has_bare or b"null" in body or _SUSPECT_START.search(body[:_N_START_BYTES]) is not None


def _read_vector(embedding: list[float | None] | str | None) -> Sequence[float] | None:
    """Return the numbers of a vector; ``None`` when it, or one of them, is absent."""
    if isinstance(embedding, str):
        try:
            data = base64.b64decode(embedding, validate=True)
        except binascii.Error:
            return (1.0,)  # another encoding, of which nothing is known
        return array("f", data) if len(data) % 4 == 0 else (1.0,)
    numbers = [number for number in embedding or () if number is not None]
    return numbers if embedding is not None and len(numbers) == len(embedding) else None
