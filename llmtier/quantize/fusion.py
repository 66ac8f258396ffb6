"""Which layers vLLM runs as one, and the check that the layers a user leaves out never split such a group.

Pure. vLLM puts the projections that read the same input into one matrix (``packed_modules_mapping`` of its models), and
all experts of a layer into one tensor; the parts must share one scheme, or loading ends in an error after hours of work.
Names are matched as compressed-tensors does: a whole name, a class, or ``re:`` and an expression that must match from
the start.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmtier.core.errors import UsageError
from llmtier.quantize.architecture import Architecture, Linear

HEAD = "lm_head"
ROUTERS = r"re:.*\.(gate|router|shared_expert_gate)$"
FUSED_SUFFIXES = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
"""Last parts of the names that vLLM runs as one layer, in the order that it stacks them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedGroup:
    """Linear layers that vLLM runs as one.

    Attributes:
        name: Such as ``model.layers.0.self_attn.{q_proj,k_proj,v_proj}``.
        members: Their names, in vLLM's order; at least two.
        is_expert: Whether they are the experts of a layer.
    """

    name: str
    members: tuple[str, ...]
    is_expert: bool = False


def matches(name: str, pattern: str) -> bool:
    """Tell whether a linear layer's name is meant by one pattern."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return pattern in (name, "Linear")


def is_ignored(name: str, ignore: Iterable[str]) -> bool:
    """Tell whether a linear layer stays as it is."""
    return any(matches(name, pattern) for pattern in ignore)


def quantized_linears(architecture: Architecture, ignore: tuple[str, ...]) -> tuple[Linear, ...]:
    """Return the linear layers that a scheme changes."""
    return tuple(linear for linear in architecture.linears if not is_ignored(linear.name, ignore))


def complete_ignore(ignore: tuple[str, ...], architecture: Architecture) -> tuple[str, ...]:
    """Add what always stays as it is: the output head, and the routers of a mixture of experts.

    A router is tiny and decides which experts run; vLLM keeps it in 16 bits.
    """
    added = [HEAD]
    if architecture.n_experts and any(matches(linear.name, ROUTERS) for linear in architecture.linears):
        added.append(ROUTERS)
    return (*ignore, *(pattern for pattern in added if pattern not in ignore))


def fused_groups(architecture: Architecture) -> tuple[FusedGroup, ...]:
    """Return every group of layers that must share a scheme."""
    return (*sibling_groups(architecture), *expert_groups(architecture))


def sibling_groups(architecture: Architecture) -> list[FusedGroup]:
    """Return the groups of projections that read the same input."""
    names = architecture.linear_by_name
    groups = []
    for parent in sorted({name.rpartition(".")[0] for name in names}):
        for suffixes in FUSED_SUFFIXES:
            members = tuple(f"{parent}.{suffix}" for suffix in suffixes if f"{parent}.{suffix}" in names)
            if len(members) > 1:
                label = ",".join(member.rpartition(".")[2] for member in members)
                groups.append(FusedGroup(name=f"{parent}.{{{label}}}", members=members))
    return groups


def expert_groups(architecture: Architecture) -> list[FusedGroup]:
    """Return the experts of each layer as one group."""
    found: dict[str, list[str]] = {}
    for linear in architecture.linears:
        parent, is_expert, _ = linear.name.partition(".experts.")
        if is_expert:
            found.setdefault(f"{parent}.experts", []).append(linear.name)
    return [
        FusedGroup(name=f"{parent}.*", members=tuple(names), is_expert=True)
        for parent, names in sorted(found.items())
        if len(names) > 1
    ]


def check_ignore(ignore: tuple[str, ...], architecture: Architecture) -> None:
    """Refuse patterns that match nothing, leave nothing, or split a fused group.

    Raises:
        UsageError: One does; names the nearest layer, or says how to complete the pattern.
    """
    for pattern in ignore:
        check_pattern(pattern, architecture)
    if not quantized_linears(architecture, ignore):
        raise UsageError(f"--ignore {' '.join(ignore)}: leaves no layer to quantize; name fewer layers")
    kept = {linear.name for linear in architecture.linears if is_ignored(linear.name, ignore)}
    for group in fused_groups(architecture):
        inside = [name for name in group.members if name in kept]
        if inside and len(inside) < len(group.members):
            raise UsageError(describe_split(group, inside, ignore))


def check_pattern(pattern: str, architecture: Architecture) -> None:
    """Refuse a pattern that matches no linear layer; the output head may be absent, as tied models have none.

    Raises:
        UsageError: It matches none, or is no regular expression.
    """
    try:
        found = any(matches(linear.name, pattern) for linear in architecture.linears)
    except re.error as exc:
        raise UsageError(f"--ignore {pattern}: is no regular expression: {exc}") from exc
    if found or pattern in (HEAD, ROUTERS):
        return
    bare = pattern.removeprefix("re:")
    candidates: Mapping[str, str] = {
        **{linear.name.rpartition(".")[2]: linear.name for linear in architecture.linears},
        **{linear.name: linear.name for linear in architecture.linears},
    }
    nearest = difflib.get_close_matches(bare.strip("^$.*"), candidates, n=1, cutoff=0.5)
    hint = f"; nearest is {candidates[nearest[0]]}" if nearest else ""
    inside = [linear.name for linear in architecture.linears if linear.name.startswith(f"{bare}.")]
    if inside:
        hint = f"; to leave out all within it give 're:{re.escape(bare)}\\.'"
    raise UsageError(f"--ignore {pattern}: matches no linear layer{hint}")


def describe_split(group: FusedGroup, inside: list[str], ignore: tuple[str, ...]) -> str:
    """Say which group is split and how to complete the pattern that splits it."""
    pattern = next(pattern for pattern in ignore if any(matches(name, pattern) for name in inside))
    left = [name for name in group.members if name not in inside]
    what = "all experts of a layer" if group.is_expert else "these layers"
    listed = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    return (
        f"--ignore {pattern}: splits {group.name}: vLLM runs {what} as one, so they need one scheme, "
        f"but {listed} would still be quantized; {suggest(group, pattern, left)}"
    )


def suggest(group: FusedGroup, pattern: str, left: list[str]) -> str:
    """Return how to complete a pattern so that it takes in the whole group."""
    if group.is_expert:
        parent = re.escape(group.name.removesuffix(".*"))
        return f"give 're:{parent}\\.' instead, or leave the experts in"
    suffixes = [name.rpartition(".")[2] for name in group.members]
    for suffix in suffixes:
        whole = re.sub(rf"{re.escape(suffix)}(?![a-z0-9_])", f"({'|'.join(suffixes)})", pattern, count=1)
        if pattern.startswith("re:") and all(matches(name, whole) for name in group.members):
            return f"give '{whole}' instead"
    return "give also " + " ".join(f"--ignore {name}" for name in left)
