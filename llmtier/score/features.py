"""Prompt text to numbers: hashed words and word pairs, counts, entropy, markers.

Writes nothing and learns nothing. Every scorer takes its features from here, so that fit and serve see the
same ones. Words are found and hashed in numpy, all at once: a loop over them costs ten times as much.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmtier.score.text import MAX_CHARS, cut_text
from llmtier.score.words import MAX_OCCURRENCES, Words, count_each, find_words, native_reader

N_NUMERIC = 11
"""Numbers in ``TextFeatures.numeric``."""

Buckets = NDArray[np.intp] | NDArray[np.uint16]
Floats = NDArray[np.float64]

LOG_COUNTS: Floats = np.concatenate([[0.0], 1.0 + np.log(np.arange(1, MAX_OCCURRENCES))])
"""``1 + log(count)`` of each count, and 0 of 0."""

_CODE_SIGNS = (("`", "```"), ("#", "#include"), ("=", "=>"), (";", "();"), ("<", "</"), (";", ";\n"), ("{", "{\n"))
_MATH_MARKS = (
    *(("\\", mark) for mark in ("\\frac", "\\sum", "\\int", "\\sqrt", "\\cdot")),
    *((sign, sign) for sign in "√∑∫≤≥≠π\u00b1"),  # \u00b1 plus-minus
)
_DIGITS, _MATH_SIGNS, _CODE_CHARACTERS = b"0123456789", b"+-*/=^<>%", b"{}[]();_`#=<>\\"
_CAPITALS = bytes(range(ord("A"), ord("Z") + 1))
_NOT_COUNTED = bytes(set(range(256)) - {*_DIGITS, *_MATH_SIGNS, *_CODE_CHARACTERS, *_CAPITALS, *b"\n?"})
# Every repeat below is bounded, and each search begins at a plain word, so that no text makes one quadratic. A pattern
# that opens with that word, and looks back for what stands before it, is found ten times as fast.
_CODE = tuple(
    (word, re.compile(pattern, re.MULTILINE))
    for word, pattern in (
        ("def ", r"def (?<=\bdef )\w{1,40} ?[({:]"),
        ("function ", r"function (?<=\bfunction )\w{1,40} ?[({]"),
        ("class ", r"class (?<=\bclass )\w{1,40} ?[({:]"),
        ("import ", r"^[ \t]{0,40}import [\w.]{1,80}[ \t]{0,40};?$|^[ \t]{0,40}from [\w.]{1,80} import\b"),
        ("SELECT ", r"SELECT (?<=\bSELECT ).{1,200}\bFROM\b"),
    )
)
_JSON = (
    ("json", re.compile(r"json(?<=\bjson)\b")),
    ("JSON", re.compile(r"JSON(?<=\bJSON)\b")),
    ("{", re.compile(r"""{\s{0,20}"[^"\n]{0,80}"\s{0,20}[:,\]]""")),
    ("[", re.compile(r"""\[\s{0,20}"[^"\n]{0,80}"\s{0,20}[:,\]]""")),
)
_SUM = re.compile(r"\d\s{0,3}[-+*/^=\u00d7\u00f7]\s{0,3}\d")  # \u00d7 times, \u00f7 divided by
_FORMULA = (("$", re.compile(r"\$[^$\n]{1,200}\$")),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """Which kinds of content a text shows."""

    has_code: bool
    has_json: bool
    has_math: bool


class TextFeatures(NamedTuple):
    """What the learned scorer reads of one text.

    Attributes:
        buckets: Hash bucket of each word and pair, shape (n_occurrences,).
        counts: How often the bucket occurs, at one occurrence of each, and 0 at the others; same shape.
        numeric: Eleven counts and shares; the first is the log length in characters.
    """

    buckets: Buckets
    counts: Buckets
    numeric: tuple[float, ...]

    def packed(self) -> "TextFeatures":
        """Return the same in less memory: each bucket once, ascending."""
        if self.counts.dtype == np.uint16:
            return self
        first = self.counts.nonzero()[0]
        first = first[np.argsort(self.buckets[first])]
        buckets, counts = self.buckets[first], self.counts[first]
        return TextFeatures(buckets.astype(np.uint16), counts.astype(np.uint16), self.numeric)

    @property
    def values(self) -> Floats:
        """``1 + log(count)`` of each bucket, and 0 where the count is; shape (n_occurrences,)."""
        return LOG_COUNTS.take(self.counts)


def extract_text(text: str) -> TextFeatures:
    """Find the words, hash them and their pairs, and count; of a long text only head and tail are read."""
    cut = cut_text(text)
    reader = native_reader(is_ascii=cut.isascii())
    if reader is None:
        return extract_in_numpy(cut, len(text))
    buckets, counts, numeric = reader.read(cut, len(text))
    return TextFeatures(np.frombuffer(buckets, dtype=np.intp), np.frombuffer(counts, dtype=np.intp), numeric)


def extract_in_numpy(cut: str, n_whole: int) -> TextFeatures:
    """Return the features of a text of ``n_whole`` characters that has been cut; what the C does, too."""
    words = find_words(cut)
    return TextFeatures(words.buckets, words.counts, _to_numbers(n_whole, cut, words))


def log_length(text: str) -> float:
    """Return log(1 + characters)."""
    return math.log1p(len(text))


def char_entropy_bits(text: str) -> float:
    """Return the Shannon entropy of the characters, in bits a character; 0 for no text."""
    n_chars = len(text)
    if not n_chars:
        return 0.0
    counts = _count_characters(text)
    if n_chars < _COUNT_BITS.size:
        return max(math.log2(n_chars) - float(_COUNT_BITS.take(counts).sum()) / n_chars, 0.0)
    shares = counts[counts > 0] / n_chars
    return max(float(-np.einsum("i,i->", shares, np.log2(shares))), 0.0)


def find_markers(text: str) -> Markers:
    """Look for code, JSON and mathematics."""
    return Markers(
        has_code=has_code(text),
        has_json=_confirms(text, _JSON),
        has_math=_holds_any(text, _MATH_MARKS) or _confirms(text, _FORMULA) or _has_sum(text),
    )


def has_code(text: str) -> bool:
    """Tell whether the text shows program code."""
    return _holds_any(text, _CODE_SIGNS) or _confirms(text, _CODE)


def _to_numbers(n_whole: int, cut: str, words: Words) -> tuple[float, ...]:
    counted = cut.encode(errors="surrogatepass").translate(None, _NOT_COUNTED)
    n_counted, n_chars, n_words = len(counted), max(len(cut), 1), words.n_words
    return (
        math.log1p(n_whole),
        math.log1p(n_words),
        math.log1p(counted.count(b"\n")),
        (n_counted - len(counted.translate(None, _DIGITS))) / n_chars,
        (n_counted - len(counted.translate(None, _MATH_SIGNS))) / n_chars,
        (n_counted - len(counted.translate(None, _CAPITALS))) / n_chars,
        int(np.count_nonzero(words.counts)) / max(2 * n_words - 1, 1),
        float(b"?" in counted),
        (n_counted - len(counted.translate(None, _CODE_CHARACTERS))) / n_chars,
        n_chars / max(n_words, 1),
        math.log1p(words.n_numbers),
    )


def _count_characters(text: str) -> Buckets:
    """Return how often each character occurs, in any order and with zeros among them; JSON may hold lone surrogates."""
    if text.isascii():
        return np.bincount(np.frombuffer(text.encode("ascii"), dtype=np.uint8))
    raw = text.encode("utf-16-le", errors="surrogatepass")
    if len(raw) == 2 * len(text) < 2 * MAX_OCCURRENCES:
        return count_each(np.frombuffer(raw, dtype="<u2").astype(np.intp))
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    return np.unique(codes, return_counts=True)[1]


def _holds_any(text: str, signs: Sequence[tuple[str, str]]) -> bool:
    """Tell whether any sign stands in the text; each is looked for only where its rarest character is found."""
    return any(character in text and sign in text for character, sign in signs)


def _confirms(text: str, patterns: Sequence[tuple[str, re.Pattern[str]]]) -> bool:
    """Tell whether a pattern is found; each is tried only where its plain word stands, which is far quicker."""
    return any(word in text and pattern.search(text) is not None for word, pattern in patterns)


def _has_sum(text: str) -> bool:
    """Tell whether a sign of arithmetic stands between digits.

    White space taken out and every digit made a 0 and every sign a +, a sum shows as ``0+0``; what Latin-1 does
    not have becomes a 0 too. Only then is the pattern worth its ten nanoseconds a character.
    """
    plain = text.encode("latin-1", errors="replace").translate(_AS_SUM, _WHITE)
    return b"0+0" in plain and _SUM.search(text) is not None


def _as_sum() -> bytes:
    """Return what ``_has_sum`` reads each Latin-1 character as; ``?`` stands for what Latin-1 does not have."""
    table = bytearray(256)
    for character in "0123456789?":
        table[ord(character)] = ord("0")
    for character in "-+*/^=\u00d7\u00f7":
        table[ord(character)] = ord("+")
    return bytes(table)


_AS_SUM = _as_sum()
_WHITE = bytes(code for code in range(256) if chr(code).isspace())
_COUNT_BITS = np.array([0.0, *(count * math.log2(count) for count in range(1, MAX_CHARS + 2))])
