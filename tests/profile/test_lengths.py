"""Lengths follow their law and survive being written down."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.profile.lengths import (
    FixedLength,
    LognormalLength,
    UniformLength,
    parse_length,
)

TOKENS = st.integers(1, 100_000)
LENGTHS = st.one_of(
    st.builds(FixedLength, tokens=TOKENS),
    st.tuples(TOKENS, TOKENS).map(lambda pair: UniformLength(low_tokens=min(pair), high_tokens=max(pair))),
    st.builds(LognormalLength, median_tokens=st.floats(1, 1e5), sigma=st.floats(0, 10)),
    st.builds(
        LognormalLength, median_tokens=st.floats(1, 100), sigma=st.floats(0, 10), longest_tokens=st.integers(100, 9999)
    ),
)


@given(length=LENGTHS, seed=st.integers(0, 2**32))
def test_a_length_lies_in_its_range_and_its_label_reads_back(length, seed):
    drawn = length.draw(np.random.default_rng(seed))

    assert 1 <= drawn <= length.longest_tokens
    assert drawn == length.draw(np.random.default_rng(seed))
    assert length == parse_length(length.label)


def test_a_uniform_length_takes_both_ends_and_is_even():
    rng = np.random.default_rng(3)
    drawn = [UniformLength(low_tokens=5, high_tokens=8).draw(rng) for _ in range(4000)]

    counts = [drawn.count(length) for length in (5, 6, 7, 8)]
    assert 4000 == sum(counts)
    assert all(abs(count - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75) for count in counts)


def test_a_lognormal_length_has_its_median_and_its_spread():
    rng = np.random.default_rng(3)
    drawn = np.log([LognormalLength(median_tokens=2000, sigma=0.6).draw(rng) for _ in range(4000)])

    assert math.log(2000) == pytest.approx(np.median(drawn), abs=4 * 1.25 * 0.6 / math.sqrt(4000))
    assert 0.6 == pytest.approx(drawn.std(), rel=0.05)


def test_longer_ones_are_cut():
    rng = np.random.default_rng(3)
    drawn = [LognormalLength(median_tokens=100, sigma=1, longest_tokens=100).draw(rng) for _ in range(50)]

    assert 100 == max(drawn)
    assert 10 < drawn.count(100) < 40


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("128", FixedLength(tokens=128)),
        (" 64 - 512 ", UniformLength(low_tokens=64, high_tokens=512)),
        ("lognormal:200,0.6", LognormalLength(median_tokens=200, sigma=0.6)),
        ("LogNormal: 200, .6, 4096", LognormalLength(median_tokens=200, sigma=0.6, longest_tokens=4096)),
    ],
)
def test_lengths_are_read_as_people_type_them(text, length):
    assert length == parse_length(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 128, 64-512 or lognormal"),
        ("-5", "expected 128"),
        ("1.5", "expected 128"),
        ("0", "from 1 to 10000000 tokens, got 0"),
        ("99999999999", "from 1 to"),
        ("512-64", "must rise"),
        ("0-5", "from 1 to"),
        ("lognormal:200", "expected 128"),
        ("lognormal:0.5,1", "median length"),
        ("lognormal:200,1,100", "median length lies from 1 to 100"),
        ("lognormal:200,11", "sigma"),
    ],
)
def test_a_length_that_is_none_is_quoted_and_explained(text, message):
    with pytest.raises(ValueError, match="length") as caught:
        parse_length(text)

    assert repr(text) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_lognormal_parameters_must_be_finite(bad):
    with pytest.raises(ValueError, match="lies from"):
        LognormalLength(median_tokens=bad, sigma=1)
    with pytest.raises(ValueError, match="lies from"):
        LognormalLength(median_tokens=10, sigma=bad)
