"""Synthetic prompts have the asked length in the engine's own tokens, and share only what they should."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.profile.lengths import FixedLength, SyntheticLengths, UniformLength
from llmtier.profile.synthetic import (
    PROBE_WORDS,
    WORDS,
    SharedPrefix,
    SyntheticSource,
    TextMaker,
    TraceSource,
    WordBudget,
    fit_word_budget,
    probe_item,
)
from llmtier.profile.workload import RequestStyle
from llmtier.store.arrivals import Arrival

BUDGET = WordBudget(tokens_fixed=9, tokens_per_word=1.25)
LENGTHS = SyntheticLengths(
    input=UniformLength(low_tokens=64, high_tokens=512), output=UniformLength(low_tokens=16, high_tokens=128)
)


def take(n, source):
    return list(itertools.islice(source, n))


def text_of(item):
    return item.fields["messages"][-1]["content"]


def make_source(**changes):
    return SyntheticSource(**{"lengths": LENGTHS, "budget": BUDGET, "seed": 5, **changes})


def test_the_words_are_short_and_distinct():
    assert len(set(WORDS)) == len(WORDS) > 200
    assert all(word.isascii() and word.islower() and len(word) == 4 for word in WORDS)


@given(fixed=st.floats(0, 500), per_word=st.floats(0.2, 8), n_words=st.sets(st.integers(1, 2000), min_size=2))
def test_a_budget_comes_back_from_its_own_counts(fixed, per_word, n_words):
    budget = WordBudget(tokens_fixed=fixed, tokens_per_word=per_word)

    found = fit_word_budget([(n, budget.tokens_fixed + budget.tokens_per_word * n) for n in n_words])

    assert fixed == pytest.approx(found.tokens_fixed, abs=1e-6 * (fixed + per_word * 2000))
    assert per_word == pytest.approx(found.tokens_per_word, rel=1e-6)


@given(n_tokens=st.integers(1, 100_000), fixed=st.floats(0, 500), per_word=st.floats(0.2, 8))
def test_the_nearest_number_of_words_misses_by_half_a_word_at_most(n_tokens, fixed, per_word):
    budget = WordBudget(tokens_fixed=fixed, tokens_per_word=per_word)

    n_words = budget.n_words(n_tokens)

    assert n_words >= 1
    if n_words > 1:
        assert abs(budget.n_tokens(n_words) - n_tokens) <= per_word / 2 + 1


@pytest.mark.parametrize(
    ("probes", "message"), [([(8, 10), (8, 12)], "two lengths"), ([(8, 20), (96, 20)], "do not grow")]
)
def test_probes_that_tell_nothing_are_refused(probes, message):
    with pytest.raises(ValueError, match=message):
        fit_word_budget(probes)


def test_a_probe_has_its_words_and_asks_for_one_token():
    for n_words in PROBE_WORDS:
        item = probe_item(n_words, seed=3, style=RequestStyle(accepts_ignore_eos=True))

        assert n_words == len(text_of(item).split())
        assert 1 == item.fields["max_tokens"]
        assert "ignore_eos" not in item.fields


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_probes_hold_each_word_once_so_that_their_mean_is_that_of_all(seed):
    words = [
        word
        for n_words in PROBE_WORDS
        for word in text_of(probe_item(n_words, seed=seed, style=RequestStyle())).split()
    ]

    assert sorted(WORDS) == sorted(words)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("style", [RequestStyle(), RequestStyle(is_chat=False)])
def test_prompts_meet_the_asked_length_of_an_engine_that_splits_words_unevenly(seed, style):
    """Its own count: a template of 11 tokens, and 1 to 4 tokens a word, whatever its letters."""

    def count(item):
        text = item.fields["prompt"] if "prompt" in item.fields else text_of(item)
        return 11 + sum(1 + sum(map(ord, word)) % 4 for word in text.split())

    probes = [(n_words, count(probe_item(n_words, seed=seed, style=style))) for n_words in PROBE_WORDS]
    source = make_source(budget=fit_word_budget(probes), seed=seed, style=style)

    ratios = [count(item) / item.n_input_tokens for item in take(300, source)]
    assert 1 == pytest.approx(np.mean(ratios), abs=0.02)
    assert all(0.7 < ratio < 1.3 for ratio in ratios)


def test_prompts_have_the_drawn_lengths():
    source = make_source(style=RequestStyle(accepts_ignore_eos=True))

    items = take(300, source)

    for item in items:
        counted = BUDGET.tokens_fixed + BUDGET.tokens_per_word * len(text_of(item).split())
        assert item.n_input_tokens == pytest.approx(counted, abs=0.51)
        assert 63 <= item.n_input_tokens <= 513
        assert 16 <= item.fields["max_tokens"] == item.fields["min_tokens"] == item.n_output_tokens <= 128
    inputs, outputs = (
        np.array([getattr(item, name) for item in items]) for name in ("n_input_tokens", "n_output_tokens")
    )
    assert 288 == pytest.approx(inputs.mean(), abs=4 * 130 / 300**0.5)
    assert abs(np.corrcoef(inputs, outputs)[0, 1]) < 4 / 300**0.5  # context and output vary independently


def test_an_engine_that_ends_answers_itself_promises_no_length():
    [item] = take(1, make_source())

    assert item.n_output_tokens is None
    assert "min_tokens" not in item.fields


def test_the_same_seed_asks_the_same_and_another_one_something_else():
    first, again, other = (take(20, make_source(seed=seed)) for seed in (5, 5, 6))

    assert first == again
    assert not {text_of(item) for item in first} & {text_of(item) for item in other}


def test_raw_completions_are_asked_without_a_template():
    [item] = take(1, make_source(style=RequestStyle(is_chat=False)))

    assert "/v1/completions" == item.path
    assert item.fields["prompt"].split()


@given(seed=st.integers(0, 2**32), n_tokens=st.integers(14, 40))
def test_prompts_are_distinct_from_the_first_words_on(seed, n_tokens):
    texts = TextMaker(BUDGET, seed=seed)

    openings = [tuple(texts.make(n_tokens).content.split()[:3]) for _ in range(300)]

    assert 300 == len(set(openings))


def test_prompts_of_one_word_differ_while_there_are_words():
    texts = TextMaker(BUDGET, seed=1)

    assert len(WORDS) == len({texts.make(1).content for _ in WORDS})


def test_a_shared_prefix_is_common_and_the_rest_is_not():
    source = make_source(prefix=SharedPrefix(n_prefixes=3, prefix_tokens=50), seed=2)

    items = take(200, source)

    n_shared = 40  # 50 tokens at 1.25 a word
    prefixes = {tuple(text_of(item).split()[:n_shared]) for item in items}
    own = [tuple(text_of(item).split()[n_shared:][:3]) for item in items]
    assert 3 == len(prefixes)
    assert 200 == len(set(own))
    assert all(63 <= item.n_input_tokens <= 513 for item in items)  # the prefix is part of the length


def test_a_prompt_shorter_than_its_prefix_still_says_something_of_its_own():
    source = make_source(
        lengths=SyntheticLengths(input=FixedLength(tokens=10), output=FixedLength(tokens=1)),
        prefix=SharedPrefix(n_prefixes=1, prefix_tokens=50),
    )

    first, second = take(2, source)

    assert 41 == len(text_of(first).split())
    assert text_of(first) != text_of(second)
    assert first.n_input_tokens == BUDGET.n_tokens(41)


def test_a_trace_gives_its_lengths_in_its_order_and_begins_anew():
    arrivals = [
        Arrival(arrival_s=0.0, input_tokens=100, output_tokens=7),
        Arrival(arrival_s=1.0, input_tokens=0, output_tokens=0),
        Arrival(arrival_s=2.0, input_tokens=40, output_tokens=9),
    ]

    items = take(6, TraceSource(arrivals=arrivals, budget=WordBudget(tokens_fixed=0, tokens_per_word=1), seed=1))

    assert [100, 1, 40] * 2 == [item.n_input_tokens for item in items]
    assert [7, 1, 9] * 2 == [item.fields["max_tokens"] for item in items]
    assert 6 == len({item.id for item in items})
    assert text_of(items[0]) != text_of(items[3])


@pytest.mark.parametrize(
    "make",
    [
        lambda: WordBudget(tokens_fixed=1, tokens_per_word=0),
        lambda: WordBudget(tokens_fixed=float("nan"), tokens_per_word=1),
        lambda: SharedPrefix(n_prefixes=0, prefix_tokens=5),
        lambda: SharedPrefix(n_prefixes=1, prefix_tokens=0),
        lambda: TraceSource(arrivals=[], budget=BUDGET, seed=1),
    ],
)
def test_a_workload_that_cannot_be_is_refused(make):
    with pytest.raises(ValueError, match=r"tokens|arrival"):
        make()
