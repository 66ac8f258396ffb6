"""What lies in a checkpoint's weight files, from their headers alone: names, types and shapes of the tensors.

Reads ``*.safetensors`` headers and, where a checkpoint is split, ``model.safetensors.index.json``; never a weight.
Writes nothing. Format: eight bytes of length, little-endian, a JSON object, then the data
(https://github.com/huggingface/safetensors, "Format").
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtier.core.errors import InputFileError
from llmtier.store.documents import parse_json, shorten

INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation

DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element, by the name that the format gives its type."""

OTHER_FORMATS: Mapping[str, str] = {
    "*.gguf": "GGUF is quantized already; give the bf16 or fp16 checkpoint in Hugging Face format",
    "*.bin": "load it with transformers and save it by model.save_pretrained(folder), which writes safetensors",
    "*.pt*": "load it with transformers and save it by model.save_pretrained(folder), which writes safetensors",
}
"""What to do about weights of another format, by the pattern of their file names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
        name: Such as ``model.layers.0.mlp.up_proj.weight``.
        dtype: As the format spells it, such as ``BF16``.
        shape: Its dimensions; empty for a scalar.
        n_bytes: Its data on disk.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int


def read_tensors(model: Path) -> tuple[Tensor, ...]:
    """Return every tensor of a checkpoint folder, sorted by name.

    Raises:
        InputFileError: There are no safetensors, a file is cut short or broken, or one that the index names is absent.
    """
    index = model / INDEX_NAME
    placed = read_index(index) if index.is_file() else {}
    paths = sorted({model / file for file in placed.values()}) or find_files(model)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        if not path.is_file():
            raise InputFileError(f"is named by {INDEX_NAME} but is not there; download it again", path=path)
        tensors |= {tensor.name: tensor for tensor in read_header(path)}
    absent = sorted(placed.keys() - tensors.keys())
    if absent:
        raise InputFileError(f"places {absent[0]} in {placed[absent[0]]}, which does not hold it", path=index)
    return tuple(tensors[name] for name in sorted(tensors))


def read_index(path: Path) -> Mapping[str, str]:
    """Return the file that holds each tensor.

    Raises:
        InputFileError: It is not what such an index looks like.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise InputFileError(f"expected an index of weight files: {exc}", path=path) from exc
    placed = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(file, str) and is_plain(file) for file in placed.values()):
        raise InputFileError("expected 'weight_map', an object of tensor names and files beside it", path=path)
    return placed


def is_plain(name: str) -> bool:
    """Tell whether a file name stays in its folder."""
    return Path(name).name == name


def find_files(model: Path) -> list[Path]:
    """Return the weight files of a checkpoint without an index.

    Raises:
        InputFileError: There are none; says what to do about the format that is there instead.
    """
    whole = model / "model.safetensors"
    paths = [whole] if whole.is_file() else sorted(model.glob("*.safetensors"))
    if paths:
        return paths
    for pattern, advice in OTHER_FORMATS.items():
        found = sorted(model.glob(pattern))
        if found:
            raise InputFileError(f"holds {found[0].name} but no safetensors; {advice}", path=model)
    raise InputFileError("holds no *.safetensors; give the folder of a checkpoint with its weights", path=model)


def read_header(path: Path) -> tuple[Tensor, ...]:
    """Return the tensors of one file, in its order.

    Raises:
        InputFileError: It is cut short, or no safetensors file.
    """
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            n_bytes = path.stat().st_size
            if not 2 <= size <= min(MAX_HEADER_BYTES, n_bytes - 8):
                raise InputFileError("is cut short or no safetensors file; download it again", path=path)
            header = parse_json(stream.read(size).decode("utf-8"))
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc
    except ValueError as exc:
        raise InputFileError(f"its header is not JSON ({exc}); download it again", path=path) from exc
    if not isinstance(header, dict):
        raise InputFileError("its header is no JSON object; download it again", path=path)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return tuple(parse_entry(name, entry, n_data=n_bytes - 8 - size, path=path) for name, entry in entries.items())


def parse_entry(name: str, entry: Any, *, n_data: int, path: Path) -> Tensor:  # noqa: ANN401 - JSON
    """Return one tensor of a header; its data must lie within the ``n_data`` bytes after the header.

    Raises:
        InputFileError: An entry is malformed, or its data are not all there.
    """
    try:
        dtype, shape, (start, end) = str(entry["dtype"]), tuple(map(int, entry["shape"])), entry["data_offsets"]
        is_sound = 0 <= start <= end and min(shape, default=0) >= 0
    except (KeyError, TypeError, ValueError) as exc:
        raise InputFileError(f"tensor {name}: malformed header entry {shorten(entry)}", path=path) from exc
    if not is_sound or (dtype in DTYPE_BYTES and end - start != math.prod(shape) * DTYPE_BYTES[dtype]):
        raise InputFileError(f"tensor {name}: {dtype} of shape {list(shape)} is not {end - start} bytes", path=path)
    if end > n_data:
        missing = f"{end - n_data} bytes of tensor {name} are missing"
        raise InputFileError(f"is cut short: {missing}; download it again", path=path)
    return Tensor(name=name, dtype=dtype, shape=shape, n_bytes=end - start)
