"""The points of a latency model: inside the engine's context, at every concurrency, at shares of the capacity."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.profile.design import LOAD_SHARES, choose_regimes, fit_specs, poisson_specs
from llmtier.profile.shapes import ClosedLoop, PoissonRate


def test_regimes_lie_apart_so_that_length_is_told_from_context():
    regimes = choose_regimes(max_input_tokens=512, max_output_tokens=64, context_tokens=8192)

    short, long, mixed = regimes.short.input, regimes.long.input, regimes.mixed.input
    assert short.high_tokens < long.low_tokens
    assert 512 == long.high_tokens == mixed.high_tokens
    assert short.low_tokens == mixed.low_tokens
    assert 64 == regimes.short.output.high_tokens == regimes.long.output.high_tokens
    assert regimes.short.output.low_tokens < regimes.short.output.high_tokens


@given(st.integers(16, 8192), st.integers(8, 2048), st.one_of(st.none(), st.integers(64, 8192)))
def test_prompt_and_answer_fit_the_context(max_input_tokens, max_output_tokens, context_tokens):
    regimes = choose_regimes(
        max_input_tokens=max_input_tokens, max_output_tokens=max_output_tokens, context_tokens=context_tokens
    )

    for lengths in (regimes.short, regimes.long, regimes.mixed):
        assert lengths.input.low_tokens <= lengths.input.high_tokens <= max_input_tokens
        assert lengths.output.high_tokens <= max_output_tokens
        if context_tokens is not None:
            assert lengths.input.high_tokens + lengths.output.high_tokens <= context_tokens


def test_loops_go_from_one_to_every_concurrency_once():
    specs = fit_specs((8, 2, 8), n_requests=10, seed=3)

    assert [1, 2, 8] == [spec.shape.concurrency for spec in specs]
    assert all(isinstance(spec.shape, ClosedLoop) and spec.seed == 3 for spec in specs)
    assert [1, 2, 8] == [spec.warmup_requests for spec in specs]


def test_every_worker_gets_turns():
    assert [24, 24, 128] == [spec.n_requests for spec in fit_specs((4, 32), n_requests=10, seed=0)]
    assert [100, 100, 128] == [spec.n_requests for spec in fit_specs((4, 32), n_requests=200, seed=0)]


def test_arrivals_stay_below_capacity_with_seeds_of_their_own():
    specs = poisson_specs(10.0, n_requests=50, warmup_requests=5, seed=7)

    assert [PoissonRate(rate_rps=10 * share) for share in LOAD_SHARES] == [spec.shape for spec in specs]
    assert all(share < 1 for share in LOAD_SHARES)
    assert [(50, 5, 7), (50, 5, 8)] == [(spec.n_requests, spec.warmup_requests, spec.seed) for spec in specs]
    assert [55, 55] == [spec.n_sent for spec in specs]


@pytest.mark.parametrize("capacity_rps", [0.003, 1 / 3, 12345.678])
def test_rates_of_any_size_keep_four_digits(capacity_rps):
    for spec, share in zip(
        poisson_specs(capacity_rps, n_requests=1, warmup_requests=0, seed=0), LOAD_SHARES, strict=True
    ):
        assert pytest.approx(share * capacity_rps, rel=1e-3) == spec.shape.rate_rps
