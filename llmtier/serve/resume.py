"""Whether and how a stream that broke mid-way is carried on by another engine of the same model.

Reads the client's fields and what it was sent; writes the request of the continuation, or the reason for none.
Sans-I/O: the caller sends, and passes what comes through the plan's ``Splicer``. Three recipes:

    ids     prompt and generated token ids to ``/v1/completions``, for a chat as well: the very context that the
            first engine had. Needs ``return_token_ids`` in the first request.
    repeat  the same request once more: no text was sent yet, or a short greedy answer, which is generated again
            and compared with what was sent (see ``Splicer``).
    text    the generated text as the beginning of the answer (``continue_final_message``), or behind the prompt.
            A text cut anywhere is often tokenized otherwise than it was generated, so this one may differ from
            the uncut answer. A greedy answer is therefore cut back to the start of a word and compared from there.

A sampled answer goes on as another sample of the same distribution. Only fields that are known to survive are let
through: one that is not named here refuses. On one engine a greedy answer is the same again up to the rounding of
other batch shapes, which no recipe can change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from llmtier.serve.resume_log import RefusalReason, ResumeLog, Sent, SentPiece, UnreadableError, read_sent
from llmtier.serve.resume_splice import Seam, Splicer, close_stream
from llmtier.serve.wire import EXTENSION, Endpoint

MAX_OVERLAP_EVENTS = 16
"""How far back a greedy answer is cut; longer words, and scripts without spaces, are cut where they broke."""

MAX_REPEATED_TOKENS = 64
"""Longest greedy answer that is generated again from its beginning: the client waits meanwhile."""

COMPLETION_TOKENS = 16
"""The API's own length of a completion that states none."""

# fmt: off
_SURVIVING = frozenset(
    {
        EXTENSION,
        "cache_salt", "ignore_eos", "include_stop_str_in_output", "logit_bias", "max_completion_tokens",
        "max_tokens", "messages", "metadata", "min_p", "min_tokens", "model", "priority", "prompt",
        "prompt_cache_key", "repetition_penalty", "request_id", "safety_identifier", "seed", "service_tier",
        "session_id", "skip_special_tokens", "spaces_between_special_tokens", "stop", "stop_token_ids", "store",
        "stream", "stream_interval", "stream_options", "temperature", "top_k", "top_p", "user",
    }
)
# fmt: on
_REFUSED = {
    "n": RefusalReason.SEVERAL_ANSWERS,
    "best_of": RefusalReason.SEVERAL_ANSWERS,
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call"), RefusalReason.TOOLS),
    **dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs"), RefusalReason.LOGPROBS),
    **dict.fromkeys(("response_format", "structured_outputs"), RefusalReason.GRAMMAR),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "bad_words"), RefusalReason.PENALTY),
}
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none",),
    "function_call": ("none",),
    "parallel_tool_calls": (True, False),  # without tools it says nothing
    "response_format": ({"type": "text"},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "bad_words": ([],),
    "echo": (False,),
    "use_beam_search": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "return_token_ids": (False,),
}
_NEUTRAL_IN_CHAT = {"logprobs": (False,), "top_logprobs": (0,)}
_CHAT_ONLY = frozenset({"messages", "max_completion_tokens"})
_NOT_SENT_AGAIN = frozenset({EXTENSION, "request_id", *_NEUTRAL, *_NEUTRAL_IN_CHAT})
_NULL = msgspec.Raw(b"null")

Fields = Mapping[str, msgspec.Raw]


class ResumeMode(StrEnum):
    """What the configuration allows."""

    IDS = "ids"  # exact recipes alone; engines are asked for token ids
    TEXT = "text"  # whatever fits; engines get the client's own request


class Recipe(StrEnum):
    """How an engine is asked to go on; a label of the metric."""

    REPEAT = "repeat"
    IDS = "ids"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an answer is generated, as far as exactness goes.

    Attributes:
        engine_kind: ``vllm``, ``mock`` or ``openai``, as the configuration names it.
        engine_version: ``None`` when it reports none.
        checkpoint_digest: ``None`` when unknown.
        engine_flags: Arguments that may change answers, such as the KV cache's precision.
    """

    engine_kind: str
    engine_version: str | None
    checkpoint_digest: str | None
    engine_flags: tuple[str, ...] = ()

    @property
    def is_vllm(self) -> bool:
        """Whether it is known to be vLLM, which tells token ids; a bare URL is when it tells a version."""
        return self.engine_kind == "vllm" or (self.engine_kind == "openai" and self.engine_version is not None)

    def can_continue(self, first: "Origin") -> bool:
        """Tell whether an engine of another tier goes on as ``first`` would have.

        One behind a bare URL never does: it may take no notice of ``continue_final_message`` and begin anew.
        """
        return self.engine_kind != "openai" and self.checkpoint_digest is not None and self == first


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeAsk:
    """The request whose stream broke.

    Attributes:
        endpoint: Where it was posted.
        fields: The client's own, without what the gateway added.
        max_tokens: Longest answer after the gateway's caps; ``None`` when nobody says.
        wants_usage: Whether the client asked for the closing usage.
        context_tokens: The engine's longest prompt plus answer; ``None`` when unknown.
        max_repeated_tokens: Longest greedy answer that may be generated again whole, where ids are not known.
    """

    endpoint: Endpoint
    fields: Fields
    max_tokens: int | None
    wants_usage: bool
    context_tokens: int | None = None
    max_repeated_tokens: int = MAX_REPEATED_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The stream is not resumed, and why."""

    reason: RefusalReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """The stream needs no engine: ``tail`` ends it."""

    tail: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePlan:
    """How to carry a stream on.

    Attributes:
        endpoint: Where the continuation is posted; may differ from the client's.
        recipe: How.
        seam: Where it joins.
        fields: The body without the model.
    """

    endpoint: Endpoint
    recipe: Recipe
    seam: Seam
    fields: Fields

    @property
    def is_exact(self) -> bool:
        """Whether the engine goes on from the very tokens of the first, not from their text."""
        return self.recipe is not Recipe.TEXT

    def body(self, model: str) -> bytes:
        """Return the body for an engine that calls its model ``model``."""
        return msgspec.json.encode({**self.fields, "model": model})

    def splicer(self) -> Splicer:
        """Return what joins the engine's events to the client's stream."""
        return Splicer(self.seam)


class _Part(msgspec.Struct, gc=False):
    type: str


class _Turn(msgspec.Struct, gc=False):
    content: str | list[_Part] | None = None


_TURNS = msgspec.json.Decoder(list[_Turn])
_PROMPT = msgspec.json.Decoder(str | list[int])


def find_refusal(ask: ResumeAsk) -> RefusalReason | None:
    """Return why no stream of this request is ever resumed; ``None`` when one may be."""
    try:
        _read_values(ask)
    except UnreadableError as exc:
        return exc.reason
    return None


def plan(ask: ResumeAsk, log: ResumeLog) -> ResumePlan | Closing | Refusal:
    """Decide how the stream goes on after what ``log`` holds."""
    if log.is_overfull:
        return Refusal(reason=RefusalReason.TOO_LONG)
    try:
        sent = read_sent(log.data)
        values = _read_values(ask)
    except UnreadableError as exc:
        return Refusal(reason=exc.reason)
    limit = _limit(ask)
    if sent.is_done:
        return Closing(tail=b"")
    if sent.finish_reason is not None or (limit is not None and sent.n_tokens >= limit):
        seam = Seam(sent=sent, is_chat=ask.endpoint is Endpoint.CHAT)
        return Closing(tail=close_stream(seam, wants_usage=ask.wants_usage))
    return _Planner(ask, sent, values, limit).plan()


class _Planner:
    """Chooses the recipe for one request that may be resumed as far as its fields go."""

    def __init__(self, ask: ResumeAsk, sent: Sent, values: Mapping[str, Any], limit: int | None) -> None:
        self._ask = ask
        self._sent = sent
        self._values = values
        self._limit = limit
        self._is_chat = ask.endpoint is Endpoint.CHAT
        temperature = values.get("temperature")
        self._is_greedy = temperature is not None and temperature == 0

    def plan(self) -> ResumePlan | Refusal:
        if not self._sent.pieces:
            seam = Seam(sent=self._sent, is_chat=self._is_chat)
            return self._make(Recipe.REPEAT, self._ask.endpoint, self._length_left(seam), seam)
        refusal = self._refuse_text_sent()
        if refusal is not None:
            return Refusal(reason=refusal)
        return self._plan_ids() or self._plan_repeat() or self._plan_text()

    def _refuse_text_sent(self) -> RefusalReason | None:
        values = self._values
        if values.get("seed") is not None and not self._is_greedy:
            return RefusalReason.SEED
        if (values.get("min_tokens") or 0) > self._sent.n_tokens:
            return RefusalReason.MIN_TOKENS
        if ends_within_stop(self._sent.text, _stops(values)):
            return RefusalReason.STOP
        return None

    def _plan_ids(self) -> ResumePlan | None:
        sent = self._sent
        if sent.prompt_ids is None or sent.token_ids is None or _stops(self._values):
            return None  # text held back for a stop sequence lags behind its tokens
        seam = Seam(sent=sent, is_chat=self._is_chat, n_resent_tokens=len(sent.token_ids))
        changed: dict[str, Any] = {"prompt": [*sent.prompt_ids, *sent.token_ids], "return_token_ids": True}
        limit = self._limit
        if limit is None:
            if self._ask.context_tokens is None:
                return None
            limit = self._ask.context_tokens - len(sent.prompt_ids)
        changed["max_tokens"] = limit - len(sent.token_ids)
        return self._make(Recipe.IDS, Endpoint.COMPLETIONS, changed, seam) if changed["max_tokens"] > 0 else None

    def _plan_repeat(self) -> ResumePlan | None:
        if not self._is_greedy or self._sent.n_tokens > self._ask.max_repeated_tokens:
            return None
        seam = Seam(sent=self._sent, is_chat=self._is_chat, overlap=self._sent.text)
        return self._make(Recipe.REPEAT, self._ask.endpoint, self._length_left(seam), seam)

    def _plan_text(self) -> ResumePlan | Refusal:
        if self._values.get("ignore_eos"):
            return Refusal(reason=RefusalReason.SEAM)  # ends that were generated are in no text
        pieces = self._sent.pieces
        n_kept = _find_word_start(pieces) if self._is_greedy else len(pieces)
        kept, overlap = ("".join(piece.text for piece in part) for part in (pieces[:n_kept], pieces[n_kept:]))
        n_resent = sum(piece.n_tokens for piece in pieces[:n_kept])
        seam = Seam(sent=self._sent, is_chat=self._is_chat, overlap=overlap, n_resent_tokens=n_resent)
        appended = self._append(kept)
        if isinstance(appended, Refusal):
            return appended
        return self._make(Recipe.TEXT, self._ask.endpoint, {**self._length_left(seam), **appended}, seam)

    def _append(self, text: str) -> dict[str, Any] | Refusal:
        """Return the fields in which the generated text goes along."""
        if not self._is_chat:
            prompt = self._values["prompt"]
            return {"prompt": prompt + text} if isinstance(prompt, str) else Refusal(reason=RefusalReason.PROMPT)
        if text != text.strip():
            return Refusal(reason=RefusalReason.SEAM)  # templates strip it
        messages = msgspec.json.decode(self._ask.fields["messages"], type=list[msgspec.Raw])
        turn = {"role": "assistant", "content": text}
        return {"messages": [*messages, turn], "add_generation_prompt": False, "continue_final_message": True}

    def _length_left(self, seam: Seam) -> dict[str, Any]:
        changed: dict[str, Any] = {} if self._sent.prompt_ids is None else {"return_token_ids": True}
        if self._limit is not None:
            changed[_limit_name(self._ask)] = self._limit - seam.n_resent_tokens
        return changed

    def _make(self, recipe: Recipe, endpoint: Endpoint, changed: Mapping[str, Any], seam: Seam) -> ResumePlan:
        gone = _NOT_SENT_AGAIN if endpoint is self._ask.endpoint else _NOT_SENT_AGAIN | _CHAT_ONLY
        fields = {name: value for name, value in self._ask.fields.items() if name not in gone}
        least = self._values.get("min_tokens")
        if least is not None:
            fields["min_tokens"] = msgspec.Raw(b"%d" % max(least - seam.n_resent_tokens, 0))
        fields |= {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in changed.items()}
        options = {**(self._values.get("stream_options") or {}), "include_usage": True}
        fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
        return ResumePlan(endpoint=endpoint, recipe=recipe, seam=seam, fields=fields)


def ends_within_stop(text: str, stops: tuple[str, ...]) -> bool:
    """Tell whether ``text`` ends with the beginning of a stop sequence."""
    return any(text.endswith(stop[:length]) for stop in stops for length in range(1, len(stop) + 1))


def _find_word_start(pieces: tuple[SentPiece, ...]) -> int:
    """Return how many pieces to resend: the others begin a word with its space, or there are none."""
    for index in range(len(pieces) - 1, max(len(pieces) - MAX_OVERLAP_EVENTS, 1) - 1, -1):
        text, before = pieces[index].text, "".join(piece.text for piece in pieces[:index])
        if text[:1].isspace() and before and not before[-1].isspace():
            return index
    return len(pieces)


def _read_values(ask: ResumeAsk) -> dict[str, Any]:
    """Decode the fields but the messages.

    Raises:
        UnreadableError: One of them forbids to go on.
    """
    if ask.endpoint not in (Endpoint.CHAT, Endpoint.COMPLETIONS):
        raise UnreadableError(RefusalReason.ENDPOINT)
    values = {name: msgspec.json.decode(value) for name, value in ask.fields.items() if name != "messages"}
    if not values.get("stream"):
        raise UnreadableError(RefusalReason.NOT_A_STREAM)
    neutral = _NEUTRAL | (_NEUTRAL_IN_CHAT if ask.endpoint is Endpoint.CHAT else {})
    for name, value in values.items():
        if name not in _SURVIVING and value is not None and not _is_one_of(value, neutral.get(name, ())):
            grammar = RefusalReason.GRAMMAR if name.startswith("guided_") else RefusalReason.FIELD
            raise UnreadableError(_REFUSED.get(name, grammar))
    if not _is_one_text(ask):
        raise UnreadableError(RefusalReason.PROMPT)
    return values


def _is_one_text(ask: ResumeAsk) -> bool:
    """Tell whether the prompt is one conversation of texts, one text or one list of token ids."""
    try:
        if ask.endpoint is Endpoint.CHAT:
            turns = _TURNS.decode(ask.fields.get("messages", _NULL))
            return all(part.type == "text" for turn in turns for part in _parts(turn))
        _PROMPT.decode(ask.fields.get("prompt", _NULL))
    except msgspec.MsgspecError:
        return False
    return True


def _parts(turn: _Turn) -> list[_Part]:
    return turn.content if isinstance(turn.content, list) else []


def _is_one_of(value: object, candidates: tuple[object, ...]) -> bool:
    """Compare as JSON does: ``false`` is not 0."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in candidates)


def _stops(values: Mapping[str, Any]) -> tuple[str, ...]:
    stop = values.get("stop") or ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _limit(ask: ResumeAsk) -> int | None:
    if ask.max_tokens is None and ask.endpoint is Endpoint.COMPLETIONS:
        return COMPLETION_TOKENS
    return ask.max_tokens


def _limit_name(ask: ResumeAsk) -> str:
    has_newer = bytes(ask.fields.get("max_completion_tokens", _NULL)) != b"null"
    return "max_completion_tokens" if has_newer and ask.endpoint is Endpoint.CHAT else "max_tokens"
