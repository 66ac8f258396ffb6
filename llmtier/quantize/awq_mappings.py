"""Which layers AWQ scales against each other in a model, and how many decoder layers that reaches.

Pure: resolves the mappings of ``awq_architectures.json`` (llm-compressor's, written by
``scripts/write_awq_architectures.py``) or the user's against the model's module names. For an architecture that
llm-compressor does not list it takes Llama's mappings unasked; llmtier refuses instead.
Modules without tensors (an activation function) cannot be seen here: a mapping that starts from one counts as
unresolved.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmtier.core.errors import UsageError
from llmtier.quantize.architecture import Architecture
from llmtier.quantize.fusion import is_ignored
from llmtier.quantize.job import AwqMapping

YAML_EXAMPLE = "- {smooth: 're:.*input_layernorm$', balance: ['re:.*q_proj$', 're:.*k_proj$', 're:.*v_proj$']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqRegistry:
    """What the quantizers know of architectures.

    Attributes:
        version: Of the llm-compressor that the mappings are from.
        mappings: By architecture; ``None`` where llm-compressor builds them from the loaded model.
        smoothquant: Architectures that SmoothQuant has mappings for.
        autoawq_model_types: Model types that AutoAWQ takes.
    """

    version: str
    mappings: Mapping[str, tuple[AwqMapping, ...] | None]
    smoothquant: frozenset[str]
    autoawq_model_types: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedMapping:
    """One mapping found in the model.

    Attributes:
        smooth: The module whose output is scaled down.
        balance: The modules that read it.
        layer: Decoder layer of both.
    """

    smooth: str
    balance: tuple[str, ...]
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What AWQ can do for a model.

    Attributes:
        resolved: Every mapping found; empty where they are built at run time.
        n_layers: Decoder layers with at least one; ``None`` where they are built at run time.
        n_skipped: Pairs that are left out because their widths differ, as v_proj and o_proj under grouped queries.
    """

    resolved: tuple[ResolvedMapping, ...]
    n_layers: int | None
    n_skipped: int


def find_coverage(
    architecture: Architecture,
    registry: AwqRegistry,
    *,
    ignore: tuple[str, ...],
    given: tuple[AwqMapping, ...] | None,
) -> Coverage:
    """Resolve the user's mappings, or those that llm-compressor has for the architecture.

    Raises:
        UsageError: There are none, or they reach no decoder layer; one of the user's matches nothing.
    """
    mappings = given if given is not None else known_mappings(architecture, registry)
    if mappings is None:
        return Coverage(resolved=(), n_layers=None, n_skipped=0)
    resolved: list[ResolvedMapping] = []
    n_skipped = 0
    for mapping in mappings:
        found = resolve(mapping, architecture, ignore=ignore)
        fitting = [one for one in found if not is_incompatible(one, architecture)]
        if given is not None and not found:
            raise UsageError(describe_unresolved(mapping, architecture))
        resolved += fitting
        n_skipped += len(found) - len(fitting)
    n_layers = len({one.layer for one in resolved})
    if not n_layers:
        raise UsageError(
            f"awq: the mappings for {architecture.name} match no decoder layer of this checkpoint, so nothing would "
            "be scaled; give --awq-mappings FILE, or take --scheme gptq"
        )
    return Coverage(resolved=tuple(resolved), n_layers=n_layers, n_skipped=n_skipped)


def known_mappings(architecture: Architecture, registry: AwqRegistry) -> tuple[AwqMapping, ...] | None:
    """Return what llm-compressor has for an architecture; ``None`` where it builds them at run time.

    Raises:
        UsageError: It does not list the architecture.
    """
    if architecture.name is not None and architecture.name in registry.mappings:
        return registry.mappings[architecture.name]
    nearest = difflib.get_close_matches(architecture.name or "", registry.mappings, n=1)
    hint = f" (nearest: {nearest[0]})" if nearest else ""
    raise UsageError(
        f"awq: llm-compressor {registry.version} knows no layer mapping for {architecture.name}{hint}; "
        f"give --awq-mappings FILE with entries such as {YAML_EXAMPLE}, or take --scheme gptq"
    )


def resolve(mapping: AwqMapping, architecture: Architecture, *, ignore: tuple[str, ...]) -> list[ResolvedMapping]:
    """Return where a mapping applies: every smooth module that has all its readers in its decoder layer.

    Readers nearest to the smooth module are taken, as each expert's down_proj reads its own up_proj only.
    A mapping none of whose layers is quantized is left out.
    """
    found = []
    for layer, modules in architecture.modules_by_layer.items():
        readers = [[name for name in modules if means(pattern, name)] for pattern in mapping.balance]
        if not all(readers):
            continue
        for smooth in (name for name in modules if means(mapping.smooth, name)):
            balance = tuple(name for candidates in readers for name in nearest_to(smooth, candidates))
            if any(is_quantized(name, architecture, ignore) for name in (smooth, *balance)):
                found.append(ResolvedMapping(smooth=smooth, balance=balance, layer=layer))
    return found


def means(pattern: str, name: str) -> bool:
    """Tell whether a pattern of a mapping means a module; classes do not count."""
    if pattern.startswith("re:"):
        return re.match(pattern.removeprefix("re:"), name) is not None
    return pattern == name


def nearest_to(smooth: str, candidates: Iterable[str]) -> list[str]:
    """Return the candidates that share the deepest parent with ``smooth``."""
    candidates = list(candidates)
    parent = smooth
    while parent:
        parent = parent.rpartition(".")[0]
        inside = [name for name in candidates if name.startswith(f"{parent}.")]
        if inside:
            return inside
    return candidates


def is_quantized(name: str, architecture: Architecture, ignore: tuple[str, ...]) -> bool:
    """Tell whether a module is a linear layer that the scheme changes."""
    return name in architecture.linear_by_name and not is_ignored(name, ignore)


def is_incompatible(resolved: ResolvedMapping, architecture: Architecture) -> bool:
    """Tell whether llm-compressor will skip a mapping for its widths: values of fewer heads than the output reads."""
    linears = architecture.linear_by_name
    smooth = linears.get(resolved.smooth)
    if smooth is None:
        return False
    parts = 3 if resolved.smooth.endswith(".qkv_proj") else 1
    is_values = resolved.smooth.endswith((".v_proj", ".qkv_proj"))
    outputs = [name for name in resolved.balance if name.endswith(".o_proj") and name in linears]
    return is_values and any(smooth.out_features != parts * linears[name].in_features for name in outputs)


def describe_unresolved(mapping: AwqMapping, architecture: Architecture) -> str:
    """Say which pattern of a user's mapping finds nothing."""
    modules = architecture.modules
    missing = [
        pattern for pattern in (mapping.smooth, *mapping.balance) if not any(means(pattern, name) for name in modules)
    ]
    if missing:
        last_parts = {name.rpartition(".")[2] for name in modules}
        nearest = difflib.get_close_matches(missing[0].rpartition(".")[2].strip("*$"), sorted(last_parts), n=1)
        hint = f"; nearest is {nearest[0]}" if nearest else ""
        return f"--awq-mappings: {missing[0]} matches no module of the model{hint}"
    return f"--awq-mappings: {mapping.smooth}: no decoder layer holds all of {', '.join(mapping.balance)} to quantize"
