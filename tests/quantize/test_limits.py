"""What does not fit: spilled to files where that helps, refused with the values that would fit otherwise."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmtier.core.errors import DiskError, MachineError
from llmtier.core.hardware import Gpu, Hardware
from llmtier.core.tier import Scheme
from llmtier.quantize.demand import uniform_workload
from llmtier.quantize.job import QuantizeJob
from llmtier.quantize.plan import plan

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


def test_time_is_unknown_on_a_gpu(look):
    found = plan(JOB, look(machine=GPU))

    assert found.schemes[0].estimate.seconds_high is None
    assert "gptq: no time is given: not measured on a GPU" in found.notes
