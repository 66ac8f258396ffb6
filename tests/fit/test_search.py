"""The search obeys its limit, and its arrays route as ``decide`` does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llmtier.core.decision import Fallback
from llmtier.fit.judge import Rule
from llmtier.fit.prices import price_profiles
from llmtier.fit.search import FitTable, choose_columns, find_cheapest, gap_grid, walk_gaps

unit = st.floats(0, 1)


@st.composite
def tables(draw, min_tiers=1):
    n_rows, n_tiers = draw(st.integers(1, 30)), draw(st.integers(min_tiers, 4))
    names = "abcd"[:n_tiers]
    usd = sorted(draw(st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=n_tiers, max_size=n_tiers)))
    cells = arrays(np.float64, (n_rows, n_tiers), elements=unit)
    reference, scores = draw(st.sampled_from(names)), np.round(draw(cells))
    return FitTable(
        tiers=tuple(names),
        usd=np.tile(usd, (n_rows, 1)),
        probabilities=draw(cells),
        scores=scores,
        reference=reference,
        baseline=scores[:, names.index(reference)],
        weights=draw(arrays(np.float64, n_rows, elements=st.sampled_from([1.0, 2.5]))),
    )


def sets_of(table):
    return [(table.reference,), table.tiers]


@settings(deadline=None, max_examples=50)
@given(tables(), unit)
def test_arrays_route_every_row_as_decide_does(make_profile, table, gap):
    profiles = {tier: make_profile(tier, usd) for tier, usd in zip(table.tiers, table.usd[0].tolist(), strict=True)}
    prices = price_profiles(table.tiers, profiles)
    rule = Rule(prices=prices, reference=table.reference, gap=gap, fallback=Fallback.MOST_ACCURATE)
    columns = choose_columns(table.probabilities, table.tiers.index(table.reference), gap)
    rows = [dict(zip(table.tiers, row, strict=True)) for row in table.probabilities.tolist()]

    assert [rule.choose(row) for row in rows] == [table.tiers[column] for column in columns]


@settings(deadline=None, max_examples=50)
@given(tables(), unit, unit)
def test_relaxing_the_loss_never_raises_cost(table, a, b):
    strict, relaxed = (
        find_cheapest(table, sets_of(table), max_loss=limit, confidence=0.95) for limit in sorted((a, b))
    )

    assert relaxed.usd_per_request <= strict.usd_per_request


@settings(deadline=None, max_examples=50)
@given(tables(), unit)
def test_the_choice_keeps_the_limit_and_costs_no_more_than_the_reference(table, limit):
    found = find_cheapest(table, sets_of(table), max_loss=limit, confidence=0.95)

    assert found.loss_bound <= limit
    assert found.usd_per_request <= table.usd[0, table.tiers.index(table.reference)]
    assert table.reference in found.tiers
    assert found.tiers == (table.reference,) or found.usd_per_request < table.usd.max()


@settings(deadline=None, max_examples=50)
@given(tables(min_tiers=2))
def test_a_wider_gap_never_costs_more(table):
    walked = list(walk_gaps(table, confidence=0.95))
    costs = [candidate.usd_per_request for candidate in walked]

    assert sorted(costs, reverse=True) == pytest.approx(costs)
    assert [candidate.gap for candidate in walked] == sorted({candidate.gap for candidate in walked})


@settings(deadline=None, max_examples=50)
@given(tables())
def test_gaps_lie_in_range_and_reach_the_widest_difference(table):
    column = table.tiers.index(table.reference)
    gaps = gap_grid(table.probabilities, column)
    widest = (table.probabilities[:, [column]] - table.probabilities).max()

    assert 0.0 == gaps[0]
    assert widest <= gaps[-1] <= 1.0


def test_no_loss_in_few_rows_certifies_nothing():
    """Twenty rows without a loss say little about one loss in a hundred."""
    table = FitTable(
        tiers=("cheap", "dear"), usd=np.tile([1.0, 10.0], (20, 1)), probabilities=np.full((20, 2), 0.9),
        scores=np.ones((20, 2)), reference="dear", baseline=np.ones(20), weights=np.ones(20),
    )  # fmt: skip
    found = find_cheapest(table, sets_of(table), max_loss=0.01, confidence=0.95)

    assert (("dear",), 0.0, 10.0) == (found.tiers, found.gap, found.usd_per_request)
