"""The model card (``README.md``) of a quantized checkpoint: text from its manifest, nothing else."""

from llmtier.quantize.job import PlannedScheme
from llmtier.store.checkpoints import CheckpointManifest

_TEMPLATE = """\
---
base_model: {model}
library_name: vllm
tags: [{scheme}, compressed-tensors, llmtier]
---
# {name}

`{model}` quantized to **{scheme}** ({preset}{groups}) by llmtier {version} on {created_at}.
The output head (`lm_head`) and the embeddings are not quantized.

| | |
|---|---|
| source digest | `{source_digest}` |
| digest | `{digest}` |
| calibration | {calibration} |
| seed | {seed} |
| libraries | {libraries} |
| time | {seconds:.1f} s |

Serve it with `vllm serve {name}`; no quantization flag is needed.
Its accuracy has not been measured here: `llmtier profile` does that, on your data and hardware.
"""


def model_card(manifest: CheckpointManifest, planned: PlannedScheme, *, model: str) -> str:
    """Return the card's Markdown; ``model`` is the source's name."""
    return _TEMPLATE.format(
        model=model,
        name=planned.target.name,
        scheme=planned.scheme.value,
        preset=planned.preset,
        groups=f", groups of {planned.group_size}" if planned.group_size else "",
        version=manifest.provenance.llmtier_version,
        created_at=manifest.provenance.created_at,
        source_digest=manifest.checkpoint.source_digest,
        digest=manifest.checkpoint.digest,
        calibration=describe_calibration(manifest),
        seed=manifest.provenance.seed,
        libraries=", ".join(f"{name} {version}" for name, version in manifest.recipe["versions"].items()),
        seconds=manifest.seconds,
    )


def describe_calibration(manifest: CheckpointManifest) -> str:
    """Say which data shaped the weights, or that none did."""
    if manifest.calibration_sha256 is None:
        return "none: weights are rounded without data"
    recipe = manifest.recipe
    return f"{recipe['n_samples_used']} rows, {recipe['n_tokens']} tokens, file sha256 `{manifest.calibration_sha256}`"
