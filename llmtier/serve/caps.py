"""What a request body may hold: a reader and a bound for each top-level field that could hurt an engine.

Bytes of one field in, its value out, or a refusal that names the field. Fields that are not named here pass
unread. Each bound answers a known way to bring an engine down or to reach through it: unbounded ``n``, regular
expressions that explode, templates and tensors from the client, URLs that the engine fetches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from llmtier.serve.refusal import RequestRefusedError
from llmtier.store.permissions import Permission

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]  # what engines hold in an int32
Choices = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
FieldReader = Callable[[msgspec.Raw], Any]
Complaint = Callable[[Any], str | None]

MAX_LOGPROBS = 20  # the API's own limit, and vLLM's
MAX_LOGIT_BIASES = 300

_FIELDS = frozenset(Permission) - {Permission.ECHO, Permission.MEDIA_URLS}
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_SCHEMAS = ("response_format", "text", "guided_json", "guided_grammar", "guided_choice")


class StreamOptions(msgspec.Struct, gc=False):
    """The part of ``stream_options`` that the gateway edits."""

    include_usage: bool | None = None


class _Grammar(msgspec.Struct, gc=False):
    regex: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """The bounds of a body.

    Attributes:
        n: Most answers to one prompt.
        max_tokens: Longest answer; requests that leave it open get this one. ``None`` leaves it to the engine.
        tools: Most tools.
        stops: Most stop sequences.
        inputs: Most prompts or texts in one request.
        schema_bytes: Longest JSON schema or grammar that an answer shall follow.
        regex_chars: Longest regular expression that an answer shall follow.
        allowed: What is not refused though it can hurt an engine.
    """

    n: int = 8
    max_tokens: int | None = None
    tools: int = 128
    stops: int = 16
    inputs: int = 2048
    schema_bytes: int = 65_536
    regex_chars: int = 512
    allowed: frozenset[Permission] = frozenset()


def make_readers(caps: Caps) -> dict[str, FieldReader]:
    """Return the reader of each field that is looked into."""
    lengths = {name: _reader(name, Count | None, _at_most(caps.max_tokens)) for name in _LENGTHS}
    schemas = {name: _reader(name, msgspec.Raw, _at_most_bytes(caps.schema_bytes)) for name in _SCHEMAS}
    return {
        "model": _reader("model", str),
        "stream": _reader("stream", bool | None),
        "stream_options": _reader("stream_options", StreamOptions | None),
        **lengths,
        "n": _reader("n", Choices | None, _at_most(caps.n)),
        "best_of": _reader("best_of", Choices | None, _at_most(caps.n)),
        "logprobs": _reader("logprobs", bool | Count | None, _at_most(MAX_LOGPROBS)),
        "top_logprobs": _reader("top_logprobs", Count | None, _at_most(MAX_LOGPROBS)),
        "echo": _reader("echo", bool | None),
        "tools": _reader("tools", list[msgspec.Raw] | None, _at_most_entries(caps.tools)),
        "functions": _reader("functions", list[msgspec.Raw] | None, _at_most_entries(caps.tools)),
        "stop": _reader("stop", str | list[str] | None, _at_most_entries(caps.stops)),
        "logit_bias": _reader("logit_bias", dict[str, msgspec.Raw] | None, _at_most_entries(MAX_LOGIT_BIASES)),
        "guided_regex": _reader("guided_regex", str | None, _short_regex(caps)),
        "structured_outputs": _reader("structured_outputs", msgspec.Raw, _small_grammar(caps)),
        **schemas,
        **{field.value: _refuser(field) for field in _FIELDS - caps.allowed},
    }


def _reader(name: str, kind: Any, complain: Complaint | None = None) -> FieldReader:  # noqa: ANN401 - any type form
    decode = msgspec.json.Decoder(kind).decode

    def read(value: msgspec.Raw) -> object:
        try:
            decoded = decode(value)
            complaint = None if complain is None else complain(decoded)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise RequestRefusedError(f"{name}: {exc}", param=name) from exc
        if complaint is not None:
            raise RequestRefusedError(f"{name} {complaint}", param=name)
        return decoded

    return read


def _refuser(name: Permission) -> FieldReader:
    def refuse(value: msgspec.Raw) -> object:
        if bytes(value) in {b"null", b"false"}:  # as good as absent
            return None
        message = f"field {name.value!r} is not taken from clients here; 'gateway.allow_fields' can allow it"
        raise RequestRefusedError(message, code="field_not_allowed", param=name)

    return refuse


def _at_most(limit: int | None) -> Complaint:
    def complain(value: int | None) -> str | None:
        if limit is None or value is None or value <= limit:
            return None
        return f"must be at most {limit}, got {value}"

    return complain


def _at_most_entries(limit: int) -> Complaint:
    def complain(value: object) -> str | None:
        n_entries = len(value) if isinstance(value, (list, dict)) else 0
        return None if n_entries <= limit else f"may hold at most {limit} entries, got {n_entries}"

    return complain


def _at_most_bytes(limit_bytes: int) -> Complaint:
    def complain(value: msgspec.Raw) -> str | None:
        n_bytes = len(bytes(value))
        return None if n_bytes <= limit_bytes else f"may be at most {limit_bytes} bytes long, got {n_bytes}"

    return complain


def _short_regex(caps: Caps) -> Complaint:
    def complain(regex: str | None) -> str | None:
        n_chars = len(regex or "")
        if n_chars <= caps.regex_chars:
            return None
        return f"may hold a regular expression of at most {caps.regex_chars} characters, got {n_chars}"

    return complain


def _small_grammar(caps: Caps) -> Complaint:
    decode = msgspec.json.Decoder(_Grammar | None).decode
    in_bytes, in_regex = _at_most_bytes(caps.schema_bytes), _short_regex(caps)

    def complain(value: msgspec.Raw) -> str | None:
        grammar = decode(value)
        return in_bytes(value) or (None if grammar is None else in_regex(grammar.regex))

    return complain
