"""Complete rows in a fixed order, near-identical texts on one side of the split."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError
from llmtier.core.prompt import LabelledPrompt, Message, Prompt
from llmtier.fit.prices import price_profiles
from llmtier.fit.rows import make_rows, select_rows, split_rows
from llmtier.fit.units import normalise

TIERS = ("cheap", "dear")


def make_row(text, row_id="r", score=1.0):
    prompt = Prompt(id=row_id, messages=(Message(role="user", content=text),))
    return LabelledPrompt(prompt=prompt, scores={"cheap": score, "dear": 1.0})


texts = st.lists(st.text("ab1 ", max_size=4), min_size=4, max_size=60)


@settings(deadline=None, max_examples=50)
@given(texts, st.integers(0, 5), st.randoms(use_true_random=False))
def test_split_depends_on_contents_and_seed_alone(profiles, drawn, seed, random):
    rows = [make_row(text, str(number), number % 2) for number, text in enumerate(drawn)]
    if len({normalise(text) for text in drawn}) < 2:
        return
    shuffled = random.sample(rows, len(rows))
    straight = split_rows(make_rows(rows, TIERS, price_profiles(TIERS, profiles)), seed=seed)
    again = split_rows(make_rows(shuffled, TIERS, price_profiles(TIERS, profiles)), seed=seed)

    assert [side.labelled for side in straight] == [side.labelled for side in again]
    assert len(rows) == sum(map(len, straight))
    fit_keys, judge_keys = ({normalise(row.prompt.last_user_text) for row in side.labelled} for side in straight)
    assert set() == fit_keys & judge_keys
    assert fit_keys
    assert judge_keys


def test_half_of_the_rows_fit(profiles):
    rows = make_rows(
        [make_row(f"text {'x' * number}") for number in range(100)], TIERS, price_profiles(TIERS, profiles)
    )

    assert [50, 50] == list(map(len, split_rows(rows, seed=1)))


def test_near_identical_texts_are_one(profiles):
    assert normalise(" Add 12  and\n7") == normalise("add 12 and 7 ")
    assert normalise("Add 12") != normalise("Add 13")

    with pytest.raises(InputFileError, match="same but for case and spaces"):
        split_rows(
            make_rows([make_row(" " * number + "Add") for number in range(30)], TIERS, price_profiles(TIERS, profiles)),
            seed=0,
        )


def test_rows_without_a_score_on_every_tier_are_left_out(profiles, make_labelled):
    rows = make_labelled(60)
    rows[3] = dataclasses.replace(rows[3], scores={"dear": 1.0})
    rows[9] = dataclasses.replace(rows[9], scores={})
    complete, n_left_out = select_rows(rows, TIERS, price_profiles(TIERS, profiles))

    assert (58, 2) == (len(complete), n_left_out)


def test_unlabelled_rows_name_replay(profiles, make_labelled):
    rows = [dataclasses.replace(row, scores={}) for row in make_labelled(60)]

    with pytest.raises(InputFileError, match=r"none of the 60 prompts has a score.*llmtier replay"):
        select_rows(rows, TIERS, price_profiles(TIERS, profiles))


def test_too_few_rows_say_how_many_are_needed_and_where_they_lack(profiles, make_labelled):
    rows = make_labelled(15) + [dataclasses.replace(row, scores={"dear": 1.0}) for row in make_labelled(30, seed=1)]

    with pytest.raises(InputFileError, match=r"15 prompts.*at least 20 are needed.*cheap 15, dear 45"):
        select_rows(rows, TIERS, price_profiles(TIERS, profiles))


def test_a_row_costs_its_own_output_tokens_where_they_are_known(profiles):
    rows = [
        dataclasses.replace(make_row("short"), output_tokens={"cheap": 9, "dear": 18}),
        make_row("unknown"),
    ]

    assert [[1.0, 20.0], [1.0, 10.0]] == make_rows(rows, TIERS, price_profiles(TIERS, profiles)).usd.round(9).tolist()
