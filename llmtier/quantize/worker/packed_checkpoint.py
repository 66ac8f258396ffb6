"""A 4-bit compressed-tensors checkpoint as it lies on disk, checked for what AutoAWQ's layout can say.

Reads ``config.json``'s quantization and the headers of the safetensors files, and single tensors on demand. Says which
pieces an export consists of, or refuses; converts and writes nothing.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llmtier.quantize.worker.awq_layout import PER_WORD
from llmtier.quantize.worker.report import WorkerError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
PACKED, SCALE, ZERO, SHAPE = PARTS = (".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape")
FOREIGN = (".weight_g_idx", ".weight_global_scale", ".input_scale", ".input_zero_point", ".input_global_scale")
SCALES_OF_CACHE = (".k_scale", ".v_scale", ".q_scale")
TYPE_BYTES = {
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    **dict.fromkeys(("F64", "F32", "F16", "BF16"), 2),
}
"""Bytes of a value in the export, by its type in the source; floating-point values become float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How all quantized layers of a checkpoint are stored.

    Attributes:
        group_size: Input features per scale; ``None``: one scale per output.
        is_symmetric: Whether zero points are left out.
        ignore: Names or ``re:`` expressions of the layers that are not quantized.
    """

    group_size: int | None
    is_symmetric: bool
    ignore: tuple[str, ...]

    def n_groups(self, n_in: int) -> int:
        """Return the scales per output of a layer with ``n_in`` inputs."""
        return 1 if self.group_size is None else n_in // self.group_size


def read_layout(config: Mapping[str, Any]) -> Layout:
    """Read a checkpoint's ``config.json``.

    Raises:
        WorkerError: AutoAWQ's layout cannot express its quantization.
    """
    quantization = config.get("quantization_config") or {}
    method, format_ = quantization.get("quant_method"), quantization.get("format")
    if method != "compressed-tensors" or format_ != "pack-quantized":
        found = f"{method or 'not quantized'}{f' ({format_})' if format_ else ''}"
        refuse(f"is {found}; only compressed-tensors of format pack-quantized can become AutoAWQ's layout")
    for name in ("kv_cache_scheme", "transform_config", "sparsity_config"):
        if quantization.get(name):
            refuse(f"has a {name}, which AutoAWQ's layout cannot hold")
    groups = list((quantization.get("config_groups") or {}).values())
    schemes = {json.dumps(scheme_of(group), sort_keys=True) for group in groups}
    if len(schemes) != 1:
        refuse(f"quantizes its layers in {len(schemes)} ways; AutoAWQ's layout has one for all layers")
    scheme = scheme_of(groups[0])
    is_channel = scheme["strategy"] == "channel"
    return Layout(
        group_size=None if is_channel else scheme["group_size"],
        is_symmetric=scheme["symmetric"],
        ignore=tuple(quantization.get("ignore") or ()),
    )


def scheme_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a group of layers says of its weights, as far as it decides what the numbers mean.

    Raises:
        WorkerError: AutoAWQ's layout cannot say it.
    """
    weights = group.get("weights") or {}
    for name in ("input_activations", "output_activations"):
        if group.get(name):
            refuse(f"quantizes {name} too; AutoAWQ's layout quantizes weights only")
    if (weights.get("num_bits"), weights.get("type", "int")) != (4, "int"):
        refuse(
            f"has weights of {weights.get('num_bits')} bits ({weights.get('type')}); AutoAWQ's layout holds 4-bit int"
        )
    if weights.get("strategy") not in {"group", "channel"}:
        refuse(f"has scales per {weights.get('strategy')}; AutoAWQ's layout has them per group or per channel")
    if weights.get("actorder") not in {None, False, "static", "weight"}:  # these two keep the groups contiguous
        refuse(f"has activation order {weights['actorder']}; AutoAWQ's layout needs contiguous groups (static)")
    return {
        "strategy": weights["strategy"],
        "group_size": weights.get("group_size"),
        "symmetric": weights.get("symmetric", True),
    }


def refuse(message: str) -> NoReturn:
    """Raise ``WorkerError``: the checkpoint is readable, but is not one that can be exported."""
    raise WorkerError(message, kind="input")


class Tensors:
    """The tensors of a checkpoint by name, read from their files one at a time.

    Args:
        folder: The checkpoint.
        stack: Closes the files.

    Raises:
        WorkerError: A file is absent or broken.
    """

    def __init__(self, folder: Path, *, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self._files: dict[str, Any] = {}
        for path in weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise WorkerError(f"{path.name}: cannot be read: {error}", kind="input") from error
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if name in self._files:
                    refuse(f"{path.name}: holds {name}, which another file holds too")
                self._files[name] = file

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's type as safetensors spells it (``BF16``), without reading it."""
        return str(self._files[name].get_slice(name).get_dtype())

    def read(self, name: str) -> "torch.Tensor":
        """Return one tensor."""
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's tensors, as its index says where there is one.

    Raises:
        WorkerError: There are none.
    """
    index = folder / INDEX
    if index.exists():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkerError(f"{INDEX}: expected a weight_map of file names ({error!r})", kind="input") from error
        return [folder / name for name in sorted(names)]
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        refuse("has no safetensors files")
    return paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A layer or a tensor to be written, and the bytes it will take.

    Attributes:
        name: Of the layer when quantized, otherwise of the tensor.
        n_bytes: In the export.
        n_in: Inputs of a quantized layer; ``None`` for any other tensor.
    """

    name: str
    n_bytes: int
    n_in: int | None = None


def plan_pieces(tensors: Tensors, layout: Layout) -> list[Piece]:
    """Check every tensor against the layout and return what will be written, in the source's order.

    Raises:
        WorkerError: A tensor does not fit; names it.
    """
    layers = {name.removesuffix(PACKED) for name in tensors if name.endswith(PACKED)}
    if not layers:
        refuse("holds no packed weights")
    pieces = []
    for name in tensors:
        layer, _, part = name.rpartition(".")
        if name.endswith(PACKED):
            pieces.append(plan_layer(layer, tensors, layout))
        elif layer in layers and f".{part}" in PARTS:
            continue  # goes with its weight_packed
        elif name.endswith((*FOREIGN, *SCALES_OF_CACHE)):
            refuse(f"{name}: AutoAWQ's layout has no such tensor")
        else:
            pieces.append(plan_tensor(name, tensors))
    return pieces


def plan_layer(layer: str, tensors: Tensors, layout: Layout) -> Piece:
    """Check one quantized layer's shapes.

    Raises:
        WorkerError: A part is missing or does not fit, or the layer does not divide.
    """
    if layer.rsplit(".", maxsplit=1)[-1] == "lm_head":
        refuse(f"{layer}: is quantized; readers of AutoAWQ's layout expect the output head as it was")
    for part in PARTS:
        if layer + part not in tensors and not (layout.is_symmetric and part == ZERO):
            refuse(f"{layer}: has no {part[1:]}")
    n_out, n_in = map(int, tensors.read(layer + SHAPE))
    if n_out % PER_WORD:
        refuse(f"{layer}: {n_out} outputs do not divide by {PER_WORD}, as AutoAWQ's layout needs")
    if layout.group_size is not None and n_in % layout.group_size:
        refuse(f"{layer}: {n_in} inputs do not divide into groups of {layout.group_size}")
    n_groups = layout.n_groups(n_in)
    shapes = {PACKED: (n_out, -(-n_in // PER_WORD)), SCALE: (n_out, n_groups), ZERO: (n_out // PER_WORD, n_groups)}
    for part, shape in shapes.items():
        if layer + part in tensors and tensors.shape(layer + part) != shape:
            refuse(f"{layer}{part}: has shape {tensors.shape(layer + part)}, expected {shape}")
    # Half a byte a code and a zero point, two a scale.
    return Piece(name=layer, n_in=n_in, n_bytes=n_out * (n_in + 5 * n_groups) // 2)


def plan_tensor(name: str, tensors: Tensors) -> Piece:
    """Return the piece of a tensor that is no quantized layer's.

    Raises:
        WorkerError: It is of a type that is no plain number.
    """
    dtype = tensors.dtype(name)
    if dtype not in TYPE_BYTES:
        refuse(f"{name}: is of type {dtype}, which AutoAWQ's layout does not mix with its own")
    return Piece(name=name, n_bytes=prod(tensors.shape(name)) * TYPE_BYTES[dtype])


def skipped_layers(tensors: Tensors, layout: Layout) -> list[str]:
    """Return what ``modules_to_not_convert`` must name: the ignored layers, and every other matrix as it was.

    Raises:
        WorkerError: A name is part of a quantized layer's, which readers would skip too: they compare by substring.
    """
    layers = {name.removesuffix(PACKED) for name in tensors if name.endswith(PACKED)}
    matrices = {
        name.removesuffix(".weight") for name in tensors if name.endswith(".weight") and len(tensors.shape(name)) == 2
    }
    skipped = sorted(matrices | {name for name in layout.ignore if not name.startswith("re:")})
    for name in skipped:
        hidden = next((layer for layer in sorted(layers) if name in layer), None)
        if hidden is not None:
            refuse(f"{name}: is not quantized, but naming it in AutoAWQ's layout would also skip {hidden}")
    return skipped
