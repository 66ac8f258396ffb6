"""What is kept of a run that may be killed: each finished part of the model, one file per modifier and part.

Reads and writes ``<work>/stage-<m>-part-<n>.safetensors`` beside a ``run.json`` that names all the result depends on;
a folder of another run is emptied. A file appears whole (temporary name, fsync, rename) or not at all.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.quantize.worker.tokens import write_whole

if TYPE_CHECKING:
    import torch

RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class LayerStore:
    """The finished parts of one scheme's run.

    Attributes:
        folder: The scheme's work folder; belongs to one process at a time.
    """

    folder: Path

    def n_done(self, stage: int) -> int:
        """Return how many parts, from the first on without a gap, modifier ``stage`` has finished."""
        n = 0
        while self.path(stage, n).exists():
            n += 1
        return n

    def path(self, stage: int, part: int) -> Path:
        """Return where a part lies once it is finished."""
        return self.folder / f"stage-{stage}-part-{part:04d}.safetensors"

    def save(self, stage: int, part: int, modules: "dict[str, torch.nn.Module]") -> None:
        """Keep every parameter and buffer of some modules, observers left out: they are made anew."""
        from safetensors.torch import save_file

        tensors = {
            f"{module_name}.{name}": tensor.detach().contiguous().cpu()
            for module_name, module in modules.items()
            for name, tensor in module.state_dict().items()
            if "_observer" not in name
        }
        path = self.path(stage, part)
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)

    def load(self, stage: int, part: int, modules: "dict[str, torch.nn.Module]") -> None:
        """Put a finished part's tensors back into its modules."""
        from compressed_tensors.offload import update_offload_parameter
        from safetensors import safe_open

        with safe_open(self.path(stage, part), framework="pt") as file:
            for module_name, module in modules.items():
                for name in (name for name in module.state_dict() if "_observer" not in name):
                    owner, _, parameter = name.rpartition(".")
                    tensor = file.get_tensor(f"{module_name}.{name}")
                    update_offload_parameter(module.get_submodule(owner), parameter, tensor)


def open_store(folder: Path, identity: Mapping[str, object]) -> LayerStore:
    """Return the store of the run that ``identity`` describes; what another run left there goes away."""
    wanted = json.loads(json.dumps(identity))
    if read_identity(folder) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_whole(folder / RUN_FILE, json.dumps(wanted))
    return LayerStore(folder)


def read_identity(folder: Path) -> object:
    """Return what ``run.json`` holds; ``None`` when there is none, or a broken one."""
    try:
        return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
