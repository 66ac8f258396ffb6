"""What is kept of a run that may be killed: each finished part of the model, one file per modifier and part.

Reads and writes ``<work>/stage-<m>-part-<n>.safetensors`` beside a ``run.json`` that names all the result depends on;
a folder of another run is emptied. A file appears whole (temporary name, fsync, rename) or not at all.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llmtier.quantize.worker.finite import is_finite
from llmtier.quantize.worker.report import WorkerError
from llmtier.quantize.worker.tokens import write_whole

if TYPE_CHECKING:
    import torch

RUN_FILE = "run.json"
PIPELINE_VERSION = 1  # to be raised when a change of ours alters the bits of a layer


@dataclass(frozen=True, slots=True)
class PartFacts:
    """What is known of a finished part besides its tensors.

    Attributes:
        seconds: Calibrating it took.
        n_rounded: Layers that GPTQ rounded to the nearest value, as it could not invert their Hessian.
    """

    seconds: float
    n_rounded: int


@dataclass(frozen=True, slots=True)
class LayerStore:
    """The finished parts of one scheme's run.

    Attributes:
        folder: The scheme's work folder; belongs to one process at a time.
        writer: One thread: the next part is calibrated while the disk takes the last one.
        under_way: At most one part that is being put in its place.
    """

    folder: Path
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    under_way: "list[Future[None]]" = field(default_factory=list)

    def n_done(self, stage: int) -> int:
        """Return how many parts, from the first on without a gap, modifier ``stage`` has finished."""
        n = 0
        while self.path(stage, n).exists():
            n += 1
        return n

    def path(self, stage: int, part: int) -> Path:
        """Return where a part lies once it is finished."""
        return self.folder / f"stage-{stage}-part-{part:04d}.safetensors"

    def save(
        self, stage: int, part: int, modules: "dict[str, torch.nn.Module]", facts: PartFacts, tell: Callable[[], None]
    ) -> None:
        """Keep every parameter and buffer of some modules, observers left out: they are made anew.

        ``tell`` is called, in another thread, when the part is on the disk.

        Raises:
            WorkerError: One of them holds NaN or infinity.
        """
        from safetensors.torch import save_file

        tensors = {
            f"{module_name}.{name}": tensor.detach().contiguous().cpu()
            for module_name, module in modules.items()
            for name, tensor in module.state_dict().items()
            if "_observer" not in name
        }
        check_tensors(tensors)
        path = self.path(stage, part)
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"seconds": str(facts.seconds), "n_rounded": str(facts.n_rounded)})
        self.wait()
        self.under_way.append(self.writer.submit(put_in_place, temporary, path, tell))

    def wait(self) -> None:
        """Wait until the last saved part is on the disk; raises what went wrong with it."""
        while self.under_way:
            self.under_way.pop().result()

    def load(self, stage: int, part: int, modules: "dict[str, torch.nn.Module]") -> PartFacts:
        """Put a finished part's tensors back into its modules.

        Raises:
            WorkerError: The file is damaged.
        """
        from compressed_tensors.offload import update_offload_parameter
        from safetensors import SafetensorError, safe_open

        path = self.path(stage, part)
        try:
            with safe_open(path, framework="pt") as file:
                for module_name, module in modules.items():
                    for name in (name for name in module.state_dict() if "_observer" not in name):
                        owner, _, parameter = name.rpartition(".")
                        tensor = file.get_tensor(f"{module_name}.{name}")
                        update_offload_parameter(module.get_submodule(owner), parameter, tensor)
                facts = file.metadata()
                return PartFacts(float(facts["seconds"]), int(facts["n_rounded"]))
        except (SafetensorError, KeyError) as error:
            message = f"{path}: kept by an earlier run and damaged ({error}); remove {self.folder} and run it again"
            raise WorkerError(message, kind="input") from error


def put_in_place(temporary: Path, path: Path, tell: Callable[[], None]) -> None:
    """Give a written file its name once it is on the disk, and tell."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    tell()


def check_tensors(tensors: "dict[str, torch.Tensor]") -> None:
    """Refuse a part whose weights hold NaN or infinity; scales may be uninitialised until a later modifier sets them.

    Raises:
        WorkerError: Naming the tensor.
    """
    for name, tensor in tensors.items():
        if name.endswith((".weight", ".bias")) and not is_finite(tensor):
            raise WorkerError(f"{name}: quantizing made NaN or infinity of it; take another scheme", kind="input")


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
