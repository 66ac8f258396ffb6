"""What one load point cost the machine: processor time, memory, and per GPU power, clocks and energy.

Holds values; ``engine/meter.py`` measures them. Absent is ``None``: a machine without a GPU has an
empty ``gpus``, a GPU without a sensor has ``None`` in that sensor's field.
"""

from dataclasses import dataclass
from enum import StrEnum


class EnergySource(StrEnum):
    """Where a GPU's energy figure comes from."""

    COUNTER = "counter"
    """The driver's total-energy counter (Volta and later), last minus first reading."""

    POWER_SAMPLES = "power_samples"
    """Trapezoids under the sampled power."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """One GPU over one load point.

    Attributes:
        index: As the driver counts, which is by PCI bus and blind to ``CUDA_VISIBLE_DEVICES``.
        name: Such as ``NVIDIA L4``.
        n_samples: Taken while it answered.
        utilization_mean: Share of time in which any kernel ran, in [0, 1]; says nothing of how full it was.
        power_mean_w: Board power, time-weighted; likewise ``power_max_w`` of the samples.
        energy_j: Of the whole board, idle draw included; ``None`` when undetermined.
        energy_source: ``None`` exactly where ``energy_j`` is.
        sm_clock_mean_hz: Of the streaming multiprocessors; likewise ``sm_clock_min_hz``.
        memory_clock_mean_hz: Of the memory.
        throttled: Reason and share of samples in which it held the clocks down; sorted, idle left out;
            ``None`` where the driver does not say.
        memory_used_max_bytes: By every process on it.
        temperature_max_c: Of the die.
        faults: What the driver refused, each once.
    """

    index: int
    name: str
    n_samples: int
    utilization_mean: float | None = None
    power_mean_w: float | None = None
    power_max_w: float | None = None
    energy_j: float | None = None
    energy_source: EnergySource | None = None
    sm_clock_mean_hz: float | None = None
    sm_clock_min_hz: float | None = None
    memory_clock_mean_hz: float | None = None
    throttled: tuple[tuple[str, float], ...] | None = None
    memory_used_max_bytes: int | None = None
    temperature_max_c: float | None = None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """The machine over one load point.

    Attributes:
        duration_s: First to last sample.
        n_samples: Taken in that time.
        engine_cpu_s: Processor seconds of the engine's process tree; ``None`` for a tier behind a URL.
        engine_rss_max_bytes: Largest sum of the tree's resident sizes; a page shared by two processes counts twice.
        cpu_share: Busy share of all the machine's cores, whoever used them, in [0, 1].
        client_cpu_s: Processor seconds of this process, the meter's own included.
        cpu_energy_j: Of the processor packages (RAPL), whoever used them; ``None`` where it cannot be read.
        gpus: The tier's GPUs in index order.
        notes: Why something is absent, one sentence each.
    """

    duration_s: float
    n_samples: int
    engine_cpu_s: float | None = None
    engine_rss_max_bytes: int | None = None
    cpu_share: float | None = None
    client_cpu_s: float | None = None
    cpu_energy_j: float | None = None
    gpus: tuple[GpuUse, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gpu_energy_j(self) -> float | None:
        """Return the energy of all the tier's GPUs; ``None`` without a GPU or when one of them is unknown."""
        known = [gpu.energy_j for gpu in self.gpus if gpu.energy_j is not None]
        return sum(known) if known and len(known) == len(self.gpus) else None

    @property
    def energy_j(self) -> float | None:
        """Return the energy of the GPUs where the tier has any, else of the processor packages."""
        return self.gpu_energy_j if self.gpus else self.cpu_energy_j

    def joules_per_output_token(self, n_output_tokens: int | None) -> float | None:
        """Return ``energy_j`` per output token; ``None`` without energy or tokens."""
        if self.energy_j is None or not n_output_tokens:
            return None
        return self.energy_j / n_output_tokens
