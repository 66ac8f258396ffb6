"""Scoring is lenient in form, strict in value, and never raises on what a model wrote."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import AnswerScorer, Message, Prompt
from llmtier.evaluate.answers import check_reference, score_answer

EXACT, NUMBER, JSON = AnswerScorer.EXACT, AnswerScorer.NUMBER, AnswerScorer.JSON


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("Paris", "  Paris\n"),
        ("a b", "a \t\n b"),
        ("caf\u00e9", "cafe\u0301"),
        ("", "  "),
    ],
)
def test_exact_forgives_space_and_unicode_form(expected, text):
    assert 1.0 == score_answer(EXACT, expected, text)


@pytest.mark.parametrize(("expected", "text"), [("Paris", "paris"), ("Paris", "Paris."), ("ab", "a b"), ("x", "")])
def test_exact_forgives_nothing_else(expected, text):
    assert 0.0 == score_answer(EXACT, expected, text)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("42", "The answer is 42."),
        ("42", "First 7, then 42"),
        ("1234567.5", "about 1,234,567.50 dollars"),
        ("1234", "1\u202f234"),
        ("-3", "it is -3"),
        ("-3", "it is \u22123"),
        ("4", "10-4"),
        ("4", "10 - 4"),
        ("0.5", ".5"),
        ("1500", "1.5e3"),
        ("3.0", "3"),
        ("#### 72", "So 72 in all"),
        ("7", "**7**"),
        ("3", "[1, 2,3]"),
        ("50", "50%"),
    ],
)
def test_last_number_is_compared_by_value(expected, text):
    assert 1.0 == score_answer(NUMBER, expected, text)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("42", "42, or rather 43"),
        ("42", "forty-two"),
        ("42", "-42"),
        ("123", "1,23"),
        ("42", ""),
        ("nan", "nan"),
        ("inf", "inf"),
        ("Infinity", "-Infinity"),
        ("1", "1e99999999999999999999"),
        ("1e99999999999999999999", "1e99999999999999999999"),
    ],
)
def test_another_number_or_none_scores_zero(expected, text):
    assert 0.0 == score_answer(NUMBER, expected, text)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ('{"a": 1, "b": [2]}', '{"b": [2.0], "a": 1}'),
        ('{"a": 1}', 'Sure! Here it is:\n```json\n{"a": 1}\n```\nAnything else?'),
        ('{"a": 1}', '```\n{"a": 1}```'),
        ("[1, 2]", "3 items: [1, 2] and [9]"),
        ('{"a": 1}', '{not json} {"a": 1}'),
        ("3", "```json\n3.0\n```"),
        ("true", "true"),
        ('"x"', 'the word "x"'),
        ("null", " null "),
        ("0.1", "0.10"),
    ],
)
def test_first_json_value_is_compared_in_depth(expected, text):
    assert 1.0 == score_answer(JSON, expected, text)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ("[1, 2]", "[2, 1]"),
        ("[1, 2]", "[1] [1, 2]"),
        ('{"a": 1}', "no json at all"),
        ('{"a": 1}', '{"a": 1'),
        ("[NaN]", "[NaN]"),
        ("[Infinity]", "[Infinity]"),
        ("[1e99999999999999999999]", "[1e99999999999999999999]"),
        ("broken", "broken"),
        ("[1]", "[" * 100_000),
        ("[" * 2000 + "]" * 2000 + "x", "[1]"),
    ],
)
def test_other_json_scores_zero(expected, text):
    assert 0.0 == score_answer(JSON, expected, text)


JUNK = st.one_of(
    st.text(), st.text(alphabet='{}[]":,.-+eE0123456789truefalsn \n`'), st.characters().map(lambda c: c * 50)
)


@given(st.sampled_from(AnswerScorer), JUNK, JUNK)
def test_junk_scores_zero_or_one(scorer, expected, text):
    assert score_answer(scorer, expected, text) in {0.0, 1.0}


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(alphabet="abc \n:=", max_size=10))
def test_a_number_after_prose_equals_itself(number, prose):
    assert 1.0 == score_answer(NUMBER, repr(number), f"{prose} {number!r}.")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(VALUES)
def test_a_fenced_json_value_equals_itself(value):
    text = f"```json\n{json.dumps(value, indent=2)}\n```"

    assert 1.0 == score_answer(JSON, json.dumps(value), text)


def make_prompt(answer, scorer):
    return Prompt(id="p7", messages=(Message(role="user", content="?"),), answer=answer, scorer=scorer)


@pytest.mark.parametrize(
    ("answer", "scorer"), [(None, NUMBER), ("12", NUMBER), ('{"a": 1}', JSON), ("", EXACT), ("nan", EXACT)]
)
def test_readable_reference_answers_are_accepted(answer, scorer):
    check_reference(make_prompt(answer, scorer))


@pytest.mark.parametrize(("answer", "scorer"), [("twelve", NUMBER), ("inf", NUMBER), ("{'a': 1}", JSON), ("", JSON)])
def test_unreadable_reference_answers_are_refused_with_their_place(answer, scorer):
    with pytest.raises(InputFileError, match=r"e\.jsonl:3: prompt p7: its answer .* scorer"):
        check_reference(make_prompt(answer, scorer), path="e.jsonl", line=3)
