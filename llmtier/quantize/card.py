"""The model card (``README.md``) of a quantized checkpoint: text from its manifest, nothing else."""

from llmtier.quantize.job import Backend, PlannedScheme
from llmtier.store.checkpoints import CheckpointManifest

_TEMPLATE = """\
---
base_model: {model}
library_name: vllm
tags: [{scheme}, {layout}, llmtier]
---
# {name}

`{model}` quantized to **{scheme}** ({preset}{details}) by llmtier {version} on {created_at}.
The embeddings are not quantized, nor are: {ignored}.

| | |
|---|---|
| source revision | {revision} |
| source digest | `{source_digest}` |
| digest | `{digest}` |
| calibration | {calibration} |
| seed | {seed} |
| libraries | {libraries} |
| made by | {backend}, on {hardware} |
| time, peak memory | {seconds:.1f} s, {peak} |

Serve it with `vllm serve {name}`; no quantization flag is needed.
Its accuracy has not been measured here: `llmtier profile` does that, on your data and hardware.
"""


def model_card(manifest: CheckpointManifest, planned: PlannedScheme, *, model: str) -> str:
    """Return the card's Markdown; ``model`` is the source's name."""
    return _TEMPLATE.format(
        model=model,
        name=planned.folder.name,
        scheme=planned.scheme.value,
        preset=planned.preset,
        layout="autoawq" if planned.backend is Backend.AUTOAWQ else "compressed-tensors",
        details=describe_details(planned, manifest.recipe["n_rounded"]),
        ignored=", ".join(f"`{name}`" for name in planned.ignore),
        revision=f"`{manifest.recipe['source_revision']}`" if manifest.recipe["source_revision"] else "a local folder",
        backend=planned.backend.value,
        hardware=manifest.provenance.hardware.slug,
        peak="unknown" if manifest.peak_memory_bytes is None else f"{manifest.peak_memory_bytes / 1e9:.2f} GB",
        version=manifest.provenance.llmtier_version,
        created_at=manifest.provenance.created_at,
        source_digest=manifest.checkpoint.source_digest,
        digest=manifest.checkpoint.digest,
        calibration=describe_calibration(manifest),
        seed=manifest.provenance.seed,
        libraries=", ".join(f"{name} {version}" for name, version in manifest.recipe["versions"].items()),
        seconds=manifest.seconds,
    )


def describe_details(planned: PlannedScheme, n_rounded: int | None) -> str:
    """Say what the format's name leaves open."""
    details = {
        f"groups of {planned.group_size}": planned.group_size is not None,
        f"SmoothQuant {planned.smoothing_strength}": planned.smoothing_strength is not None,
        f"{n_rounded} layers rounded without GPTQ": bool(n_rounded),
        "scales for an fp8 KV cache": planned.has_fp8_kv_cache,
    }
    return "".join(f", {detail}" for detail, is_so in details.items() if is_so)


def describe_calibration(manifest: CheckpointManifest) -> str:
    """Say which data shaped the weights, or that none did."""
    if manifest.calibration_sha256 is None:
        return "none: weights are rounded without data"
    recipe = manifest.recipe
    plain = ", messages as plain text" if recipe["is_plain_text"] else ""
    cut = f", {recipe['n_cut']} of them cut" if recipe["n_cut"] else ""
    return f"{recipe['n_samples_used']} rows{cut}{plain}, {recipe['n_tokens']} tokens, file sha256 `{manifest.calibration_sha256}`"
