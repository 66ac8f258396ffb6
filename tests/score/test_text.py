"""Which text of a conversation is scored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.prompt import Message, Prompt
from llmtier.score.text import HARNESS_TAGS, MAX_CHARS, TURNS_CHARS, cut_text, scored_text, strip_harness


def talk(*turns):
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    return Prompt(id="p", messages=messages)


def test_earlier_user_turns_count_while_they_fit():
    turns = [("system", "be kind"), ("user", "prove it"), ("assistant", "how?"), ("user", "by induction")]

    assert "prove it\nby induction" == scored_text(talk(*turns))
    assert "by induction" == scored_text(talk(("user", "x" * TURNS_CHARS), *turns[2:]))


def test_without_a_user_the_last_turn_counts():
    assert "hello" == scored_text(talk(("system", "be kind"), ("assistant", "hello")))


def test_long_texts_keep_head_and_tail():
    cut = cut_text("HEAD" + "x" * 3 * MAX_CHARS + "TAIL")

    assert cut.startswith("HEAD")
    assert cut.endswith("TAIL")
    assert MAX_CHARS + 1 == len(cut)
    assert "short" == cut_text("short")


@pytest.mark.parametrize("tag", HARNESS_TAGS)
def test_what_a_harness_added_is_left_out(tag):
    text = f"<{tag}>\nten files changed\n</{tag}>\nfix the bug\n<{tag}>more</{tag}>"

    assert "fix the bug" == strip_harness(text)


@pytest.mark.parametrize(
    "text", ["a < b", "</p> plain html", "<user_info>never closed", "<user_info>alone</user_info>", "", "</user_info>"]
)
def test_other_texts_stay_as_they_are(text):
    assert text == strip_harness(text)


@given(st.lists(st.sampled_from(["<user_info>", "</user_info>", "x", " ", "<"]), max_size=30))
def test_stripping_twice_is_stripping_once(pieces):
    once = strip_harness("".join(pieces))

    assert len(once) <= len("".join(pieces))
    assert strip_harness(once) == once or "<user_info>" in once
