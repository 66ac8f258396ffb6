"""What the checkpoints shall be served on, and whether a scheme is worth writing for it.

Pure: turns a name that users type, or this machine, into a ``Target`` and asks ``engine.capability`` about each scheme.
Memory and compute capability of the named GPUs: NVIDIA's data sheets. Tests nothing on the target itself.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from llmtier.core.errors import UsageError
from llmtier.core.hardware import Gpu, Hardware
from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme
from llmtier.engine.capability import Capability, assess

GIB = 1024**3

GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "t4": Gpu(name="NVIDIA T4", compute_capability=(7, 5), memory_bytes=16 * GIB),
        "a10": Gpu(name="NVIDIA A10", compute_capability=(8, 6), memory_bytes=24 * GIB),
        "l4": Gpu(name="NVIDIA L4", compute_capability=(8, 9), memory_bytes=24 * GIB),
        "l40s": Gpu(name="NVIDIA L40S", compute_capability=(8, 9), memory_bytes=48 * GIB),
        "a100": Gpu(name="NVIDIA A100", compute_capability=(8, 0), memory_bytes=80 * GIB),
        "h100": Gpu(name="NVIDIA H100", compute_capability=(9, 0), memory_bytes=80 * GIB),
        "b200": Gpu(name="NVIDIA B200", compute_capability=(10, 0), memory_bytes=180 * GIB),
    }
)
"""The GPUs that users may name; of the A100 and the H100 the 80 GB variants."""

TARGETS = ("auto", "cpu", *GPUS)
"""What ``--target`` takes."""

WEIGHT_BITS: Mapping[Scheme, int] = MappingProxyType(
    {
        Scheme.BF16: 16,
        Scheme.FP16: 16,
        Scheme.FP8: 8,
        Scheme.FP8_BLOCK: 8,
        Scheme.INT8: 8,
        Scheme.AWQ: 4,
        Scheme.GPTQ: 4,
        Scheme.NVFP4: 4,
        Scheme.MXFP4: 4,
    }
)
"""Bits of one weight, scales left out."""


class Grade(StrEnum):
    """What a scheme is on a target."""

    FAST = "fast"
    SLOW = "slow"
    POINTLESS = "pointless"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A machine that serves.

    Attributes:
        name: As the user typed it; ``auto`` is replaced by what it stands for.
        hardware: Its processor flags and GPUs.
        source: Where these facts are from.
    """

    name: str
    hardware: Hardware
    source: str

    @property
    def is_cpu(self) -> bool:
        """Whether vLLM runs on its processor."""
        return not self.hardware.gpus

    @property
    def memory_bytes(self) -> int:
        """Memory that the weights go into: of one GPU, or the machine's."""
        gpus = self.hardware.gpus
        return min(gpu.memory_bytes for gpu in gpus) if gpus else self.hardware.memory_bytes

    @property
    def description(self) -> str:
        """Its name and what kernels are chosen by."""
        if not self.is_cpu:
            gpu = min(self.hardware.gpus, key=lambda one: one.compute_capability)
            major, minor = gpu.compute_capability
            return f"{gpu.name}, compute capability {major}.{minor}, {gpu.memory_bytes / GIB:.0f} GiB"
        flags = " ".join(self.hardware.cpu_flags) or "no vector extensions known"
        return f"{self.hardware.cpu_model} ({flags}), {self.hardware.memory_bytes / GIB:.0f} GiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a scheme is worth writing for a target.

    Attributes:
        grade: In one word.
        reason: Why, and what to take instead; one line.
        better: The schemes that are fast there and no larger, when it is pointless.
    """

    grade: Grade
    reason: str
    better: tuple[Scheme, ...] = ()


def resolve_target(device: str, machine: Hardware) -> Target:
    """Return the target that a user named.

    Args:
        device: One of ``TARGETS``.
        machine: The one llmtier runs on; ``auto`` means it, ``cpu`` its processor even where it has GPUs.

    Raises:
        UsageError: It is none of them; names the nearest.
    """
    name = device.lower()
    if name in GPUS:
        return Target(name=name, hardware=replace(machine, gpus=(GPUS[name],), driver=None), source="data sheet")
    if name == "auto":
        return Target(name="gpu" if machine.gpus else "cpu", hardware=machine, source="this machine")
    if name == "cpu":
        return Target(name="cpu", hardware=replace(machine, gpus=(), driver=None), source="this machine's processor")
    nearest = difflib.get_close_matches(name, TARGETS, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise UsageError(f"target {device!r} is not known, expected one of {', '.join(TARGETS)}{hint}")


def judge(scheme: Scheme, target: Target) -> Verdict:
    """Return what a scheme is on a target.

    It is pointless when it loads without gaining speed while another scheme of no more bits is fast.
    """
    capability = assess(scheme, target.hardware)
    if not capability.loads:
        return Verdict(grade=Grade.UNUSABLE, reason=capability.note, better=fast_schemes(target))
    if capability.is_fast:
        return Verdict(grade=Grade.FAST, reason=describe_fast(scheme, capability))
    better = tuple(other for other in fast_schemes(target) if WEIGHT_BITS[other] <= WEIGHT_BITS[scheme])
    if not better:
        return Verdict(grade=Grade.SLOW, reason=capability.note)
    has_advice = "; take " in capability.note
    reason = capability.note if has_advice else f"{capability.note}; {better[0].value} is no larger and fast there"
    return Verdict(grade=Grade.POINTLESS, reason=reason, better=better)


def fast_schemes(target: Target) -> tuple[Scheme, ...]:
    """Return the schemes that llmtier writes and the target runs fast."""
    return tuple(scheme for scheme in QUANTIZABLE_SCHEMES if assess(scheme, target.hardware).is_fast)


def describe_fast(scheme: Scheme, capability: Capability) -> str:
    """Return the reason, with the limit that 4-bit weights have: arithmetic stays in 16 bits."""
    is_four_bit = scheme in (Scheme.AWQ, Scheme.GPTQ)
    if is_four_bit and "low concurrency" in capability.note:
        return f"{capability.note}; at large batches 8 bits are faster"
    return capability.note
