"""What the features count."""

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.score.features import N_NUMERIC, char_entropy_bits, extract_text, find_markers
from llmtier.score.text import MAX_CHARS
from llmtier.score.words import N_BUCKETS


@settings(deadline=None)
@given(st.text(st.characters(codec=None), max_size=300))
def test_any_text_gives_finite_features(text):
    features = extract_text(text).packed()

    assert N_NUMERIC == len(features.numeric)
    assert features.buckets.shape == features.values.shape
    assert all(math.isfinite(value) for value in [*features.values, *features.numeric])
    assert all(0 <= bucket < N_BUCKETS for bucket in features.buckets)
    assert sorted(set(features.buckets.tolist())) == features.buckets.tolist()


def buckets_of(text):
    return set(extract_text(text).buckets.tolist())


def test_words_and_pairs_are_counted():
    """One bucket for each of: add, 12, the comma, add 12, 12 comma, comma add."""
    features = extract_text("Add 12, add").packed()
    (twice,) = buckets_of("add")
    counted = dict(zip(features.buckets.tolist(), features.values.tolist(), strict=True))

    assert buckets_of("add") | buckets_of("12") | buckets_of(",") <= set(counted)
    assert 6 == len(counted)
    assert 1 + math.log(2) == pytest.approx(counted.pop(twice))
    assert {1.0} == set(counted.values())


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", categories=["L", "Nd", "Po"]), min_size=1, max_size=6), max_size=12)
)
def test_case_spaces_and_storage_do_not_change_the_words(words):
    """A text with one wide character is stored in another way: its other words must hash alike."""
    text = " ".join(words)
    spaced = "\n ".join(words)
    apart = {bucket for word in words for bucket in buckets_of(word)}

    assert buckets_of(text) == buckets_of(spaced) == buckets_of(f"  {text} ")
    assert buckets_of(text) <= buckets_of(f"{text} \u4e2d")
    assert not words or apart & buckets_of(text)
    assert buckets_of("Add THESE") == buckets_of("add these")


@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_as_many_buckets_as_words_and_pairs_in_a_plain_text(text):
    words = [found.group() for found in re.finditer(r"[a-z]+|\d+|([^a-z\d])\1*", text.lower())]
    grams = set(words) | {(a, b) for a, b in itertools.pairwise(words)}

    assert (
        len(grams) - 2 <= extract_text(text).packed().buckets.size <= len(grams)
    )  # two collisions among a hundred in 65,536


@pytest.mark.parametrize(
    ("text", "n_words"),
    [("naïve café", 2), ("中文字", 3), ("“quoted” words", 4), ("١٢٣ и слово", 3), ("a\u00a0b", 2), ("x = y_1", 5)],
)
def test_words_of_other_scripts_are_found(text, n_words):
    assert math.log1p(n_words) == pytest.approx(extract_text(text).numeric[1])


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
