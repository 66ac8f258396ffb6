"""What is offered: schemes, tiers and the checkpoints behind them."""

from dataclasses import dataclass
from enum import StrEnum


class Scheme(StrEnum):
    """A quantization format; the value is what users type."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    FP8_BLOCK = "fp8_block"
    INT8 = "int8"
    AWQ = "awq"
    GPTQ = "gptq"
    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"
    GGUF = "gguf"


QUANTIZABLE_SCHEMES = (Scheme.INT8, Scheme.AWQ, Scheme.GPTQ, Scheme.FP8, Scheme.FP8_BLOCK)
"""The schemes that ``llmtier quantize`` writes today."""


def default_tier_name(model: str, scheme: Scheme) -> str:
    """Return ``model@scheme``, with the last part of a path or hub id as the model."""
    return f"{model.rstrip('/').rsplit('/', 1)[-1]}@{scheme.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The files of a tier on disk.

    Attributes:
        path: Folder that holds ``config.json`` and the weights.
        scheme: How the weights are stored.
        digest: sha256 over names and contents of the weight and tokenizer files.
        source_digest: The same of the checkpoint this one was quantized from; ``None`` for an original.
    """

    path: str
    scheme: Scheme
    digest: str
    source_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIdentity:
    """What exactly ran: a profile is stale when any part of this differs from what runs now.

    Attributes:
        name: ``vllm``, ``mock`` or ``openai`` (an unknown server behind a URL).
        version: As the engine itself reports; ``None`` when it reports none.
        flags: Command-line arguments that change speed or answers, sorted.
        environment: ``NAME=value`` of kernel-relevant variables, sorted.
    """

    name: str
    version: str | None = None
    flags: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
