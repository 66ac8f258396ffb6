"""The worker that writes a 4-bit compressed-tensors checkpoint again in AutoAWQ's layout.

    python -I bootstrap.py llmtier.quantize.worker.export_autoawq '{"checkpoint": ..., "out": ..., "max_shard_bytes": ...}'

Reads ``config.json`` and the safetensors of ``checkpoint``, one layer at a time; writes the same to ``out``, one
file's tensors in memory at once. The codes move unchanged (``awq_layout``); scales and every other floating-point
tensor become float16, the type that readers of this layout expect. What the layout cannot say is refused before
anything is written (``packed_checkpoint``). Writes no manifest.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from llmtier.quantize.worker.awq_layout import BITS, PackedLinear, repack, to_float16
from llmtier.quantize.worker.oneshot import COPIED_FILES, peak_memory_bytes
from llmtier.quantize.worker.packed_checkpoint import (
    INDEX,
    PACKED,
    SCALE,
    ZERO,
    Layout,
    Piece,
    Tensors,
    plan_pieces,
    read_layout,
    skipped_layers,
)
from llmtier.quantize.worker.report import Report, WorkerError, run_worker

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "safetensors")
ALSO_COPIED = ("*processor_config.json", "*.py", "recipe.yaml", "LICENSE*", "NOTICE*")
FLOAT_NAMES = frozenset({"float64", "float32", "float16", "bfloat16"})


def plan_files(pieces: list[Piece], *, max_bytes: int) -> list[list[Piece]]:
    """Cut the pieces into files of at most ``max_bytes``, or of one piece that is larger."""
    files: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if not files or piece.n_bytes > room:
            files.append([])
            room = max_bytes
        files[-1].append(piece)
        room -= piece.n_bytes
    return files


def file_name(number: int, n_files: int) -> str:
    """Return the name that transformers gives file ``number`` of ``n_files``."""
    return "model.safetensors" if n_files == 1 else f"model-{number:05d}-of-{n_files:05d}.safetensors"


@dataclass(slots=True)
class Casts:
    """How much the cast to float16 has changed.

    Attributes:
        n_scales: Scales of quantized layers, of which ``n_scales_changed`` are other numbers now.
        n_others: Values of the other tensors, of which ``n_others_changed`` are other numbers now.
    """

    n_scales: int = 0
    n_scales_changed: int = 0
    n_others: int = 0
    n_others_changed: int = 0


@dataclass(slots=True)
class Exporter:
    """Writes the files of one export.

    Attributes:
        tensors: The source's.
        out: Folder of the export.
        casts: Counted while writing.
        weight_map: Tensor name to file name, of what has been written.
        n_bytes: Of all tensors written.
    """

    tensors: Tensors
    out: Path
    casts: Casts = field(default_factory=Casts)
    weight_map: dict[str, str] = field(default_factory=dict)
    n_bytes: int = 0

    def write(self, files: list[list[Piece]], *, report: Report) -> None:
        """Write every file, and the index where there are several."""
        n_total = sum(map(n_layers, files))
        n_done = 0
        for number, pieces in enumerate(files, start=1):
            name = file_name(number, len(files))
            self.write_file(name, pieces)
            n_done += n_layers(pieces)
            report("note", message=f"{name}: {n_done} of {n_total} linear layers")
        if len(files) > 1:
            index = {"metadata": {"total_size": self.n_bytes}, "weight_map": self.weight_map}
            write_json(self.out / INDEX, index)

    def write_file(self, name: str, pieces: list[Piece]) -> None:
        """Convert pieces and write them to one file.

        Raises:
            WorkerError: The disk refused.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        converted = {key: tensor for piece in pieces for key, tensor in self.convert(piece).items()}
        try:
            save_file(converted, self.out / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise WorkerError(f"{self.out / name}: cannot be written: {error}", kind="machine") from error
        self.weight_map |= dict.fromkeys(converted, name)
        self.n_bytes += sum(tensor.nbytes for tensor in converted.values())

    def convert(self, piece: Piece) -> "dict[str, torch.Tensor]":
        """Return the tensors that a piece becomes, by name.

        Raises:
            WorkerError: A value does not fit into float16; names the layer or tensor.
        """
        try:
            return self.convert_tensor(piece.name) if piece.n_in is None else self.convert_layer(piece.name, piece.n_in)
        except WorkerError as error:
            raise WorkerError(f"{piece.name}: {error}", kind=error.kind) from error

    def convert_layer(self, layer: str, n_in: int) -> "dict[str, torch.Tensor]":
        """Return a quantized layer's three tensors."""
        scale = self.tensors.read(layer + SCALE)
        zero = self.tensors.read(layer + ZERO) if layer + ZERO in self.tensors else None
        packed = repack(PackedLinear(weight=self.tensors.read(layer + PACKED), scale=scale, zero=zero, n_in=n_in))
        scales, n_changed = to_float16(scale.T)
        self.casts.n_scales += scale.numel()
        self.casts.n_scales_changed += n_changed
        return {f"{layer}.{part}": tensor for part, tensor in {**packed, "scales": scales}.items()}

    def convert_tensor(self, name: str) -> "dict[str, torch.Tensor]":
        """Return a tensor in float16, or as it is where it holds whole numbers."""
        tensor = self.tensors.read(name)
        if not tensor.is_floating_point():
            return {name: tensor}
        half, n_changed = to_float16(tensor)
        self.casts.n_others += tensor.numel()
        self.casts.n_others_changed += n_changed
        return {name: half}


def n_layers(pieces: list[Piece]) -> int:
    """Count the quantized layers among pieces."""
    return sum(piece.n_in is not None for piece in pieces)


def export_config(config: Mapping[str, Any], layout: Layout, *, skipped: list[str]) -> dict[str, Any]:
    """Return the export's ``config.json``."""
    exported = in_float16({name: value for name, value in config.items() if name != "quantization_config"})
    exported |= {"torch_dtype": "float16", **rope_of_old(config)}
    exported["quantization_config"] = {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": -1 if layout.group_size is None else layout.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": skipped,
    }
    return exported


def in_float16(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with float16 in the place of every other type that it, or a part of it, states."""
    changed: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            changed[name] = in_float16(value)
        else:
            is_type = name in {"dtype", "torch_dtype"} and value in FLOAT_NAMES
            changed[name] = "float16" if is_type else value
    return changed


def rope_of_old(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings by the names that transformers 4 reads.

    transformers 5 writes ``rope_parameters`` alone; older readers, which this layout is for, would take their
    default base without a word.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return {}
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    old: dict[str, Any] = {"rope_theta": rope["rope_theta"]}
    if scaling.get("rope_type", "default") != "default":
        old["rope_scaling"] = scaling
    return {name: value for name, value in old.items() if name not in config}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a file of the export; the folder is not yet in its place."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's ``config.json``.

    Raises:
        WorkerError: It cannot be read, or is no JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkerError(f"config.json cannot be read: {error}", kind="input") from error
    if not isinstance(config, dict):
        raise WorkerError("config.json: expected a JSON object", kind="input")
    return config


def copy_files(source: Path, out: Path) -> None:
    """Copy the tokenizer and what else is neither weights nor written anew, byte for byte."""
    for path in (path for pattern in (*COPIED_FILES, *ALSO_COPIED) for path in source.glob(pattern) if path.is_file()):
        shutil.copyfile(path, out / path.name)


def export(source: Path, out: Path, *, max_shard_bytes: int, report: Report) -> Casts:
    """Write the whole checkpoint ``source`` to the empty folder ``out``.

    Raises:
        WorkerError: AutoAWQ's layout cannot say it.
    """
    config = read_config(source)
    layout = read_layout(config)
    with ExitStack() as stack:
        tensors = Tensors(source, stack=stack)
        pieces = plan_pieces(tensors, layout)
        skipped = skipped_layers(tensors, layout)
        exporter = Exporter(tensors, out)
        exporter.write(plan_files(pieces, max_bytes=max_shard_bytes), report=report)
    write_json(out / "config.json", export_config(config, layout, skipped=skipped))
    copy_files(source, out)
    return exporter.casts


def run(job: dict[str, Any], report: Report) -> None:
    """Do the job; the last event says what the casts have changed."""
    begun_s = perf_counter()
    source = Path(job["checkpoint"])
    try:
        casts = export(source, Path(job["out"]), max_shard_bytes=job["max_shard_bytes"], report=report)
    except WorkerError as error:
        raise WorkerError(f"{source}: {error}", kind=error.kind) from error
    except OSError as error:
        raise WorkerError(f"{error.filename or job['out']}: {error.strerror or error}", kind="machine") from error
    report(
        "saved",
        scheme="awq",
        seconds_by_phase={"export": round(perf_counter() - begun_s, 3)},
        peak_memory_bytes=peak_memory_bytes(),
        versions={name: importlib.metadata.version(name) for name in LIBRARIES},
        casts=asdict(casts),
    )


if __name__ == "__main__":
    run_worker(run)
