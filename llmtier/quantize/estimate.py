"""What writing a scheme takes: disk, memory and activation cache.

Pure arithmetic on shapes. The disk bytes are exact for the tensors that compressed-tensors writes. The memory is an
estimate; its constants come from 20 runs of the worker on random Llamas of 5 to 106 million parameters, 2 cores of an
AMD EPYC (Zen 4) without accelerator, llm-compressor 0.14.0.1, torch 2.13, 2026-11-21 (largest resident memory of each).
"""

import math
from collections.abc import Iterable

from llmtier.core.tier import Scheme
from llmtier.quantize.architecture import Architecture, Linear
from llmtier.quantize.demand import Demand, Workload
from llmtier.quantize.duration import estimate_duration
from llmtier.quantize.job import Estimate, PlannedScheme

BLOCK = 128
"""Rows and columns that share one scale in fp8_block."""

SHAPE_BYTES = 16
"""``weight_shape``: two 64-bit numbers beside each packed weight."""


def disk_bytes(architecture: Architecture, linears: Iterable[Linear], planned: PlannedScheme) -> int:
    """Return the bytes of all tensors of a checkpoint: what is quantized in its new form, the rest as it was."""
    linears = tuple(linears)
    rest = architecture.n_bytes - sum(linear.n_bytes for linear in linears)
    scales = 2 * architecture.n_layers * 2 if planned.has_fp8_kv_cache else 0  # k_scale and v_scale, 16 bits
    return rest + scales + sum(linear_bytes(linear, planned.scheme, planned.group_size) for linear in linears)


def linear_bytes(linear: Linear, scheme: Scheme, group_size: int | None) -> int:
    """Return the bytes of one quantized layer: weight, scales, zero points, shape."""
    rows, columns = linear.out_features, linear.in_features
    width = linear.n_bytes // linear.n_weights  # scales keep the type of the weight
    if scheme in (Scheme.INT8, Scheme.FP8):
        return rows * columns + rows * width
    if scheme is Scheme.FP8_BLOCK:
        return rows * columns + math.ceil(rows / BLOCK) * math.ceil(columns / BLOCK) * width
    n_groups = math.ceil(columns / (group_size or columns))
    packed = rows * math.ceil(columns / 8) * 4
    zero_points = math.ceil(rows / 8) * 4 * n_groups if scheme is Scheme.AWQ else 0
    return packed + rows * n_groups * width + zero_points + SHAPE_BYTES


def hidden_state_bytes(n_tokens: int, hidden_size: int, *, width: int = 2) -> int:
    """Return the bytes of one hidden state for each token."""
    return n_tokens * hidden_size * width


def activation_cache_bytes(architecture: Architecture, workload: Workload) -> int:
    """Return what is kept of all rows between two decoder layers.

    Hidden states; a causal mask of length x length for each row, which transformers makes for its "sdpa" attention
    while it is traced; cosines and sines of the positions, and their numbers.
    """
    width = weight_width(architecture)
    head = architecture.head_size or 0
    hidden = hidden_state_bytes(workload.n_tokens, architecture.hidden_size, width=width)
    masks = workload.n_rows * workload.mean_square_tokens * width
    positions = workload.n_tokens * (2 * head * width + 8)
    return round(hidden + masks + positions)


def weight_width(architecture: Architecture) -> int:
    """Return the bytes of one number of the source: 2, or 4 for float32."""
    return max(1, round(architecture.n_bytes / architecture.n_parameters))


LIBRARIES_BYTES = 550_000_000  # Python with torch, transformers and llm-compressor: 217 MB and as much again of code
HESSIAN_COPIES = 3.5  # float32, all of a layer, and the copies while they are inverted: 3.0 to 3.4 measured
AWQ_HEAP = 4.5  # of its cached inputs and outputs: 2.0 to 4.4 measured; the heap fragments, most of it is not in use


def memory_bytes(demand: Demand, workload: Workload, *, spills: bool = False) -> int:
    """Return the memory that must be free, the activation cache included unless it spills.

    Pages of the weight files that the kernel can drop are not counted, so the process may show up to the size of the
    weights more than this.
    """
    layers = demand.layers.values()
    largest = max((sum(linear.n_weights for linear in layer) for layer in layers), default=0)
    need = LIBRARIES_BYTES + demand.architecture.n_bytes + 4 * largest
    if not demand.planned.needs_data:
        return need
    if not spills:
        need += activation_cache_bytes(demand.architecture, workload)
    if demand.is_awq:
        need += round(AWQ_HEAP * awq_bytes(demand, workload))
    if demand.is_gptq:
        need += round(HESSIAN_COPIES * max(map(hessian_bytes, layers), default=0))
    return need


def hessian_bytes(layer: Iterable[Linear]) -> int:
    """Return the bytes of GPTQ's Hessians of one decoder layer: float32, inputs x inputs for each linear layer."""
    return sum(4 * linear.in_features**2 for linear in layer)


def awq_bytes(demand: Demand, workload: Workload) -> int:
    """Return what AWQ keeps of all rows for one layer: the inputs of each group of layers, and two outputs."""
    width = weight_width(demand.architecture)
    inputs = max((sum(distinct_inputs(layer)) for layer in demand.layers.values()), default=0)
    return workload.n_tokens * width * (inputs + 2 * demand.architecture.hidden_size)


def distinct_inputs(layer: Iterable[Linear]) -> list[int]:
    """Return the widths that the layer's parts read: attention, its output, feed-forward, its output.

    Layers of one parent with one width read the same tensor, and so do projections and output of equal width, which
    are told apart by their names; experts count as one, as a token visits a few of them only.
    """
    readers = {(expert_free(linear.name), linear.name.endswith(OUTPUTS), linear.in_features) for linear in layer}
    return [width for _, _, width in readers]


OUTPUTS = ("o_proj", "down_proj", "out_proj", "dense", "w2", "c_proj", "fc2")
"""Last parts of the names of layers that read what their siblings made."""


def expert_free(name: str) -> str:
    """Return the parent of a layer, experts taken together."""
    return name.partition(".experts.")[0] if ".experts." in name else name.rpartition(".")[0]


def layer_store_bytes(demand: Demand) -> int:
    """Return the bytes of the finished layers that a run keeps for a restart, of every pass."""
    stack = sum(linear.n_bytes for linear in demand.architecture.linears if linear.layer is not None)
    return round(1.05 * stack * demand.n_stages)  # norms, scales and zero points besides the weights


def estimate_scheme(
    demand: Demand, workload: Workload, *, gflops: float | None, has_gpu: bool, spills: bool, max_tokens: int
) -> Estimate:
    """Return what writing one scheme takes."""
    cache = activation_cache_bytes(demand.architecture, workload)
    duration = estimate_duration(demand, workload, gflops=gflops, has_gpu=has_gpu, max_tokens=max_tokens)
    return Estimate(
        memory_bytes=memory_bytes(demand, workload, spills=spills),
        activation_cache_bytes=cache,
        disk_bytes=disk_bytes(demand.architecture, demand.linears, demand.planned),
        work_bytes=layer_store_bytes(demand) + (cache if spills else 0),
        seconds_low=duration.low_s,
        seconds_high=duration.high_s,
        unknown_time=duration.unknown,
        spills=spills,
    )
