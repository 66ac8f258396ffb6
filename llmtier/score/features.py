"""Prompt text to numbers: hashed words and word pairs, counts, entropy, markers.

Writes nothing and learns nothing. Every scorer takes its features from here, so that fit and serve see the
same ones. Words are found and hashed in numpy, all at once: a loop over them costs ten times as much.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from llmtier.score.text import MAX_CHARS, cut_text

N_BUCKETS = 1 << 16
"""Hash buckets for words and word pairs."""

N_NUMERIC = 11
"""Numbers in ``TextFeatures.numeric``."""

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float64]

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64; bits of the golden ratio (Knuth, TAOCP 3, 6.4)
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3's finalizer
_PAIR = np.uint64(0xC2B2AE3D27D4EB4F)  # a prime of xxHash
_FOLD, _TOP = np.uint64(32), np.uint64(48)
_SPACE, _LETTER, _DIGIT, _OWN = range(4)  # own: a character that is a kind by itself
_FIRST_WIDE = 0x2E80  # from here on each character is a word: Chinese, Japanese, Korean

_CODE_SIGNS = ("```", "#include", "=>", "();", "</", ";\n", "{\n")
_MATH_MARKS = ("\\frac", "\\sum", "\\int", "\\sqrt", "\\cdot", *"√∑∫≤≥≠π\u00b1")  # \u00b1 plus-minus
# Every repeat below is bounded, and each search begins at a plain word, so that no text makes one quadratic.
_CODE = tuple(
    (word, re.compile(pattern, re.MULTILINE))
    for word, pattern in (
        ("def ", r"\bdef \w{1,40} ?[({:]"),
        ("function ", r"\bfunction \w{1,40} ?[({]"),
        ("class ", r"\bclass \w{1,40} ?[({:]"),
        ("import ", r"^[ \t]{0,40}import [\w.]{1,80}[ \t]{0,40};?$|^[ \t]{0,40}from [\w.]{1,80} import\b"),
        ("SELECT ", r"\bSELECT .{1,200}\bFROM\b"),
    )
)
_JSON = (
    ("json", re.compile(r"\bjson\b")),
    ("JSON", re.compile(r"\bJSON\b")),
    ('"', re.compile(r"""[{\[]\s{0,20}"[^"\n]{0,80}"\s{0,20}[:,\]]""")),
)
_SUM = re.compile(r"\d\s{0,3}[-+*/^=\u00d7\u00f7]\s{0,3}\d")  # \u00d7 times, \u00f7 divided by
_FORMULA = (("$", re.compile(r"\$[^$\n]{1,200}\$")),)


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

    buckets: NDArray[np.uint16]
    values: Floats
    numeric: Floats


def extract_text(text: str) -> TextFeatures:
    """Find the words, hash them and their pairs, and count; of a long text only head and tail are read."""
    cut = cut_text(text)
    characters = _read_ascii(cut) if cut.isascii() else _read_any(cut)
    starts = _word_starts(characters.kinds)
    words = _hash_words(characters.values, starts)
    buckets, counts = _count(words)
    n_numbers = int(np.count_nonzero(characters.kinds[starts] == _DIGIT))
    numeric = _to_numbers(len(text), max(len(cut), 1), characters.counted, words.size, buckets.size, n_numbers)
    return TextFeatures(buckets=buckets, values=_LOG_COUNTS[counts], numeric=numeric)


def log_length(text: str) -> float:
    """Return log(1 + characters)."""
    return math.log1p(len(text))


def char_entropy_bits(text: str) -> float:
    """Return the Shannon entropy of the characters, in bits a character; 0 for no text."""
    if not text:
        return 0.0
    if text.isascii():
        counts = np.bincount(np.frombuffer(text.encode("ascii"), dtype=np.uint8))
    else:
        counts = np.unique(_to_codes(text), return_counts=True)[1]
    shares = counts[counts > 0] / len(text)
    return max(float(-np.einsum("i,i->", shares, np.log2(shares))), 0.0)


def find_markers(text: str) -> Markers:
    """Look for code, JSON and mathematics."""
    return Markers(
        has_code=has_code(text),
        has_json=_confirms(text, _JSON),
        has_math=_holds_any(text, _MATH_MARKS) or _confirms(text, _FORMULA) or _SUM.search(text) is not None,
    )


def has_code(text: str) -> bool:
    """Tell whether the text shows program code."""
    return _holds_any(text, _CODE_SIGNS) or _confirms(text, _CODE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Characters:
    """The characters of a text.

    Attributes:
        kinds: Shape (n,): 0 white space, 1 letters, 2 digits; every other character is a kind of its own.
        values: Shape (n,): 64 bits a lower-case character, 0 for white space; the same however the text is stored.
        counted: How many digits, mathematical signs, line ends, question marks, capitals and code signs there are.
    """

    kinds: NDArray[np.uint8] | NDArray[np.uint16]
    values: Hashes
    counted: list[float]


def _read_ascii(text: str) -> _Characters:
    raw = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    counted = np.bincount(raw, minlength=128).astype(np.float64) @ _COUNTED
    return _Characters(kinds=_ASCII_KINDS[raw], values=_ASCII_VALUES[raw], counted=counted.tolist())


def _read_any(text: str) -> _Characters:
    tables = _wide_tables()
    codes = np.frombuffer(text.lower().encode("utf-16-le", errors="surrogatepass"), dtype=np.uint16)
    ascii_part = np.frombuffer(text.encode("ascii", errors="ignore"), dtype=np.uint8)
    counted = np.bincount(ascii_part, minlength=128).astype(np.float64) @ _COUNTED
    return _Characters(kinds=tables.kinds[codes], values=tables.values[codes], counted=counted.tolist())


def _word_starts(kinds: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.intp]:
    """Return where a word begins: a run of characters of one kind that is not white space."""
    is_start = kinds != _SPACE
    is_start[1:] &= kinds[1:] != kinds[:-1]
    return np.flatnonzero(is_start)


def _hash_words(values: Hashes, starts: NDArray[np.intp]) -> Hashes:
    """Return a hash of each word: a polynomial in ``_BASE`` of its characters.

    All are taken from one sum over the whole text, and moved to the word's own start by an inverse power.
    """
    if not starts.size:
        return np.empty(0, dtype=np.uint64)
    hashes = np.add.reduceat(values * _POWERS[: values.size], starts) * _INVERSES[starts]
    return np.asarray((hashes ^ (hashes >> _FOLD)) * _MIX, dtype=np.uint64)


def _count(words: Hashes) -> tuple[NDArray[np.uint16], NDArray[np.intp]]:
    """Return the buckets of the words and of pairs of neighbours, ascending, and how often each occurs."""
    hashes = np.empty(max(2 * words.size - 1, 0), dtype=np.uint64)
    hashes[: words.size] = words
    pairs = words[:-1] * _PAIR + words[1:]
    np.multiply(pairs ^ (pairs >> _FOLD), _MIX, out=hashes[words.size :])
    ordered = (hashes >> _TOP).astype(np.uint16)
    ordered.sort(kind="stable")  # a radix sort, for 16 bits
    is_edge = np.ones(ordered.size + 1, dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_edge[1:-1])
    edges = np.flatnonzero(is_edge) if ordered.size else _NO_EDGES
    return ordered[edges[:-1]], np.diff(edges)


def _to_numbers(
    n_whole: int, n_chars: int, counted: Sequence[float], n_words: int, n_buckets: int, n_numbers: int
) -> Floats:
    n_digits, n_signs, n_lines, n_questions, n_capitals, n_code = counted
    return np.array(
        (
            math.log1p(n_whole),
            math.log1p(n_words),
            math.log1p(n_lines),
            n_digits / n_chars,
            n_signs / n_chars,
            n_capitals / n_chars,
            n_buckets / max(2 * n_words - 1, 1),
            float(n_questions > 0),
            n_code / n_chars,
            n_chars / max(n_words, 1),
            math.log1p(n_numbers),
        ),
        dtype=np.float64,
    )


def _to_codes(text: str) -> NDArray[np.uint32]:
    """Return code points; JSON may hold lone surrogates."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


def _to_values(codes: NDArray[np.uint32]) -> Hashes:
    spread = (codes.astype(np.uint64) + np.uint64(1)) * np.uint64(_BASE)
    return np.asarray((spread ^ (spread >> _FOLD)) * _MIX, dtype=np.uint64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    """Kind and value of each UTF-16 code; beyond 65,535 a character is two of them, each a kind of its own."""

    kinds: NDArray[np.uint16]
    values: Hashes


@cache
def _wide_tables() -> _Tables:
    codes = np.arange(0x10000, dtype=np.uint32)
    kinds = np.array([_kind(chr(code)) for code in range(0x10000)], dtype=np.uint16)
    own = np.where(kinds == _OWN, codes.astype(np.uint16), kinds)
    return _Tables(kinds=own, values=np.where(kinds == _SPACE, np.uint64(0), _to_values(codes)))


def _kind(character: str) -> int:
    if character.isspace():
        return _SPACE
    if ord(character) >= _FIRST_WIDE:
        return _OWN
    if character.isdecimal():
        return _DIGIT
    return _LETTER if character.isalpha() else _OWN


def _ascii_kinds() -> NDArray[np.uint8]:
    kinds = [_kind(chr(code)) for code in range(128)]
    return np.array([code if kind == _OWN else kind for code, kind in enumerate(kinds)], dtype=np.uint8)


def _ascii_values() -> Hashes:
    values = _to_values(np.array([ord(chr(code).lower()) for code in range(128)], dtype=np.uint32))
    return np.where(_ascii_kinds() == _SPACE, np.uint64(0), values)


def _make_powers(base: int) -> Hashes:
    powers = [1]
    for _ in range(6 * MAX_CHARS + 6):  # a character becomes three at most when it is lowered, of two codes each
        powers.append(powers[-1] * base % 2**64)
    return np.array(powers, dtype=np.uint64)


def _counted() -> Floats:
    """Return which bytes are digits, mathematical signs, line ends, question marks, capitals, code; shape (128, 6)."""
    capitals = bytes(range(ord("A"), ord("Z") + 1))
    groups = (b"0123456789", b"+-*/=^<>%", b"\n", b"?", capitals, b"{}[]();_`#=<>\\")
    return np.array([[float(code in group) for group in groups] for code in range(128)])


def _holds_any(text: str, signs: Sequence[str]) -> bool:
    return any(sign in text for sign in signs)


def _confirms(text: str, patterns: Sequence[tuple[str, re.Pattern[str]]]) -> bool:
    """Tell whether a pattern is found; each is tried only where its plain word stands, which is far quicker."""
    return any(word in text and pattern.search(text) is not None for word, pattern in patterns)


_POWERS = _make_powers(_BASE)
_INVERSES = _make_powers(pow(_BASE, -1, 2**64))
_ASCII_KINDS = _ascii_kinds()
_ASCII_VALUES = _ascii_values()
_COUNTED = _counted()
_LOG_COUNTS = np.concatenate([[0.0], 1.0 + np.log(np.arange(1, 12 * MAX_CHARS + 12))])
_NO_EDGES = np.zeros(1, dtype=np.intp)
