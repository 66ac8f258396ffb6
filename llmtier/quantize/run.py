"""The quantize stage: source checkpoint + calibration set to ``<out>/<model>@<scheme>`` folders.

Reads the source's ``config.json`` and digest and the calibration set; the worker does the quantizing.
Each checkpoint is built in a staging folder beside its target and renamed when its manifest lies in it,
so a target is either whole or absent. A finished target made from the same inputs is used again; of an
unfinished one the token ids and every finished layer are (``workplace.py``).
Does not judge the accuracy of what it wrote: ``llmtier profile`` does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from llmtier.core.errors import MachineError, UsageError
from llmtier.core.provenance import Provenance
from llmtier.core.tier import Checkpoint
from llmtier.quantize.card import model_card
from llmtier.quantize.job import Backend, PlannedScheme, QuantizeJob, QuantizePlan
from llmtier.quantize.plan import plan as make_plan
from llmtier.quantize.process import WaitingWorker, waiting_worker, worker_command
from llmtier.quantize.progress import Progress, Step, parse_progress
from llmtier.quantize.reuse import differing_options, mapping_document, options_of
from llmtier.quantize.survey import survey
from llmtier.quantize.workplace import Workplace, digest_of, open_workplace, opened, tidy
from llmtier.store.atomic import check_replaceable, staged_directory, write_text
from llmtier.store.checkpoints import CheckpointManifest, read_manifest, write_manifest
from llmtier.store.digests import checkpoint_digest

WORKERS: Mapping[Backend, Sequence[str]] = {
    Backend.LLMCOMPRESSOR: worker_command("oneshot"),
    Backend.AUTOAWQ: worker_command("autoawq"),
}

OnProgress = Callable[[Progress], None]
ProvenanceOf = Callable[[Mapping[str, str]], Provenance]
"""Makes the provenance of this run from sha256 by input name; its seed should be the job's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a result depends on besides the options.

    Attributes:
        source_digest: Of the source checkpoint.
        calibration_sha256: Of the calibration file; ``None`` where no scheme reads it.
        rows: That file, found through a recipe where one was given; ``None`` where no scheme reads it.
    """

    source_digest: str
    calibration_sha256: str | None
    rows: Path | None

    def calibration_of(self, planned: PlannedScheme) -> str | None:
        """Return the calibration digest as far as it matters to one scheme."""
        return self.calibration_sha256 if planned.needs_data else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """A job's worker that loads its libraries while its inputs are digested.

    Attributes:
        worker: Waits for what it is to do.
        descriptor: Of the job's output folder; the worker has inherited it, and so will hold the lock taken on it.
    """

    worker: WaitingWorker
    descriptor: int


def prepare(job: QuantizeJob, *, force: bool = False) -> QuantizePlan:
    """Look at model, data and machine, and plan; what ``--dry-run`` shows.

    Args:
        job: What to write.
        force: Plan to make again, and replace, what exists.

    Raises:
        InputFileError: The source is no checkpoint, or a file cannot be read.
        UsageError: The job cannot work.
        MachineError: Memory or disk do not hold it.
    """
    return make_plan(job, survey(job, force=force))


def quantize(
    job: QuantizeJob,
    *,
    python: Path,
    provenance_of: ProvenanceOf,
    plan: QuantizePlan | None = None,
    on_progress: OnProgress = lambda _progress: None,
    force: bool = False,
) -> list[Path]:
    """Write the job's checkpoints and return their folders, in the order of its schemes.

    Args:
        job: What to write.
        python: Interpreter of the backend's environment.
        provenance_of: Describes this run.
        plan: As ``prepare`` made it for this very job; ``None`` makes it here and tells its notes.
        on_progress: Called with every step, in this thread.
        force: Make again, and replace, what exists.

    Raises:
        InputFileError: The source or the calibration set cannot be read.
        UsageError: The job cannot work, or a target exists that was made from other inputs.
        MachineError: The worker failed or the disk refused; finished schemes stay.
    """
    if plan is None:
        plan = prepare(job, force=force)
        for note in plan.notes:
            on_progress(Progress(event=Step.NOTE, message=note))
    job = replace(job, model=job.model.absolute(), out=job.out.absolute())
    schemes = [replace(planned, folder=planned.folder.absolute()) for planned in plan.schemes]
    with ExitStack() as workers:
        ahead = None
        if not all(planned.is_finished for planned in schemes):
            ahead = workers.enter_context(start_ahead(job, python=python))
        inputs = digest_inputs(job, plan)
        pending = schemes if force else [planned for planned in schemes if not is_reusable(planned, job, inputs)]
        if not pending:
            tidy(job.out, names=[planned.folder.name for planned in schemes])
            report_reuse(schemes, on_progress)
        else:
            ahead = ahead or workers.enter_context(start_ahead(job, python=python))
            writer = Writer(job=job, inputs=inputs, provenance_of=provenance_of)
            writer.write_missing(schemes, pending, ahead, on_progress=on_progress, force=force)
    return [planned.folder for planned in schemes]


@contextmanager
def start_ahead(job: QuantizeJob, *, python: Path) -> Iterator[Ahead]:
    """Start the job's worker, which takes seconds to load its libraries; leaving the block ends it.

    Raises:
        MachineError: The interpreter cannot be started.
        DiskError: The folder for the checkpoints cannot be made.
    """
    with (
        opened(job.out) as descriptor,
        waiting_worker(python=python, worker=WORKERS[job.backend], lock=descriptor) as worker,
    ):
        yield Ahead(worker=worker, descriptor=descriptor)


def report_reuse(schemes: Sequence[PlannedScheme], on_progress: OnProgress) -> None:
    """Say which checkpoints stay as they are."""
    for planned in schemes:
        message = f"{planned.folder} was made from these very inputs; used again"
        on_progress(Progress(event=Step.REUSED, scheme=planned.scheme, message=message))


def digest_inputs(job: QuantizeJob, quantize_plan: QuantizePlan) -> Inputs:
    """Digest the source, and check and digest the calibration set where a scheme reads it.

    Raises:
        InputFileError: Either cannot be read; a wrong calibration row is named by its line.
    """
    if not quantize_plan.needs_data or job.calibration is None:
        return Inputs(source_digest=checkpoint_digest(job.model), calibration_sha256=None, rows=None)
    from llmtier.store.calibration import read_calibration

    read = read_calibration(job.calibration)
    return Inputs(source_digest=checkpoint_digest(job.model), calibration_sha256=read.sha256, rows=read.path.absolute())


def is_reusable(planned: PlannedScheme, job: QuantizeJob, inputs: Inputs) -> bool:
    """Tell whether the target is there, whole, and made from the same inputs; ``False`` when it is absent.

    Raises:
        UsageError: Something else is there.
    """
    manifest = read_manifest(planned.folder)
    if manifest is None:
        check_replaceable(planned.folder, force=False)
        return False
    difference = find_difference(manifest, planned, job, inputs)
    if difference is not None:
        raise UsageError(f"{planned.folder}: exists, but {difference}; use --force to replace it")
    return True


def find_difference(
    manifest: CheckpointManifest, planned: PlannedScheme, job: QuantizeJob, inputs: Inputs
) -> str | None:
    """Say in what a finished checkpoint differs from what is asked; ``None`` when in nothing."""
    if manifest.checkpoint.source_digest != inputs.source_digest:
        return "it was made from another source model"
    if manifest.calibration_sha256 != inputs.calibration_of(planned):
        return "it was made with another calibration set"
    for name, wanted in differing_options(manifest.recipe, planned, job):
        return f"it was made with {name} {manifest.recipe.get(name)}, not {wanted}"
    if checkpoint_digest(planned.folder) != manifest.checkpoint.digest:
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

    def write_missing(
        self,
        schemes: list[PlannedScheme],
        pending: list[PlannedScheme],
        ahead: Ahead,
        *,
        on_progress: OnProgress,
        force: bool,
    ) -> None:
        """Lock the output folder and write those of ``schemes`` that are pending.

        Raises:
            UsageError: Another run writes there, or a target exists that was made from other inputs.
            MachineError: As ``write_all``.
        """
        names = [planned.folder.name for planned in schemes]
        with open_workplace(self.job.out, names=names, descriptor=ahead.descriptor) as place:
            if not force:  # again: another run may have written them, or an old folder come back
                pending = [planned for planned in pending if not is_reusable(planned, self.job, self.inputs)]
            reused = [planned for planned in schemes if planned not in pending]
            for planned in reused:
                place.finish(planned.folder.name)  # a run killed right after the last rename left it
            report_reuse(reused, on_progress)
            if pending:
                self.write_all(pending, place, worker=ahead.worker, on_progress=on_progress, force=force)

    def write_all(
        self,
        pending: list[PlannedScheme],
        place: Workplace,
        *,
        worker: WaitingWorker,
        on_progress: OnProgress,
        force: bool,
    ) -> None:
        """Run the worker once for all of ``pending``; each target appears as soon as it is finished.

        Raises:
            MachineError: The worker failed, or left a scheme out; finished layers stay for the next run.
        """
        with ExitStack() as unfinished:
            folders = {planned.scheme: Folder(planned, within=unfinished, force=force) for planned in pending}
            document = self.worker_job(list(folders.values()), place)
            tokenized: Progress | None = None
            with worker.working_on(document) as events:
                for progress in map(parse_progress, events):
                    tokenized = progress if progress.event is Step.TOKENIZED else tokenized
                    if progress.event is Step.SAVED and progress.scheme in folders:
                        folder = folders.pop(progress.scheme)
                        self.finish(folder, saved=progress, tokenized=tokenized)
                        place.finish(folder.planned.folder.name)
                    on_progress(progress)
            if folders:
                raise MachineError(f"quantizer ended without writing {', '.join(scheme.value for scheme in folders)}")

    def worker_job(self, folders: "list[Folder]", workplace: Workplace) -> dict[str, object]:
        """Return the document that the worker reads."""
        needs_data = any(folder.planned.needs_data for folder in folders)
        sampling: dict[str, object] = {
            "n_samples": self.job.n_samples,
            "max_seq_tokens": self.job.max_seq_tokens,
            "seed": self.job.seed,
        }
        data: dict[str, object] = {"source": self.inputs.source_digest, "calibration": self.inputs.calibration_sha256}
        return {
            "model": str(self.job.model),
            "calibration": str(self.inputs.rows) if needs_data else None,
            "tokens": str(workplace.tokens(data | sampling)),
            **sampling,
            "schemes": [self.worker_part(folder, workplace) for folder in folders],
        }

    def worker_part(self, folder: "Folder", workplace: Workplace) -> dict[str, object]:
        """Return what the worker needs to know of one scheme."""
        planned = folder.planned
        mappings = planned.awq_mappings
        identity = {
            "source": self.inputs.source_digest,
            "calibration": self.inputs.calibration_of(planned),
            **options_of(planned, self.job),
        }
        return {
            "scheme": planned.scheme.value,
            "group_size": planned.group_size,
            "needs_data": planned.needs_data,
            "ignore": list(planned.ignore),
            "smoothing_strength": planned.smoothing_strength,
            "has_fp8_kv_cache": planned.has_fp8_kv_cache,
            "awq_mappings": None if mappings is None else [mapping_document(rule) for rule in mappings],
            "spills": planned.spills,
            "out": str(folder.staging),
            "work": str(workplace.scheme_folder(planned.folder.name)),
            "fingerprint": digest_of(identity),
        }

    def finish(self, folder: "Folder", *, saved: Progress, tokenized: Progress | None) -> None:
        """Write card and manifest, the manifest last, and put the folder in its place."""
        planned = folder.planned
        manifest = self.manifest_of(folder, saved=saved, tokenized=tokenized if planned.needs_data else None)
        write_text(folder.staging / "README.md", model_card(manifest, planned, model=self.job.model_name))
        write_manifest(folder.staging, manifest)
        folder.publish()

    def manifest_of(self, folder: "Folder", *, saved: Progress, tokenized: Progress | None) -> CheckpointManifest:
        """Describe a finished checkpoint; ``tokenized`` is ``None`` where no data was read."""
        planned = folder.planned
        checkpoint = Checkpoint(
            path=str(planned.folder),
            scheme=planned.scheme,
            digest=checkpoint_digest(folder.staging),
            source_digest=self.inputs.source_digest,
        )
        calibration_sha256 = self.inputs.calibration_of(planned)
        recipe = options_of(planned, self.job) | facts_of(saved, tokenized) | {"source_revision": self.job.revision}
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
        digests = {self.job.model_name: self.inputs.source_digest}
        if calibration_sha256 is not None and self.inputs.rows is not None:
            digests[self.inputs.rows.name] = calibration_sha256
        return digests


class Folder:
    """The staging folder of one scheme: ``publish`` puts it in place, leaving the outer stack removes it."""

    def __init__(self, planned: PlannedScheme, *, within: ExitStack, force: bool) -> None:
        self.planned = planned
        self._stack = within.enter_context(ExitStack())
        self.staging = self._stack.enter_context(staged_directory(planned.folder, force=force))

    def publish(self) -> None:
        """Rename the staging folder to the target."""
        self._stack.close()


def facts_of(saved: Progress, tokenized: Progress | None) -> dict[str, object]:
    """Return what was observed of a run and stands in the recipe beside the options."""
    facts: dict[str, object] = {"versions": dict(saved.versions), "seconds_by_phase": dict(saved.seconds_by_phase)}
    facts |= {"n_rounded": saved.n_rounded, "peak_device_bytes": saved.peak_device_bytes}
    if tokenized is not None:
        facts |= {"n_samples_used": tokenized.n_samples, "n_tokens": tokenized.n_tokens}
        facts |= {"n_cut": tokenized.n_cut, "is_plain_text": tokenized.is_plain_text}
    return facts
