"""From a GPU's samples to its summary: means, extremes, energy.

Pure: reads samples, returns ``GpuUse``. Energy comes from the driver's counter where both ends of the
point have it, else from the area under the sampled power; a GPU that was lost, or that was silent for
too long between two samples, has none: what was not watched is not filled in.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from llmtier.core.device_use import EnergySource, GpuUse
from llmtier.engine.nvml import GpuSample, WatchedGpu


def summarize_gpu(gpu: WatchedGpu, *, max_gap_s: float) -> GpuUse:
    """Return what one GPU did.

    Args:
        gpu: With its samples.
        max_gap_s: Longest time between two power samples that may be bridged by a straight line.
    """
    samples = tuple(gpu.samples)
    energy_j, source = (None, None) if gpu.is_lost else find_energy(samples, max_gap_s=max_gap_s)
    sm_clocks_hz = [sample.sm_clock_hz for sample in samples if sample.sm_clock_hz is not None]
    return GpuUse(
        index=gpu.index,
        name=gpu.name,
        n_samples=len(samples),
        utilization_mean=_mean(sample.utilization for sample in samples),
        power_mean_w=_mean_power_w(_powers(samples)),
        power_max_w=_highest(sample.power_w for sample in samples),
        energy_j=energy_j,
        energy_source=source,
        sm_clock_mean_hz=_mean(sm_clocks_hz),
        sm_clock_min_hz=min(sm_clocks_hz, default=None),
        memory_clock_mean_hz=_mean(sample.memory_clock_hz for sample in samples),
        throttled=_share_throttled(samples),
        memory_used_max_bytes=max(
            (sample.memory_used_bytes for sample in samples if sample.memory_used_bytes is not None), default=None
        ),
        temperature_max_c=_highest(sample.temperature_c for sample in samples),
        faults=tuple(gpu.faults),
    )


def find_energy(samples: Sequence[GpuSample], *, max_gap_s: float) -> tuple[float | None, EnergySource | None]:
    """Return joules from the first to the last sample and where they come from; ``None`` for both when unknown."""
    if len(samples) < 2:
        return None, None
    first_j, last_j = samples[0].energy_j, samples[-1].energy_j
    if first_j is not None and last_j is not None and last_j >= first_j:  # a reloaded driver counts from 0
        return last_j - first_j, EnergySource.COUNTER
    powers = _powers(samples)
    instants_s = [samples[0].at_s, *(at_s for at_s, _ in powers), samples[-1].at_s]
    gaps_s = [later - earlier for earlier, later in pairwise(instants_s)]
    if len(powers) < 2 or max(gaps_s) > max_gap_s:
        return None, None
    return _area_j(powers), EnergySource.POWER_SAMPLES


def _powers(samples: Sequence[GpuSample]) -> list[tuple[float, float]]:
    return [(sample.at_s, sample.power_w) for sample in samples if sample.power_w is not None]


def _area_j(powers: Sequence[tuple[float, float]]) -> float:
    """Return the area under a line through (instant, power)."""
    pairs = pairwise(powers)
    return sum((after_s - before_s) * (before_w + after_w) / 2 for (before_s, before_w), (after_s, after_w) in pairs)


def _mean_power_w(powers: Sequence[tuple[float, float]]) -> float | None:
    """Return the time-weighted mean; samples do not come at equal distances on a busy machine."""
    if not powers:
        return None
    span_s = powers[-1][0] - powers[0][0]
    return _area_j(powers) / span_s if span_s > 0 else powers[0][1]


def _share_throttled(samples: Sequence[GpuSample]) -> tuple[tuple[str, float], ...] | None:
    told = [sample.throttle_reasons for sample in samples if sample.throttle_reasons is not None]
    if not told:
        return None
    counts = Counter(reason for reasons in told for reason in reasons)
    return tuple((reason, counts[reason] / len(told)) for reason in sorted(counts))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
