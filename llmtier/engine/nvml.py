"""NVIDIA's management library (NVML), read without ever failing a load point.

Reads the driver through ``pynvml`` (package nvidia-ml-py); sets nothing. Every quantity is asked for by
itself: one that a GPU does not support is ``None`` for good, one that fails once is ``None`` once, and a
GPU that is lost is asked no more. GPUs are numbered as the driver does, by PCI bus.
Source: NVML API reference, and the constants of pynvml 13.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmtier.core.errors import MachineError

_CLOCK_SM = 1  # nvmlClockType_t
_CLOCK_MEMORY = 2
_TEMPERATURE_GPU = 0  # nvmlTemperatureSensors_t
_THROTTLE_REASONS = (  # nvmlClocksEventReasons; GpuIdle (1) holds nothing down
    (0x2, "application_clocks"),
    (0x4, "sw_power_cap"),
    (0x8, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal"),
    (0x40, "hw_thermal"),
    (0x80, "hw_power_brake"),
    (0x100, "display_clocks"),
)
_NOT_SUPPORTED = frozenset({3, 4, 13})  # NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND: will not change
_IS_LOST = frozenset({1, 15, 16})  # UNINITIALIZED, GPU_IS_LOST, RESET_REQUIRED

Handle = Any
"""What NVML names a GPU by; only passed back."""


class Utilization(Protocol):
    """NVML's answer about load, in percent of the last sampling period (1/6 s to 1 s)."""

    gpu: int
    memory: int


class MemoryInfo(Protocol):
    """NVML's answer about memory, in bytes."""

    used: int
    total: int


class Nvml(Protocol):
    """The part of the ``pynvml`` module that is used; a test brings its own."""

    @property
    def NVMLError(self) -> type[Exception]:  # noqa: N802 - pynvml's names
        """What every call raises; ``value`` holds NVML's code."""

    def nvmlInit(self) -> None:  # noqa: N802
        """Load the driver's library."""

    def nvmlShutdown(self) -> None:  # noqa: N802
        """Let it go."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Return how many GPUs there are."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle:  # noqa: N802
        """Return what the other calls name a GPU by."""

    def nvmlDeviceGetName(self, handle: Handle) -> str | bytes:  # noqa: N802
        """Return the product name."""

    def nvmlDeviceGetUtilizationRates(self, handle: Handle) -> Utilization:  # noqa: N802
        """Return the load."""

    def nvmlDeviceGetPowerUsage(self, handle: Handle) -> int:  # noqa: N802
        """Return the board's power in milliwatts; since Ampere a mean over one second."""

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Handle) -> int:  # noqa: N802
        """Return millijoules since the driver was loaded."""

    def nvmlDeviceGetClockInfo(self, handle: Handle, clock: int) -> int:  # noqa: N802
        """Return a clock in MHz."""

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Handle) -> int:  # noqa: N802
        """Return a mask of reasons; every driver since 2015 has this older name."""

    def nvmlDeviceGetMemoryInfo(self, handle: Handle) -> MemoryInfo:  # noqa: N802
        """Return the memory in use."""

    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int) -> int:  # noqa: N802
        """Return degrees Celsius."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one instant; ``None`` where it does not tell.

    Attributes:
        at_s: On the meter's clock.
        utilization: In [0, 1].
        power_w: Of the board.
        energy_j: Since the driver was loaded.
        sm_clock_hz: Likewise ``memory_clock_hz``.
        throttle_reasons: Names from the driver's mask, idle left out.
        memory_used_bytes: By all processes.
        temperature_c: Of the die.
    """

    at_s: float
    utilization: float | None
    power_w: float | None
    energy_j: float | None
    sm_clock_hz: float | None
    memory_clock_hz: float | None
    throttle_reasons: tuple[str, ...] | None
    memory_used_bytes: int | None
    temperature_c: float | None


@dataclass(slots=True, kw_only=True, eq=False)
class WatchedGpu:
    """One GPU and what it has told.

    Attributes:
        index: As the driver counts.
        name: Such as ``NVIDIA L4``.
        handle: NVML's own.
        samples: In the order taken.
        faults: What the driver refused, each once.
        is_lost: Whether it is asked no more.
        unsupported: Quantities that it does not have.
    """

    index: int
    name: str
    handle: Handle
    samples: list[GpuSample] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    is_lost: bool = False
    unsupported: set[str] = field(default_factory=set)


class NvmlReader:
    """An open library and the GPUs that are watched.

    Args:
        library: The ``pynvml`` module or something with its functions.
        indices: GPUs to watch; every one when ``None``.

    Raises:
        MachineError: No library, no driver, or no such GPU.
    """

    def __init__(self, library: Nvml, indices: Sequence[int] | None) -> None:
        self._library = library
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            raise MachineError(f"no NVIDIA driver answers: {error}") from error
        try:
            self.gpus = self._open(indices)
        except library.NVMLError as error:
            self.close()
            raise MachineError(f"the NVIDIA driver does not open GPU {indices}: {error}") from error

    def sample(self, at_s: float) -> None:
        """Ask every GPU that is not lost, and keep the answers."""
        for gpu in self.gpus:
            if not gpu.is_lost:
                self._sample(gpu, at_s)

    def close(self) -> None:
        """Let the library go."""
        try:
            self._library.nvmlShutdown()
        except self._library.NVMLError:
            return  # it was not open any more; nothing is left to release

    def _open(self, indices: Sequence[int] | None) -> list[WatchedGpu]:
        wanted = range(self._library.nvmlDeviceGetCount()) if indices is None else indices
        handles = [(index, self._library.nvmlDeviceGetHandleByIndex(index)) for index in wanted]
        return [WatchedGpu(index=index, name=self._name(handle), handle=handle) for index, handle in handles]

    def _name(self, handle: Handle) -> str:
        name = self._library.nvmlDeviceGetName(handle)
        return name.decode(errors="replace") if isinstance(name, bytes) else name  # pynvml < 11.5 gave bytes

    def _sample(self, gpu: WatchedGpu, at_s: float) -> None:
        library, handle = self._library, gpu.handle
        utilization = self._ask(gpu, "utilization", lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu)
        power_mw = self._ask(gpu, "power", lambda: library.nvmlDeviceGetPowerUsage(handle))
        energy_mj = self._ask(gpu, "energy", lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle))
        sm_mhz = self._ask(gpu, "SM clock", lambda: library.nvmlDeviceGetClockInfo(handle, _CLOCK_SM))
        memory_mhz = self._ask(gpu, "memory clock", lambda: library.nvmlDeviceGetClockInfo(handle, _CLOCK_MEMORY))
        mask = self._ask(gpu, "clock limits", lambda: library.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        used_bytes = self._ask(gpu, "memory", lambda: library.nvmlDeviceGetMemoryInfo(handle).used)
        celsius = self._ask(gpu, "temperature", lambda: library.nvmlDeviceGetTemperature(handle, _TEMPERATURE_GPU))
        if gpu.is_lost:
            return  # half a sample is none
        gpu.samples.append(
            GpuSample(
                at_s=at_s,
                utilization=_scaled(utilization, 0.01),
                power_w=_scaled(power_mw, 0.001),
                energy_j=_scaled(energy_mj, 0.001),
                sm_clock_hz=_scaled(sm_mhz, 1e6),
                memory_clock_hz=_scaled(memory_mhz, 1e6),
                throttle_reasons=None if mask is None else tuple(name for bit, name in _THROTTLE_REASONS if mask & bit),
                memory_used_bytes=used_bytes,
                temperature_c=_scaled(celsius, 1.0),
            )
        )

    def _ask(self, gpu: WatchedGpu, quantity: str, question: Callable[[], int]) -> int | None:
        """Return the answer; a refusal is noted once and is ``None``."""
        if gpu.is_lost or quantity in gpu.unsupported:
            return None
        try:
            return int(question())
        except self._library.NVMLError as error:
            code = getattr(error, "value", None)
            gpu.is_lost = code in _IS_LOST
            if code in _NOT_SUPPORTED:
                gpu.unsupported.add(quantity)
            fault = f"{quantity}: {error}"
            if fault not in gpu.faults:
                gpu.faults.append(fault)
            return None


def open_nvml(indices: Sequence[int] | None, library: Nvml | None = None) -> NvmlReader:
    """Open NVIDIA's library.

    Args:
        indices: GPUs to watch; every one when ``None``.
        library: Taken in place of ``pynvml``.

    Raises:
        MachineError: No such package, no driver, or no such GPU.
    """
    return NvmlReader(library or _import_pynvml(), indices)


def _import_pynvml() -> Nvml:
    try:
        import pynvml
    except ImportError as error:
        raise MachineError("the package nvidia-ml-py is not installed") from error
    library: Nvml = pynvml
    return library


def _scaled(value: int | None, factor: float) -> float | None:
    return None if value is None else value * factor
