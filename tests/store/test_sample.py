"""The bounded sample: as large as asked for, the same in any order, nested, and no name favoured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import UsageError
from llmtier.store.sample import Sample

NAMES = st.lists(st.text(max_size=4), unique=True, max_size=30)


def draw(names, *, max_rows, seed=0):
    sample = Sample(max_rows=max_rows, seed=seed)
    for name in names:
        if sample.get(name) is None:
            sample.offer(name, name.upper(), digest=sample.digest(name))
    return sample


@given(NAMES, st.randoms(use_true_random=False), st.integers(1, 20))
def test_sample_is_bounded_and_does_not_depend_on_order(names, random, max_rows):
    shuffled = random.sample(names, len(names))

    assert set(draw(names, max_rows=max_rows)) == set(draw(shuffled, max_rows=max_rows))
    assert min(len(names), max_rows) == len(draw(names, max_rows=max_rows))


@given(NAMES, st.integers(1, 10), st.integers(0, 10))
def test_smaller_sample_is_part_of_a_larger_one(names, max_rows, more):
    assert set(draw(names, max_rows=max_rows)) <= set(draw(names, max_rows=max_rows + more))


@given(NAMES, st.integers(1, 10))
def test_equal_digests_are_told_apart_by_name(names, max_rows):
    samples = [Sample(max_rows=max_rows, seed=0) for _ in range(2)]
    for sample, order in zip(samples, (names, names[::-1]), strict=True):
        for name in order:
            sample.offer(name, name, digest=7)

    assert set(samples[0]) == set(samples[1])


@given(NAMES)
def test_sample_without_a_bound_holds_all_in_their_order(names):
    assert [name.upper() for name in names] == list(draw(names, max_rows=None).values())


def test_each_name_is_as_likely_as_any_other():
    names = [f"prompt-{number}" for number in range(20)]
    counts = dict.fromkeys(names, 0)
    for seed in range(1000):
        for name in draw(names, max_rows=5, seed=seed):
            counts[name] += 1

    # 250 expected, standard deviation 13.7: five of them either way
    assert all(182 <= count <= 318 for count in counts.values())


def test_bound_below_one_is_refused():
    with pytest.raises(UsageError, match="must be >= 1, got 0"):
        Sample(max_rows=0, seed=0)
