"""The checks that need no more than a job and a model's configuration."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import UsageError
from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme
from llmtier.quantize.job import GROUP_SIZES, PRESETS, QuantizeJob, linear_in_features, plan

JOB = QuantizeJob(
    model=Path("models/tiny"), schemes=(Scheme.AWQ,), out=Path("out"), calibration=Path("support.jsonl"), seed=1
)


def test_plan_names_target_preset_and_group_of_each_scheme(model_config):
    job = replace(JOB, schemes=(Scheme.INT8, Scheme.GPTQ, Scheme.AWQ, Scheme.FP8))

    planned = plan(job, model_config).schemes

    assert [Path(f"out/tiny@{name}") for name in ("int8", "gptq", "awq", "fp8")] == [part.target for part in planned]
    assert ["W8A8", "W4A16", "W4A16_ASYM", "FP8_DYNAMIC"] == [part.preset for part in planned]
    assert [None, 128, 128, None] == [part.group_size for part in planned]
    assert [False, True, True, False] == [part.needs_data for part in planned]


def test_every_quantizable_scheme_has_a_preset():
    assert set(QUANTIZABLE_SCHEMES) == set(PRESETS)


def test_plan_refuses_scheme_it_cannot_write_and_lists_those_it_can(model_config):
    with pytest.raises(UsageError, match=r"nvfp4.*choose one of int8, awq, gptq, fp8"):
        plan(replace(JOB, schemes=(Scheme.NVFP4,)), model_config)


@pytest.mark.parametrize("scheme", [Scheme.AWQ, Scheme.GPTQ])
def test_plan_demands_calibration_where_the_scheme_needs_data(scheme, model_config):
    with pytest.raises(UsageError, match=f"{scheme.value} needs data.*--calibration FILE.jsonl"):
        plan(replace(JOB, schemes=(scheme,), calibration=None), model_config)


@pytest.mark.parametrize("scheme", [Scheme.INT8, Scheme.FP8])
def test_plan_says_that_data_free_schemes_ignore_the_calibration_set(scheme, model_config):
    quantize_plan = plan(replace(JOB, schemes=(scheme,)), model_config)

    assert not quantize_plan.needs_data
    assert [f"{scheme.value}: weights are rounded without data; the calibration set changes nothing"] == list(
        quantize_plan.notes
    )


def test_plan_is_silent_without_surprises(model_config):
    assert () == plan(JOB, model_config).notes
    assert () == plan(replace(JOB, schemes=(Scheme.INT8,), calibration=None), model_config).notes


def test_plan_refuses_quantized_source(model_config):
    with pytest.raises(UsageError, match="already quantized \\(awq\\)"):
        plan(JOB, {**model_config, "quantization_config": {"quant_method": "awq"}})


@pytest.mark.parametrize(("inner", "expected"), [(384, 128), (320, 64), (352, 32)])
def test_plan_takes_the_largest_group_that_divides_and_says_so(inner, expected, model_config):
    quantize_plan = plan(JOB, {**model_config, "intermediate_size": inner})

    assert expected == quantize_plan.schemes[0].group_size
    assert (expected != 128) == any(f"group size {expected}" in note for note in quantize_plan.notes)


def test_plan_counts_the_heads_together_as_an_input_width(model_config):
    assert (64, 128, 384) == linear_in_features({**model_config, "num_attention_heads": 2})


def test_plan_refuses_layers_that_no_group_divides_and_names_a_way_out(model_config):
    with pytest.raises(UsageError, match=r"128, 344 inputs.*128 or 64 or 32; use int8 or fp8"):
        plan(JOB, {**model_config, "intermediate_size": 344})


def test_plan_does_not_reduce_a_group_size_that_was_asked_for(model_config):
    with pytest.raises(UsageError, match="groups of 128"):
        plan(replace(JOB, group_size=128), {**model_config, "intermediate_size": 320})


def test_plan_refuses_group_size_that_no_kernel_takes(model_config):
    with pytest.raises(UsageError, match="group size 16: must be one of 128, 64, 32"):
        plan(replace(JOB, group_size=16), model_config)


def test_job_refuses_no_scheme_and_a_scheme_twice():
    for schemes in ((), (Scheme.AWQ, Scheme.AWQ)):
        with pytest.raises(ValueError, match="schemes"):
            replace(JOB, schemes=schemes)


@given(inner=st.integers(1, 4096), hidden=st.integers(1, 4096))
def test_chosen_group_divides_every_layer_and_no_larger_one_does(inner, hidden):
    config = {"hidden_size": hidden, "intermediate_size": inner}
    try:
        size = plan(JOB, config).schemes[0].group_size
    except UsageError:
        size = None

    fitting = [group for group in GROUP_SIZES if hidden % group == 0 and inner % group == 0]
    assert (max(fitting) if fitting else None) == size
