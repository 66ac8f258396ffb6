"""Prompt text to numbers: hashed words and word pairs, counts, entropy, markers.

Reads the last user turn, cut head and tail; writes nothing and learns nothing. Every scorer takes
its features from here, so that fit and serve see the same ones.
"""

import math
import re
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_BUCKETS = 1 << 16
"""Hash buckets for words and word pairs."""

N_NUMERIC = 11
"""Numbers in ``TextFeatures.numeric``."""

MAX_CHARS = 4_000
"""Characters of a prompt that are read; of a longer one the first and the last half of this."""

_TOKEN = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")
_MATH_SIGNS = frozenset("+-*/=^<>%\u00d7\u00f7\u00b1√∑∫≤≥≠π")  # \u00d7 \u00f7 \u00b1: times, divided by, plus-minus
# Every repeat below is bounded or cannot restart, so that no text makes a search quadratic.
_CODE = re.compile(
    r"```|#include|=>|\(\);|</\w|[;{][ \t]*$"
    r"|\b(?:def|function|class)[ ]\w{1,40}[ ]?[({:]"
    r"|^[ \t]*import[ ][\w.]{1,80}[ \t]*;?$|^[ \t]*from[ ][\w.]{1,80}[ ]import\b"
    r"|\bSELECT\b.{1,200}\bFROM\b",
    re.MULTILINE,
)
_JSON = re.compile(r"""\bjson\b|[{\[]\s{0,20}"[^"\n]{0,80}"\s{0,20}[:,\]]""", re.IGNORECASE)
_MATH = re.compile(
    r"\d\s{0,3}[-+*/^=\u00d7\u00f7]\s{0,3}\d|\\(?:frac|sum|int|sqrt|cdot)|[√∑∫≤≥≠π\u00b1]|\$[^$\n]{1,200}\$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """Which kinds of content a text shows."""

    has_code: bool
    has_json: bool
    has_math: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFeatures:
    """What the learned scorer reads of one text.

    Attributes:
        buckets: Hash buckets that occur, ascending, shape (n_active,).
        values: ``1 + log(count)`` of each, shape (n_active,).
        numeric: Eleven counts and shares, shape (11,); the first is the log length in characters.
    """

    buckets: NDArray[np.intp]
    values: NDArray[np.float64]
    numeric: NDArray[np.float64]


def cut_text(text: str) -> str:
    """Return ``text``, or its head and tail when it is longer than ``MAX_CHARS``."""
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]}\n{text[-half:]}"


def extract_text(text: str) -> TextFeatures:
    """Tokenize once and count."""
    cut = cut_text(text)
    tokens = _TOKEN.findall(cut.lower())
    counts = _count_buckets(tokens)
    buckets = np.fromiter(sorted(counts), dtype=np.intp, count=len(counts))
    values = np.array([1.0 + math.log(counts[bucket]) for bucket in buckets.tolist()], dtype=np.float64)
    return TextFeatures(buckets=buckets, values=values, numeric=_count_numbers(text, cut, tokens))


def log_length(text: str) -> float:
    """Return log(1 + characters) of the whole text."""
    return math.log1p(len(text))


def char_entropy_bits(text: str) -> float:
    """Return the Shannon entropy of the characters, in bits a character; 0 for no text."""
    if not text:
        return 0.0
    total = len(text)
    return -sum(count / total * math.log2(count / total) for count in Counter(text).values())


def find_markers(text: str) -> Markers:
    """Look for code, JSON and mathematics."""
    return Markers(
        has_code=_CODE.search(text) is not None,
        has_json=_JSON.search(text) is not None,
        has_math=_MATH.search(text) is not None,
    )


def _count_buckets(tokens: list[str]) -> Counter[int]:
    """Count words and pairs of neighbours by crc32; a pair's hash continues the first word's."""
    hashes: list[int] = []
    after_previous: int | None = None
    for token in tokens:
        encoded = token.encode(errors="surrogatepass")  # JSON may hold lone surrogates
        word = zlib.crc32(encoded)
        hashes.append(word % N_BUCKETS)
        if after_previous is not None:
            hashes.append(zlib.crc32(encoded, after_previous) % N_BUCKETS)
        after_previous = zlib.crc32(b" ", word)
    return Counter(hashes)


def _count_numbers(text: str, cut: str, tokens: list[str]) -> NDArray[np.float64]:
    n_chars = max(len(cut), 1)
    n_tokens = max(len(tokens), 1)
    n_digits = sum(map(cut.count, "0123456789"))
    n_signs = sum(map(cut.count, _MATH_SIGNS))
    return np.array(
        [
            log_length(text),
            math.log1p(len(tokens)),
            math.log1p(cut.count("\n")),
            n_digits / n_chars,
            n_signs / n_chars,
            sum(map(str.isupper, cut)) / n_chars,
            len(set(tokens)) / n_tokens,
            float("?" in cut),
            float(_CODE.search(cut) is not None),
            len(cut) / n_tokens,
            math.log1p(sum(map(str.isdigit, tokens))),
        ],
        dtype=np.float64,
    )
