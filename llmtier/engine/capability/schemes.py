"""Which schemes vLLM runs on this machine, and which of them gain speed.

Pure: works on what ``hardware.py`` found. The tables follow the kernel lists of vLLM 0.32
(``model_executor/kernels/linear``, ``get_min_capability`` of each scheme, ``platforms/cpu.py``,
``platforms/cuda.py``) and the CUDA 13 builds of PyTorch that it needs. A checkpoint may still be
refused for its own shape (group size, activation order): that is for the engine's start to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmtier.core.hardware import Hardware
from llmtier.core.tier import Scheme

NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
OLDEST_CUDA = (7, 5)  # Turing: PyTorch's CUDA 13 builds left out everything before


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Whether a scheme works on a machine.

    Attributes:
        loads: Whether vLLM serves it at all.
        is_fast: Whether kernels made for it exist, so that it gains speed over 16 bits or is the 16-bit base.
        note: Why, and what to take instead; one line.
    """

    loads: bool
    is_fast: bool
    note: str


def assess(scheme: Scheme, hardware: Hardware, *, env: Mapping[str, str] = NO_VARIABLES) -> Capability:
    """Return whether vLLM runs ``scheme`` here: on the least capable GPU, or on the CPU where there is none.

    Args:
        scheme: How the weights are stored.
        hardware: The machine.
        env: The engine's environment variables.
    """
    if hardware.gpus:
        return assess_gpu(scheme, min(gpu.compute_capability for gpu in hardware.gpus))
    return assess_cpu(scheme, frozenset(hardware.cpu_flags), env=env)


NO_GGUF = "not in vLLM's core; serve it with llama.cpp and engine kind openai"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuRule:
    """With which x86 extensions a scheme loads and is fast: any one of each set is enough.

    Attributes:
        loads_with: Extensions of which one is needed.
        fast_with: Extensions of which one brings kernels made for the scheme.
        native: What it is then.
        below: What it is when it only loads.
        otherwise: Why it does not load.
    """

    loads_with: frozenset[str] = frozenset({"avx2"})
    fast_with: frozenset[str]
    native: str
    below: str = ""
    otherwise: str = ""


NO_4BIT = "4-bit kernels need AVX512 or AMX; on AVX2 alone vLLM crashes (exit 139); take int8"
CPU_RULES: Mapping[Scheme, CpuRule] = {
    Scheme.BF16: CpuRule(
        fast_with=frozenset({"avx512_bf16", "amx_bf16"}),
        native="native bf16",
        below="computed in 32 bits: the CPU has no bf16 instructions",
    ),
    Scheme.FP16: CpuRule(fast_with=frozenset(), native="", below="the CPU's kernels are made for bf16; take bf16"),
    Scheme.INT8: CpuRule(
        fast_with=frozenset({"avx512_vnni", "amx_int8"}),
        native="int8 by VNNI or AMX",
        below="no VNNI or AMX: saves memory, little speed",
    ),
    Scheme.AWQ: CpuRule(
        loads_with=frozenset({"avx512f", "amx_tile"}),
        fast_with=frozenset({"avx512f", "amx_tile"}),
        native="4-bit weights",
        otherwise=NO_4BIT,
    ),
    Scheme.GPTQ: CpuRule(
        loads_with=frozenset({"avx512f", "amx_tile"}),
        fast_with=frozenset({"avx512f", "amx_tile"}),
        native="4-bit weights, symmetric only",
        otherwise=NO_4BIT,
    ),
    # 16 s against 2.1 s in bf16: a 146 M Llama, 64 tokens, 2 cores with AMX but not AMX-FP8
    Scheme.FP8: CpuRule(
        fast_with=frozenset({"amx_fp8"}),
        native="native fp8 by AMX",
        below="no AMX-FP8: an unoptimised path, about 8 times slower than bf16; take int8",
    ),
    Scheme.FP8_BLOCK: CpuRule(
        loads_with=frozenset({"amx_tile"}),
        fast_with=frozenset({"amx_tile"}),
        native="weights only, by AMX",
        otherwise="needs AMX; take int8 or awq",
    ),
}
"""The schemes absent here have no CPU kernel at all."""


def assess_cpu(scheme: Scheme, flags: frozenset[str], *, env: Mapping[str, str] = NO_VARIABLES) -> Capability:
    """Return whether vLLM runs ``scheme`` on a CPU with these extensions."""
    rule = CPU_RULES.get(scheme)
    if rule is None:
        return no("no CPU kernel; take awq or gptq for 4 bits" if scheme is not Scheme.GGUF else NO_GGUF)
    if "asimd" in flags:
        return assess_arm(scheme, flags)
    if "avx2" not in flags:
        return no("vLLM's CPU build needs AVX2")
    if not rule.loads_with & flags:
        return no(rule.otherwise)
    if not rule.fast_with & flags:
        return slow(rule.below)
    return yes(rule.native + note_activations(scheme, flags, env=env))


def assess_arm(scheme: Scheme, flags: frozenset[str]) -> Capability:
    """Return what is known of 64-bit Arm: vLLM supports it, llmtier has not measured it."""
    if scheme in (Scheme.BF16, Scheme.FP16):
        return Capability(loads=True, is_fast="bf16" in flags, note="Arm: supported by vLLM, not measured")
    return Capability(loads=scheme is not Scheme.FP8_BLOCK, is_fast=False, note="Arm: untried, profile before use")


def note_activations(scheme: Scheme, flags: frozenset[str], *, env: Mapping[str, str]) -> str:
    """Return what happens to the activations of 4-bit schemes, "" for the others."""
    if scheme not in (Scheme.AWQ, Scheme.GPTQ):
        return ""
    if "amx_tile" in flags and env.get("VLLM_CPU_INT4_W4A8", "1") != "0":
        return "; activations in 8 bits by AMX (VLLM_CPU_INT4_W4A8=0 keeps 16)"
    return "; activations in 16 bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRule:
    """From which compute capability a scheme loads and is fast; ``below`` says what it is between the two."""

    loads_from: tuple[int, int] = OLDEST_CUDA
    fast_from: tuple[int, int] = OLDEST_CUDA
    native: str
    below: str = ""
    otherwise: str = ""


WEIGHTS_ONLY = "weights only: saves memory, no faster arithmetic"
GPU_RULES: Mapping[Scheme, GpuRule] = {
    Scheme.BF16: GpuRule(loads_from=(8, 0), fast_from=(8, 0), native="native bf16", otherwise="take fp16"),
    Scheme.FP16: GpuRule(native="native fp16"),
    Scheme.INT8: GpuRule(native="native int8"),
    Scheme.AWQ: GpuRule(native="Marlin or Machete kernels; gains most at low concurrency"),
    Scheme.GPTQ: GpuRule(native="Marlin or Machete kernels; gains most at low concurrency"),
    Scheme.FP8: GpuRule(fast_from=(8, 9), native="native fp8", below=WEIGHTS_ONLY),
    Scheme.FP8_BLOCK: GpuRule(fast_from=(8, 9), native="native fp8", below=WEIGHTS_ONLY),
    Scheme.NVFP4: GpuRule(fast_from=(10, 0), native="native nvfp4", below=WEIGHTS_ONLY),
    Scheme.MXFP4: GpuRule(
        loads_from=(8, 0), fast_from=(10, 0), native="native mxfp4", below=WEIGHTS_ONLY, otherwise="take awq"
    ),
}


def assess_gpu(scheme: Scheme, compute_capability: tuple[int, int]) -> Capability:
    """Return whether vLLM runs ``scheme`` on an NVIDIA GPU of this compute capability."""
    if scheme is Scheme.GGUF:
        return no(NO_GGUF)
    if scheme is Scheme.INT8 and compute_capability >= (10, 0):
        return no("vLLM has no int8 kernel from compute capability 10.0 on; take fp8")
    rule = GPU_RULES[scheme]
    needed = max(rule.loads_from, OLDEST_CUDA)
    if compute_capability < needed:
        hint = f"; {rule.otherwise}" if rule.otherwise and compute_capability >= OLDEST_CUDA else ""
        return no(f"needs compute capability {dotted(needed)}, this GPU has {dotted(compute_capability)}{hint}")
    if compute_capability < rule.fast_from:
        return slow(f"{rule.below} (native from compute capability {dotted(rule.fast_from)})")
    return yes(rule.native)


def yes(note: str) -> Capability:
    """Return "loads and is fast"."""
    return Capability(loads=True, is_fast=True, note=note)


def slow(note: str) -> Capability:
    """Return "loads, but gains nothing"."""
    return Capability(loads=True, is_fast=False, note=note)


def no(note: str) -> Capability:
    """Return "does not load"."""
    return Capability(loads=False, is_fast=False, note=note)


def dotted(compute_capability: tuple[int, int]) -> str:
    """Return ``8.9`` for (8, 9)."""
    return f"{compute_capability[0]}.{compute_capability[1]}"
