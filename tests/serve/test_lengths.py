"""How long answers were of late: by what was allowed, and never more than that."""

from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.lengths import OutputLengths
from llmtier.serve.recent import FEWEST, WINDOW


def fill(lengths, values, max_tokens=None):
    for value in values:
        lengths.add(value, max_tokens)


def test_nothing_is_known_before_enough_have_come():
    lengths = OutputLengths()
    fill(lengths, [10] * (FEWEST - 1))
    assert lengths.find_long(None) is None

    fill(lengths, [10])
    assert 10 == lengths.find_long(None)


def test_nine_in_ten_keep_to_it():
    lengths = OutputLengths()
    fill(lengths, range(1, 41))

    assert 37 == lengths.find_long(None)  # rank ceil(41 * 0.9)


def test_a_class_of_its_own_wins_over_all_together():
    lengths = OutputLengths()
    fill(lengths, [500] * 20)
    fill(lengths, [12] * 20, max_tokens=16)

    assert 12 == lengths.find_long(16)
    assert 500 == lengths.find_long(None)
    assert 200 == lengths.find_long(200)  # never seen: what all together say, cut


def test_old_lengths_are_forgotten():
    lengths = OutputLengths()
    fill(lengths, [500] * 20)
    fill(lengths, [10] * WINDOW)

    assert 10 == lengths.find_long(None)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.none() | st.integers(0, 10**9))), st.integers(0, 10**9))
def test_no_answer_is_longer_than_it_may_be(answers, max_tokens):
    lengths = OutputLengths()
    for n_tokens, allowed in answers:
        lengths.add(n_tokens, allowed)
    long = lengths.find_long(max_tokens)

    assert long is None or long <= max_tokens
