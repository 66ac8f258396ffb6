"""Whether the shapes of a model's layers suit a scheme: groups, blocks, and what the kernels of the target take.

Pure. Sources: llm-compressor 0.14 ``modifiers/quantization/group_size_validation.py``; vLLM 0.32
``kernels/linear/mixed_precision/cpu.py`` (multiples of 32), ``quantization/utils/marlin_utils.py`` (64 outputs, 128
inputs), ``quantization/utils/fp8_utils.py`` (blocks of 128).
"""

from collections.abc import Iterable, Sequence

from llmtier.core.errors import UsageError
from llmtier.quantize.architecture import Linear
from llmtier.quantize.fusion import FusedGroup
from llmtier.quantize.job import GROUP_SIZES, Backend
from llmtier.quantize.target import Target

CPU_MULTIPLE = 32
MARLIN_OUTPUTS, MARLIN_INPUTS = 64, 128
PACKED_COLUMNS = 8
BLOCK = 128


def choose_group_size(asked: int | None, linears: Sequence[Linear]) -> int:
    """Return the asked group size, or the largest one that divides the inputs of every layer.

    Raises:
        UsageError: None divides, or the asked one does not; names the layers that fail.
    """
    if asked is not None and asked not in GROUP_SIZES:
        raise UsageError(f"group size {asked}: must be one of {', '.join(map(str, GROUP_SIZES))}")
    candidates = GROUP_SIZES if asked is None else (asked,)
    for size in candidates:
        if all(linear.in_features % size == 0 for linear in linears):
            return size
    smallest = candidates[-1]
    failing = [linear for linear in linears if linear.in_features % smallest]
    groups = " or ".join(map(str, candidates))
    raise UsageError(
        f"{describe_layers(failing)} cannot be cut into groups of {groups} inputs; "
        f"leave {'it' if len(failing) == 1 else 'them'} out by --ignore {suggest_ignore(failing)}, or use int8 or fp8"
    )


def describe_layers(linears: Sequence[Linear]) -> str:
    """Name the first layer with its shape, and count the others."""
    first = linears[0]
    more = f" and {len(linears) - 1} more layers" if len(linears) > 1 else ""
    return f"{first.name} ({first.in_features} inputs, {first.out_features} outputs){more}"


def suggest_ignore(linears: Iterable[Linear]) -> str:
    """Return one expression that takes in every layer of these kinds."""
    kinds = sorted({linear.name.rpartition(".")[2] for linear in linears})
    return f"'re:.*\\.{kinds[0]}$'" if len(kinds) == 1 else f"'re:.*\\.({'|'.join(kinds)})$'"


def check_four_bit(linears: Sequence[Linear], target: Target, backend: Backend) -> None:
    """Refuse layers whose outputs the 4-bit kernels of a CPU, or AutoAWQ's packing, do not take.

    Raises:
        UsageError: Naming the layers.
    """
    if target.is_cpu:
        require_outputs(linears, CPU_MULTIPLE, why="vLLM's 4-bit kernel for CPUs takes outputs in multiples of 32")
    if backend is Backend.AUTOAWQ:
        require_outputs(linears, PACKED_COLUMNS, why="AutoAWQ packs outputs by 8")


def require_outputs(linears: Sequence[Linear], multiple: int, *, why: str) -> None:
    """Refuse layers whose outputs are no multiple.

    Raises:
        UsageError: Naming the layers.
    """
    failing = [linear for linear in linears if linear.out_features % multiple]
    if failing:
        raise UsageError(f"{describe_layers(failing)}: {why}; leave out by --ignore {suggest_ignore(failing)}")


def find_slow_shapes(linears: Iterable[Linear], target: Target) -> list[Linear]:
    """Return the layers that vLLM's fast 4-bit kernels for GPUs do not take: a slower one runs them."""
    if target.is_cpu:
        return []
    return [one for one in linears if one.out_features % MARLIN_OUTPUTS or one.in_features % MARLIN_INPUTS]


def check_blocks(linears: Sequence[Linear], groups: Iterable[FusedGroup]) -> None:
    """Refuse layers that blocks of 128 x 128 do not fit.

    Activations are scaled by groups of 128 inputs; in a fused layer all parts but the last, and the outputs of
    experts' gate and up, must end where a block ends.

    Raises:
        UsageError: Naming the layers.
    """
    failing = [linear for linear in linears if linear.in_features % BLOCK]
    if failing:
        why = f"{describe_layers(failing)}: fp8_block needs inputs in multiples of {BLOCK}"
        raise UsageError(f"{why}; leave out by --ignore {suggest_ignore(failing)}, or use fp8")
    by_name = {linear.name: linear for linear in linears}
    for group in groups:
        inner = [by_name[name] for name in inner_parts(group) if name in by_name]
        failing = [linear for linear in inner if linear.out_features % BLOCK]
        if failing:
            raise UsageError(
                f"{describe_layers(failing)}: vLLM joins {group.name}, and fp8_block needs the outputs "
                f"of its inner parts in multiples of {BLOCK}; use fp8"
            )


def inner_parts(group: FusedGroup) -> tuple[str, ...]:
    """Return the parts of a fused layer that must end where a block ends."""
    if not group.is_expert:
        return group.members[:-1]
    return tuple(name for name in group.members if name.rpartition(".")[2] in ("gate_proj", "up_proj", "w1", "w3"))
