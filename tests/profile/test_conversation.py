"""A talk carries what was said, by both sides, and ends when the engine fell silent."""

import itertools

import pytest

from llmtier.core.prompt import Message, Prompt
from llmtier.profile.conversation import Conversation, LoggedTalks, SyntheticTalks, Turn
from llmtier.profile.lengths import FixedLength, SyntheticLengths
from llmtier.profile.synthetic import WordBudget
from llmtier.profile.workload import RequestStyle

LENGTHS = SyntheticLengths(input=FixedLength(tokens=20), output=FixedLength(tokens=5))


def make_talk(**changes):
    turns = [Turn(content=f"q{index}", max_tokens=4, think_s=float(index)) for index in range(3)]
    return Conversation("s", turns, **{"style": RequestStyle(), **changes})


def contents(item):
    return [(message["role"], message["content"]) for message in item.fields["messages"]]


def test_each_turn_carries_the_real_answers_before_it():
    talk = make_talk(opening=[Message(role="system", content="be brief")])

    items = [talk.next_item(), talk.next_item("a0"), talk.next_item("")]

    opening = ("system", "be brief")
    assert [opening, ("user", "q0")] == contents(items[0])
    assert [opening, ("user", "q0"), ("assistant", "a0"), ("user", "q1")] == contents(items[1])
    assert [*contents(items[1]), ("assistant", ""), ("user", "q2")] == contents(items[2])
    assert [("s", 0), ("s", 1), ("s", 2)] == [(item.session, item.turn) for item in items]
    assert 3 == len({item.id for item in items})
    assert talk.next_item("a2") is None


def test_a_failed_turn_ends_the_talk():
    talk = make_talk()
    talk.next_item()

    assert talk.next_item(None) is None
    assert talk.next_item("late") is None
    assert talk.next_think_s is None


def test_the_pause_is_that_of_the_next_turn():
    talk = make_talk()

    assert 0.0 == talk.next_think_s
    talk.next_item()
    assert 1.0 == talk.next_think_s


def test_an_answer_before_the_first_turn_is_refused():
    with pytest.raises(ValueError, match="before the first turn"):
        make_talk().next_item("who asked?")


def test_synthetic_talks_grow_by_what_both_sides_say():
    budget = WordBudget(tokens_fixed=0, tokens_per_word=1)
    source = SyntheticTalks(
        n_turns=3, lengths=LENGTHS, budget=budget, seed=1, mean_think_s=2.0, style=RequestStyle(accepts_ignore_eos=True)
    )

    first, second = itertools.islice(source, 2)

    items = [first.next_item(), first.next_item("a b c d e"), first.next_item("a b c d e")]
    assert [20, 45, 70] == [item.n_input_tokens for item in items]
    assert [5, 5, 5] == [item.n_output_tokens for item in items]
    assert 0.0 == first.turns[0].think_s < first.turns[1].think_s
    assert not {turn.content for turn in first.turns} & {turn.content for turn in second.turns}
    [again] = itertools.islice(source, 1)
    assert first.turns == again.turns


def test_a_talk_of_unknown_answers_promises_no_length():
    [talk] = itertools.islice(
        SyntheticTalks(n_turns=2, lengths=LENGTHS, budget=WordBudget(tokens_fixed=0, tokens_per_word=1), seed=1), 1
    )

    assert 20 == talk.next_item().n_input_tokens
    assert talk.next_item("a").n_input_tokens is None


def test_a_logged_talk_is_asked_again_without_its_recorded_answers():
    roles = ["system", "user", "assistant", "user"]
    logged = Prompt(
        id="p",
        messages=tuple(Message(role=role, content=f"{role} {index}") for index, role in enumerate(roles)),
        max_tokens=7,
    )

    [talk] = itertools.islice(LoggedTalks(prompts=[logged], max_tokens=64, seed=1), 1)

    assert [("system", "system 0"), ("user", "user 1")] == contents(talk.next_item())
    item = talk.next_item("fresh")
    assert [("assistant", "fresh"), ("user", "user 3")] == contents(item)[2:]
    assert 7 == item.fields["max_tokens"]


def test_talks_without_a_user_are_refused():
    silent = Prompt(id="p", messages=(Message(role="system", content="s"),))

    with pytest.raises(ValueError, match="prompt p has none"):
        LoggedTalks(prompts=[silent], max_tokens=4, seed=1)
    with pytest.raises(ValueError, match="0 prompts"):
        LoggedTalks(prompts=[], max_tokens=4, seed=1)
    with pytest.raises(ValueError, match="n_turns"):
        SyntheticTalks(n_turns=0, lengths=LENGTHS, budget=WordBudget(tokens_fixed=0, tokens_per_word=1), seed=1)
    with pytest.raises(ValueError, match="at least one turn"):
        Conversation("s", [], style=RequestStyle())
