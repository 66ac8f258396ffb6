"""An activation cache that lies in files: for calibration sets whose activations do not fit into memory.

A subclass of llm-compressor's ``IntermediatesCache`` whose tensors lie in files of the work folder. Each file is
unlinked as soon as it is mapped: the kernel writes it back when memory is short and frees it with its last tensor, also
when the process is killed.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch

ARENA_BYTES = 2**28
"""One file: a mapping for every tensor would exceed the kernel's limit of mappings (65,530) from 16,000 rows on."""

ALIGNMENT = 64


def make_cache_class(folder: Path | None) -> Any:  # noqa: ANN401 - a class of a library without types
    """Return llm-compressor's cache class, or one that keeps its tensors in files below ``folder``."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache, IntermediateValue, OverrideEqMode

    if folder is None:
        return IntermediatesCache
    folder.mkdir(parents=True, exist_ok=True)
    arenas = Arenas(folder)
    in_memory = IntermediatesCache._offload_value.__func__  # noqa: SLF001 - the one hook it has
    known: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # a tensor that several layers share is kept once

    def offload(cls: Any, value: Any, offload_device: Any, onload_device: Any = None) -> Any:  # noqa: ANN401
        if not isinstance(value, torch.Tensor):
            return in_memory(cls, value, offload_device, onload_device)
        with OverrideEqMode():
            kept = known.get(value)
        if kept is None:
            kept = arenas.keep(value)
            with OverrideEqMode():
                known[value] = kept
        return IntermediateValue(value=kept, device=onload_device or value.device)

    return type("SpillingCache", (IntermediatesCache,), {"_offload_value": classmethod(offload)})


class Arenas:
    """Files without names, filled one after the other; each goes with the last tensor in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._room: torch.Tensor | None = None

    def keep(self, value: "torch.Tensor") -> "torch.Tensor":
        """Return a tensor equal to ``value`` whose memory is a file."""
        n_bytes = -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        room = self._room
        if room is None or len(room) < n_bytes:
            room = map_file(self._folder, max(n_bytes, ARENA_BYTES))
        self._room = room[n_bytes:]
        return room[: value.nbytes].view(value.dtype).view(value.shape).copy_(value)


def map_file(folder: Path, n_bytes: int) -> "torch.Tensor":
    """Return ``n_bytes`` bytes of memory, shape (n_bytes,), that are a file without a name."""
    import torch

    descriptor, name = tempfile.mkstemp(dir=folder)
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)  # a full disk is an error here, not a SIGBUS later
        return torch.from_file(name, shared=True, size=n_bytes, dtype=torch.uint8)
    finally:
        os.close(descriptor)
        Path(name).unlink()
