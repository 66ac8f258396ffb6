import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.quantize.calibration.select import choose, hold_out, strata, strata_of

N_DOMAINS = 3


@st.composite
def documents(draw):
    """Tokens, domains and distinct keys."""
    rows = draw(
        st.lists(st.tuples(st.integers(1, 40) | st.integers(1, 10_000), st.integers(0, N_DOMAINS - 1)), max_size=80)
    )
    keys = draw(
        st.lists(st.integers(0, 2**64 - 1), min_size=len(rows), max_size=len(rows), unique=True)
        if draw(st.booleans())
        else st.just(list(range(len(rows))))
    )
    tokens, domains = zip(*rows, strict=True) if rows else ((), ())
    return np.array(tokens, dtype=np.int64), np.array(domains, dtype=np.int64), np.array(keys, dtype=np.uint64)


SEEDS = st.integers(0, 2**32)
SHARES = st.lists(st.floats(0.1, 1), min_size=N_DOMAINS, max_size=N_DOMAINS).map(
    lambda values: [value / sum(values) for value in values]
)


@given(st.lists(st.integers(0, 20)), st.integers(1, 6))
def test_strata_are_ordered_dense_and_share_ties(lengths, n_strata):
    tokens = np.array(lengths, dtype=np.int64)
    labels = strata_of(tokens, n_strata=n_strata)

    assert labels.shape == tokens.shape
    assert list(range(len(set(labels.tolist())))) == sorted(set(labels.tolist()))
    assert len(set(labels.tolist())) <= n_strata
    order = np.argsort(tokens)
    assert (np.diff(labels[order]) >= 0).all()
    assert all(1 == len(set(labels[tokens == value].tolist())) for value in set(lengths))


@given(st.lists(st.integers(0, 10**9), unique=True, min_size=1), st.integers(1, 6))
def test_strata_of_distinct_lengths_are_even(lengths, n_strata):
    sizes = np.bincount(strata_of(np.array(lengths), n_strata=n_strata))

    assert sizes.max() - sizes.min() <= 1 or len(lengths) < n_strata


def test_strata_of_equal_lengths_are_one():
    assert [0, 0, 0] == strata_of(np.array([7, 7, 7])).tolist()
    with pytest.raises(ValueError, match="n_strata"):
        strata_of(np.array([7]), n_strata=0)


@given(documents(), st.floats(0, 1, exclude_max=True), SEEDS)
def test_held_share_of_every_stratum_is_exact_to_one_document(rows, share, seed):
    tokens, domains, keys = rows
    is_held = hold_out(tokens, domains, keys, share=share, seed=seed)

    assert abs(is_held.sum() - share * len(tokens)) <= 0.5 + 1e-6
    for members in strata(tokens, domains):
        assert abs(is_held[members].sum() - share * len(members)) < 1 + 1e-6


@given(documents(), SEEDS)
def test_share_of_zero_holds_nothing_out(rows, seed):
    assert not hold_out(*rows, share=0.0, seed=seed).any()


@given(documents(), st.floats(0, 0.9), SEEDS, st.randoms(use_true_random=False))
def test_hold_out_does_not_depend_on_order(rows, share, seed, random):
    order = np.array(random.sample(range(len(rows[0])), len(rows[0])), dtype=np.int64)

    held = hold_out(*rows, share=share, seed=seed)
    again = hold_out(*(column[order] for column in rows), share=share, seed=seed)

    assert held[order].tolist() == again.tolist()


@given(documents(), st.integers(0, 50_000), SHARES, SEEDS)
def test_choose_meets_each_budget_or_gives_all(rows, budget, shares, seed):
    tokens, domains, keys = rows
    chosen = choose(tokens, domains, keys, budget_tokens=budget, shares=shares, seed=seed)

    assert sorted(set(chosen.tolist())) == chosen.tolist()
    for domain, share in enumerate(shares):
        given_tokens = tokens[chosen[domains[chosen] == domain]]
        if given_tokens.sum() < share * budget:
            assert len(given_tokens) == (domains == domain).sum()
        elif len(given_tokens):
            assert given_tokens.sum() - given_tokens.max() < share * budget


@given(documents(), st.integers(0, 50_000), SHARES, SEEDS, st.randoms(use_true_random=False))
def test_choose_does_not_depend_on_order(rows, budget, shares, seed, random):
    order = np.array(random.sample(range(len(rows[0])), len(rows[0])), dtype=np.int64)

    chosen = choose(*rows, budget_tokens=budget, shares=shares, seed=seed)
    again = choose(*(column[order] for column in rows), budget_tokens=budget, shares=shares, seed=seed)

    assert set(rows[2][chosen].tolist()) == set(rows[2][order][again].tolist())


@given(documents(), st.integers(0, 20_000), st.integers(0, 20_000), SHARES, SEEDS)
def test_larger_budget_keeps_what_a_smaller_one_chose(rows, budget, more, shares, seed):
    small = choose(*rows, budget_tokens=budget, shares=shares, seed=seed)
    large = choose(*rows, budget_tokens=budget + more, shares=shares, seed=seed)

    assert set(small.tolist()) <= set(large.tolist())


def many(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    tokens = np.exp(rng.normal(5, 1, n)).astype(np.int64) + 1
    return tokens, rng.integers(0, 2, n), rng.permutation(n).astype(np.uint64)


@pytest.mark.parametrize("seed", range(5))
def test_chosen_lengths_are_in_proportion(seed):
    tokens, domains, keys = many()
    chosen = choose(tokens, domains, keys, budget_tokens=100_000, shares=[0.75, 0.25], seed=seed)

    for domain in (0, 1):
        labels = strata_of(tokens[domains == domain])
        is_chosen = np.isin(np.flatnonzero(domains == domain), chosen)
        sizes = np.bincount(labels[is_chosen])
        assert sizes.max() - sizes.min() <= 2


def test_seeds_draw_differently_and_held_out_is_no_hint_of_chosen():
    tokens, domains, keys = many()
    held = [hold_out(tokens, domains, keys, share=0.5, seed=seed) for seed in (0, 1)]
    chosen = np.zeros(len(tokens), dtype=bool)
    chosen[choose(tokens, domains, keys, budget_tokens=int(tokens.sum() / 2), shares=[0.5, 0.5], seed=0)] = True

    # Independent draws of half of 4,000 agree on 2,000 give or take 32: five of those are allowed.
    assert abs((held[0] == held[1]).sum() - 2000) < 160
    assert abs((held[0] == chosen).sum() - 2000) < 160


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.0}, "share"),
        ({"share": float("nan")}, "share"),
        ({"tokens": np.array([-1, 2])}, "tokens"),
        ({"keys": np.zeros(3, dtype=np.uint64)}, "shape"),
    ],
)
def test_hold_out_refuses_what_it_cannot_mean(change, message):
    good = {"tokens": np.array([1, 2]), "domains": np.array([0, 0]), "keys": np.arange(2, dtype=np.uint64)}
    asked = {**good, "share": 0.5, **change}

    with pytest.raises(ValueError, match=message):
        hold_out(asked.pop("tokens"), asked.pop("domains"), asked.pop("keys"), seed=0, **asked)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"budget_tokens": -1}, "budget"), ({"shares": [0.5]}, "no share"), ({"shares": [1.5, 0.1]}, "shares")],
)
def test_choose_refuses_what_it_cannot_mean(change, message):
    tokens, domains, keys = many(20)

    with pytest.raises(ValueError, match=message):
        choose(tokens, domains, keys, **{"budget_tokens": 10, "shares": [0.5, 0.5], "seed": 0, **change})
