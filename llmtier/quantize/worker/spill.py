"""An activation cache that lies in files: for calibration sets whose activations do not fit into memory.

A subclass of llm-compressor's ``IntermediatesCache`` whose large tensors are mapped from files in the work folder.
Each file is unlinked as soon as it is mapped: the kernel writes it back when memory is short and frees it with the
tensor, also when the process is killed.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MIN_BYTES = 65_536
"""Smaller tensors stay in memory: a mapping costs a page and an entry of the process's map table."""


def make_cache_class(folder: Path | None) -> Any:  # noqa: ANN401 - a class of a library without types
    """Return llm-compressor's cache class, or one that keeps large tensors in files below ``folder``."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache, IntermediateValue

    if folder is None:
        return IntermediatesCache
    folder.mkdir(parents=True, exist_ok=True)

    in_memory = IntermediatesCache._offload_value.__func__  # noqa: SLF001 - the one hook it has

    def offload(cls: Any, value: Any, offload_device: Any, onload_device: Any = None) -> Any:  # noqa: ANN401
        if not isinstance(value, torch.Tensor) or value.nbytes < MIN_BYTES:
            return in_memory(cls, value, offload_device, onload_device)
        return IntermediateValue(value=map_to_file(value, folder), device=onload_device or value.device)

    return type("SpillingCache", (IntermediatesCache,), {"_offload_value": classmethod(offload)})


def map_to_file(value: "torch.Tensor", folder: Path) -> "torch.Tensor":
    """Return a tensor equal to ``value`` whose memory is a file without a name."""
    import torch

    descriptor, name = tempfile.mkstemp(dir=folder)
    try:
        os.posix_fallocate(descriptor, 0, value.nbytes)  # a full disk is an error here, not a SIGBUS later
        mapped = torch.from_file(name, shared=True, size=value.numel(), dtype=value.dtype).view(value.shape)
    finally:
        os.close(descriptor)
        Path(name).unlink()
    return mapped.copy_(value)
