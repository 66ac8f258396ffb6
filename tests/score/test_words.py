"""Words, counts and marks, each against a plain implementation that takes one character at a time."""

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmtier.score.features import char_entropy_bits, extract_text, find_markers
from llmtier.score.text import MAX_CHARS
from llmtier.score.words import N_BUCKETS, count_each, find_words

MASK = 2**64 - 1
BASE, MIX, PAIR = 0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD, 0xC2B2AE3D27D4EB4F

# Everything JSON can hold, and more often what is a case of its own: marks, digits and spaces of other scripts, letters
# whose lower case depends on their place, characters beyond 65,535, lone surrogates, control characters.
PECULIAR = " \n\t\u00a0\u2003\u3000aAbZ059_-+*/=^<>%(){}[];:,`#$?\"'\\\u0130\u03a3\u03c3\u00df\u1e9e\u00d7\u00f7\u0663\u4e2d\uff21"
PECULIAR += "\U0001f600\U00010400\ud800\udfff\0\x01\x02\x03\x1c\x85"
characters = st.one_of(st.sampled_from(PECULIAR), st.characters(codec=None))
SNIPPETS = (
    "def f(x)",
    "class A:",
    "my class A:",
    'json {"a": 1}',
    '["a",',
    "1 +  2",
    "1    + 2",
    "$x$",
    "SELECT a FROM b",
    "\\sum",
)
texts = st.one_of(
    st.text(characters, max_size=300),
    st.text(st.sampled_from("ab12 +-\n"), max_size=300),
    st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(characters, max_size=4)), max_size=20).map("".join),
)


def mixed(number):
    return (number ^ number >> 32) * MIX & MASK


def kind_of(code):
    character = chr(code)
    if character.isspace() or code == 0:
        return 0
    if code < 0x2E80 and character.isdecimal():
        return 2
    if code < 0x2E80 and character.isalpha():
        return 1
    return code


def words_of(text):
    """Return the words as lists of UTF-16 codes."""
    raw = text.lower().encode("utf-16-le", errors="surrogatepass")
    words, last = [], 0
    for code in memoryview(raw).cast("H"):
        kind = kind_of(code)
        if kind and kind == last:
            words[-1].append(code)
        elif kind:
            words.append([code])
        last = kind
    return words


def hash_of(word):
    return mixed(
        sum(mixed((code + 1) * BASE & MASK) * pow(BASE, place, 2**64) for place, code in enumerate(word)) & MASK
    )


def buckets_of(words):
    hashes = [hash_of(word) for word in words]
    pairs = [mixed(one * PAIR + two & MASK) for one, two in itertools.pairwise(hashes)]
    return Counter(number >> 48 for number in [*hashes, *pairs])


@settings(deadline=None, max_examples=300)
@given(texts)
@example("")
@example("\0a\0 b")
@example("ΑΣ ΟΔΟΣ. ΣΑΣ")
@example("\U00010400 a")
@example("x" * MAX_CHARS)
def test_words_are_those_that_a_loop_finds(text):
    words = words_of(text)
    found = find_words(text)
    is_first = found.counts > 0
    by_bucket = dict(zip(found.buckets[is_first].tolist(), found.counts[is_first].tolist(), strict=True))

    assert dict(buckets_of(words)) == by_bucket
    assert (len(words), sum(kind_of(word[0]) == 2 for word in words)) == (found.n_words, found.n_numbers)


@settings(deadline=None, max_examples=200)
@given(texts)
def test_packed_features_say_the_same_in_ascending_order(text):
    features = extract_text(text)
    packed = features.packed()
    sums = np.bincount(features.buckets, weights=features.values, minlength=N_BUCKETS)

    assert sorted(buckets_of(words_of(text))) == packed.buckets.tolist()
    assert sums[packed.buckets].tolist() == packed.values.tolist()
    assert features.numeric == packed.numeric
    assert packed is packed.packed()


@settings(deadline=None, max_examples=200)
@given(texts)
def test_numbers_are_those_that_a_loop_counts(text):
    words = words_of(text)
    n_chars, n_words = max(len(text), 1), len(words)

    def share_of(signs):
        return sum(character in signs for character in text) / n_chars

    assert (
        math.log1p(len(text)),
        math.log1p(n_words),
        math.log1p(text.count("\n")),
        share_of("0123456789"),
        share_of("+-*/=^<>%"),
        share_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        len(buckets_of(words)) / max(2 * n_words - 1, 1),
        float("?" in text),
        share_of("{}[]();_`#=<>\\"),
        n_chars / max(n_words, 1),
        math.log1p(sum(kind_of(word[0]) == 2 for word in words)),
    ) == extract_text(text).numeric


@settings(deadline=None, max_examples=200)
@given(texts)
def test_entropy_is_that_of_the_counted_characters(text):
    shares = [count / len(text) for count in Counter(text).values()]

    assert -sum(share * math.log2(share) for share in shares) == pytest.approx(char_entropy_bits(text), abs=1e-9)


@pytest.mark.parametrize("unit", ["ab", "中ab", "\U0001f600a"])
def test_entropy_of_a_text_of_any_length(unit):
    """Scorers cut texts first; who does not gets the same number."""
    for n in (MAX_CHARS, 20 * MAX_CHARS):
        assert math.log2(len(unit)) == pytest.approx(char_entropy_bits(unit * n), abs=1e-9)


PATTERNS = {
    "code": r"```|#include|=>|\(\);|</|;\n|{\n|\bdef \w{1,40} ?[({:]|\bfunction \w{1,40} ?[({]|\bclass \w{1,40} ?[({:]"
    r"|^[ \t]{0,40}import [\w.]{1,80}[ \t]{0,40};?$|^[ \t]{0,40}from [\w.]{1,80} import\b|\bSELECT .{1,200}\bFROM\b",
    "json": r"""\bjson\b|\bJSON\b|[{\[]\s{0,20}"[^"\n]{0,80}"\s{0,20}[:,\]]""",
    "math": r"\\frac|\\sum|\\int|\\sqrt|\\cdot|[√∑∫≤≥≠π±]|\$[^$\n]{1,200}\$|\d\s{0,3}[-+*/^=\u00d7\u00f7]\s{0,3}\d",
}


@settings(deadline=None, max_examples=500)
@given(texts)
@example("1 + 2")
@example("\u0661\u2003+\u00a0\u0662")
@example("1    + 2")
@example("1?+2 \u4e2d")
@example("subclass A:")
@example("myjson")
def test_marks_are_those_that_the_plain_patterns_find(text):
    found = find_markers(text)
    plain = {name: re.search(pattern, text, re.MULTILINE) is not None for name, pattern in PATTERNS.items()}

    assert plain == {"code": found.has_code, "json": found.has_json, "math": found.has_math}


@given(st.lists(st.integers(0, 0xFFFF), max_size=300))
def test_each_code_is_counted_at_one_place(codes):
    counts = count_each(np.array(codes, dtype=np.intp))

    assert Counter(codes) == {code: int(count) for code, count in zip(codes, counts, strict=True) if count}
    assert len(codes) == counts.sum()
    assert len(set(codes)) == np.count_nonzero(counts)
