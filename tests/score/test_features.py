"""What the features count."""

import math
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.score.features import (
    MAX_CHARS,
    N_BUCKETS,
    N_NUMERIC,
    char_entropy_bits,
    cut_text,
    extract_text,
    find_markers,
)


@settings(deadline=None)
@given(st.text(st.characters(codec=None), max_size=300))
def test_any_text_gives_finite_features(text):
    features = extract_text(text)

    assert (N_NUMERIC,) == features.numeric.shape
    assert features.buckets.shape == features.values.shape
    assert all(math.isfinite(value) for value in [*features.values, *features.numeric])
    assert all(0 <= bucket < N_BUCKETS for bucket in features.buckets)
    assert sorted(set(features.buckets.tolist())) == features.buckets.tolist()


def test_words_and_pairs_are_counted_by_their_crc32():
    features = extract_text("Add 12, add")
    texts = ["add", "12", ",", "add 12", "12 ,", ", add"]
    buckets = [zlib.crc32(text.encode()) % N_BUCKETS for text in texts]
    counted = dict(zip(features.buckets.tolist(), features.values.tolist(), strict=True))

    assert sorted(buckets) == features.buckets.tolist()
    assert 1 + math.log(2) == pytest.approx(counted[buckets[0]])
    assert 1.0 == counted[buckets[3]]


def test_long_texts_keep_head_and_tail():
    text = "HEAD" + "x" * 3 * MAX_CHARS + "TAIL"
    cut = cut_text(text)

    assert cut.startswith("HEAD")
    assert cut.endswith("TAIL")
    assert MAX_CHARS + 1 == len(cut)
    assert "short" == cut_text("short")


def test_length_is_that_of_the_whole_text():
    assert math.log1p(9 * MAX_CHARS) == pytest.approx(extract_text("x" * 9 * MAX_CHARS).numeric[0])


@pytest.mark.parametrize(("text", "bits"), [("", 0), ("aaaa", 0), ("abab", 1), ("abcd", 2)])
def test_entropy_is_shannons(text, bits):
    assert bits == char_entropy_bits(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("What is the capital of France? Return soon.", (False, False, False)),
        ("```\nx\n```", (True, False, False)),
        ("def add(a, b): pass", (True, False, False)),
        ('fill {"name": "x"}', (False, True, False)),
        ("Turn into JSON: a", (False, True, False)),
        ("what is 12 + 30", (False, False, True)),
        (r"solve \frac{1}{2}", (False, False, True)),
    ],
)
def test_markers_tell_the_kind_of_text(text, found):
    markers = find_markers(text)

    assert found == (markers.has_code, markers.has_json, markers.has_math)


@pytest.mark.parametrize("unit", ["SELECT ", "[ ", "1 ", "$a", "import a", '{"', "class a ", "\n \t"])
def test_no_text_makes_a_search_slow(unit):
    """4,000 characters that nearly match; a quadratic search would hit the test's timeout many times over."""
    for _ in range(50):
        find_markers(unit * (MAX_CHARS // len(unit)))
