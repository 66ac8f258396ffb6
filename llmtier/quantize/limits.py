"""Whether a job fits into the memory and onto the disk of this machine: go, spill to files, or refuse and say how far.

Pure. A refusal names the option to lower and the largest value that fits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from llmtier.core.errors import DiskError, MachineError
from llmtier.core.tier import Scheme
from llmtier.quantize.demand import Workload, uniform_workload
from llmtier.quantize.job import PlannedScheme, QuantizeJob
from llmtier.quantize.survey import Earlier

DISK_SLACK_BYTES = 256_000_000  # tokenizer, cards, the file system's own
MIN_SUGGESTED_ROWS = 16  # below, GPTQ and AWQ have too little to go by: AWQ's paper (arXiv 2306.00978) uses 16 to 32
MIN_SUGGESTED_TOKENS = 64

Needs = Callable[[Workload], int]
"""Memory that a workload needs."""


def check_memory(
    planned: PlannedScheme, job: QuantizeJob, *, needs: Needs, workload: Workload, free_bytes: int
) -> None:
    """Refuse a scheme whose need exceeds the free memory.

    Raises:
        MachineError: It does; says which option to lower and to what.
    """
    need = needs(workload)
    if need <= free_bytes:
        return
    advice = suggest(job, needs=needs, workload=workload, free_bytes=free_bytes)
    raise MachineError(
        f"{planned.scheme.value} needs about {gigabytes(need)} of memory, {gigabytes(free_bytes)} are free: {advice}"
    )


def suggest(job: QuantizeJob, *, needs: Needs, workload: Workload, free_bytes: int) -> str:
    """Return what to lower and to what value, as far as that can help."""
    n_rows = largest(lambda n: needs(workload.with_rows(n)) <= free_bytes, workload.n_rows)
    n_tokens = largest(lambda n: fits_uniform(needs, n, free_bytes, workload.n_rows), job.max_seq_tokens)
    options = []
    if n_rows >= MIN_SUGGESTED_ROWS:
        options.append(f"--samples to {n_rows} (now {job.n_samples})")
    if MIN_SUGGESTED_TOKENS <= n_tokens < job.max_seq_tokens:
        options.append(f"--max-seq-tokens to {n_tokens} (now {job.max_seq_tokens})")
    if options:
        return f"lower {' or '.join(options)}"
    both = suggest_both(job, needs=needs, workload=workload, free_bytes=free_bytes)
    if both is not None:
        return both
    what = "calibration" if workload.n_rows else "the work"
    return f"the model itself leaves no room for {what}; take a machine with more memory"


def suggest_both(job: QuantizeJob, *, needs: Needs, workload: Workload, free_bytes: int) -> str | None:
    """Return values for both options, the longest rows of which enough fit; ``None`` when nothing does."""
    n_tokens = job.max_seq_tokens // 2
    while n_tokens >= MIN_SUGGESTED_TOKENS:
        n_rows = largest(partial(fits_uniform, needs, n_tokens, free_bytes), workload.n_rows)
        if n_rows >= MIN_SUGGESTED_ROWS:
            now = f"now {job.max_seq_tokens} and {job.n_samples}"
            return f"lower --max-seq-tokens to {n_tokens} and --samples to {n_rows} ({now})"
        n_tokens //= 2
    return None


def fits_uniform(needs: Needs, n_tokens: int, free_bytes: int, n_rows: int) -> bool:
    """Tell whether rows of one length fit."""
    return needs(uniform_workload(n_rows=n_rows, n_tokens=n_tokens)) <= free_bytes


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """Return the largest number from 0 to ``limit`` that fits, where smaller ones fit too."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def check_disk(
    schemes: Sequence[PlannedScheme],
    earlier: Mapping[Scheme, Earlier],
    *,
    free_bytes: int,
    folder: Path,
    n_rows: int,
) -> None:
    """Refuse a job whose checkpoints, exports and work files do not fit beside what is there already.

    Args:
        schemes: What is to be written; what is finished takes no room.
        earlier: What lies there.
        free_bytes: Room on the disk.
        folder: Where it is, for the message.
        n_rows: Calibration rows used.

    Raises:
        DiskError: They do not.
    """
    kept = most_at_once([*checkpoint_writes(schemes, earlier), *export_writes(schemes, earlier)])
    if kept is None:
        return
    free_bytes += sum(one.stale_bytes for one in earlier.values())
    passing, cache = largest_work(schemes, earlier)
    if kept + passing + DISK_SLACK_BYTES <= free_bytes:
        return
    room = free_bytes - kept - (passing - cache) - DISK_SLACK_BYTES
    fitting = room * n_rows // cache if cache else 0
    lower = f", or lower --samples to {fitting}" if fitting >= MIN_SUGGESTED_ROWS else ""
    with_cache = f", {gigabytes(cache)} of it the activation cache in files" if cache else ""
    raise DiskError(
        f"{folder}: needs {gigabytes(kept)} for the checkpoints, {gigabytes(passing)} during the work{with_cache}, "
        f"and {gigabytes(DISK_SLACK_BYTES)} to spare; "
        f"{gigabytes(free_bytes)} are free; free some space or choose another --output{lower}"
    )


def checkpoint_writes(schemes: Sequence[PlannedScheme], earlier: Mapping[Scheme, Earlier]) -> Iterator[tuple[int, int]]:
    """Yield the bytes of each checkpoint to be made, and of the folder that it replaces."""
    for planned in schemes:
        if planned.estimate is not None and not planned.is_finished:
            yield planned.estimate.disk_bytes, earlier.get(planned.scheme, Earlier()).n_bytes


def export_writes(schemes: Sequence[PlannedScheme], earlier: Mapping[Scheme, Earlier]) -> Iterator[tuple[int, int]]:
    """Yield the bytes of each export to be made, and of the folder that it replaces."""
    for planned in schemes:
        there = earlier.get(planned.scheme, Earlier())
        n_bytes = None if planned.estimate is None else planned.estimate.export_bytes
        if n_bytes is not None and not (planned.is_finished and there.is_exported):
            yield n_bytes, there.export_bytes


def most_at_once(writes: Sequence[tuple[int, int]]) -> int | None:
    """Return by how much the disk will be fuller at most; ``None`` when nothing is written.

    Folders are written one after the other, and each goes only when the one that replaces it is whole.
    """
    taken, most = 0, None
    for n_bytes, replaced_bytes in writes:
        most = max(most or 0, taken + n_bytes)
        taken += n_bytes - replaced_bytes
    return most


def largest_work(schemes: Sequence[PlannedScheme], earlier: Mapping[Scheme, Earlier]) -> tuple[int, int]:
    """Return the most bytes that the work on a scheme has yet to write, and how many of them a spilled cache takes."""
    works = [(0, 0)]
    for planned in schemes:
        estimate = planned.estimate
        if estimate is not None and not planned.is_finished:
            there = earlier.get(planned.scheme, Earlier()).work_bytes
            cache = estimate.activation_cache_bytes if estimate.spills else 0
            works.append((max(0, estimate.work_bytes - there), cache))
    return max(works)


def gigabytes(n_bytes: float) -> str:
    """Return bytes as people read them: ``1.5 GB``."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
