"""What this machine is: processor, memory, NVIDIA GPUs.

Reads ``/proc/cpuinfo``, the process's core mask, psutil and, where present, ``nvidia-smi``;
the ``parse_...`` functions are pure. Decides nothing: ``capability.py`` judges what it can run.
"""

import logging
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import psutil

from llmtier.core.hardware import Gpu, Hardware

logger = logging.getLogger(__name__)

X86_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_int8", "amx_bf16", "amx_fp8")
ARM_FLAGS = ("asimd", "asimddp", "bf16", "i8mm", "sve")
KERNEL_FLAGS = frozenset(X86_FLAGS + ARM_FLAGS)
"""The extensions that vLLM's and oneDNN's kernels are chosen by, as the Linux kernel spells them."""

NVIDIA_QUERY = (
    "--query-gpu=name,compute_cap,memory.total,driver_version",
    "--format=csv,noheader,nounits",
)
NVIDIA_TIMEOUT_S = 20.0  # without persistence mode the driver loads first: seconds per GPU
MEBIBYTE = 1024**2


def detect_hardware() -> Hardware:
    """Return the machine this process runs on; GPUs are those the driver reports."""
    cpu_model, cpu_flags = parse_cpuinfo(read_cpuinfo(), fallback_model=platform.processor() or platform.machine())
    memory_bytes = psutil.virtual_memory().total
    gpus, driver = parse_nvidia_smi(query_nvidia_smi(), shared_memory_bytes=memory_bytes)
    return Hardware(
        cpu_model=cpu_model,
        cpu_flags=cpu_flags,
        n_cores=count_cores(),
        memory_bytes=memory_bytes,
        gpus=gpus,
        driver=driver,
    )


def count_cores() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_cpuinfo(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the kernel's text about the cores, or "" where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def parse_cpuinfo(text: str, *, fallback_model: str) -> tuple[str, tuple[str, ...]]:
    """Return the model's name and the flags in ``KERNEL_FLAGS``, sorted.

    Arm kernels print no name and call the flags "Features"; the name then is ``fallback_model``.
    Only the first core is looked at.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = (fields.get("flags") or fields.get("features") or "").split()
    model = re.sub(r"\s+", " ", fields.get("model name") or fallback_model).strip()
    return model or "unknown", tuple(sorted(KERNEL_FLAGS.intersection(flags)))


def query_nvidia_smi() -> str:
    """Return what ``nvidia-smi`` prints about the GPUs, or "" where it is absent or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *NVIDIA_QUERY], capture_output=True, text=True, timeout=NVIDIA_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("nvidia-smi failed, so no GPU is counted", extra={"error": str(error)})
        return ""
    return done.stdout


def parse_nvidia_smi(text: str, *, shared_memory_bytes: int) -> tuple[tuple[Gpu, ...], str | None]:
    """Return the GPUs in device order and the driver's version.

    Lines that are no GPU (MIG listings, error texts, an unknown compute capability) are left out.

    Args:
        text: Output for ``NVIDIA_QUERY``: ``NVIDIA L4, 8.9, 23034, 550.54.15`` per GPU.
        shared_memory_bytes: Taken where a GPU reports no memory of its own ("[N/A]"), as those
            do that share the processor's (GB10).
    """
    gpus = []
    driver = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 4 or not (capability := re.fullmatch(r"(\d+)\.(\d+)", cells[1])):
            continue
        is_known = cells[2].isdigit() and int(cells[2]) > 0
        memory_bytes = int(cells[2]) * MEBIBYTE if is_known else shared_memory_bytes
        compute_capability = (int(capability[1]), int(capability[2]))
        gpus.append(Gpu(name=cells[0], compute_capability=compute_capability, memory_bytes=memory_bytes))
        if driver is None and re.match(r"\d", cells[3]):
            driver = cells[3]
    return tuple(gpus), driver
