"""Rows to documents: the usual shapes, the recipe's own mapping, and what is no text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.quantize.calibration.document import Shape, estimate_tokens, own_text, unprompted_text
from llmtier.store.calibration_recipe import FieldMapping

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, ASSISTANT], "id": 3}, {"messages": [USER, ASSISTANT]}),
        ({"text": "Hi"}, {"text": "Hi"}),
        ({"messages": None, "text": "Hi"}, {"text": "Hi"}),
        ({"prompt": "Hi"}, {"messages": [USER]}),
        ({"question": "Hi", "answer": "Hello"}, {"messages": [USER, ASSISTANT]}),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            {"messages": [USER, ASSISTANT]},
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, {"messages": [USER]}),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None),
    ],
)
def test_usual_shapes_are_understood(row, expected):
    found = Shape(domain="d").to_document(row)

    assert (expected if expected is None else {**expected, "domain": "d"}) == found


@pytest.mark.parametrize(
    ("fields", "row", "expected"),
    [
        (FieldMapping(messages="chat"), {"chat": [USER]}, {"messages": [USER]}),
        (FieldMapping(text="body"), {"body": "Hi", "text": "no"}, {"text": "Hi"}),
        (FieldMapping(text="body"), {"body": None}, None),
        (FieldMapping(user="q", assistant="a"), {"q": "Hi", "a": "Hello"}, {"messages": [USER, ASSISTANT]}),
        (FieldMapping(user="q", assistant="a"), {"q": "Hi", "a": None}, {"messages": [USER]}),
        (
            FieldMapping(user="q", system="s"),
            {"q": "Hi", "s": "Be kind"},
            {"messages": [{"role": "system", "content": "Be kind"}, USER]},
        ),
    ],
)
def test_recipe_names_the_columns(fields, row, expected):
    found = Shape(domain="d", fields=fields).to_document(row)

    assert (expected if expected is None else {**expected, "domain": "d"}) == found


def test_template_takes_columns_and_leaves_their_braces_alone():
    shape = Shape(domain="d", template="Q: {question}\nA: {answer}")

    assert {"text": "Q: {answer}\nA: 4", "domain": "d"} == shape.to_document({"question": "{answer}", "answer": 4})
    assert shape.to_document({"question": "Hi", "answer": None}) is None


def test_system_prompt_goes_before_chats_that_have_none():
    shape = Shape(domain="d", system_prompt="Be kind")
    own = {"role": "system", "content": "Be short"}
    document = shape.to_document({"messages": [USER]})

    assert document is not None
    assert [{"role": "system", "content": "Be kind"}, USER] == document["messages"]
    assert "Hi" == own_text(document) == unprompted_text(document, "Be kind")
    assert {"messages": [own, USER], "domain": "d"} == shape.to_document({"messages": [own, USER]})
    assert {"text": "a", "domain": "d"} == shape.to_document({"text": "a"})


@pytest.mark.parametrize(
    ("fields", "row", "said"),
    [
        (None, {"foo": 1, "bar": 2}, r"found 'foo, bar'; name the columns in \[source.fields\]"),
        (None, {"messages": []}, "messages: expected a list of turns"),
        (None, {"messages": ["Hi"]}, r"messages\[0\]: expected a turn"),
        (None, {"messages": [USER, {"role": "user"}]}, r"messages\[1\]: expected a turn"),
        (None, {"messages": [{"content": "Hi"}]}, r"messages\[0\]\.role: expected a text"),
        (None, {"messages": [{"role": "user", "content": 3}]}, r"messages\[0\]\.content: expected a text, got 3"),
        (FieldMapping(text="body"), {"bdy": "a"}, "no column 'body'; there are: 'bdy'"),
        (FieldMapping(text="body"), {"body": 3}, "body: expected a text, got 3"),
        (FieldMapping(messages="m"), {"m": "Hi"}, "m: expected a list of turns"),
    ],
)
def test_malformed_row_says_what_is_wrong(fields, row, said):
    with pytest.raises(ValueError, match=said):
        Shape(domain="d", fields=fields).to_document(row)


@given(st.text())
def test_estimate_is_a_quarter_of_the_bytes_rounded_up(text):
    assert 0 <= 4 * estimate_tokens(text) - len(text.encode()) < 4
