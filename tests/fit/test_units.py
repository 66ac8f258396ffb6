"""Rows that repeat each other count once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.prompt import LabelledPrompt, Message, Prompt
from llmtier.fit.units import group_rows, sum_units

OPENING = "How do I reset the pump in the second basement?"


def make_row(*texts, system=None):
    """Return a row whose turns alternate between user and assistant."""
    turns = [Message(role=("user", "assistant")[place % 2], content=text) for place, text in enumerate(texts)]
    messages = turns if system is None else [Message(role="system", content=system), *turns]
    return LabelledPrompt(prompt=Prompt(id="0", messages=tuple(messages)), scores={})


def units_of(*rows):
    return group_rows(rows).tolist()


def test_ordinary_prompts_are_units_of_their_own():
    assert [0, 1, 2] == units_of(make_row("one"), make_row("two"), make_row("three"))


@pytest.mark.parametrize(
    "other", ["What is  the pump's name?", "what is the PUMP'S name", "What is the pump's name!\n"]
)
def test_texts_that_differ_in_case_spaces_and_marks_are_one(other):
    assert [0, 1, 0] == units_of(make_row("What is the pump's name?"), make_row("What was its name?"), make_row(other))


def test_other_numbers_and_signs_are_other_questions():
    assert [0, 1, 2] == units_of(make_row("What is 2 + 5?"), make_row("What is 2 - 5?"), make_row("What is 3 + 5?"))


def test_prompts_of_marks_alone_are_not_all_one():
    assert [0, 1, 0] == units_of(make_row("???"), make_row("+-+"), make_row("???"))


def test_requests_of_one_conversation_are_one():
    first = make_row(OPENING)
    second = make_row(OPENING, "Press the red button.", "It does nothing")
    third = make_row(OPENING, "Press the red button.", "It does nothing", "Then the green one.", "Thanks")

    assert [0, 1, 0, 0] == units_of(first, make_row("Something else"), second, third)


def test_a_greeting_does_not_make_two_conversations_one():
    rows = [make_row("Hello", "Hi, what is it?", "My pump"), make_row("Hello", "Good day.", "The weather in Oslo")]

    assert [0, 1] == units_of(*rows)


def test_a_greeting_with_the_same_answer_does():
    rows = [
        make_row("Hello", "Hi, what is it?", "My pump"),
        make_row("Hello", "Hi, what is it?", "My pump", "Oh", "Yes"),
    ]

    assert [0, 0] == units_of(*rows)


def test_a_short_last_turn_does_not_make_two_conversations_one():
    openings = ("Write a letter to my landlord about the heating", "Explain monads to a child of ten years")

    assert [0, 1] == units_of(*(make_row(opening, "Gladly.", "go on") for opening in openings))


def test_a_long_last_turn_that_was_asked_elsewhere_does():
    assert [0, 0] == units_of(make_row("Hello", "Hi.", OPENING), make_row(OPENING))


def test_the_system_prompt_is_no_link():
    rows = [make_row(text, system="You answer questions about pumps in basements.") for text in ("one", "two")]

    assert [0, 1] == units_of(*rows)


def test_chains_link():
    a, b = "the first of two rather long questions", "the second of two rather long questions"

    assert [0, 0, 0] == units_of(make_row(a), make_row(b), make_row(a, "An answer.", b))


@given(st.lists(st.sampled_from(["a", "b", "A!", "c 1", "C  1", "d"]), max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_change_who_is_together(texts, random):
    order = list(range(len(texts)))
    random.shuffle(order)
    straight = group_rows([make_row(text) for text in texts])
    shuffled = group_rows([make_row(texts[place]) for place in order])
    together = straight[:, np.newaxis] == straight

    assert (together[np.ix_(order, order)] == (shuffled[:, np.newaxis] == shuffled)).all()


def test_a_row_of_weight_one_stays_as_it_is():
    losses = np.array([[1.0, 0.5], [-1.0, 0.0]])
    units = sum_units(losses, np.ones(2), np.array([0, 1]))

    assert losses.tolist() == units.losses.tolist()
    assert [1.0, 1.0] == units.masses.tolist()


def test_weights_are_summed_with_losses():
    units = sum_units(np.array([[1.0], [-1.0], [0.5]]), np.array([2.0, 3.0, 1.0]), np.array([0, 1, 0]))

    assert [[2.5], [-3.0]] == units.losses.tolist()
    assert [3.0, 3.0] == units.masses.tolist()


def test_no_rows_are_no_units():
    units = sum_units(np.empty((0, 2)), np.empty(0), np.empty(0, dtype=np.intp))

    assert 0 == len(units)
    assert (0, 2) == units.losses.shape
    assert [] == units_of()


def test_a_shuffle_keeps_every_unit_and_repeats_with_its_seed():
    units = sum_units(np.arange(40.0)[:, np.newaxis] / 40, np.full(40, 2.0), np.arange(40))
    once, again, other = units.shuffled(3), units.shuffled(3), units.shuffled(4)

    assert once.losses.tolist() == again.losses.tolist() != other.losses.tolist()
    assert units.losses.tolist() == sorted(once.losses.tolist())
