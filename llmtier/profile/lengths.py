"""How long prompts and answers are: a law of lengths in tokens, and the texts that name one.

Pure: a generator in, a length out.
"""

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

LENGTH_FORMS = "128, 64-512 or lognormal:MEDIAN,SIGMA[,LONGEST]"

_MAX_TOKENS = 10_000_000  # beyond any context
_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_UNIFORM = re.compile(r"(\d+)\s*-\s*(\d+)")
_LOGNORMAL = re.compile(rf"lognormal:\s*({_NUMBER})\s*,\s*({_NUMBER})\s*(?:,\s*(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLength:
    """Every length is the same."""

    tokens: int

    def __post_init__(self) -> None:
        _check_bound(self.tokens)

    @property
    def label(self) -> str:
        """Return its name, which ``parse_length`` reads back."""
        return str(self.tokens)

    @property
    def longest_tokens(self) -> int:
        """Return the longest length that can come."""
        return self.tokens

    def draw(self, rng: np.random.Generator) -> int:  # noqa: ARG002 - as the other laws
        """Return a length; it takes nothing from ``rng``."""
        return self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformLength:
    """Every whole number from ``low_tokens`` to ``high_tokens``, both included, is as likely."""

    low_tokens: int
    high_tokens: int

    def __post_init__(self) -> None:
        _check_bound(self.low_tokens)
        _check_bound(self.high_tokens)
        if self.low_tokens > self.high_tokens:
            raise ValueError(f"a range of lengths must rise, got {self.low_tokens}-{self.high_tokens}")

    @property
    def label(self) -> str:
        """Return its name, which ``parse_length`` reads back."""
        return f"{self.low_tokens}-{self.high_tokens}"

    @property
    def longest_tokens(self) -> int:
        """Return the longest length that can come."""
        return self.high_tokens

    def draw(self, rng: np.random.Generator) -> int:
        """Return a length."""
        return int(rng.integers(self.low_tokens, self.high_tokens, endpoint=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class LognormalLength:
    """Mostly short and sometimes very long, as real traffic is.

    Attributes:
        median_tokens: Half of the lengths lie below.
        sigma: Standard deviation of the logarithm; 0 makes every length the median.
        longest_tokens: Longer ones are cut to it.
    """

    median_tokens: float
    sigma: float
    longest_tokens: int = _MAX_TOKENS

    def __post_init__(self) -> None:
        _check_bound(self.longest_tokens)
        if not 1 <= self.median_tokens <= self.longest_tokens:
            raise ValueError(f"a median length lies from 1 to {self.longest_tokens} tokens, got {self.median_tokens}")
        if not (math.isfinite(self.sigma) and 0 <= self.sigma <= 10):
            raise ValueError(f"a sigma of lengths lies from 0 to 10, got {self.sigma}")

    @property
    def label(self) -> str:
        """Return its name, which ``parse_length`` reads back."""
        median, sigma = (np.format_float_positional(value, trim="-") for value in (self.median_tokens, self.sigma))
        longest = "" if self.longest_tokens == _MAX_TOKENS else f",{self.longest_tokens}"
        return f"lognormal:{median},{sigma}{longest}"

    def draw(self, rng: np.random.Generator) -> int:
        """Return a length, at least 1."""
        length = rng.lognormal(math.log(self.median_tokens), self.sigma)
        return int(min(max(round(length), 1), self.longest_tokens))


LengthRange: TypeAlias = FixedLength | UniformLength | LognormalLength
"""A law of lengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticLengths:
    """Lengths of a synthetic request, drawn independently of each other.

    Attributes:
        input: Of the prompt, the engine's chat template included.
        output: Of the answer.
    """

    input: LengthRange
    output: LengthRange


def parse_length(text: str) -> LengthRange:
    """Return the law that ``text`` names: ``128``, ``64-512``, ``lognormal:200,0.6`` or ``lognormal:200,0.6,4096``.

    Raises:
        ValueError: It names none; the message quotes it and says what was expected.
    """
    stripped = text.strip().lower()
    try:
        if re.fullmatch(r"\d+", stripped):
            return FixedLength(tokens=int(stripped))
        if found := _UNIFORM.fullmatch(stripped):
            return UniformLength(low_tokens=int(found[1]), high_tokens=int(found[2]))
        if found := _LOGNORMAL.fullmatch(stripped):
            longest = _MAX_TOKENS if found[3] is None else int(found[3])
            return LognormalLength(median_tokens=float(found[1]), sigma=float(found[2]), longest_tokens=longest)
    except ValueError as exc:
        raise ValueError(f"length {text!r}: {exc}") from exc
    raise ValueError(f"length {text!r}: expected {LENGTH_FORMS}")


def _check_bound(tokens: int) -> None:
    if not 1 <= tokens <= _MAX_TOKENS:
        raise ValueError(f"a length lies from 1 to {_MAX_TOKENS} tokens, got {tokens}")
