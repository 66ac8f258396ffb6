"""What people should know before the work starts: the lines under the plan's table, loudest first. Pure."""

from collections.abc import Iterator

from llmtier.core.tier import Scheme
from llmtier.engine.capability import lint_engine_args
from llmtier.quantize.architecture import Architecture, Linear
from llmtier.quantize.awq_mappings import Coverage
from llmtier.quantize.divisibility import find_slow_shapes
from llmtier.quantize.fusion import HEAD, ROUTERS
from llmtier.quantize.job import GROUP_SIZES, Backend, Facts, PlannedScheme, QuantizeJob
from llmtier.quantize.limits import gigabytes
from llmtier.quantize.survey import Survey
from llmtier.quantize.target import Grade

FEW_ROWS = 128
"""Below, GPTQ's accuracy suffers (AWQ's paper, arXiv 2306.00978, figure 8: GPTQ wants 128 to 192, AWQ 16 to 32)."""

MEMORY_SHARE = 0.9  # vLLM's default gpu_memory_utilization


def make_notes(
    job: QuantizeJob,
    survey: Survey,
    *,
    schemes: tuple[PlannedScheme, ...],
    facts: Facts,
    linears: tuple[Linear, ...],
    coverage: Coverage | None,
) -> tuple[str, ...]:
    """Return the notes on a plan."""
    return (
        *note_finished(schemes),
        *note_worth(schemes, facts),
        *note_memory(schemes, facts),
        *note_data(job, schemes, facts, survey.max_position),
        *note_awq(coverage, survey.architecture),
        *note_layers(job, schemes, survey.architecture),
        *note_kernels(schemes, facts, linears),
        *note_options(job, facts),
        *note_time(schemes),
    )


def note_finished(schemes: tuple[PlannedScheme, ...]) -> Iterator[str]:
    """Say what will not be made anew."""
    finished = [planned.scheme.value for planned in schemes if planned.is_finished]
    if finished:
        yield f"{', '.join(finished)}: finished with these options; used again if model and data are the same too"


def note_worth(schemes: tuple[PlannedScheme, ...], facts: Facts) -> Iterator[str]:
    """Say which schemes are pointless or slow on the target."""
    for planned in schemes:
        verdict = planned.verdict
        if verdict is not None and verdict.grade is not Grade.FAST:
            yield f"{planned.scheme.value} is {verdict.grade.value} on {facts.target.name}: {verdict.reason}"


def note_memory(schemes: tuple[PlannedScheme, ...], facts: Facts) -> Iterator[str]:
    """Say what spills, and what the target's memory will not hold."""
    for planned in schemes:
        estimate = planned.estimate
        if estimate is None:
            continue
        if estimate.spills:
            yield (
                f"{planned.scheme.value}: the activation cache ({gigabytes(estimate.activation_cache_bytes)}) finds no "
                f"room in the free memory ({gigabytes(facts.free_memory_bytes)}) beside the model; it goes into files in "
                "the output folder, which takes longer"
            )
        if estimate.disk_bytes > MEMORY_SHARE * facts.target.memory_bytes:
            yield (
                f"{planned.scheme.value}: {gigabytes(estimate.disk_bytes)} of weights do not fit into the memory of one "
                f"{facts.target.name} ({gigabytes(facts.target.memory_bytes)})"
            )


def note_data(
    job: QuantizeJob, schemes: tuple[PlannedScheme, ...], facts: Facts, max_position: int | None
) -> Iterator[str]:
    """Say who ignores the calibration set, and whether it is small."""
    ignoring = [planned.scheme.value for planned in schemes if not planned.needs_data]
    if ignoring and job.calibration is not None:
        yield f"{', '.join(ignoring)}: weights are rounded without data; the calibration set changes nothing"
    reading = [planned.scheme.value for planned in schemes if planned.needs_data]
    if not reading or facts.n_rows is None:
        return
    if facts.n_rows < FEW_ROWS:
        cause = (
            f"the set holds {facts.n_rows_available}" if facts.n_rows < job.n_samples else "--samples asks for no more"
        )
        yield (
            f"{', '.join(reading)}: {facts.n_rows} calibration rows are few ({cause}); {FEW_ROWS} or more are advised, "
            "awq often does with 32"
        )
    if max_position is not None and job.max_seq_tokens > max_position:
        yield f"--max-seq-tokens {job.max_seq_tokens} is beyond the model's context of {max_position} tokens"


def note_awq(coverage: Coverage | None, architecture: Architecture) -> Iterator[str]:
    """Say how many decoder layers AWQ's mappings reach."""
    if coverage is None:
        return
    if coverage.n_layers is None:
        yield "awq: llm-compressor builds the mappings of this architecture from the loaded model; not checked here"
        return
    if coverage.n_layers < architecture.n_layers:
        yield f"awq: mappings reach {coverage.n_layers} of {architecture.n_layers} decoder layers; the rest is rounded"
    if coverage.n_skipped:
        why = " (grouped-query attention: fewer value heads)" if architecture.is_grouped_query else ""
        yield f"awq: {coverage.n_skipped} pairs v_proj, o_proj differ in width and are not scaled{why}; that is usual"


def note_layers(job: QuantizeJob, schemes: tuple[PlannedScheme, ...], architecture: Architecture) -> Iterator[str]:
    """Say which layers stay, and what the weight files do not show."""
    group_size = next((planned.group_size for planned in schemes if planned.group_size is not None), None)
    if group_size is not None and job.group_size is None and group_size != GROUP_SIZES[0]:
        yield f"group size {group_size}: the layers do not divide into groups of {GROUP_SIZES[0]}"
    if HEAD not in job.ignore:
        yield "the output head (lm_head) stays as it is in any case"
    if ROUTERS in schemes[0].ignore and ROUTERS not in job.ignore:
        yield "the routers of the experts stay as they are: they are tiny, and vLLM keeps them in 16 bits"
    outside = [
        linear.name
        for linear in architecture.linears
        if linear.layer is None and linear.name.rpartition(".")[2] != HEAD
    ]
    if outside:
        yield f"{len(outside)} linear layers outside the decoder ({outside[0]}, ...) are quantized too unless --ignore names them"
    if architecture.packed:
        yield (
            f"{len(architecture.packed)} tensors hold experts in one piece ({architecture.packed[0]}): whether they are "
            "quantized is llm-compressor's choice, and sizes and times here leave them out"
        )


def note_kernels(schemes: tuple[PlannedScheme, ...], facts: Facts, linears: tuple[Linear, ...]) -> Iterator[str]:
    """Say which layers miss the fast 4-bit kernels."""
    if any(planned.scheme in (Scheme.AWQ, Scheme.GPTQ) for planned in schemes):
        slow = find_slow_shapes(linears, facts.target)
        if slow:
            yield (
                f"{len(slow)} layers ({slow[0].name}, ...) have shapes that the Marlin kernel does not take "
                "(outputs in multiples of 64, inputs of 128); a slower 4-bit kernel runs them"
            )


def note_options(job: QuantizeJob, facts: Facts) -> Iterator[str]:
    """Say what the options bring with them."""
    if job.backend is Backend.AUTOAWQ:
        yield "autoawq: the project is archived since May 2025; the default backend writes awq that vLLM loads too"
    if job.has_fp8_kv_cache:
        for finding in lint_engine_args({"kv_cache_dtype": "fp8"}, facts.target.hardware):
            yield f"fp8 KV cache: {finding.message}"


def note_time(schemes: tuple[PlannedScheme, ...]) -> Iterator[str]:
    """Say why a time is not known."""
    for planned in schemes:
        if planned.estimate is not None and planned.estimate.unknown_time is not None:
            yield f"{planned.scheme.value}: no time is given: {planned.estimate.unknown_time}"
