"""Numbers of several processes: adding up, sending, and outliving who counted them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.tally import Tally, TallyBook, decode_tally, encode_tally

BOUNDS = (0.1, 1.0, 10.0)
KEYS = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["x", "y"]))
EVENTS = st.lists(st.tuples(KEYS, st.floats(0, 20)), max_size=20)


def count(events):
    tally = Tally()
    for key, value in events:
        tally.add(key, value)
        tally.observe(key, value, BOUNDS)
    return tally


def close_to(expected, found):
    assert expected.counts == pytest.approx(found.counts)
    assert expected.histograms.keys() == found.histograms.keys()
    for key, histogram in expected.histograms.items():
        assert histogram.counts == found.histograms[key].counts
        assert histogram.total == pytest.approx(found.histograms[key].total)


@given(EVENTS, EVENTS)
def test_two_processes_count_together_what_one_would_have(one, other):
    book = TallyBook()
    book.put("1", count(one))
    book.put("2", count(other))

    close_to(count([*one, *other]), book.total())


@given(EVENTS, EVENTS)
def test_the_latest_word_of_a_process_replaces_what_it_said_before(early, late):
    book = TallyBook()
    book.put("1", count(early))
    book.put("1", count([*early, *late]))

    close_to(count([*early, *late]), book.total())


@given(EVENTS, EVENTS)
def test_counts_of_a_process_that_ended_stay_and_its_successor_begins_at_0(dead, successor):
    book = TallyBook()
    book.put("1", count(dead))
    book.retire("1")
    book.retire("1")
    book.put("1", count(successor))

    close_to(count([*dead, *successor]), book.total())


@given(EVENTS)
def test_sending_is_identity(events):
    tally = count(events)
    tally.gauges[("g", "x")] = 0.5

    assert tally == decode_tally(encode_tally(tally))


def test_gauges_are_added_or_combined_and_end_with_their_process():
    book = TallyBook({"healthy": min})
    book.put("1", Tally(gauges={("healthy", "t"): 1.0, ("inflight", "t"): 2.0}))
    book.put("2", Tally(gauges={("healthy", "t"): 0.0, ("inflight", "t"): 3.0}))
    both = book.total().gauges
    book.retire("2")

    assert {("healthy", "t"): 0.0, ("inflight", "t"): 5.0} == both
    assert {("healthy", "t"): 1.0, ("inflight", "t"): 2.0} == book.total().gauges


@given(st.lists(st.floats(0, 20), min_size=1))
def test_every_value_lies_in_the_bucket_of_the_first_bound_it_does_not_exceed(values):
    tally = Tally()
    for value in values:
        tally.observe(("h",), value, BOUNDS)
    edges = [float("-inf"), *BOUNDS, float("inf")]
    expected = [sum(low < value <= high for value in values) for low, high in pairwise(edges)]

    assert expected == tally.histograms[("h",)].counts


def test_a_sum_shares_nothing_with_its_parts():
    part = count([(("a", "x"), 1.0)])
    total = Tally()
    total.merge(part)
    total.merge(part)

    assert count([(("a", "x"), 1.0)]) == part


def test_histograms_of_other_buckets_do_not_mix():
    tally, other = count([(("a", "x"), 1.0)]), Tally()
    other.observe(("a", "x"), 1.0, (1.0,))
    with pytest.raises(ValueError, match="4 buckets here, 2 there"):
        tally.merge(other)


def test_what_is_no_tally_is_refused():
    with pytest.raises(ValueError, match="Expected"):
        decode_tally(b"\x01")
