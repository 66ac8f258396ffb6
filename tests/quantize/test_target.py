"""Targets that users name, and what a scheme is worth on them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import UsageError
from llmtier.core.hardware import Gpu, Hardware
from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme
from llmtier.engine.capability import assess
from llmtier.engine.hardware import X86_FLAGS
from llmtier.quantize.target import GPUS, TARGETS, WEIGHT_BITS, Grade, judge, resolve_target

ZEN4 = ("avx2", "avx512_bf16", "avx512_vnni", "avx512f")
CPU = Hardware(cpu_model="CPU", cpu_flags=ZEN4, n_cores=2, memory_bytes=2**34)
L40S = Gpu(name="NVIDIA L40S", compute_capability=(8, 9), memory_bytes=48 * 2**30)
WITH_GPU = Hardware(cpu_model="CPU", cpu_flags=ZEN4, n_cores=2, memory_bytes=2**36, gpus=(L40S,), driver="550")


def grades(device, machine=CPU):
    target = resolve_target(device, machine)
    schemes = (Scheme.INT8, Scheme.AWQ, Scheme.FP8, Scheme.FP8_BLOCK, Scheme.NVFP4)
    return " ".join(judge(scheme, target).grade.value for scheme in schemes)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", "fast fast pointless unusable unusable"),
        ("t4", "fast fast pointless pointless pointless"),
        ("a10", "fast fast pointless pointless pointless"),
        ("a100", "fast fast pointless pointless pointless"),
        ("l4", "fast fast fast fast pointless"),
        ("l40s", "fast fast fast fast pointless"),
        ("h100", "fast fast fast fast pointless"),
        ("b200", "unusable fast fast fast fast"),
    ],
)
def test_grades_by_target(device, expected):
    assert expected == grades(device)


def test_auto_is_this_machine_and_cpu_its_processor():
    assert ("gpu", "cpu") == (resolve_target("auto", WITH_GPU).name, resolve_target("auto", CPU).name)
    assert resolve_target("auto", WITH_GPU).memory_bytes == L40S.memory_bytes
    assert resolve_target("cpu", WITH_GPU).is_cpu
    assert "compute capability 8.9" in resolve_target("auto", WITH_GPU).description


def test_named_gpu_does_not_depend_on_this_machine():
    assert resolve_target("H100", CPU).hardware.gpus == resolve_target("h100", WITH_GPU).hardware.gpus


def test_unknown_target_names_the_known_and_the_nearest():
    with pytest.raises(UsageError, match=r"'h10'.*auto, cpu, t4, a10.*did you mean h100"):
        resolve_target("h10", CPU)
    with pytest.raises(UsageError, match=r"b200$"):
        resolve_target("zzz", CPU)


def test_slow_scheme_is_not_pointless_where_nothing_is_faster():
    old = Hardware(cpu_model="CPU", cpu_flags=("avx2",), n_cores=2, memory_bytes=2**34)

    assert judge(Scheme.INT8, resolve_target("cpu", old)).grade is Grade.SLOW


def test_pointless_scheme_is_answered_with_what_to_take():
    assert judge(Scheme.FP8, resolve_target("cpu", CPU)).reason.endswith("take int8")
    assert judge(Scheme.FP8, resolve_target("t4", CPU)).reason.endswith("int8 is no larger and fast there")


def test_4_bits_on_a_gpu_are_said_to_lose_at_large_batches():
    assert "at large batches 8 bits are faster" in judge(Scheme.GPTQ, resolve_target("h100", CPU)).reason


@given(
    scheme=st.sampled_from(list(Scheme)),
    device=st.sampled_from(TARGETS),
    flags=st.sets(st.sampled_from(X86_FLAGS)),
)
def test_verdict_agrees_with_the_engine_and_points_to_something_better(scheme, device, flags):
    machine = Hardware(cpu_model="CPU", cpu_flags=tuple(sorted(flags)), n_cores=2, memory_bytes=2**34)
    target = resolve_target(device, machine)
    verdict = judge(scheme, target)

    assert (verdict.grade is Grade.UNUSABLE) == (not assess(scheme, target.hardware).loads)
    assert (verdict.grade is Grade.FAST) == assess(scheme, target.hardware).is_fast
    for other in verdict.better:
        assert other in QUANTIZABLE_SCHEMES
        assert judge(other, target).grade is Grade.FAST
        assert verdict.grade is Grade.UNUSABLE or WEIGHT_BITS[other] <= WEIGHT_BITS[scheme]
    assert (verdict.grade is not Grade.POINTLESS) or verdict.better


def test_every_named_gpu_has_a_plausible_data_sheet():
    assert all(gpu.memory_bytes >= 16 * 2**30 and gpu.compute_capability >= (7, 5) for gpu in GPUS.values())
