"""The score cache: it says what the scorer says, remembers what was used last, and knows no text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.prompt import Message, Prompt
from llmtier.score.cache import ScoreCache
from llmtier.score.signals import NO_SIGNALS, Signals
from llmtier.score.text import MAX_CHARS

EMBEDDING = Signals(embedding=np.ones(2, dtype=np.float32))


class Scorer:
    """Gives each (text, domain, rating, embedding) a number of its own."""

    def __init__(self):
        self.asked = []

    def probabilities(self, prompt, signals=NO_SIGNALS):
        seen = (prompt.last_user_text, prompt.domain, signals.rating, signals.embedding is not None)
        self.asked.append(seen)
        return {"a": (hash(seen) % 1000) / 1000}


def prompt(text, domain=None, **more):
    return Prompt(id="p", messages=(Message(role="user", content=text),), domain=domain, **more)


prompts = st.builds(prompt, st.sampled_from(["x", "y", "z", "None", ""]), st.sampled_from([None, "x", "y", "None"]))
signals = st.builds(
    Signals, rating=st.sampled_from([None, 0.0, 7.0]), embedding=st.sampled_from([None, EMBEDDING.embedding])
)


@given(st.lists(st.tuples(prompts, signals), max_size=60), st.integers(0, 5))
def test_it_says_what_the_scorer_says_whatever_came_before(questions, capacity):
    cache, plain = ScoreCache(Scorer(), capacity=capacity), Scorer()

    for question in questions:
        assert plain.probabilities(*question) == cache.probabilities(*question)
        assert len(cache) <= capacity
    assert len(questions) == cache.n_hits + cache.n_misses


def test_what_was_used_least_recently_goes_first():
    scorer = Scorer()
    cache = ScoreCache(scorer, capacity=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        cache.probabilities(prompt(text))

    assert ["a", "b", "c", "b"] == [asked[0] for asked in scorer.asked]
    assert (2, 4, 2) == (cache.n_hits, cache.n_misses, len(cache))


@pytest.mark.parametrize(
    "other",
    [
        prompt("text", "b"),
        prompt("text"),
        prompt("text ", "a"),
        Prompt(id="p", messages=(Message(role="user", content="t"), Message(role="user", content="ext")), domain="a"),
    ],
)
def test_prompts_that_are_scored_differently_are_kept_apart(other):
    cache = ScoreCache(Scorer())
    cache.probabilities(prompt("text", "a"))
    cache.probabilities(other)

    assert 2 == cache.n_misses


def test_long_prompts_that_differ_only_in_length_are_kept_apart():
    """The log length that scorers read is that of the text before the cut."""
    cache = ScoreCache(Scorer())
    for n in (2, 3):
        cache.probabilities(prompt("x" * MAX_CHARS * n))

    assert 2 == cache.n_misses


def test_what_scorers_do_not_read_makes_no_difference():
    cache = ScoreCache(Scorer())
    system = Message(role="system", content="be brief")
    cache.probabilities(prompt("x"))
    cache.probabilities(Prompt(id="q", messages=(system, Message(role="user", content="x")), max_tokens=9))

    assert 1 == cache.n_hits


def test_an_embedding_need_not_be_computed_twice():
    cache = ScoreCache(Scorer())
    cache.probabilities(prompt("x"))
    assert cache.find(prompt("x")) is None

    said = cache.probabilities(prompt("x"), EMBEDDING)
    assert said == cache.find(prompt("x"))
    assert cache.find(prompt("x"), rating=3.0) is None


def test_the_caller_may_change_what_it_got():
    cache = ScoreCache(Scorer())
    first = cache.probabilities(prompt("x"))
    first["a"] = 2.0

    assert 2.0 != cache.probabilities(prompt("x"))["a"]


def test_a_failing_scorer_is_asked_again():
    class Failing:
        def probabilities(self, prompt, signals):
            raise RuntimeError("no")

    cache = ScoreCache(Failing())
    for _ in range(2):
        with pytest.raises(RuntimeError):
            cache.probabilities(prompt("x"))

    assert (0, 2, 0) == (cache.n_hits, cache.n_misses, len(cache))


def test_no_text_is_kept():
    cache = ScoreCache(Scorer(), digest=b"scorer")
    cache.probabilities(prompt("secret words", "a"))

    assert b"secret" not in b"".join(cache._kept)
    assert {16} == {len(key) for key in cache._kept}


def test_the_scorers_digest_is_part_of_every_key():
    one, other = (ScoreCache(Scorer(), digest=digest) for digest in (b"1" * 32, b"2" * 32))
    for cache in (one, other):
        cache.probabilities(prompt("x"))

    assert not set(one._kept) & set(other._kept)


@pytest.mark.parametrize("text", ["\ud800", "größer", ""])
def test_any_text_has_a_key(text):
    cache = ScoreCache(Scorer())
    for domain in (None, "\udfff"):
        assert cache.probabilities(prompt(text, domain)) == cache.probabilities(prompt(text, domain))


def test_a_negative_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity must be >= 0, got -1"):
        ScoreCache(Scorer(), capacity=-1)
