"""Text to hashed words and pairs of neighbouring words, in numpy, all at once.

A word is a run of characters of one kind: letters, digits, or one and the same other sign; of the wide scripts
each character is a word. Learns nothing. A call into numpy costs about as much as 500 characters do, so the calls are
few: what is looked up, is looked up by integers of the machine's own width, and nothing is sorted.
"""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmtier.score.native import find_native
from llmtier.score.text import MAX_CHARS

if TYPE_CHECKING:
    from llmtier.score._native import Reader

N_BUCKETS = 1 << 16
"""Hash buckets for words and word pairs."""

MAX_OCCURRENCES = 12 * MAX_CHARS + 12
"""No text has more words and pairs: a character becomes three at most when it is lowered, of two codes each."""

Hashes = NDArray[np.uint64]
Indices = NDArray[np.intp]
Kinds = NDArray[np.uint8] | NDArray[np.uint16]

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64; bits of the golden ratio (Knuth, TAOCP 3, 6.4)
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3's finalizer
_PAIR = np.uint64(0xC2B2AE3D27D4EB4F)  # a prime of xxHash
_FOLD, _TOP = np.uint64(32), np.uint64(48)
_SPACE, _LETTER, _DIGIT, _OWN = range(4)  # own: a character that is a kind by itself
_FIRST_WIDE = 0x2E80  # from here on each character is a word: Chinese, Japanese, Korean
_NO_COUNTS: Indices = np.empty(0, dtype=np.intp)


class Words(NamedTuple):
    """The words of a text and their pairs.

    Attributes:
        buckets: Of every word, then of every pair, in the order of the text, shape (n_occurrences,).
        counts: How often its bucket occurs, at one occurrence of each bucket, and 0 at the others; same shape.
        n_words: How many words.
        n_numbers: How many of them are of digits.
    """

    buckets: Indices
    counts: Indices
    n_words: int
    n_numbers: int


NO_WORDS = Words(_NO_COUNTS, _NO_COUNTS, 0, 0)


def find_words(text: str) -> Words:
    """Find the words of at most ``MAX_CHARS`` + 1 characters, and hash them and their pairs."""
    kinds, values = _read_ascii(text) if text.isascii() else _read_wide(text)
    own = kinds[1:]
    bounds = np.logical_and(own ^ kinds[:-1], own).nonzero()[0]
    starts = bounds[:-1]
    if not starts.size:
        return NO_WORDS
    buckets = _hash(values, bounds)
    return Words(buckets, count_each(buckets), starts.size, _count_numbers(own.take(starts)))


def _read_ascii(text: str) -> tuple[Kinds, Hashes]:
    """Return kinds and values as of ``_Tables``, shapes (n + 2,) and (n + 1,).

    A space is put before the text, and a kind of its own behind it.
    """
    raw = b" " + text.encode("ascii")
    kinds = np.frombuffer(raw.translate(_ASCII_KINDS) + b"\xff", dtype=np.uint8)
    return kinds, _ASCII.values.take(np.frombuffer(raw, dtype=np.uint8))


def _read_wide(text: str) -> tuple[Kinds, Hashes]:
    """Return the same of a text with other than ASCII characters."""
    tables = wide_tables()
    codes = _to_codes(f" {text}\0").astype(np.intp)
    kinds = tables.kinds.take(codes)
    kinds[-1] = _LETTER if kinds[-2] != _LETTER else _DIGIT  # any kind but the last one's: it ends the last word
    return kinds, tables.values.take(codes[:-1])


def _to_codes(text: str) -> NDArray[np.uint16]:
    """Return UTF-16 codes; lowered already where the tables cannot lower them one by one."""
    raw = text.encode("utf-16-le", errors="surrogatepass")
    if len(raw) != 2 * len(text) or any(character in text for character in _LOWERED_IN_CONTEXT):
        raw = text.lower().encode("utf-16-le", errors="surrogatepass")
    return np.frombuffer(raw, dtype="<u2")


def _count_numbers(kinds: Kinds) -> int:
    if kinds.itemsize == 1:
        return kinds.tobytes().count(_DIGIT)  # in half the time of numpy's
    return int(np.count_nonzero(kinds == _DIGIT))


def _hash(values: Hashes, bounds: Indices) -> Indices:
    """Return the bucket of each word, then of each pair of neighbours, shape (2 * n_words - 1,).

    A word's hash is a polynomial in ``_BASE`` of its characters' values. All are differences of one running sum over
    the whole text, in which white space is 0, moved to the word's own start by an inverse power. ``np.add.reduceat`` takes
    three times as long for hundreds of words.

    Args:
        values: Of a space and the characters, shape (n + 1,); spoilt.
        bounds: Where the words start in the text, and its end, shape (n_words + 1,).
    """
    values *= _POWERS[: values.size]
    sums = np.add.accumulate(values).take(bounds)
    hashes = np.empty(2 * bounds.size - 3, dtype=np.uint64)
    words, pairs = hashes[: bounds.size - 1], hashes[bounds.size - 1 :]
    np.subtract(sums[1:], sums[:-1], out=words)
    words *= _INVERSES.take(bounds[:-1])
    _mix(words)
    np.multiply(words[:-1], _PAIR, out=pairs)
    pairs += words[1:]
    _mix(pairs)
    hashes >>= _TOP
    return hashes.view(np.intp)


def _mix(hashes: Hashes) -> None:
    """Let all bits bear on the top ones, in place."""
    hashes ^= hashes >> _FOLD
    hashes *= _MIX


def count_each(codes: Indices) -> Indices:
    """Return how often each code in [0, 65,536) occurs, at one occurrence of each, and 0 at the others.

    Every occurrence writes its number where its code says. The one that is read back stands for the code; cells that
    none wrote are never read. At most ``MAX_OCCURRENCES`` codes.
    """
    writers = np.empty(0x10000, dtype=np.uint16)
    writers[codes] = _NUMBERS[: codes.size]
    return np.bincount(writers.take(codes), minlength=codes.size)


class _Tables(NamedTuple):
    """Kind and value of each UTF-16 code, of its lower case; beyond 65,535 a character is two of them.

    Attributes:
        kinds: 0 white space, 1 letters, 2 digits; every other character is a kind of its own.
        values: 64 bits a character, 0 for white space; the same however the text is stored.
    """

    kinds: NDArray[np.uint16]
    values: Hashes


@cache
def native_reader(*, is_ascii: bool) -> "Reader | None":
    """Return what reads texts in C, as ``find_words`` and ``score.features`` do in numpy; ``None`` where nothing does."""
    if not find_native().is_native:
        return None
    from llmtier.score._native import Reader

    tables = _ASCII if is_ascii else wide_tables()
    return Reader(tables.kinds, tables.values)


@cache
def wide_tables() -> _Tables:
    """Return the tables for text that is not ASCII; the first call makes them."""
    return _make_tables(0x10000)


def _make_tables(n_codes: int) -> _Tables:
    codes = np.array([_lowered(chr(code)) for code in range(n_codes)], dtype=np.uint16)
    kinds = np.array([_kind(chr(code)) for code in range(n_codes)], dtype=np.uint16)[codes]
    kinds = np.where(kinds == _OWN, codes, kinds)  # the character NUL thereby counts as white space
    values = codes.astype(np.uint64) + np.uint64(1)
    values *= np.uint64(_BASE)
    _mix(values)
    return _Tables(kinds=kinds, values=np.where(kinds == _SPACE, np.uint64(0), values))


def _lowered(character: str) -> int:
    lowered = character.lower()
    return ord(lowered if len(lowered) == 1 else character)


def _kind(character: str) -> int:
    if character.isspace():
        return _SPACE
    if ord(character) >= _FIRST_WIDE:
        return _OWN
    if character.isdecimal():
        return _DIGIT
    return _LETTER if character.isalpha() else _OWN


def _make_powers(base: int) -> Hashes:
    powers = [1]
    for _ in range(MAX_OCCURRENCES // 2 + 1):
        powers.append(powers[-1] * base % 2**64)
    return np.array(powers, dtype=np.uint64)


_LOWERED_IN_CONTEXT = "\u0130\u03a3"  # a capital dotted I becomes two characters; a capital sigma depends on its place
_POWERS = _make_powers(_BASE)
_INVERSES = _make_powers(pow(_BASE, -1, 2**64))[1:]  # of the powers that the characters behind the space have
_NUMBERS = np.arange(MAX_OCCURRENCES, dtype=np.uint16)
_ASCII = _make_tables(128)
_ASCII_KINDS = _ASCII.kinds.astype(np.uint8).tobytes() + bytes(128)  # as bytes.translate takes it
