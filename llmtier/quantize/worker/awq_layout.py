"""The two ways to store 4-bit weights in groups, and the way from one to the other: pure, tensors in, tensors out.

compressed-tensors' ``pack-quantized`` packs eight neighbours along the inputs (zero points along the outputs), in
natural order. AutoAWQ's ``gemm`` stores the transpose, packed along the outputs in the order ``NIBBLES``. Both hold
``(code - zero) * scale`` with codes and zeros of 0 to 15, so the codes move unchanged; scales become float16.
Source of the layouts: ``awq/modules/linear/gemm.py`` of AutoAWQ 0.2.9, ``compressors/pack_quantized`` of
compressed-tensors 0.19.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtier.quantize.worker.report import WorkerError

if TYPE_CHECKING:
    import torch

BITS = 4
PER_WORD = 8
"""4-bit codes in one int32."""

NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which column of eight lies in nibble 0, 1, ... of AutoAWQ's word; nibble 0 is the lowest."""

SYMMETRIC_ZERO = 8
"""compressed-tensors stores a code of -8 to 7 plus 8."""

PART = 1 << 24
"""Values that are cast at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """One linear layer as compressed-tensors stores it.

    Attributes:
        weight: int32, (n_out, n_in / 8).
        scale: (n_out, n_groups).
        zero: int32, (n_out / 8, n_groups); ``None`` for symmetric weights.
        n_in: Input features.
    """

    weight: "torch.Tensor"
    scale: "torch.Tensor"
    zero: "torch.Tensor | None"
    n_in: int


def repack(linear: PackedLinear) -> "dict[str, torch.Tensor]":
    """Return ``qweight`` (n_in, n_out / 8) and ``qzeros`` (n_groups, n_out / 8)."""
    import torch

    n_out, n_groups = linear.scale.shape
    if linear.zero is None:
        zeros = torch.full((n_groups, n_out), SYMMETRIC_ZERO, dtype=torch.uint8)
    else:
        zeros = unpack(linear.zero.T, n_out)
    return {"qweight": pack_gemm(unpack(linear.weight, linear.n_in).T), "qzeros": pack_gemm(zeros)}


def unpack(words: "torch.Tensor", n_columns: int) -> "torch.Tensor":
    """Return the codes of int32 words in natural order: (n_rows, n_columns), uint8."""
    import torch

    codes = torch.empty((words.shape[0], words.shape[1] * PER_WORD), dtype=torch.uint8)
    for nibble in range(PER_WORD):
        codes[:, nibble::PER_WORD] = (words >> (BITS * nibble)) & 15
    return codes[:, :n_columns]


def pack_gemm(codes: "torch.Tensor") -> "torch.Tensor":
    """Pack codes (n_rows, n_columns) into words (n_rows, n_columns / 8) in AutoAWQ's order."""
    import torch

    words = torch.zeros((codes.shape[0], codes.shape[1] // PER_WORD), dtype=torch.int32)
    for nibble, column in enumerate(NIBBLES):
        words |= codes[:, column::PER_WORD].to(torch.int32) << (BITS * nibble)
    return words


def to_float16(values: "torch.Tensor") -> "tuple[torch.Tensor, int]":
    """Return a contiguous float16 tensor and how many of its values are other numbers than before.

    These lie below 2**-14, or have more digits than float16 holds; cast in parts, to take no memory beside the result.

    Raises:
        WorkerError: A value is not finite, in float16 or at all.
    """
    import torch

    half = torch.empty(values.shape, dtype=torch.float16)
    n_changed = 0
    parts = zip(values.contiguous().view(-1).split(PART), half.view(-1).split(PART), strict=True)
    for before, after in parts:
        after.copy_(before)
        if not bool(torch.isfinite(after).all()):
            raise WorkerError(f"holds {farthest(before)}, which is no float16 (-65504 to 65504)", kind="input")
        n_changed += int((after.to(before.dtype) != before).sum())
    return half, n_changed


def farthest(values: "torch.Tensor") -> str:
    """Return the value with the largest magnitude; ``nan`` where there is one."""
    import torch

    return f"{float(torch.max(values.abs())):g}"
