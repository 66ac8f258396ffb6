"""The equations of the step fit, counted by hand and against the simulator's own steps."""

import numpy as np
import pytest

from llmtier.profile.step_rows import STEP_COLUMNS, busy_times, step_rows
from tests.profile.simulated_load import MIXED, TRUTH, chunked, closed, make_sample, poisson

COEFFICIENTS = (
    TRUTH.alpha_s, TRUTH.beta_s_per_token, 0.0, TRUTH.sequence_s, TRUTH.gamma_s_per_kv_token,
)  # fmt: skip


def test_a_lone_request_counts_its_own_steps_and_context():
    rows = step_rows([make_sample(0.0, [1.0, 2.0, 3.0, 4.0], n_input=100)], {})

    # Tokens 2, 3 and 4: one sequence each, holding 101, 102 and 103 tokens when made.
    assert [[3.0, 0.0, 0.0, 3.0, 306.0]] == rows.design.tolist()
    assert [3.0] == rows.target_s.tolist()


def test_another_prefill_inside_the_interval_counts_with_its_attention():
    samples = [make_sample(0.0, [1.0, 2.0, 3.0, 4.0], n_input=100), make_sample(1.5, [3.0], n_input=20)]

    rows = step_rows(samples, {})

    assert [[3.0, 20.0, 200.0, 4.0, 306.0 + 20.0]] == rows.design.tolist()


def test_a_first_token_at_the_very_start_belongs_to_the_step_before():
    """Both came out of one step, which ended when the interval began."""
    samples = [make_sample(0.0, [1.0, 2.0, 3.0, 4.0], n_input=100), make_sample(0.2, [1.0], n_input=20)]

    assert [[3.0, 0.0, 0.0, 3.0, 306.0]] == step_rows(samples, {}).design.tolist()


def test_short_failed_and_single_chunk_answers_make_no_row_but_load_the_engine():
    samples = [
        make_sample(0.0, [1.0, 2.0, 3.0, 4.0, 5.0], n_input=10),
        make_sample(0.0, [1.6, 2.6], n_input=10),
        make_sample(0.0, [2.0, 3.0, 4.0, 5.0], n_input=10, status="cut"),
        make_sample(0.0, [2.0], n_input=10, n_output=5),
    ]

    rows = step_rows(samples, {})

    assert 1 == len(rows.target_s)
    assert 4 + 2 + 4 + 5 == rows.design[0, STEP_COLUMNS.index("sequence_s")]


def test_no_answer_gives_no_row_but_the_right_columns():
    assert (0, 7) == step_rows([], {"a": busy_times([]), "b": busy_times([])}).design.shape


@pytest.mark.parametrize("samples", [closed(TRUTH, 6, MIXED, n=60, seed=1), poisson(TRUTH, 4.0, n=80, seed=2)])
def test_without_noise_the_true_coefficients_solve_every_row(samples):
    """Nothing of a simulated engine's time is left over: every step is counted, none twice."""
    rows = step_rows(samples, {})

    assert len(rows.target_s) > 50
    np.testing.assert_allclose(rows.design @ COEFFICIENTS, rows.target_s, rtol=1e-6)


def test_chunks_of_several_tokens_are_as_many_steps():
    """A lone request of whole chunks: its steps are its tokens, only where the first chunk ends is not seen."""
    [whole] = closed(TRUTH, 1, MIXED, n=1, seed=1, n_output=(40, 41))
    design = step_rows([chunked(whole, 4)], {}).design

    assert [36.0, 36.0] == design.sum(axis=0)[[0, 3]].tolist()


def test_co_tenants_are_columns_of_their_busy_seconds():
    tenants = {"a": busy_times([(0.0, 1.5), (3.0, 9.0)]), "b": busy_times([])}

    rows = step_rows([make_sample(0.0, [1.0, 2.0, 3.0, 4.0])], tenants)

    assert [1.5, 0.0] == rows.design[0, len(STEP_COLUMNS) :].tolist()


def test_busy_times_joins_what_overlaps_and_keeps_gaps():
    busy = busy_times([(5.0, 6.0), (0.0, 2.0), (1.0, 1.5), (2.0, 3.0)])

    assert ([0.0, 5.0], [3.0, 6.0]) == (busy.starts_s.tolist(), busy.ends_s.tolist())
    assert 4.0 == busy.total_s
    assert (1.5, 0.0) == (busy.between(2.5, 6.5), busy.between(3.0, 5.0))
