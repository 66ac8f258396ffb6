"""What a machine is: the part of a profile's identity that is not the model."""

import hashlib
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One accelerator.

    Attributes:
        name: As the driver reports.
        compute_capability: (major, minor), such as (8, 9).
        memory_bytes: Total device memory.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The machine that ran something.

    Attributes:
        cpu_model: As the kernel reports.
        cpu_flags: The vector extensions that matter for kernels, sorted.
        n_cores: Cores this process may use.
        memory_bytes: Physical memory.
        gpus: Accelerators in device order; empty without one.
        driver: Version of the GPU driver; ``None`` without one.
    """

    cpu_model: str
    cpu_flags: tuple[str, ...]
    n_cores: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None

    @property
    def slug(self) -> str:
        """Return a folder name, such as ``amd-epyc-2c`` or ``nvidia-l4-x2``."""
        if self.gpus:
            base, count = self.gpus[0].name, f"x{len(self.gpus)}"
        else:
            base, count = self.cpu_model, f"{self.n_cores}c"
        words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(r\)|\(tm\)|processor|cpu|@.*$", "", base.lower())).strip("-")
        return f"{words or 'unknown'}-{count}"

    @property
    def fingerprint(self) -> str:
        """Return 12 hex digits that change when anything speed depends on changes."""
        gpus = [(gpu.name, gpu.compute_capability, gpu.memory_bytes) for gpu in self.gpus]
        identity = repr((self.cpu_model, self.cpu_flags, self.n_cores, gpus))
        return hashlib.sha256(identity.encode()).hexdigest()[:12]
