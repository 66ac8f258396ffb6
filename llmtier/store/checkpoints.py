"""Checkpoints on disk: the manifest that ``quantize`` leaves, and plain folders without one.

Reads and writes ``llmtier.json`` in a checkpoint folder, reads ``config.json``; weights are
only digested.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtier.core.errors import InputFileError
from llmtier.core.provenance import Provenance
from llmtier.core.tier import Checkpoint, Scheme
from llmtier.store.atomic import write_json
from llmtier.store.digests import checkpoint_digest
from llmtier.store.documents import SCHEMA_VERSION, Decoder, parse_json, read_document

MANIFEST_NAME = "llmtier.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointManifest:
    """How a quantized checkpoint was made.

    Attributes:
        checkpoint: The files; ``path`` is where they lay when written.
        provenance: The run that made it.
        recipe: What the quantizer was told, as plain data.
        calibration_sha256: Of the calibration set; ``None`` for a scheme that needs none.
        seconds: Wall-clock time of the run.
        peak_memory_bytes: Highest resident memory; ``None`` when not measured.
        schema_version: Of the manifest's format.
    """

    checkpoint: Checkpoint
    provenance: Provenance
    recipe: Mapping[str, Any]
    calibration_sha256: str | None
    seconds: float
    peak_memory_bytes: int | None = None
    schema_version: int = SCHEMA_VERSION


def write_manifest(directory: Path, manifest: CheckpointManifest) -> None:
    """Write ``llmtier.json`` into a checkpoint folder.

    Raises:
        DiskError: The file system refused.
    """
    write_json(directory / MANIFEST_NAME, {"schema_version": SCHEMA_VERSION, **asdict(manifest)})


def read_manifest(directory: Path) -> CheckpointManifest | None:
    """Read ``llmtier.json``; ``None`` when the folder has none.

    Raises:
        InputFileError: It is malformed.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    path = directory / MANIFEST_NAME
    if not path.exists():
        return None
    document = read_document(path, artifact="checkpoint manifest", advice="quantize the model again")
    return Decoder(CheckpointManifest).decode(document, path=path)


def open_checkpoint(path: Path, scheme: Scheme | None = None) -> Checkpoint:
    """Describe a checkpoint folder, with or without a manifest; digests the weights anew.

    Args:
        path: Folder with ``config.json``.
        scheme: How it is meant to be run; ``None`` takes what the folder says of itself.

    Raises:
        InputFileError: It is no checkpoint, its scheme cannot be told, or its manifest states another one.
    """
    digest = checkpoint_digest(path)
    manifest = read_manifest(path)
    if manifest is None:
        return Checkpoint(path=str(path), scheme=scheme or infer_scheme(path), digest=digest)
    written = manifest.checkpoint
    if scheme not in {None, written.scheme}:
        raise InputFileError(f"was quantized to {written.scheme.value}, not {scheme}; correct 'scheme'", path=path)
    if written.digest != digest:
        logger.warning("checkpoint changed since it was written", extra={"path": str(path), "digest": digest})
    return Checkpoint(path=str(path), scheme=written.scheme, digest=digest, source_digest=written.source_digest)


def infer_scheme(path: Path) -> Scheme:
    """Tell a checkpoint's scheme from its ``config.json``.

    Raises:
        InputFileError: It is absent or malformed, or uses a format llmtier does not know.
    """
    file = path / "config.json"
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise InputFileError(f"expected a checkpoint's config.json: {exc}", path=file) from exc
    if not isinstance(config, dict):
        raise InputFileError("expected a checkpoint's config.json, a JSON object", path=file)
    quantization = config.get("quantization_config")
    scheme = _quantized_scheme(quantization) if isinstance(quantization, dict) else _plain_scheme(config)
    if scheme is None:
        raise InputFileError("its quantization is of no scheme that llmtier knows; state 'scheme'", path=file)
    return scheme


def _plain_scheme(config: Mapping[str, Any]) -> Scheme:
    # "dtype" since transformers 4.56, "torch_dtype" before. float32 and silence: vLLM runs both as bf16.
    dtype = config.get("dtype") or config.get("torch_dtype")
    return Scheme.FP16 if dtype == "float16" else Scheme.BF16


def _quantized_scheme(quantization: Mapping[str, Any]) -> Scheme | None:
    method = quantization.get("quant_method")
    match method:
        case "compressed-tensors":
            return _compressed_scheme(quantization)
        case "fp8":
            return Scheme.FP8_BLOCK if quantization.get("weight_block_size") else Scheme.FP8
        case "awq" | "gptq" | "mxfp4":
            return Scheme(method)
        case _:
            return None


def _compressed_scheme(quantization: Mapping[str, Any]) -> Scheme | None:
    weights = _first_weights(quantization)
    match quantization.get("format"):
        case "float-quantized":
            return Scheme.FP8_BLOCK if weights.get("strategy") == "block" else Scheme.FP8
        case "int-quantized" if weights.get("num_bits") == 8:
            return Scheme.INT8
        case "pack-quantized" if weights.get("num_bits") == 4:  # AWQ's preset is asymmetric, GPTQ's is not
            return Scheme.GPTQ if weights.get("symmetric", True) else Scheme.AWQ
        case "nvfp4-pack-quantized":
            return Scheme.NVFP4
        case "mxfp4-pack-quantized":
            return Scheme.MXFP4
        case _:
            return None


def _first_weights(quantization: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how the first group of layers stores its weights; empty when it does not say."""
    groups = quantization.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    return weights if isinstance(weights, dict) else {}
