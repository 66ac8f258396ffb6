"""The quantize stage: source checkpoint + calibration set to ``<out>/<model>@<scheme>`` folders.

Reads the source's ``config.json`` and digest and the calibration set; the worker does the quantizing.
Each checkpoint is built in a staging folder beside its target and renamed when its manifest lies in it,
so a target is either whole or absent. A finished target made from the same inputs is used again.
Does not judge the accuracy of what it wrote: ``llmtier profile`` does.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from llmtier.core.errors import InputFileError, MachineError, UsageError
from llmtier.core.provenance import Provenance
from llmtier.core.tier import Checkpoint
from llmtier.quantize.card import model_card
from llmtier.quantize.job import PlannedScheme, QuantizeJob, QuantizePlan, plan
from llmtier.quantize.process import WORKER, running_worker
from llmtier.quantize.progress import Progress, Step
from llmtier.store.atomic import check_replaceable, staged_directory, write_text
from llmtier.store.calibration import read_calibration
from llmtier.store.checkpoints import CheckpointManifest, read_manifest, write_manifest
from llmtier.store.digests import checkpoint_digest

OnProgress = Callable[[Progress], None]
ProvenanceOf = Callable[[Mapping[str, str]], Provenance]
"""Makes the provenance of this run from sha256 by input name; its seed should be the job's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a result depends on besides the options.

    Attributes:
        source_digest: Of the source checkpoint.
        calibration_sha256: Of the calibration file; ``None`` where no scheme reads it.
    """

    source_digest: str
    calibration_sha256: str | None

    def calibration_of(self, planned: PlannedScheme) -> str | None:
        """Return the calibration digest as far as it matters to one scheme."""
        return self.calibration_sha256 if planned.needs_data else None


def prepare(job: QuantizeJob) -> QuantizePlan:
    """Read the source's ``config.json`` and plan; what ``--dry-run`` shows.

    Raises:
        InputFileError: The source is no checkpoint.
        UsageError: As ``job.plan``.
    """
    return plan(job, read_model_config(job.model))


def quantize(
    job: QuantizeJob,
    *,
    python: Path,
    provenance_of: ProvenanceOf,
    on_progress: OnProgress = lambda _progress: None,
    force: bool = False,
    worker: Path = WORKER,
) -> list[Path]:
    """Write the job's checkpoints and return their folders, in the order of its schemes.

    Args:
        job: What to write.
        python: Interpreter of the ``quantize`` environment.
        provenance_of: Describes this run.
        on_progress: Called with every step, in this thread.
        force: Make again, and replace, what exists.
        worker: The script that ``python`` runs.

    Raises:
        InputFileError: The source or the calibration set cannot be read.
        UsageError: The job cannot work, or a target exists that was made from other inputs.
        MachineError: The worker failed or the disk refused; finished schemes stay.
    """
    job = replace(job, model=job.model.absolute(), out=job.out.absolute())
    quantize_plan = prepare(job)
    for note in quantize_plan.notes:
        on_progress(Progress(event=Step.NOTE, message=note))
    inputs = digest_inputs(job, quantize_plan)
    pending = [planned for planned in quantize_plan.schemes if force or not is_reusable(planned, job, inputs)]
    for planned in quantize_plan.schemes:
        if planned not in pending:
            message = f"{planned.target} was made from these very inputs; used again"
            on_progress(Progress(event=Step.REUSED, scheme=planned.scheme, message=message))
    if pending:
        writer = Writer(job=job, inputs=inputs, provenance_of=provenance_of)
        writer.write_all(pending, python=python, worker=worker, on_progress=on_progress, force=force)
    return [planned.target for planned in quantize_plan.schemes]


def read_model_config(model: Path) -> Mapping[str, object]:
    """Return the source's ``config.json``.

    Raises:
        InputFileError: There is none, or it is not a JSON object.
    """
    path = model / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputFileError("is no checkpoint: config.json cannot be read; give a local folder", path=model) from exc
    except ValueError as exc:
        raise InputFileError(f"expected JSON: {exc}", path=path) from exc
    if not isinstance(document, dict):
        raise InputFileError("expected a JSON object", path=path)
    return document


def digest_inputs(job: QuantizeJob, quantize_plan: QuantizePlan) -> Inputs:
    """Digest the source, and check and digest the calibration set where a scheme reads it.

    Raises:
        InputFileError: Either cannot be read; a wrong calibration row is named by its line.
    """
    reads_rows = quantize_plan.needs_data and job.calibration is not None
    calibration = read_calibration(job.calibration).sha256 if reads_rows and job.calibration else None
    return Inputs(source_digest=checkpoint_digest(job.model), calibration_sha256=calibration)


def options_of(planned: PlannedScheme, job: QuantizeJob) -> dict[str, object]:
    """Return the options that shape the result of a scheme; others changing it does not matter."""
    options: dict[str, object] = {"scheme": planned.scheme.value, "preset": planned.preset, "ignored": ["lm_head"]}
    if planned.needs_data:
        options |= {"group_size": planned.group_size, "seed": job.seed}
        options |= {"n_samples": job.n_samples, "max_seq_tokens": job.max_seq_tokens}
    return options


def is_reusable(planned: PlannedScheme, job: QuantizeJob, inputs: Inputs) -> bool:
    """Tell whether the target is there, whole, and made from the same inputs; ``False`` when it is absent.

    Raises:
        UsageError: Something else is there.
    """
    manifest = read_manifest(planned.target)
    if manifest is None:
        check_replaceable(planned.target, force=False)
        return False
    difference = find_difference(manifest, planned, job, inputs)
    if difference is not None:
        raise UsageError(f"{planned.target}: exists, but {difference}; use --force to replace it")
    return True


def find_difference(
    manifest: CheckpointManifest, planned: PlannedScheme, job: QuantizeJob, inputs: Inputs
) -> str | None:
    """Say in what a finished checkpoint differs from what is asked; ``None`` when in nothing."""
    if manifest.checkpoint.source_digest != inputs.source_digest:
        return "it was made from another source model"
    if manifest.calibration_sha256 != inputs.calibration_of(planned):
        return "it was made with another calibration set"
    for name, wanted in options_of(planned, job).items():
        if manifest.recipe.get(name) != wanted:
            return f"it was made with {name} {manifest.recipe.get(name)}, not {wanted}"
    if checkpoint_digest(planned.target) != manifest.checkpoint.digest:
        return "its files have changed since it was written"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Writes the checkpoints of one job.

    Attributes:
        job: With absolute paths.
        inputs: Their digests.
        provenance_of: Describes this run.
    """

    job: QuantizeJob
    inputs: Inputs
    provenance_of: ProvenanceOf

    def write_all(
        self, pending: list[PlannedScheme], *, python: Path, worker: Path, on_progress: OnProgress, force: bool
    ) -> None:
        """Run the worker once for all of ``pending``; each target appears as soon as it is finished.

        Raises:
            MachineError: The worker failed, or left a scheme out.
        """
        with ExitStack() as unfinished:
            folders = {planned.scheme: Folder(planned, within=unfinished, force=force) for planned in pending}
            document = self.worker_job(list(folders.values()))
            tokenized: Progress | None = None
            with running_worker(document, python=python, worker=worker) as events:
                for progress in events:
                    tokenized = progress if progress.event is Step.TOKENIZED else tokenized
                    if progress.event is Step.SAVED and progress.scheme in folders:
                        self.finish(folders.pop(progress.scheme), saved=progress, tokenized=tokenized)
                    on_progress(progress)
            if folders:
                raise MachineError(f"quantizer ended without writing {', '.join(scheme.value for scheme in folders)}")

    def worker_job(self, folders: "list[Folder]") -> dict[str, object]:
        """Return the document that ``worker.py`` reads."""
        parts = [
            {
                "scheme": folder.planned.scheme.value,
                "group_size": folder.planned.group_size,
                "needs_data": folder.planned.needs_data,
                "out": str(folder.staging),
            }
            for folder in folders
        ]
        needs_data = any(folder.planned.needs_data for folder in folders)
        return {
            "model": str(self.job.model),
            "calibration": str(self.job.calibration) if needs_data else None,
            "n_samples": self.job.n_samples,
            "max_seq_tokens": self.job.max_seq_tokens,
            "seed": self.job.seed,
            "schemes": parts,
        }

    def finish(self, folder: "Folder", *, saved: Progress, tokenized: Progress | None) -> None:
        """Write card and manifest, the manifest last, and put the folder in its place."""
        planned = folder.planned
        manifest = self.manifest_of(folder, saved=saved, tokenized=tokenized if planned.needs_data else None)
        write_text(folder.staging / "README.md", model_card(manifest, planned, model=self.job.model.name))
        write_manifest(folder.staging, manifest)
        folder.publish()

    def manifest_of(self, folder: "Folder", *, saved: Progress, tokenized: Progress | None) -> CheckpointManifest:
        """Describe a finished checkpoint; ``tokenized`` is ``None`` where no data was read."""
        planned = folder.planned
        checkpoint = Checkpoint(
            path=str(planned.target),
            scheme=planned.scheme,
            digest=checkpoint_digest(folder.staging),
            source_digest=self.inputs.source_digest,
        )
        calibration_sha256 = self.inputs.calibration_of(planned)
        recipe = options_of(planned, self.job) | facts_of(saved, tokenized)
        return CheckpointManifest(
            checkpoint=checkpoint,
            provenance=self.provenance_of(self.input_digests(calibration_sha256)),
            recipe=recipe,
            calibration_sha256=calibration_sha256,
            seconds=round(saved.phases_s + (tokenized.phases_s if tokenized else 0.0), 3),
            peak_memory_bytes=saved.peak_memory_bytes,
        )

    def input_digests(self, calibration_sha256: str | None) -> dict[str, str]:
        """Return sha256 by input name."""
        digests = {self.job.model.name: self.inputs.source_digest}
        if calibration_sha256 is not None and self.job.calibration is not None:
            digests[self.job.calibration.name] = calibration_sha256
        return digests


class Folder:
    """The staging folder of one scheme: ``publish`` puts it in place, leaving the outer stack removes it."""

    def __init__(self, planned: PlannedScheme, *, within: ExitStack, force: bool) -> None:
        self.planned = planned
        self._stack = within.enter_context(ExitStack())
        self.staging = self._stack.enter_context(staged_directory(planned.target, force=force))

    def publish(self) -> None:
        """Rename the staging folder to the target."""
        self._stack.close()


def facts_of(saved: Progress, tokenized: Progress | None) -> dict[str, object]:
    """Return what was observed of a run and stands in the recipe beside the options."""
    facts: dict[str, object] = {"versions": dict(saved.versions), "seconds_by_phase": dict(saved.seconds_by_phase)}
    if tokenized is not None:
        facts |= {"n_samples_used": tokenized.n_samples, "n_tokens": tokenized.n_tokens}
    return facts
