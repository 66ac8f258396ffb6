"""What a job refuses by itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme
from llmtier.quantize.job import PRESETS, QuantizeJob

JOB = QuantizeJob(
    model=Path("models/tiny"), schemes=(Scheme.AWQ,), out=Path("out"), calibration=Path("support.jsonl"), seed=1
)


def test_every_quantizable_scheme_has_a_preset():
    assert set(QUANTIZABLE_SCHEMES) == set(PRESETS)


@pytest.mark.parametrize("schemes", [(), (Scheme.AWQ, Scheme.AWQ)])
def test_job_refuses_no_scheme_and_a_scheme_twice(schemes):
    with pytest.raises(ValueError, match="schemes"):
        replace(JOB, schemes=schemes)


@pytest.mark.parametrize("fields", [{"n_samples": 0}, {"max_seq_tokens": 0}])
def test_job_refuses_no_data(fields):
    with pytest.raises(ValueError, match="n_samples and max_seq_tokens"):
        replace(JOB, **fields)


@pytest.mark.parametrize("strength", [0, -0.5, 1.5, float("nan")])
def test_job_refuses_smoothing_outside_its_range(strength):
    with pytest.raises(ValueError, match="smoothing_strength must lie in"):
        replace(JOB, smoothing_strength=strength)
