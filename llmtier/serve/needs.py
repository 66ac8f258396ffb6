"""Headers, body extension, API key and SLO class -> Needs: what the client asks for, over the configured defaults.

Reads raw headers and what ``wire`` found under the body's ``llmtier`` key; does no I/O. A need that cannot be
meant is refused with 400, never ignored: one that was dropped silently would look met.

    x-llmtier-accuracy   P(correct) in [0, 1]         x-llmtier-domain    the label of this traffic
    x-llmtier-ttft-ms    time to first token          x-llmtier-max-usd   price of this request
    x-llmtier-tpot-ms    time per output token        x-llmtier-class     an SLO class of the configuration
    x-llmtier-e2el-ms    end-to-end latency           x-llmtier-session   the conversation (see ``stickiness``)

The body's ``llmtier`` object has the same names with underscores. llm-d's ``x-llm-d-slo-ttft-ms``,
``x-llm-d-slo-tpot-ms`` and ``x-llm-d-inference-objective`` (an SLO class) mean the same; its other headers are
left aside. Each limit comes from the first that states it: header, body, API key, SLO class, defaults.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

import msgspec

from llmtier.core.requirement import Requirement
from llmtier.serve.refusal import RequestRefusedError
from llmtier.store.keys import ApiKey

T = TypeVar("T")

Headers = Iterable[tuple[bytes, bytes]]
Pairs = tuple[tuple[bytes, bytes], ...]

PREFIX = b"x-llmtier-"
SESSION_HEADER = b"x-llmtier-session"

_NUMBERS = ("accuracy", "ttft-ms", "tpot-ms", "e2el-ms", "max-usd")
_WORDS = ("class", "domain")
_NAMES = {f"x-llmtier-{name}".encode(): name for name in (*_NUMBERS, *_WORDS)} | {
    b"x-llm-d-slo-ttft-ms": "ttft-ms",
    b"x-llm-d-slo-tpot-ms": "tpot-ms",
    b"x-llm-d-inference-objective": "class",
}
_NUMBER = re.compile(rb"\d{1,15}(\.\d{1,15})?(e-?\d{1,2})?", re.IGNORECASE)
_WORD = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_MAX_REMEMBERED = 1024

NonNegative = Annotated[float, msgspec.Meta(ge=0.0)]
Word = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]


class Stated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"slo_class": "class"}):
    """What one request states itself, as headers or as the body's ``llmtier`` object; ``None`` says nothing."""

    accuracy: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    ttft_ms: NonNegative | None = None
    tpot_ms: NonNegative | None = None
    e2el_ms: NonNegative | None = None
    max_usd: NonNegative | None = None
    slo_class: Word | None = None
    domain: Word | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one request needs; shared between requests that state the same.

    Attributes:
        requirement: Limits, all sources taken together.
        domain: The label of this traffic; ``None`` when absent.
        slo_class: Name of the SLO class that applies; ``None`` without one.
    """

    requirement: Requirement
    domain: str | None = None
    slo_class: str | None = None

    def with_context(self, context_tokens: int) -> "Needs":
        """Return these needs of a request of that length; worth its 4 us only where a tier's length is in question."""
        given = self.requirement
        requirement = Requirement(
            ttft_s=given.ttft_s,
            tpot_s=given.tpot_s,
            e2el_s=given.e2el_s,
            accuracy=given.accuracy,
            context_tokens=context_tokens,
            usd=given.usd,
        )
        return Needs(requirement=requirement, domain=self.domain, slo_class=self.slo_class)


class NeedsReader:
    """Reads the needs of requests under one configuration.

    Args:
        defaults: Limits of a request that states none.
        classes: SLO classes by name; what a class leaves open falls to ``defaults``.
    """

    def __init__(self, *, defaults: Requirement, classes: Mapping[str, Requirement] | None = None) -> None:
        self._defaults = defaults
        self._classes = dict(classes or {})
        self._unstated = Needs(requirement=defaults)
        self._remembered: dict[tuple[Pairs, ApiKey | None], Needs] = {}

    def read(self, headers: Headers, *, stated: Stated | None = None, key: ApiKey | None = None) -> Needs:
        """Return what a request needs; its context length is no part of it.

        Args:
            headers: As ASGI has them, names in lower case.
            stated: The body's ``llmtier`` object; ``None`` without one.
            key: The caller's; ``None`` when callers are anonymous.

        Raises:
            RequestRefusedError: 400 for an unknown, repeated or malformed need; 403 for a class that the key may not use.
        """
        ours = [pair for pair in headers if pair[0][:4] == b"x-ll" and pair[0] != SESSION_HEADER]
        if not ours and stated is None and (key is None or not key.states_needs):
            return self._unstated
        pairs = tuple(ours)
        if stated is not None:
            return self._merge(pairs, stated, key)
        needs = self._remembered.get((pairs, key))
        if needs is None:
            needs = self._merge(pairs, None, key)
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[pairs, key] = needs
        return needs

    def _merge(self, pairs: Pairs, stated: Stated | None, key: ApiKey | None) -> Needs:
        headers = read_headers(pairs)
        sources = [headers] if stated is None else [headers, stated]
        name = _first(source.slo_class for source in sources)
        slo_class = self._find_class(name, key)
        base = self._defaults if slo_class is None else _over(self._classes[slo_class], self._defaults)
        requirement = Requirement(
            accuracy=_first([*(source.accuracy for source in sources), base.accuracy]),
            ttft_s=_seconds([source.ttft_ms for source in sources], base.ttft_s),
            tpot_s=_seconds([source.tpot_ms for source in sources], base.tpot_s),
            e2el_s=_seconds([source.e2el_ms for source in sources], base.e2el_s),
            usd=_first([*(source.max_usd for source in sources), base.usd]),
        )
        domain = _first(source.domain for source in sources)
        if key is not None:
            requirement, domain = _clamp(requirement, key), domain or key.domain
        return Needs(requirement=requirement, domain=domain, slo_class=slo_class)

    def _find_class(self, asked: str | None, key: ApiKey | None) -> str | None:
        name = asked if asked is not None or key is None else key.slo_class
        if name is None:
            return None
        if name not in self._classes:
            known = ", ".join(self._classes) or "none is configured"
            message = f"unknown SLO class {name!r}; known: {known}"
            raise RequestRefusedError(message, code="unknown_class", param="x-llmtier-class")
        if asked is not None and key is not None and not key.may_use_class(asked):
            allowed = ", ".join(sorted(key.classes or ()))
            message = f"this API key may not use SLO class {asked!r}; it may use: {allowed}"
            raise RequestRefusedError(message, status=403, code="class_not_allowed", param="x-llmtier-class")
        return name


def read_headers(pairs: Iterable[tuple[bytes, bytes]]) -> Stated:
    """Read what the headers state.

    Raises:
        RequestRefusedError: 400 for an unknown, repeated or malformed header.
    """
    given = _collect(pairs)
    numbers = {name: _parse_number(name, *given[name]) for name in _NUMBERS if name in given}
    if numbers.get("accuracy", 0.0) > 1.0:
        raise _malformed(*given["accuracy"], "a number from 0 to 1")
    return Stated(
        accuracy=numbers.get("accuracy"),
        ttft_ms=numbers.get("ttft-ms"),
        tpot_ms=numbers.get("tpot-ms"),
        e2el_ms=numbers.get("e2el-ms"),
        max_usd=numbers.get("max-usd"),
        slo_class=_parse_word(given.get("class")),
        domain=_parse_word(given.get("domain")),
    )


def _collect(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, tuple[bytes, bytes]]:
    """Return each need's header and value."""
    given: dict[str, tuple[bytes, bytes]] = {}
    for header, value in pairs:
        name = _NAMES.get(header)
        if name is None:
            if header.startswith(PREFIX):
                known = ", ".join(known.decode() for known in (*_NAMES, SESSION_HEADER) if known.startswith(PREFIX))
                raise _refuse(header, f"unknown header {_show(header)}; known: {known}")
            continue
        if name in given:
            first = given[name][0]
            other = "" if first == header else f" as {_show(first)}"
            raise _refuse(header, f"header {_show(header)} is given twice{other}; send it once")
        given[name] = (header, value)
    return given


def _parse_number(name: str, header: bytes, value: bytes) -> float:
    number = float(value) if _NUMBER.fullmatch(value) else math.nan
    if not math.isfinite(number):
        raise _malformed(header, value, f"a non-negative number such as {0.9 if name == 'accuracy' else 400}")
    return number


def _parse_word(given: tuple[bytes, bytes] | None) -> str | None:
    if given is None:
        return None
    header, value = given
    if not _WORD.fullmatch(value):
        raise _malformed(header, value, "up to 64 letters, digits, '.', '_' or '-'")
    return value.decode("ascii")


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


def _seconds(milliseconds: Iterable[float | None], default_s: float | None) -> float | None:
    stated_ms = _first(milliseconds)
    return default_s if stated_ms is None else stated_ms / 1000.0


def _over(upper: Requirement, lower: Requirement) -> Requirement:
    """Return ``upper`` with ``lower`` where it says nothing."""
    return Requirement(
        ttft_s=_first((upper.ttft_s, lower.ttft_s)),
        tpot_s=_first((upper.tpot_s, lower.tpot_s)),
        e2el_s=_first((upper.e2el_s, lower.e2el_s)),
        accuracy=_first((upper.accuracy, lower.accuracy)),
        usd=_first((upper.usd, lower.usd)),
    )


def _clamp(requirement: Requirement, key: ApiKey) -> Requirement:
    """Hold a request to its key's accuracy floor and price limit, whatever it states itself."""
    floors = [value for value in (requirement.accuracy, key.accuracy) if value is not None]
    ceilings = [value for value in (requirement.usd, key.max_usd) if value is not None]
    return replace(requirement, accuracy=max(floors, default=None), usd=min(ceilings, default=None))


def _malformed(header: bytes, value: bytes, expected: str) -> RequestRefusedError:
    shown = value[:40].decode("latin-1")
    return _refuse(header, f"header {_show(header)}: expected {expected}, got {shown!r}")


def _refuse(header: bytes, message: str) -> RequestRefusedError:
    return RequestRefusedError(message, code="invalid_header", param=_show(header))


def _show(header: bytes) -> str:
    return header[:80].decode("latin-1")
