"""The export stage: a 4-bit compressed-tensors checkpoint to the same weights in AutoAWQ's layout.

Reads the checkpoint and its manifest; the worker does the repacking. Writes a folder of its own with card and
manifest, built beside its target and renamed when whole; one made from the same checkpoint is used again.
Quantizes nothing: the numbers stay what they were, within the cast of the scales to float16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtier.core.errors import MachineError, UsageError
from llmtier.core.tier import Checkpoint, Scheme
from llmtier.quantize.job import EXPORT_SUFFIX
from llmtier.quantize.process import Event, running_worker, worker_command
from llmtier.quantize.progress import Progress, Step, parse_progress
from llmtier.quantize.run import OnProgress, ProvenanceOf
from llmtier.quantize.workplace import open_workplace
from llmtier.store.atomic import check_replaceable, staged_directory, write_text
from llmtier.store.checkpoints import CheckpointManifest, infer_scheme, read_manifest, write_manifest
from llmtier.store.digests import checkpoint_digest

EXPORT_AUTOAWQ = worker_command("export_autoawq")
LAYOUT = "autoawq"
MAX_SHARD_BYTES = 2**30
"""Largest file of an export; the worker's own memory is about twice this, as safetensors copies what it writes."""

_CARD = """\
---
base_model: {source}
library_name: vllm
tags: [awq, 4-bit, autoawq, llmtier]
---
# {name}

`{source}` ({scheme}) in AutoAWQ's layout (`gemm`, 4 bits), written by llmtier {version} on {created_at}.
The quantized weights are the same numbers; scales and unquantized tensors were cast to float16.

| | |
|---|---|
| exported from | `{exported_from}` |
| digest | `{digest}` |
| digest of the unquantized model | {source_digest} |
| scales that the cast changed | {n_scales_changed} of {n_scales} |
| other values that the cast changed | {n_others_changed} of {n_others} |
| libraries | {libraries} |

Serve it with `vllm serve {name}`; no quantization flag is needed: the engine picks its kernel itself.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint that is exported.

    Attributes:
        path: Its folder.
        scheme: As it says of itself.
        digest: Of its files as they are now.
        manifest: ``None`` where llmtier did not write it.
    """

    path: Path
    scheme: Scheme
    digest: str
    manifest: CheckpointManifest | None


def autoawq_folder(checkpoint: Path) -> Path:
    """Return where the export of ``checkpoint`` lies unless said otherwise: ``<model>@<scheme>-autoawq`` beside it."""
    return checkpoint.with_name(f"{checkpoint.name}{EXPORT_SUFFIX}")


def export_autoawq(
    checkpoint: Path,
    out: Path,
    *,
    python: Path,
    provenance_of: ProvenanceOf,
    on_progress: OnProgress = lambda _progress: None,
    force: bool = False,
) -> Path:
    """Write ``checkpoint`` to the folder ``out`` in AutoAWQ's layout and return ``out``.

    The manifest's ``source_digest`` and calibration are the exported checkpoint's own: both are tiers of one original.
    Its scheme is ``awq``, for that is how an engine runs it, whatever found the weights; the recipe holds the rest.

    Args:
        checkpoint: Folder of a checkpoint as ``quantize`` writes it for awq and gptq.
        out: The folder to make.
        python: Interpreter of the ``quantize`` environment.
        provenance_of: Describes this run.
        on_progress: Called with every step, in this thread.
        force: Make again, and replace, what exists.

    Raises:
        InputFileError: ``checkpoint`` cannot be read, or AutoAWQ's layout cannot express it.
        UsageError: ``out`` exists and was made from something else.
        MachineError: The worker failed or the disk refused.
    """
    checkpoint, out = checkpoint.absolute(), out.absolute()
    if out == checkpoint:
        raise UsageError(f"{out}: an export needs a folder of its own")
    source = open_source(checkpoint)
    if force or not is_reusable(out, source):
        with open_workplace(out.parent, names=[out.name]) as workplace:
            if force or not is_reusable(out, source):  # another run may have written it meanwhile
                exporter = Exporter(source=source, python=python, provenance_of=provenance_of, lock=workplace.lock)
                exporter.write(out, on_progress=on_progress, force=force)
                return out
    message = f"{out} was exported from this very checkpoint; used again"
    on_progress(Progress(event=Step.REUSED, scheme=Scheme.AWQ, message=message))
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """Writes one export.

    Attributes:
        source: The checkpoint.
        python: Interpreter of the ``quantize`` environment.
        provenance_of: Describes this run.
        lock: File descriptor of the held lock, which the worker inherits.
    """

    source: Source
    python: Path
    provenance_of: ProvenanceOf
    lock: int

    def write(self, out: Path, *, on_progress: OnProgress, force: bool) -> None:
        """Write the folder ``out``, its manifest last.

        Raises:
            InputFileError: AutoAWQ's layout cannot express the checkpoint.
            MachineError: The worker failed or the disk refused.
        """
        with staged_directory(out, force=force) as staging:
            job = {"checkpoint": str(self.source.path), "out": str(staging), "max_shard_bytes": MAX_SHARD_BYTES}
            saved = follow_worker(job, python=self.python, lock=self.lock, on_progress=on_progress)
            manifest = make_manifest(self.source, saved, staging=staging, out=out, provenance_of=self.provenance_of)
            write_text(staging / "README.md", make_card(manifest, self.source))
            write_manifest(staging, manifest)


def open_source(checkpoint: Path) -> Source:
    """Digest the checkpoint and read its manifest.

    Raises:
        InputFileError: It is no checkpoint, or one of no known scheme.
    """
    return Source(
        path=checkpoint,
        digest=checkpoint_digest(checkpoint),
        scheme=infer_scheme(checkpoint),
        manifest=read_manifest(checkpoint),
    )


def is_reusable(out: Path, source: Source) -> bool:
    """Tell whether ``out`` is there, whole, and exported from ``source``; ``False`` when it is absent.

    Raises:
        UsageError: Something else is there.
    """
    manifest = read_manifest(out)
    if manifest is None:
        check_replaceable(out, force=False)
        return False
    if manifest.recipe.get("exported_from") != source.digest:
        raise UsageError(f"{out}: exists, but it was not exported from {source.path}; use --force to replace it")
    if checkpoint_digest(out) != manifest.checkpoint.digest:
        raise UsageError(f"{out}: exists, but its files have changed since; use --force to replace it")
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What the worker says at its end.

    Attributes:
        progress: Seconds, memory and versions.
        casts: How many values the cast to float16 has changed, by kind.
    """

    progress: Progress
    casts: Mapping[str, int]


def follow_worker(job: Mapping[str, object], *, python: Path, lock: int, on_progress: OnProgress) -> Saved:
    """Run the worker to its end.

    Raises:
        InputFileError: It refused the checkpoint.
        MachineError: It failed, or ended without having saved.
    """
    saved: Saved | None = None
    with running_worker(job, python=python, worker=EXPORT_AUTOAWQ, lock=lock) as events:
        for event in events:
            casts = take_casts(event)
            progress = parse_progress(event)
            if progress.event is Step.SAVED:
                saved = Saved(progress=progress, casts=casts)
            on_progress(progress)
    if saved is None:
        raise MachineError("export: the worker ended without having saved; try again")
    return saved


def take_casts(event: Event) -> dict[str, int]:
    """Take the counts of changed values out of an event; empty where it has none."""
    casts = event.pop("casts", {})
    return {name: int(count) for name, count in casts.items()}


def make_manifest(
    source: Source, saved: Saved, *, staging: Path, out: Path, provenance_of: ProvenanceOf
) -> CheckpointManifest:
    """Describe the export that lies in ``staging``."""
    of = source.manifest
    recipe: dict[str, Any] = {
        "layout": LAYOUT,
        "exported_from": source.digest,
        "exported_scheme": source.scheme.value,
        "exported_recipe": dict(of.recipe) if of else None,
        "casts": dict(saved.casts),
        "versions": dict(saved.progress.versions),
        "seconds_by_phase": dict(saved.progress.seconds_by_phase),
    }
    return CheckpointManifest(
        checkpoint=Checkpoint(
            path=str(out),
            scheme=Scheme.AWQ,
            digest=checkpoint_digest(staging),
            source_digest=of.checkpoint.source_digest if of else None,
        ),
        provenance=provenance_of({source.path.name: source.digest}),
        recipe=recipe,
        calibration_sha256=of.calibration_sha256 if of else None,
        seconds=round(saved.progress.phases_s, 3),
        peak_memory_bytes=saved.progress.peak_memory_bytes,
    )


def make_card(manifest: CheckpointManifest, source: Source) -> str:
    """Return the Markdown of the export's ``README.md``."""
    recipe, original = manifest.recipe, manifest.checkpoint.source_digest
    return _CARD.format(
        source=source.path.name,
        name=Path(manifest.checkpoint.path).name,
        scheme=source.scheme.value,
        version=manifest.provenance.llmtier_version,
        created_at=manifest.provenance.created_at,
        exported_from=source.digest,
        digest=manifest.checkpoint.digest,
        source_digest=f"`{original}`" if original else "unknown",
        libraries=", ".join(f"{name} {version}" for name, version in recipe["versions"].items()),
        **recipe["casts"],
    )
