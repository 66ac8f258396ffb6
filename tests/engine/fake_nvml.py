"""A stand-in for the pynvml module: scripted GPUs, and errors with NVML's own codes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED, TIMEOUT, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 10, 9, 13, 15


class NvmlError(Exception):
    """As pynvml's: ``value`` holds the code."""

    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__(f"NVML error {value}")


@dataclass
class FakeGpu:
    """One GPU; a value may be a function that is asked at each sample, or an error to raise."""

    name: str | bytes = "NVIDIA L4"
    values: dict[str, Any] = field(default_factory=dict)
    n_questions: int = 0

    def answer(self, quantity: str) -> int:
        self.n_questions += 1
        value = self.values[quantity]
        value = value() if callable(value) else value
        if isinstance(value, Exception):
            raise value
        return int(value)


def gpu(**changes: object) -> FakeGpu:
    """Return a GPU that supports everything."""
    values = {
        "utilization": 50,
        "power": 70_000,
        "energy": 1_000_000,
        "clock1": 1_500,
        "clock2": 6_000,
        "reasons": 0,
        "used": 2**30,
        "temperature": 60,
    }
    return FakeGpu(values=values | changes)


def each(*values: object) -> Callable[[], object]:
    """Return a function that gives one value after the other, and the last for ever."""
    left = list(values)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


class FakeNvml:
    """The part of pynvml that the reader uses."""

    NVMLError = NvmlError

    def __init__(self, *gpus: FakeGpu, init_error: Exception | None = None) -> None:
        self.gpus = gpus
        self.is_open = False
        self._init_error = init_error

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's names
        if self._init_error is not None:
            raise self._init_error
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802 - pynvml's names
        if not self.is_open:
            raise NvmlError(1)
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - pynvml's names
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:  # noqa: N802 - pynvml's names
        if index >= len(self.gpus):
            raise NvmlError(2)
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str | bytes:  # noqa: N802 - pynvml's names
        return handle.name

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> SimpleNamespace:  # noqa: N802 - pynvml's names
        return SimpleNamespace(gpu=handle.answer("utilization"), memory=0)

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:  # noqa: N802 - pynvml's names
        return handle.answer("power")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeGpu) -> int:  # noqa: N802 - pynvml's names
        return handle.answer("energy")

    def nvmlDeviceGetClockInfo(self, handle: FakeGpu, clock: int) -> int:  # noqa: N802 - pynvml's names
        return handle.answer(f"clock{clock}")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: FakeGpu) -> int:  # noqa: N802 - pynvml's names
        return handle.answer("reasons")

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> SimpleNamespace:  # noqa: N802 - pynvml's names
        return SimpleNamespace(used=handle.answer("used"), total=2**34)

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:  # noqa: N802 - pynvml's names
        return handle.answer("temperature")
