"""The plan before the work: what will be written, whether it can work, what it takes, and what it is worth.

Pure: ``plan`` takes a job and what ``survey`` found and returns a ``QuantizePlan`` or refuses. Refused is what cannot
be written, cannot be loaded on the target, or does not fit; what is only unwise becomes a note.
"""

from dataclasses import replace
from functools import partial

from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme
from llmtier.quantize.architecture import Architecture, Linear
from llmtier.quantize.awq_mappings import Coverage, find_coverage
from llmtier.quantize.demand import NO_DATA, Demand, Workload
from llmtier.quantize.divisibility import check_blocks, check_four_bit, choose_group_size
from llmtier.quantize.estimate import disk_bytes, estimate_scheme, memory_bytes
from llmtier.quantize.fusion import check_ignore, complete_ignore, fused_groups, quantized_linears
from llmtier.quantize.job import PRESETS, Backend, Facts, PlannedScheme, QuantizeJob, QuantizePlan
from llmtier.quantize.limits import check_disk, check_memory
from llmtier.quantize.options import check_options, check_target
from llmtier.quantize.plan_notes import make_notes
from llmtier.quantize.reuse import differing_options
from llmtier.quantize.survey import Earlier, Survey
from llmtier.quantize.target import Target, judge, resolve_target

AUTOAWQ_PRESET = "GEMM"  # AutoAWQ's name of its layout
FOUR_BIT = frozenset({Scheme.AWQ, Scheme.GPTQ})
JUDGED = (*QUANTIZABLE_SCHEMES, Scheme.NVFP4, Scheme.MXFP4)


def plan(job: QuantizeJob, survey: Survey) -> QuantizePlan:
    """Return what will be written, or refuse.

    Raises:
        UsageError: A scheme cannot be written or loaded, its options contradict each other, or shapes do not fit.
        MachineError: The memory does not hold it; names the option to lower.
        DiskError: The disk does not hold it.
    """
    target = resolve_target(job.device, survey.machine)
    verdicts = {scheme: judge(scheme, target) for scheme in JUDGED}
    check_options(job, survey, target)
    check_target(job, target, verdicts)
    ignore = complete_ignore(job.ignore, survey.architecture)
    check_ignore(ignore, survey.architecture)
    linears = quantized_linears(survey.architecture, ignore)
    group_size = check_shapes(job, survey.architecture, linears, target)
    coverage = awq_coverage(job, survey, ignore)
    workload = choose_rows(job, survey.rows)
    planned = [describe(scheme, job, survey, ignore=ignore, group_size=group_size) for scheme in job.schemes]
    schemes = tuple(
        replace(fit(one, job, survey, linears, workload, coverage), verdict=verdicts[one.scheme]) for one in planned
    )
    check_disk(schemes, survey.earlier, free_bytes=survey.free_disk_bytes, folder=job.out, n_rows=workload.n_rows)
    facts = gather_facts(target, survey, linears, workload if survey.rows is not None else None)
    return QuantizePlan(
        schemes=schemes,
        notes=make_notes(job, survey, schemes=schemes, facts=facts, linears=linears, coverage=coverage),
        facts=facts,
        others={scheme: verdict for scheme, verdict in verdicts.items() if scheme not in job.schemes},
    )


def check_shapes(
    job: QuantizeJob, architecture: Architecture, linears: tuple[Linear, ...], target: Target
) -> int | None:
    """Return the group size of the 4-bit schemes, ``None`` without one.

    Raises:
        UsageError: A layer's shape does not suit a scheme; names it.
    """
    if Scheme.FP8_BLOCK in job.schemes:
        check_blocks(linears, fused_groups(architecture))
    if not FOUR_BIT & set(job.schemes):
        return None
    check_four_bit(linears, target, job.backend)
    return choose_group_size(job.group_size, linears)


def awq_coverage(job: QuantizeJob, survey: Survey, ignore: tuple[str, ...]) -> Coverage | None:
    """Return what AWQ's mappings reach; ``None`` where awq is not asked for, or AutoAWQ brings its own.

    Raises:
        UsageError: They reach nothing.
    """
    if Scheme.AWQ not in job.schemes or job.backend is Backend.AUTOAWQ:
        return None
    return find_coverage(survey.architecture, survey.registry, ignore=ignore, given=survey.awq_mappings)


def choose_rows(job: QuantizeJob, rows: Workload | None) -> Workload:
    """Return the rows that a scheme with data reads."""
    return NO_DATA if rows is None else rows.with_rows(min(rows.n_rows, job.n_samples))


def describe(
    scheme: Scheme, job: QuantizeJob, survey: Survey, *, ignore: tuple[str, ...], group_size: int | None
) -> PlannedScheme:
    """Return where and how one scheme will be written, and whether it has been."""
    planned = PlannedScheme(
        scheme=scheme,
        preset=AUTOAWQ_PRESET if job.backend is Backend.AUTOAWQ else PRESETS[scheme],
        folder=job.folder(scheme),
        needs_data=job.needs_data(scheme),
        group_size=group_size if scheme in FOUR_BIT else None,
        ignore=ignore,
        backend=job.backend,
        smoothing_strength=job.smoothing_strength if scheme is Scheme.INT8 else None,
        has_fp8_kv_cache=job.has_fp8_kv_cache,
        awq_mappings=survey.awq_mappings if scheme is Scheme.AWQ else None,
    )
    recipe = survey.earlier.get(scheme, Earlier()).recipe
    return replace(planned, is_finished=recipe is not None and not any(differing_options(recipe, planned, job)))


def fit(
    planned: PlannedScheme,
    job: QuantizeJob,
    survey: Survey,
    linears: tuple[Linear, ...],
    workload: Workload,
    coverage: Coverage | None,
) -> PlannedScheme:
    """Estimate a scheme; where only the activation cache is too large, let it spill. What is finished fits.

    Raises:
        MachineError: It does not fit.
    """
    demand = Demand(architecture=survey.architecture, linears=linears, planned=planned, coverage=coverage)
    used = workload if planned.needs_data else NO_DATA
    free_bytes = survey.free_memory_bytes
    spills = memory_bytes(demand, used) > free_bytes and demand.can_spill and not planned.is_finished
    if not planned.is_finished:
        needs = partial(memory_bytes, demand, spills=spills)
        check_memory(planned, job, needs=needs, workload=used, free_bytes=free_bytes)
    estimate = estimate_scheme(
        demand,
        used,
        gflops=survey.gflops,
        has_gpu=bool(survey.machine.gpus),
        spills=spills,
        max_tokens=job.max_seq_tokens,
    )
    return replace(planned, spills=spills, estimate=replace(estimate, export_bytes=export_bytes(demand, job)))


def export_bytes(demand: Demand, job: QuantizeJob) -> int | None:
    """Return the weights of the export, or a little more: as awq's, for it has zero points in any case."""
    if not job.has_autoawq_export or demand.planned.scheme not in FOUR_BIT:
        return None
    return disk_bytes(demand.architecture, demand.linears, replace(demand.planned, scheme=Scheme.AWQ))


def gather_facts(target: Target, survey: Survey, linears: tuple[Linear, ...], workload: Workload | None) -> Facts:
    """Return what the plan was made from."""
    architecture = survey.architecture
    return Facts(
        target=target,
        architecture=architecture.name,
        n_layers=architecture.n_layers,
        n_parameters=architecture.n_parameters,
        source_bytes=architecture.n_bytes,
        n_linears=len(linears),
        n_kept=len(architecture.linears) - len(linears),
        n_rows=None if workload is None else workload.n_rows,
        n_rows_available=None if survey.rows is None else survey.rows.n_rows,
        n_tokens=None if workload is None else workload.n_tokens,
        free_memory_bytes=survey.free_memory_bytes,
        free_disk_bytes=survey.free_disk_bytes,
        gflops=survey.gflops,
    )
