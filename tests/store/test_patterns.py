"""Patterns of rules: what they find, what they refuse, and that no text makes them slow."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.store.patterns import MAX_PATTERN_CHARACTERS, compile_pattern

LITERALS = st.text(alphabet="ab .\\(", min_size=1, max_size=4)


@given(LITERALS, st.text(alphabet="ab .\\(", max_size=30))
def test_a_literal_is_found_where_it_stands(literal, text):
    assert (literal in text) is compile_pattern(re.escape(literal))(text)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (r"(?i)\bprove\b", "Please PROVE it", True),
        (r"(?i)\bprove\b", "improvement", False),
        (r"(?m)^def ", "x\ndef f():", True),
        (r"^def ", "x\ndef f():", False),
        (r"größer|\p{Greek}", "ist π größer", True),
        (r"^$", "", True),
    ],
)
def test_the_usual_syntax_works(pattern, text, expected):
    assert expected is compile_pattern(pattern)(text)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*b", r"(a|aa)+$", r"(.*a){12}c", r"\s+$", r".*.*.*=x"])
def test_patterns_that_make_a_backtracking_engine_hang_end_here(pattern):
    """The first three take an exponential number of steps there: without a linear engine this would time out."""
    search = compile_pattern(pattern)

    assert [False] * 2 == [search(text) for text in ("a" * 4_000 + "!", " " * 4_000 + "!")]


@pytest.mark.parametrize("text", ["\ud800 prove", "prove \udfff é"])
def test_half_a_surrogate_pair_does_not_hide_a_text(text):
    assert compile_pattern("prove")(text)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(a", "unclosed group; syntax: https"),
        ("(?<=a)b", "look-around"),
        (r"(a)\1", "backreferences are not supported"),
        (r"(\w{100}){100}", "exceeds size limit"),
        ("", "1 to 1000 characters, got 0"),
        ("a" * (MAX_PATTERN_CHARACTERS + 1), "1 to 1000 characters, got 1001"),
    ],
)
def test_what_is_no_pattern_is_refused_in_one_line(pattern, words):
    with pytest.raises(ValueError, match=words) as caught:
        compile_pattern(pattern)

    assert "\n" not in str(caught.value)
    assert "SchemaError" not in str(caught.value)
