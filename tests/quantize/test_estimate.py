"""Disk bytes against what the real quantizer wrote, and the laws that memory and time obey."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.tier import Scheme
from llmtier.quantize.awq_mappings import find_coverage
from llmtier.quantize.demand import NO_DATA, Demand, Workload, uniform_workload
from llmtier.quantize.duration import common_parent
from llmtier.quantize.estimate import (
    activation_cache_bytes,
    disk_bytes,
    estimate_scheme,
    hidden_state_bytes,
    memory_bytes,
)
from llmtier.quantize.fusion import quantized_linears
from llmtier.quantize.job import Backend, PlannedScheme
from llmtier.quantize.survey import read_registry

# Data bytes of model.safetensors as llm-compressor 0.14.0.1 wrote them, by Llama and scheme (2026-11-21).
LLAMA_A = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "vocab_size": 4096,
}
LLAMA_C = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 8192,
}
LLAMA_D = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "num_hidden_layers": 8,
}

schemes = st.sampled_from([Scheme.INT8, Scheme.FP8, Scheme.FP8_BLOCK, Scheme.AWQ, Scheme.GPTQ])


def make_demand(model, scheme, *, smoothing=None, group_size=128, backend=Backend.LLMCOMPRESSOR, kv=False):
    ignore = ("lm_head",)
    is_four_bit = scheme in (Scheme.AWQ, Scheme.GPTQ)
    planned = PlannedScheme(
        scheme=scheme,
        preset="x",
        folder=Path("x"),
        needs_data=is_four_bit or smoothing is not None or kv,
        group_size=group_size if is_four_bit else None,
        smoothing_strength=smoothing,
        has_fp8_kv_cache=kv,
        backend=backend,
    )
    coverage = find_coverage(model, read_registry(), ignore=ignore, given=None) if scheme is Scheme.AWQ else None
    linears = quantized_linears(model, ignore)
    return Demand(architecture=model, linears=linears, planned=planned, coverage=coverage)


def disk(demand):
    return disk_bytes(demand.architecture, demand.linears, demand.planned)


def estimate(demand, workload=None, *, gflops=200.0, has_gpu=False, spills=False, max_tokens=512):
    rows = uniform_workload(n_rows=64, n_tokens=256) if workload is None else workload
    return estimate_scheme(demand, rows, gflops=gflops, has_gpu=has_gpu, spills=spills, max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("shape", "scheme", "expected"),
    [
        (LLAMA_A, Scheme.FP8, 7_629_312),
        (LLAMA_A, Scheme.FP8_BLOCK, 7_607_200),
        (LLAMA_C, Scheme.AWQ, 46_911_712),
        (LLAMA_C, Scheme.GPTQ, 46_811_360),
        (LLAMA_C, Scheme.INT8, 59_297_792),
        (LLAMA_D, Scheme.INT8, 155_080_192),
    ],
)
def test_disk_bytes_are_those_of_real_checkpoints(shape, scheme, expected, llama):
    assert expected == disk(make_demand(llama(**shape), scheme))


def test_scales_of_the_kv_cache_are_counted(llama):
    assert 7_629_328 == disk(make_demand(llama(**LLAMA_A), Scheme.INT8, kv=True))


def test_what_stays_keeps_its_bytes(llama):
    model = llama()
    kept = model.n_bytes - 2 * sum(linear.n_weights for linear in model.linears if linear.name != "lm_head")

    assert kept < disk(make_demand(model, Scheme.GPTQ)) < disk(make_demand(model, Scheme.INT8)) < model.n_bytes
    assert disk(make_demand(model, Scheme.FP8)) == disk(make_demand(model, Scheme.INT8))


def test_smaller_groups_take_more_room(llama):
    model = llama()
    sizes = [disk(make_demand(model, Scheme.AWQ, group_size=size)) for size in (128, 64, 32)]

    assert sorted(sizes) == sizes
    assert len(set(sizes)) == 3


def test_hidden_states_of_10000_long_rows_are_168_gigabytes():
    assert 168e9 == pytest.approx(hidden_state_bytes(10_000 * 2_048, 4_096), rel=0.01)


def test_activation_cache_counts_the_square_masks(llama):
    model = llama()
    rows = uniform_workload(n_rows=10, n_tokens=1_000)
    hidden = hidden_state_bytes(10_000, 128)

    assert hidden + 10 * 1_000**2 * 2 < activation_cache_bytes(model, rows) < 2 * hidden + 10 * 1_000**2 * 2


@given(scheme=schemes, n_rows=st.integers(0, 2_000), n_tokens=st.integers(1, 4_096), more=st.integers(0, 500))
def test_more_data_never_needs_less(scheme, n_rows, n_tokens, more, llama):
    demand = make_demand(llama(), scheme)
    few, many = (uniform_workload(n_rows=rows, n_tokens=n_tokens) for rows in (n_rows, n_rows + more))
    before, after = estimate(demand, few), estimate(demand, many)

    assert before.memory_bytes <= after.memory_bytes
    assert before.activation_cache_bytes <= after.activation_cache_bytes
    assert before.seconds_low <= after.seconds_low <= after.seconds_high
    assert before.disk_bytes == after.disk_bytes


@given(n_rows=st.integers(1, 10_000), n_tokens=st.integers(1, 2_048))
def test_spilling_moves_the_cache_from_memory_to_disk(n_rows, n_tokens, llama):
    demand, rows = make_demand(llama(), Scheme.GPTQ), uniform_workload(n_rows=n_rows, n_tokens=n_tokens)
    kept, spilled = estimate(demand, rows), estimate(demand, rows, spills=True)

    assert kept.memory_bytes - spilled.memory_bytes == kept.activation_cache_bytes
    assert spilled.work_bytes - kept.work_bytes == kept.activation_cache_bytes


def test_schemes_without_data_do_not_depend_on_it(llama):
    demand = make_demand(llama(), Scheme.FP8)

    assert memory_bytes(demand, NO_DATA) == memory_bytes(demand, uniform_workload(n_rows=999, n_tokens=999))
    assert 0 == estimate(demand, NO_DATA).work_bytes


def test_awq_takes_longest_and_a_faster_machine_is_faster(llama):
    model = llama(**LLAMA_C)
    slow, fast = (estimate(make_demand(model, Scheme.AWQ), gflops=speed) for speed in (100, 400))
    gptq = estimate(make_demand(model, Scheme.GPTQ), gflops=100)

    assert gptq.seconds_high < slow.seconds_high
    assert fast.seconds_high < slow.seconds_high


@pytest.mark.parametrize(
    ("shape", "scheme", "smoothing", "measured_s"),
    [
        (LLAMA_C, Scheme.GPTQ, None, 23.7),
        (LLAMA_C, Scheme.AWQ, None, 147.1),
        (LLAMA_C, Scheme.INT8, 0.8, 31.1),
        (LLAMA_D, Scheme.GPTQ, None, 49.9),
        (LLAMA_D, Scheme.AWQ, None, 378.5),
    ],
)
def test_interval_holds_what_was_measured(shape, scheme, smoothing, measured_s, llama):
    rows = uniform_workload(n_rows=32, n_tokens=512)
    found = estimate(make_demand(llama(**shape), scheme, smoothing=smoothing), rows, gflops=203)

    assert found.seconds_low < measured_s < found.seconds_high


@pytest.mark.parametrize(
    ("scheme", "options", "fields", "reason"),
    [
        (Scheme.GPTQ, {}, {"has_gpu": True}, "GPU"),
        (Scheme.GPTQ, {}, {"gflops": None}, "speed was not measured"),
        (Scheme.AWQ, {"backend": Backend.AUTOAWQ}, {}, "AutoAWQ"),
    ],
)
def test_time_that_was_never_measured_is_unknown(scheme, options, fields, reason, llama):
    found = estimate(make_demand(llama(), scheme, **options), **fields)

    assert (None, None) == (found.seconds_low, found.seconds_high)
    assert reason in found.unknown_time


def test_time_of_experts_and_of_mappings_built_later_is_unknown(llama):
    assert "mixture" in estimate(make_demand(llama(num_experts=4), Scheme.GPTQ)).unknown_time
    assert "run time" in estimate(make_demand(llama(name="Qwen3NextForCausalLM"), Scheme.AWQ)).unknown_time


def test_rounding_has_a_time_on_any_machine(llama):
    assert estimate(make_demand(llama(), Scheme.INT8), gflops=None, has_gpu=True).seconds_high is not None


@pytest.mark.parametrize(
    ("scheme", "options", "n_stages", "can_spill"),
    [
        (Scheme.INT8, {}, 0, False),
        (Scheme.INT8, {"smoothing": 0.8}, 2, True),
        (Scheme.FP8, {"kv": True}, 1, True),
        (Scheme.GPTQ, {}, 1, True),
        (Scheme.AWQ, {}, 1, False),
        (Scheme.AWQ, {"kv": True}, 2, False),
    ],
)
def test_stages_and_spilling(scheme, options, n_stages, can_spill, llama):
    demand = make_demand(llama(), scheme, **options)

    assert (n_stages, can_spill) == (demand.n_stages, demand.can_spill)


def test_workload_keeps_its_lengths_when_rows_go():
    rows = Workload(n_rows=10, mean_tokens=2.5, mean_square_tokens=9.0).with_rows(4)

    assert (4, 10, 9.0) == (rows.n_rows, rows.n_tokens, rows.mean_square_tokens)


def test_parent_of_layers():
    assert "a.b" == common_parent(("a.b.q", "a.b.k"))
    assert "a" == common_parent(("a.b.q", "a.bc.k"))
    assert "a.b.q" == common_parent(("a.b.q",))
