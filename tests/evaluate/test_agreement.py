"""Agreement forgives form, compares values as values, and falls back to shared tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.prompt import AnswerScorer
from llmtier.evaluate.agreement import score_agreement

EXACT, NUMBER, JSON = AnswerScorer.EXACT, AnswerScorer.NUMBER, AnswerScorer.JSON


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("Paris", "paris."),
        ("**Paris**", "Paris"),
        ("a  b\n", "A b"),
        ("caf\u00e9", "cafe\u0301"),
        ("", " \n"),
        ("42", "The answer is 42."),
        ("1,234", "it comes to 1234.0"),
        ("$5", "5 dollars: 5"),
        ("50 %", "50"),
        ("-3", "that is \u22123"),
        (".5", "0.5"),
        ('{"a": 1}', 'Sure: {"a": 1.0}'),
        ('```json\n{"a": [1, 2]}\n```', '{"a": [1,2]}'),
        ("[]", "[ ]"),
    ],
)
def test_the_same_in_another_form_agrees(reference, text):
    assert 1.0 == score_agreement(EXACT, reference, text)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("Paris", "Lyon"),
        ("C", "C++"),
        ("yes", "no"),
        ("the big red car", "the big blue car"),
        ("42", "43"),
        ("42", "I think that this can not be known from what was said"),
        ("3", "-3"),
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', "it has an a and that a is one, as far as I can see"),
        ("Paris", ""),
        ("\u5317\u4eac", "\u5357\u4eac"),
    ],
)
def test_short_answers_and_values_agree_wholly_or_not_at_all(reference, text):
    assert 0.0 == score_agreement(EXACT, reference, text)


def test_prose_agrees_by_shared_tokens():
    reference = "the cat sat on the mat today"  # 7 tokens
    text = "a cat sat on a mat"  # 6, of which cat, sat, on, mat are shared

    assert pytest.approx(2 * 4 / 13) == score_agreement(EXACT, reference, text)


def test_marks_count_so_that_other_code_does_not_agree():
    assert 1.0 > score_agreement(EXACT, "def f(a, b): return a + b", "def f(a, b): return a - b")


def test_scripts_without_spaces_are_compared_by_character():
    assert 0.7 < score_agreement(
        EXACT, "\u5929\u6c14\u5f88\u597d\u6211\u4eec\u53bb", "\u5929\u6c14\u5f88\u597d\u6211\u4eec\u6765"
    )


@pytest.mark.parametrize(
    ("scorer", "reference", "text", "score"),
    [
        (NUMBER, "3 + 4 = 7", "So it is 7", 1.0),
        (NUMBER, "3 + 4 = 7", "So it is 8", 0.0),
        (NUMBER, "no number at all in this one", "no number at all in this one here", 2 * 7 / 15),
        (JSON, 'Here: {"a": 1} as asked', '{"a": 1}', 1.0),
        (JSON, 'Here: {"a": 1} as asked', "sorry", 0.0),
        (JSON, "I am sorry but no", "sorry", 0.0),
    ],
)
def test_the_rows_scorer_decides_where_the_reference_can_be_read(scorer, reference, text, score):
    assert pytest.approx(score) == score_agreement(scorer, reference, text)


TEXTS = st.one_of(st.text(), st.text(alphabet='ab1.-{}[]":, `\n', max_size=30))


@given(st.sampled_from(AnswerScorer), TEXTS, TEXTS)
def test_any_texts_give_a_score_and_a_text_agrees_with_itself(scorer, left, right):
    assert 0.0 <= score_agreement(scorer, left, right) <= 1.0
    assert 1.0 == score_agreement(scorer, left, left)


WORDS = st.lists(st.sampled_from(["red", "blue", "green", "+", "(", "car"]), min_size=8, max_size=20).map(" ".join)


@given(WORDS, WORDS)
def test_prose_agrees_both_ways_alike(left, right):
    assert score_agreement(EXACT, left, right) == score_agreement(EXACT, right, left)


def test_an_endless_answer_is_cut():
    assert 0.5 == score_agreement(EXACT, "word " * 1_000_000, "word and " * 300_000)
