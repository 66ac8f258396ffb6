"""How long writing a scheme takes, as an interval.

Pure. The model: operations divided by the measured speed of this machine, plus what each column of GPTQ, each call of a
layer in AWQ's search and each batch costs in Python. Constants: non-negative least squares on 13 runs of the worker
(gptq, awq, int8 with SmoothQuant) on random Llamas of 256 to 1,024 wide and 2 to 8 layers, 32 to 128 rows of 256 or 512
tokens, 2 cores of an AMD EPYC (Zen 4, 205 GFLOP/s), llm-compressor 0.14.0.1, torch 2.13, 2026-11-21: all within 21 % of
the fit. Larger models are extrapolated (a run of 146 million parameters noted earlier: awq 465 s, by this model 437 s).
No mixture of experts and no GPU was measured: there the answer is ``None``, with the reason.
"""

import math
from dataclasses import dataclass

from llmtier.quantize.awq_mappings import ResolvedMapping
from llmtier.quantize.demand import Demand, Workload
from llmtier.quantize.job import Backend

START_S = 6.0  # interpreter, torch, transformers, llm-compressor, tracing: 5.8 s
BYTES_PER_S = 2e8  # weights read, rounded and written: 0.2 s to 5 s a GB, by the disk
PASS_S = 3.1e-3  # one batch through one layer
COLUMN_S = 2.7e-4  # one column of one layer in GPTQ
CALL_S = 6.2e-4  # one batch through one part of a layer in AWQ's search
GRID_PASSES = 22  # AWQ: 20 points, the identity, and the output to compare with
LOW, HIGH = 0.6, 2.0  # times the estimate: other machines, and other work on this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A time that is not known exactly; ``None`` with a reason when it is not known at all."""

    low_s: float | None
    high_s: float | None
    unknown: str | None = None


def estimate_duration(
    demand: Demand, workload: Workload, *, gflops: float | None, has_gpu: bool, max_tokens: int
) -> Interval:
    """Return how long a scheme takes, from start to the saved checkpoint."""
    reason = why_unknown(demand, gflops=gflops, has_gpu=has_gpu)
    if reason is not None:
        return Interval(low_s=None, high_s=None, unknown=reason)
    fixed_s = START_S + demand.architecture.n_bytes / BYTES_PER_S
    if not demand.planned.needs_data:
        return Interval(low_s=LOW * START_S, high_s=HIGH * fixed_s)
    computed_s = operations(demand, workload) / ((gflops or math.nan) * 1e9)
    # Rows of one length share a batch: at best they fill it, at worst every row is one of its own.
    few_s = overhead_s(demand, n_batches=math.ceil(workload.n_tokens / max_tokens))
    many_s = overhead_s(demand, n_batches=workload.n_rows)
    return Interval(low_s=LOW * (START_S + few_s + computed_s), high_s=HIGH * (fixed_s + many_s + computed_s))


def why_unknown(demand: Demand, *, gflops: float | None, has_gpu: bool) -> str | None:
    """Return why no time can be told; ``None`` when it can."""
    if demand.planned.backend is Backend.AUTOAWQ:
        return "not measured for AutoAWQ"
    if not demand.planned.needs_data:
        return None
    if has_gpu:
        return "not measured on a GPU"
    if demand.architecture.n_experts or demand.architecture.packed:
        return "not measured for a mixture of experts"
    if demand.is_awq and (demand.coverage is None or demand.coverage.n_layers is None):
        return "the mappings are built at run time"
    return None if gflops is not None else "this machine's speed was not measured"


def operations(demand: Demand, workload: Workload) -> float:
    """Return the floating-point operations of all passes, of GPTQ and of AWQ's search."""
    n_tokens = workload.n_tokens
    n_weights = sum(linear.n_weights for layer in demand.layers.values() for linear in layer)
    total = 2.0 * demand.n_stages * 2 * n_tokens * n_weights  # two passes a stage, one product and one sum a weight
    if demand.is_gptq:
        total += sum(gptq_operations(linear.in_features, linear.out_features, n_tokens) for linear in demand.linears)
    if demand.is_awq and demand.coverage is not None:
        total += sum(search_operations(demand, mapping, n_tokens) for mapping in demand.coverage.resolved)
    return total


def gptq_operations(n_in: int, n_out: int, n_tokens: int) -> float:
    """Return GPTQ's operations on one layer: the Hessian, its inverse, and the updates of the weights."""
    return 2.0 * n_tokens * n_in**2 + 2.0 * n_in**3 + 2.0 * n_out * n_in**2


def search_operations(demand: Demand, mapping: ResolvedMapping, n_tokens: int) -> float:
    """Return the operations of one mapping's grid: all rows through the parent of its layers, again and again."""
    parent = common_parent(mapping.balance)
    n_weights = sum(
        linear.n_weights
        for linear in demand.architecture.linears
        if linear.layer == mapping.layer and f"{linear.name}.".startswith(f"{parent}.")
    )
    return 2.0 * GRID_PASSES * n_tokens * n_weights


def common_parent(names: tuple[str, ...]) -> str:
    """Return the module that holds all of these; a single one is its own."""
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared)


def overhead_s(demand: Demand, *, n_batches: int) -> float:
    """Return what Python costs: batches passed, columns rounded, parts called."""
    total = PASS_S * 2 * demand.n_stages * n_batches * demand.architecture.n_layers
    if demand.is_gptq:
        total += COLUMN_S * sum(linear.in_features for linear in demand.linears)
    if demand.is_awq and demand.coverage is not None:
        total += CALL_S * GRID_PASSES * n_batches * len(demand.coverage.resolved)
    return total
