"""What does not fit: spilled to files where that helps, refused with the values that would fit otherwise."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmtier.core.errors import DiskError, MachineError
from llmtier.core.hardware import Gpu, Hardware
from llmtier.core.tier import Scheme
from llmtier.quantize.demand import uniform_workload
from llmtier.quantize.job import QuantizeJob
from llmtier.quantize.limits import DISK_SLACK_BYTES
from llmtier.quantize.plan import plan
from llmtier.quantize.reuse import options_of
from llmtier.quantize.survey import Earlier

ZEN4 = ("avx2", "avx512_bf16", "avx512_vnni", "avx512f")
CPU = Hardware(cpu_model="CPU", cpu_flags=ZEN4, n_cores=2, memory_bytes=2**34)
GPU = replace(CPU, gpus=(Gpu(name="NVIDIA L4", compute_capability=(8, 9), memory_bytes=24 * 2**30),))
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
LONG = uniform_workload(n_rows=10_000, n_tokens=2_048)
LONG_JOB = replace(JOB, n_samples=10_000, max_seq_tokens=2_048)


def refusal(job, survey, error):
    with pytest.raises(error) as caught:
        plan(job, survey)
    return str(caught.value)


def test_gptq_spills_what_memory_does_not_hold(look):
    found = plan(LONG_JOB, look(rows=LONG, memory=64 * 10**9, disk=10**12, **LLAMA_8B))

    (planned,) = found.schemes
    assert planned.spills
    assert planned.estimate.activation_cache_bytes > 168e9
    assert planned.estimate.work_bytes > planned.estimate.activation_cache_bytes
    assert planned.estimate.memory_bytes < 64e9
    assert any("it goes into files" in note for note in found.notes)


def test_spill_that_the_disk_does_not_hold_is_refused_with_the_rows_that_fit(look):
    survey = look(rows=LONG, memory=64 * 10**9, disk=10**11, **LLAMA_8B)
    message = refusal(LONG_JOB, survey, DiskError)

    fitting = int(message.rpartition("--samples to ")[2])
    assert plan(replace(LONG_JOB, n_samples=fitting), survey).schemes[0].spills
    assert refusal(replace(LONG_JOB, n_samples=fitting + 1), survey, DiskError)


def test_awq_does_not_spill_and_names_what_fits(look):
    job = replace(LONG_JOB, schemes=(Scheme.AWQ,), n_samples=2_000)
    survey = look(rows=LONG, memory=256 * 10**9, **LLAMA_8B)
    message = refusal(job, survey, MachineError)

    fitting = int(message.partition("--samples to ")[2].split()[0])
    assert not plan(replace(job, n_samples=fitting), survey).schemes[0].spills
    assert refusal(replace(job, n_samples=fitting + 1), survey, MachineError)


def test_both_options_are_named_where_neither_alone_helps(look):
    job = replace(LONG_JOB, schemes=(Scheme.AWQ,))

    message = refusal(job, look(rows=LONG, memory=24 * 10**9, **LLAMA_8B), MachineError)

    assert "lower --max-seq-tokens to" in message
    assert "and --samples to" in message


def test_model_that_leaves_no_room_is_refused_plainly(look):
    survey = look(memory=10**9, **LLAMA_8B)

    for scheme in (Scheme.GPTQ, Scheme.FP8):
        assert "no room" in refusal(replace(JOB, schemes=(scheme,)), survey, MachineError)


def test_full_disk_is_refused_before_the_work(look):
    assert "3.5 MB are free" in refusal(JOB, look(disk=3_500_000), DiskError)


# --- what an earlier run left


def finished(job, look, **fields):
    """Return what a survey finds after ``job`` has been done, by scheme."""
    done = plan(job, look(**fields)).schemes
    return {one.scheme: Earlier(recipe=options_of(one, job), n_bytes=10**9) for one in done}


def test_finished_checkpoints_need_neither_memory_nor_disk(look):
    job = replace(JOB, schemes=(Scheme.GPTQ, Scheme.FP8))
    earlier = finished(job, look)

    found = plan(job, replace(look(memory=1, disk=0), earlier=earlier))

    assert [True, True] == [one.is_finished for one in found.schemes]
    assert any("gptq, fp8: finished with these options" in note for note in found.notes)


def test_only_what_is_finished_is_spared(look):
    earlier = finished(replace(JOB, schemes=(Scheme.FP8,)), look)
    job = replace(JOB, schemes=(Scheme.GPTQ, Scheme.FP8))

    assert refusal(job, replace(look(memory=1), earlier=earlier), MachineError).startswith("gptq needs")
    assert refusal(job, replace(look(disk=10**6), earlier=earlier), DiskError)


def test_checkpoint_made_with_other_options_is_not_taken_for_finished(look):
    earlier = finished(JOB, look)

    assert refusal(replace(JOB, seed=1), replace(look(disk=10**6), earlier=earlier), DiskError)


def test_layers_and_half_written_folders_of_an_earlier_run_count_as_room(look):
    estimate = plan(JOB, look()).schemes[0].estimate
    disk = DISK_SLACK_BYTES + estimate.disk_bytes
    assert refusal(JOB, look(disk=disk), DiskError)

    for earlier in (Earlier(work_bytes=estimate.work_bytes), Earlier(stale_bytes=estimate.work_bytes)):
        assert plan(JOB, replace(look(disk=disk), earlier={Scheme.GPTQ: earlier}))
    assert refusal(JOB, replace(look(disk=disk - 1), earlier={Scheme.GPTQ: earlier}), DiskError)


def test_replaced_checkpoint_makes_room_only_once_the_new_one_is_whole(look):
    job = replace(JOB, schemes=(Scheme.INT8, Scheme.FP8), calibration=None)
    int8, fp8 = (one.estimate.disk_bytes for one in plan(job, look(rows=None)).schemes)
    earlier = {Scheme.INT8: Earlier(n_bytes=int8)}

    enough = look(rows=None, disk=DISK_SLACK_BYTES + max(int8, fp8))
    assert plan(job, replace(enough, earlier=earlier))
    assert refusal(job, enough, DiskError)
    too_little = replace(enough, free_disk_bytes=enough.free_disk_bytes - 1)
    assert refusal(job, replace(too_little, earlier=earlier), DiskError)


def test_export_needs_room_too_unless_it_is_there(look):
    job = replace(JOB, has_autoawq_export=True)
    estimate = plan(job, look()).schemes[0].estimate
    assert estimate.disk_bytes < estimate.export_bytes < 1.1 * estimate.disk_bytes  # gptq keeps no zero points
    disk = DISK_SLACK_BYTES + estimate.disk_bytes + estimate.work_bytes
    assert plan(JOB, look(disk=disk))
    assert refusal(job, look(disk=disk), DiskError)
    assert plan(job, look(disk=disk + estimate.export_bytes))

    recipe = options_of(plan(job, look()).schemes[0], job)
    assert refusal(job, replace(look(disk=0), earlier={Scheme.GPTQ: Earlier(recipe=recipe)}), DiskError)
    assert plan(job, replace(look(disk=0), earlier={Scheme.GPTQ: Earlier(recipe=recipe, is_exported=True)}))


def test_time_is_unknown_on_a_gpu(look):
    found = plan(JOB, look(machine=GPU))

    assert found.schemes[0].estimate.seconds_high is None
    assert "gptq: no time is given: not measured on a GPU" in found.notes
