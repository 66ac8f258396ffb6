"""Meters the machine while a load point runs: processor, memory, GPUs, energy.

Samples in a thread of its own; reads ``host_meter.py`` and ``nvml.py``, writes nothing, and never fails
a point: what cannot be measured is ``None`` with a note. It watches this machine: for an engine on
another one its figures describe the client's machine, so give it no GPUs there.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from llmtier.core.device_use import DeviceUse, GpuUse
from llmtier.core.errors import MachineError
from llmtier.engine.gpu_use import summarize_gpu
from llmtier.engine.host_meter import RAPL_FOLDER, MachineLoad, PackageEnergy, ProcessTree
from llmtier.engine.nvml import Nvml, NvmlReader, open_nvml

PERIOD_S = 0.2  # NVML itself averages utilization over 1/6 s to 1 s: more often shows nothing new
_MAX_MISSED_PERIODS = 5
_STOP_TIMEOUT_S = 5.0  # a driver that lost its GPU can block a call for ever


class DeviceMeter:
    """A context manager, synchronous or asynchronous, around one load point; use each once.

    Args:
        pid: Root of the engine's processes; ``None`` for a tier behind a URL.
        gpu_indices: GPUs of the tier as the driver counts; every one when ``None``, none when empty.
        period_s: Between two samples.
        library: Taken in place of ``pynvml``.
        rapl_folder: Of the kernel's powercap zones.
        now_s: The clock.
    """

    def __init__(
        self,
        *,
        pid: int | None = None,
        gpu_indices: Sequence[int] | None = None,
        period_s: float = PERIOD_S,
        library: Nvml | None = None,
        rapl_folder: Path = RAPL_FOLDER,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not period_s > 0:
            raise ValueError(f"period_s must be > 0, got {period_s}")
        self._gpu_indices = gpu_indices
        self._period_s = period_s
        self._library = library
        self._now_s = now_s
        self._tree = None if pid is None else ProcessTree(pid)
        self._load = MachineLoad()
        self._packages = PackageEnergy(rapl_folder)
        self._nvml: NvmlReader | None = None
        self._instants_s: list[float] = []
        self._client_s: list[float] = []
        self._notes: list[str] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llmtier-meter", daemon=True)

    @property
    def use(self) -> DeviceUse:
        """Return what was measured so far; complete after the end."""
        instants_s, client_s = self._instants_s, self._client_s
        return DeviceUse(
            duration_s=instants_s[-1] - instants_s[0] if instants_s else 0.0,
            n_samples=len(instants_s),
            engine_cpu_s=None if self._tree is None else self._tree.cpu_s,
            engine_rss_max_bytes=None if self._tree is None else self._tree.rss_max_bytes,
            cpu_share=self._load.busy_share,
            client_cpu_s=client_s[-1] - client_s[0] if client_s else None,
            cpu_energy_j=self._packages.energy_j,
            gpus=() if self._nvml is None else self._summarize(self._nvml),
            notes=tuple(self._explain()),
        )

    def __enter__(self) -> Self:
        """Take the first sample and start the thread."""
        if self._gpu_indices is None or self._gpu_indices:
            try:
                self._nvml = open_nvml(self._gpu_indices, self._library)
            except MachineError as error:
                self._notes.append(f"no GPU was metered: {error}")
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the thread and take the last sample."""
        self._is_over.set()
        self._thread.join(_STOP_TIMEOUT_S)
        if self._thread.is_alive():
            self._notes.append(f"a meter hung for more than {_STOP_TIMEOUT_S:g} s: the end of the point is not metered")
            return
        self.sample(is_last=True)
        if self._nvml is not None:
            self._nvml.close()

    async def __aenter__(self) -> Self:
        """Begin without holding up the loop: a driver may take seconds to load."""
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End without holding up the loop."""
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def sample(self, *, is_last: bool = False) -> None:
        """Look at everything once; the thread does this each period."""
        at_s = self._now_s()
        self._load.sample()
        self._packages.sample()
        if self._tree is not None:
            self._tree.sample(at_s, is_last=is_last)
        if self._nvml is not None:
            self._nvml.sample(at_s)
        self._client_s.append(time.process_time())
        self._instants_s.append(at_s)

    def _run(self) -> None:
        while not self._is_over.wait(self._period_s):
            self.sample()

    def _summarize(self, nvml: NvmlReader) -> tuple[GpuUse, ...]:
        max_gap_s = _MAX_MISSED_PERIODS * self._period_s
        return tuple(summarize_gpu(gpu, max_gap_s=max_gap_s) for gpu in nvml.gpus)

    def _explain(self) -> list[str]:
        """Return the notes, with what only the end shows."""
        notes = list(self._notes)
        if self._tree is None:
            notes.append("the engine is behind a URL: its processes were not metered")
        elif self._tree.has_ended:
            notes.append("the engine's process ended during the point")
        if self._packages.energy_j is None:
            notes.append("processor energy cannot be read here (RAPL)")
        lost = [] if self._nvml is None else [gpu.index for gpu in self._nvml.gpus if gpu.is_lost]
        notes += [f"GPU {index} was lost during the point" for index in lost]
        return notes
