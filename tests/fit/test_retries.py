"""Re-asks: who asked again, whom it is charged to, and what it adds to a price."""

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmtier.core.prompt import Message
from llmtier.fit.prices import Prices, only, with_retries
from llmtier.fit.retries import (
    MAX_ASKS,
    MIN_JACCARD,
    Asked,
    Retries,
    TierRetries,
    comparable_text,
    find_retries,
    frame_of,
)

LONG = "please explain how the water cycle moves heat between oceans and land in simple words for a school class"
ALIKE = LONG + " again"
OTHER = "write a short poem about a lighthouse keeper who counts gulls while the autumn fog rolls over grey rocks"


def asked(text, at_s, tier="small", key="k", frame=""):
    return Asked(key=key, arrival_s=at_s, text=text, tier=tier, frame=frame)


def counts(rows, **options):
    """Return {(tier before, tier after): n}."""
    found = find_retries(rows, **options)
    return {(tier, on): n for tier, seen in found.tiers.items() for on, n in seen.asked_again_on.items()}


def user(*turns):
    """Return a conversation in which user and assistant take turns."""
    return tuple(Message(role=("user", "assistant")[place % 2], content=turn) for place, turn in enumerate(turns))


ROWS = st.lists(
    st.builds(
        Asked,
        key=st.none() | st.sampled_from(["k", "l"]),
        arrival_s=st.none() | st.integers(0, 900).map(float),
        text=st.none() | st.sampled_from([LONG, ALIKE, OTHER, "2 + 2", "2 + 3"]),
        tier=st.none() | st.sampled_from(["small", "large"]),
        frame=st.sampled_from(["", "f"]),
    ),
    max_size=14,
)


@given(rows=ROWS, seed=st.integers(0, 99))
def test_the_order_of_rows_in_the_file_does_not_matter(rows, seed):
    shuffled = random.Random(seed).sample(rows, len(rows))

    assert find_retries(rows) == find_retries(shuffled)


@given(rows=ROWS)
def test_every_row_is_counted_once(rows):
    found = find_retries(rows)

    assert len(rows) == found.n_served + found.n_machine + found.n_unknown
    assert all(0 <= seen.n_retried <= seen.n_served for seen in found.tiers.values())


@given(rows=ROWS, lacking=st.sampled_from(["key", "arrival_s", "text", "tier"]))
def test_what_lacks_a_fact_is_never_a_retry(rows, lacking):
    facts = ("key", "arrival_s", "text", "tier", "frame")
    bare = [Asked(**{name: None if name == lacking else getattr(row, name) for name in facts}) for row in rows]

    assert Retries(tiers={}, n_unknown=len(rows)) == find_retries(bare)


@given(rows=ROWS)
def test_requests_of_different_keys_are_no_retries(rows):
    alone = [asked(row.text, row.arrival_s, row.tier, key=f"key {n}") for n, row in enumerate(rows)]

    assert {} == counts(alone)


@given(rows=ROWS, window_s=st.floats(0, 1000))
def test_keys_do_not_change_what_is_found_of_others(rows, window_s):
    first = [row for row in rows if row.key == "k"]
    second = [row for row in rows if row.key == "l"]
    assume(first and second)
    both = find_retries(rows, window_s=window_s)
    apart = [find_retries(part, window_s=window_s) for part in (first, second)]

    assert both.n_machine == sum(part.n_machine for part in apart)
    for tier in ("small", "large"):
        seen = [part.tiers[tier].n_retried for part in apart if tier in part.tiers]
        assert sum(seen) == (both.tiers[tier].n_retried if tier in both.tiers else 0)


@given(
    start=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=4, max_size=16),
    other=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=4, max_size=16),
    more=st.lists(st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=16), max_size=3),
)
def test_rare_words_find_what_comparing_all_pairs_finds(start, other, more):
    texts = [" ".join(words) for words in (*more, start)]
    rows = [asked(text, float(n), tier=f"t{n}") for n, text in enumerate(texts)]
    last = asked(" ".join(other), 99.0, tier="last")
    before = find_retries(rows)
    found = find_retries([*rows, last])
    alike = any(jaccard(text.split(), other) >= MIN_JACCARD for text in texts)

    gained = sum(seen.n_retried for seen in found.tiers.values()) - sum(
        seen.n_retried for seen in before.tiers.values()
    )
    assert alike == (gained > 0)


def jaccard(one, other):
    return len({*one} & {*other}) / len({*one} | {*other})


def test_a_chain_charges_each_link_to_the_tier_before():
    rows = [asked(LONG, 0.0, "small"), asked(ALIKE, 200.0, "medium"), asked(LONG, 400.0, "large")]

    assert {("small", "medium"): 1, ("medium", "large"): 1} == counts(rows)


def test_two_re_asks_of_one_request_make_one_chain():
    rows = [asked(LONG, 0.0, "small"), asked(LONG + " now", 10.0, "medium"), asked(LONG + " soon", 20.0, "large")]

    assert {("small", "medium"): 1, ("medium", "large"): 1} == counts(rows)


def test_the_window_ends_where_it_says():
    assert 1 == sum(counts([asked(LONG, 0.0), asked(LONG, 300.0)]).values())
    assert {} == counts([asked(LONG, 0.0), asked(LONG, 300.1)])
    assert 1 == sum(counts([asked(LONG, 0.0), asked(LONG, 300.1)], window_s=400).values())


@pytest.mark.parametrize("other", [OTHER, LONG.replace("heat", "5 units"), "the " + OTHER])
def test_other_questions_are_no_retries(other):
    assert {} == counts([asked(LONG, 0.0), asked(other, 10.0)])


def test_other_numbers_are_other_questions():
    first = "what is the sum of 12 and 7 if you count in base ten as in school"

    assert {} == counts([asked(first, 0.0), asked(first.replace("7", "8"), 10.0)])
    assert 1 == sum(counts([asked(first, 0.0), asked(first + " please", 10.0)]).values())


def test_what_comes_at_the_same_instant_is_no_retry():
    assert {} == counts([asked(LONG, 5.0, "small"), asked(LONG, 5.0, "large")])
    assert 1 == sum(counts([asked(LONG, 5.0), asked(LONG, 5.0), asked(LONG, 9.0)]).values())


def test_what_is_asked_over_and_over_is_a_program():
    poll = [asked("ping", 10.0 * n) for n in range(MAX_ASKS + 1)]
    template = [
        asked(LONG + f" {word}", 10.0 * n) for n, word in enumerate(["fog", "rain", "snow", "hail", "sun", "wind"])
    ]

    assert Retries(tiers={}, n_keys=1, n_machine=MAX_ASKS + 1) == find_retries(poll)
    assert 6 == find_retries(template).n_machine
    assert MAX_ASKS - 1 == find_retries(poll[:-1]).tiers["small"].n_retried


def test_another_system_prompt_is_another_frame():
    rows = [asked(LONG, 0.0, frame="translate"), asked(LONG, 5.0, frame="summarise")]

    assert {} == counts(rows)


def test_case_and_marks_do_not_matter():
    assert comparable_text(user("What is  this?!")) == comparable_text(user("what is, this"))
    assert comparable_text(user("2+2")) != comparable_text(user("2-2"))
    assert "?!" == comparable_text(user("?!"))


def test_the_last_user_turn_is_compared_whatever_came_before():
    assert comparable_text(user(LONG)) == comparable_text(user(LONG, "an answer", LONG))
    assert comparable_text(user(LONG, "an answer", "thanks")) != comparable_text(user(LONG, "other", "thanks"))


def test_steps_of_a_tool_loop_differ():
    """Each sends the same user turn again, with one more result behind it."""
    first = (*user(LONG, "calls a tool"), Message(role="tool", content="1"))
    second = (*first, Message(role="assistant", content="calls a tool"), Message(role="tool", content="1"))
    rows = [comparable_text(messages) for messages in (user(LONG), first, second)]

    assert 3 == len(set(rows))
    assert {} == counts([asked(text, float(n)) for n, text in enumerate(rows)])


def test_a_harness_is_no_part_of_the_question():
    block = "<system-reminder>" + OTHER + "</system-reminder>"

    assert comparable_text(user(block + "list the files here")) == comparable_text(user("list the files here"))


def test_a_frame_outlives_the_clock():
    def messages(system):
        return (Message(role="system", content=system), *user("hello"))

    assert "" == frame_of(user("hello"))
    assert frame_of(messages("It is 12:01.")) == frame_of(messages("It is 12:02."))
    assert frame_of(messages("Translate.")) != frame_of(messages("Summarise."))


PRICES = Prices(usd={"small": 1.0, "large": 10.0})


def test_the_charge_is_the_shrunken_rate_times_what_the_re_asks_cost():
    retries = Retries(
        tiers={
            "small": TierRetries(n_served=80, asked_again_on={"small": 4, "large": 4}),
            "large": TierRetries(n_served=20, asked_again_on={"large": 2}),
        }
    )
    found = with_retries(PRICES, retries)

    # pooled: 10 of 100; small (8 + 2) / (80 + 20) x (1 + 10) / 2; large (2 + 2) / (20 + 20) x 10
    assert {"small": 0.1 * 5.5, "large": 0.1 * 10.0} == pytest.approx(found.retry_usd)
    assert 1.55 == pytest.approx(found.usd_of("small", None))
    assert found.retry_usd.keys() == {"small", "large"}
    assert {"small": found.retry_usd["small"]} == only(found, ["small"]).retry_usd


def test_charges_change_no_order_of_tiers():
    """The gateway knows nothing of them: the path that is certified must be the one that it takes."""
    retries = Retries(tiers={"small": TierRetries(n_served=1000, asked_again_on={"large": 1000})})
    found = with_retries(PRICES, retries)

    assert found.usd_of("small", None) > 10
    assert ("small", "large") == found.by_cost
    assert 1.0 == found.offer("small", accuracy=None).usd


@given(n=st.integers(0, 5), n_served=st.integers(5, 5000))
def test_a_tier_hardly_seen_is_believed_to_be_like_the_others(n, n_served):
    retries = Retries(
        tiers={
            "small": TierRetries(n_served=n_served, asked_again_on={"large": n_served // 5}),
            "large": TierRetries(n_served=5, asked_again_on={"large": n} if n else {}),
        }
    )
    found = with_retries(PRICES, retries)
    pooled = (n_served // 5 + n) / (n_served + 5)
    own, got = n / 5, found.retry_usd["large"] / 10.0

    assert min(own, pooled) - 1e-12 <= got <= max(own, pooled) + 1e-12
    assert abs(got - pooled) <= abs(got - own) + 1e-12


@pytest.mark.parametrize(
    "tiers",
    [
        {},
        {"small": TierRetries(n_served=9)},
        {"other": TierRetries(n_served=9, asked_again_on={"small": 3})},
        {"small": TierRetries(n_served=9, asked_again_on={"other": 3})},
    ],
)
def test_without_re_asks_of_a_price_nothing_is_charged(tiers):
    assert PRICES == with_retries(PRICES, Retries(tiers=tiers))
