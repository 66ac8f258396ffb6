"""Request headers -> Requirement: what the client needs, over the configured defaults.

Reads raw ASGI headers; does no I/O. A header that cannot be meant is refused with 400, never ignored:
a need that was dropped silently would look met.

    x-llmtier-accuracy   P(correct) in [0, 1]         x-llmtier-domain    the label of this traffic
    x-llmtier-ttft-ms    time to first token          x-llmtier-max-usd   price of this request
    x-llmtier-tpot-ms    time per output token
    x-llmtier-e2el-ms    end-to-end latency
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from llmtier.core.requirement import Requirement
from llmtier.serve.refusal import RequestRefusedError

PREFIX = b"x-llmtier-"
_NUMBER = re.compile(rb"\d{1,15}(\.\d{1,15})?(e-?\d{1,2})?", re.IGNORECASE)
_DOMAIN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_NUMBERS = ("accuracy", "ttft-ms", "tpot-ms", "e2el-ms", "max-usd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one request asked for in its headers.

    Attributes:
        requirement: Limits; the configured default where the header is absent.
        domain: The client's label; ``None`` when absent.
    """

    requirement: Requirement
    domain: str | None = None


def read_needs(headers: Iterable[tuple[bytes, bytes]], *, defaults: Requirement, context_tokens: int) -> Needs:
    """Read the ``x-llmtier-`` headers.

    Raises:
        RequestRefusedError: 400 for an unknown, repeated or malformed header.
    """
    given = _collect(headers)
    numbers = {name: _parse_number(name, given[name]) for name in _NUMBERS if name in given}
    if numbers.get("accuracy", 0.0) > 1.0:
        raise _malformed("accuracy", given["accuracy"], "a number from 0 to 1")
    requirement = Requirement(
        ttft_s=_seconds(numbers.get("ttft-ms"), defaults.ttft_s),
        tpot_s=_seconds(numbers.get("tpot-ms"), defaults.tpot_s),
        e2el_s=_seconds(numbers.get("e2el-ms"), defaults.e2el_s),
        accuracy=numbers.get("accuracy", defaults.accuracy),
        usd=numbers.get("max-usd", defaults.usd),
        context_tokens=context_tokens,
    )
    return Needs(requirement=requirement, domain=_parse_domain(given.get("domain")))


def _collect(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, bytes]:
    given: dict[str, bytes] = {}
    for raw_name, value in headers:
        if not raw_name.startswith(PREFIX):
            continue
        name = raw_name[len(PREFIX) :].decode("latin-1")
        if name in given:
            raise RequestRefusedError(f"header x-llmtier-{name} is given twice; send it once", code="invalid_header")
        if name not in _NUMBERS and name != "domain":
            known = ", ".join(f"x-llmtier-{known}" for known in (*_NUMBERS, "domain"))
            raise RequestRefusedError(f"unknown header x-llmtier-{name}; known: {known}", code="invalid_header")
        given[name] = value
    return given


def _parse_number(name: str, value: bytes) -> float:
    number = float(value) if _NUMBER.fullmatch(value) else math.nan
    if not math.isfinite(number):
        raise _malformed(name, value, "a non-negative number such as 400")
    return number


def _parse_domain(value: bytes | None) -> str | None:
    if value is None:
        return None
    if not _DOMAIN.fullmatch(value):
        raise _malformed("domain", value, "up to 64 letters, digits, '.', '_' or '-'")
    return value.decode("ascii")


def _seconds(milliseconds: float | None, default_s: float | None) -> float | None:
    return default_s if milliseconds is None else milliseconds / 1000.0


def _malformed(name: str, value: bytes, expected: str) -> RequestRefusedError:
    shown = value[:40].decode("latin-1")
    return RequestRefusedError(f"header x-llmtier-{name}: expected {expected}, got {shown!r}", code="invalid_header")
