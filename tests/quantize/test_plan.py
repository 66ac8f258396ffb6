"""The plan: what is refused, what is only noted, and what the numbers say."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import MachineError, UsageError
from llmtier.core.hardware import Gpu, Hardware
from llmtier.core.tier import Scheme
from llmtier.quantize.architecture import describe_architecture
from llmtier.quantize.awq_mappings import AwqRegistry
from llmtier.quantize.demand import uniform_workload
from llmtier.quantize.job import AwqMapping, Backend, QuantizeJob
from llmtier.quantize.plan import plan
from llmtier.quantize.survey import Survey, read_registry
from llmtier.quantize.target import Grade

ZEN4 = ("avx2", "avx512_bf16", "avx512_vnni", "avx512f")
CPU = Hardware(cpu_model="CPU", cpu_flags=ZEN4, n_cores=2, memory_bytes=2**34)
GPU = replace(CPU, gpus=(Gpu(name="NVIDIA L4", compute_capability=(8, 9), memory_bytes=24 * 2**30),))
ROWS = uniform_workload(n_rows=256, n_tokens=200)
ALL = (Scheme.INT8, Scheme.AWQ, Scheme.GPTQ, Scheme.FP8, Scheme.FP8_BLOCK)
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
}

JOB = QuantizeJob(
    model=Path("models/tiny"), schemes=(Scheme.GPTQ,), out=Path("out"), calibration=Path("support.jsonl"), device="l4"
)


def refusal(job, survey, error=UsageError):
    with pytest.raises(error) as caught:
        plan(job, survey)
    return str(caught.value)


def test_every_scheme_has_its_folder_preset_group_verdict_and_estimate(look):
    planned = plan(replace(JOB, schemes=ALL), look()).schemes

    assert [Path(f"out/tiny@{scheme.value}") for scheme in ALL] == [one.folder for one in planned]
    assert ["W8A8", "W4A16_ASYM", "W4A16", "FP8_DYNAMIC", "FP8_BLOCK"] == [one.preset for one in planned]
    assert [None, 128, 128, None, None] == [one.group_size for one in planned]
    assert [False, True, True, False, False] == [one.needs_data for one in planned]
    assert {("lm_head",)} == {one.ignore for one in planned}
    assert all(one.verdict.grade is Grade.FAST and one.estimate.disk_bytes > 0 for one in planned)


def test_facts_say_what_the_plan_was_made_from(look):
    facts = plan(JOB, look()).facts

    assert ("LlamaForCausalLM", 2, 14, 1) == (facts.architecture, facts.n_layers, facts.n_linears, facts.n_kept)
    assert (256, 256, 51_200) == (facts.n_rows, facts.n_rows_available, facts.n_tokens)


def test_plan_is_silent_without_surprises(look):
    assert () == plan(JOB, look()).notes
    assert () == plan(replace(JOB, schemes=(Scheme.FP8,), calibration=None), look(rows=None)).notes


def test_schemes_that_were_not_asked_for_are_judged_too(look):
    others = plan(JOB, look()).others

    assert {"int8", "awq", "fp8", "fp8_block", "nvfp4", "mxfp4"} == {scheme.value for scheme in others}


# --- target


def test_scheme_that_does_not_load_is_refused_with_those_that_are_fast(look):
    message = refusal(replace(JOB, schemes=(Scheme.INT8, Scheme.GPTQ), device="b200"), look())

    assert "int8 does not load: vLLM has no int8 kernel" in message
    assert message.endswith("fast there: awq, gptq, fp8, fp8_block")


@pytest.mark.parametrize(("device", "grade"), [("b200", "fast"), ("h100", "pointless"), ("cpu", "unusable")])
def test_later_schemes_are_named_and_refused(device, grade, look):
    message = refusal(replace(JOB, schemes=(Scheme.NVFP4,), device=device), look())

    assert f"nvfp4: llmtier does not write it yet; there it is {grade}" in message


def test_scheme_of_another_kind_is_refused(look):
    assert "gguf: llmtier does not write it" in refusal(replace(JOB, schemes=(Scheme.GGUF,)), look())


def test_pointless_scheme_is_noted_loudly(look):
    (note, *_) = plan(replace(JOB, schemes=(Scheme.FP8,), device="cpu"), look()).notes

    assert note.startswith("fp8 is pointless on cpu")
    assert "8 times slower" in note


def test_checkpoint_larger_than_the_target_is_noted(look):
    notes = plan(
        replace(JOB, schemes=(Scheme.FP8,), device="t4"),
        look(num_hidden_layers=32 * 3, **{k: v for k, v in LLAMA_8B.items() if k != "num_hidden_layers"}),
    ).notes

    assert any("do not fit into the memory of one t4" in note for note in notes)


# --- data and options


@pytest.mark.parametrize(
    ("fields", "needing"),
    [
        ({"schemes": (Scheme.AWQ,)}, "scheme awq"),
        ({"schemes": (Scheme.INT8,), "smoothing_strength": 0.5}, "SmoothQuant"),
        ({"schemes": (Scheme.FP8,), "has_fp8_kv_cache": True}, "the fp8 KV cache"),
    ],
)
def test_missing_data_is_demanded(fields, needing, look):
    message = refusal(replace(JOB, calibration=None, **fields), look(rows=None))

    assert message.startswith(f"{needing} needs data")
    assert "--calibration FILE.jsonl" in message


def test_smoothing_makes_int8_read_data(look):
    (planned,) = plan(replace(JOB, schemes=(Scheme.INT8,), smoothing_strength=0.8), look()).schemes

    assert (True, 0.8, None) == (planned.needs_data, planned.smoothing_strength, planned.group_size)


def test_smoothing_is_refused_without_int8_and_for_unknown_architectures(look, llama):
    job = replace(JOB, smoothing_strength=0.8)
    assert "--smoothquant is for scheme int8" in refusal(job, look())

    message = refusal(replace(job, schemes=(Scheme.INT8,)), look(model=llama(name="Own")))

    assert "no layer mapping for Own" in message


def test_kv_cache_needs_heads_that_the_cpu_takes(look):
    job = replace(JOB, schemes=(Scheme.INT8,), has_fp8_kv_cache=True)
    survey = look(hidden_size=192, num_attention_heads=4, num_key_value_heads=4)

    assert plan(job, survey).schemes[0].has_fp8_kv_cache
    assert "heads in multiples of 32 on CPU, this model's are 48" in refusal(replace(job, device="cpu"), survey)


def test_kv_cache_is_refused_without_avx512_and_noted_on_old_gpus(look):
    job = replace(JOB, schemes=(Scheme.INT8,), has_fp8_kv_cache=True)
    old = look(machine=replace(CPU, cpu_flags=("avx2",)))

    assert "AVX512 or AMX" in refusal(replace(job, device="cpu"), old)
    assert any("fp8 KV cache: " in note for note in plan(replace(job, device="t4"), look()).notes)


def test_data_free_schemes_are_said_to_ignore_the_set(look):
    notes = plan(replace(JOB, schemes=(Scheme.INT8, Scheme.FP8, Scheme.GPTQ)), look()).notes

    assert "int8, fp8: weights are rounded without data; the calibration set changes nothing" in notes


@pytest.mark.parametrize(
    ("n_rows", "n_samples", "cause"), [(40, 256, "the set holds 40"), (500, 40, "--samples asks for no more")]
)
def test_few_rows_are_noted(n_rows, n_samples, cause, look):
    (note,) = plan(replace(JOB, n_samples=n_samples), look(rows=ROWS.with_rows(n_rows))).notes

    assert "gptq: 40 calibration rows are few" in note
    assert cause in note


def test_rows_beyond_the_context_are_noted(look):
    assert any(
        "beyond the model's context of 4096" in note for note in plan(replace(JOB, max_seq_tokens=9_999), look()).notes
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"schemes": (Scheme.GPTQ,)}, "writes scheme awq only"),
        ({"schemes": (Scheme.AWQ, Scheme.FP8)}, "writes scheme awq only"),
        ({"schemes": (Scheme.AWQ,), "has_fp8_kv_cache": True}, "neither"),
    ],
)
def test_autoawq_writes_awq_only(fields, reason, look):
    assert reason in refusal(replace(JOB, backend=Backend.AUTOAWQ, **fields), look())


def test_autoawq_has_its_own_folder_and_is_said_to_be_archived(look):
    found = plan(replace(JOB, schemes=(Scheme.AWQ,), backend=Backend.AUTOAWQ), look())

    assert (Path("out/tiny@autoawq"), "GEMM") == (found.schemes[0].folder, found.schemes[0].preset)
    assert any("archived" in note for note in found.notes)


def test_autoawq_takes_the_models_it_knows(look):
    unknown = AwqRegistry(version="0", mappings={}, smoothquant=frozenset(), autoawq_model_types=frozenset())

    message = refusal(replace(JOB, schemes=(Scheme.AWQ,), backend=Backend.AUTOAWQ), replace(look(), registry=unknown))

    assert "does not take model type llama" in message


# --- shapes


@pytest.mark.parametrize(("inner", "expected"), [(384, 128), (320, 64), (352, 32)])
def test_largest_group_that_divides_is_taken_and_said(inner, expected, look):
    found = plan(JOB, look(intermediate_size=inner))

    assert expected == found.schemes[0].group_size
    assert (expected != 128) == any(f"group size {expected}" in note for note in found.notes)


def test_layer_that_no_group_divides_is_named_with_a_way_out(look):
    message = refusal(JOB, look(intermediate_size=344))

    assert "model.layers.0.mlp.down_proj (344 inputs, 128 outputs) and 1 more layers" in message
    assert r"--ignore 're:.*\.down_proj$', or use int8 or fp8" in message
    assert plan(replace(JOB, ignore=(r"re:.*\.down_proj$",)), look(intermediate_size=344)).facts.n_kept == 3


def test_asked_group_size_is_kept_or_refused(look):
    assert "groups of 128" in refusal(replace(JOB, group_size=128), look(intermediate_size=320))
    assert "must be one of 128, 64, 32" in refusal(replace(JOB, group_size=16), look())
    assert 32 == plan(replace(JOB, group_size=32), look()).schemes[0].group_size


def test_cpu_needs_outputs_in_multiples_of_32(look):
    survey = look(hidden_size=160, num_attention_heads=5, num_key_value_heads=5, intermediate_size=176)
    job = replace(JOB, ignore=(r"re:.*down_proj$",))

    assert plan(job, survey).schemes
    assert "outputs in multiples of 32" in refusal(replace(job, device="cpu"), survey)


def test_shapes_that_marlin_does_not_take_are_noted(look):
    assert any("Marlin" in note for note in plan(JOB, look(intermediate_size=352)).notes)


def test_blocks_need_inputs_and_inner_outputs_of_128(look):
    job = replace(JOB, schemes=(Scheme.FP8_BLOCK,))

    assert "down_proj (320 inputs" in refusal(job, look(intermediate_size=320))
    message = refusal(job, look(hidden_size=256, num_attention_heads=4, num_key_value_heads=1, intermediate_size=384))
    assert "vLLM joins model.layers.0.self_attn.{q_proj,k_proj,v_proj}" in message
    assert plan(job, look(hidden_size=256, num_attention_heads=2, num_key_value_heads=1)).schemes


def test_ignored_part_of_a_fused_layer_is_refused(look):
    assert "need one scheme" in refusal(replace(JOB, ignore=("re:.*q_proj$",)), look())


def test_head_stays_even_when_not_named(look):
    found = plan(replace(JOB, ignore=(r"re:.*down_proj$",)), look())

    assert (r"re:.*down_proj$", "lm_head") == found.schemes[0].ignore
    assert any("output head" in note for note in found.notes)


# --- awq


def test_unknown_architecture_is_refused_for_awq_alone(look, llama):
    survey = look(model=llama(name="OwnForCausalLM"))

    assert plan(JOB, survey).schemes
    assert "--awq-mappings FILE" in refusal(replace(JOB, schemes=(Scheme.AWQ,)), survey)


def test_own_mappings_reach_the_plan(look, llama):
    own = (AwqMapping(smooth="re:.*layers.0.*up_proj$", balance=("re:.*down_proj$",)),)
    job = replace(JOB, schemes=(Scheme.AWQ, Scheme.GPTQ), awq_mappings=Path("own.yaml"))

    found = plan(job, look(model=llama(name="Own"), mappings=own))

    assert [own, None] == [planned.awq_mappings for planned in found.schemes]
    assert "awq: mappings reach 1 of 2 decoder layers; the rest is rounded" in found.notes
    assert "--awq-mappings is for scheme awq" in refusal(replace(job, schemes=(Scheme.GPTQ,)), look(mappings=own))


def test_grouped_queries_and_mappings_of_run_time_are_noted(look, llama):
    job = replace(JOB, schemes=(Scheme.AWQ,))

    assert any("2 pairs v_proj, o_proj" in note for note in plan(job, look(num_key_value_heads=2)).notes)
    assert any(
        "from the loaded model" in note for note in plan(job, look(model=llama(name="Qwen3NextForCausalLM"))).notes
    )


def test_what_the_weight_files_do_not_show_is_noted(look, tensors):
    shapes = {"model.layers.0.mlp.experts.up.weight": (4, 128, 128), "model.layers.0.mlp.gate.weight": (128, 128)}
    shapes |= {"model.layers.0.o_proj.weight": (128, 128), "visual.merger.weight": (128, 128)}
    config = {"num_hidden_layers": 1, "num_experts": 4, "hidden_size": 128}

    notes = "\n".join(plan(JOB, look(model=describe_architecture(config, tensors(shapes)))).notes)

    assert "routers of the experts stay" in notes
    assert "1 linear layers outside the decoder (visual.merger" in notes
    assert "1 tensors hold experts in one piece" in notes
    assert "no time is given: not measured for a mixture of experts" in notes


@given(
    schemes=st.lists(st.sampled_from(ALL), min_size=1, max_size=5, unique=True),
    device=st.sampled_from(["cpu", "t4", "h100", "b200"]),
    shape=st.tuples(st.sampled_from([320, 344, 384]), st.sampled_from([1, 2, 4])),
    room=st.tuples(st.integers(10**8, 10**10), st.integers(10**6, 10**10)),
    n_rows=st.integers(1, 5_000),
)
def test_plan_fits_the_machine_or_is_refused(schemes, device, shape, room, n_rows, llama):
    (inner, kv_heads), (memory, disk) = shape, room
    job = replace(JOB, schemes=tuple(schemes), device=device, n_samples=5_000)
    survey = Survey(
        architecture=llama(intermediate_size=inner, num_key_value_heads=kv_heads),
        max_position=None,
        machine=CPU,
        free_memory_bytes=memory,
        free_disk_bytes=disk,
        gflops=100.0,
        rows=ROWS.with_rows(n_rows),
        awq_mappings=None,
        registry=read_registry(),
    )
    try:
        found = plan(job, survey)
    except (UsageError, MachineError):
        return

    estimates = [planned.estimate for planned in found.schemes]
    assert max(one.memory_bytes for one in estimates) <= memory
    assert sum(one.disk_bytes for one in estimates) + max(one.work_bytes for one in estimates) <= disk
    assert all(planned.verdict.grade is not Grade.UNUSABLE for planned in found.schemes)
    assert all(planned.spills == planned.estimate.spills for planned in found.schemes)
