"""Export of a sentence-embedding model for the gateway: ONNX, a tokenizer and a manifest, put in place as one.

Starts the worker ``export_embedder`` in the ``embed`` environment, writes the manifest beside what the worker wrote and
refuses a result that does not agree with the original. Runs no model itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmtier.core.errors import MachineError, NegativeAnswerError
from llmtier.quantize.process import Event, running_worker, worker_command
from llmtier.store.atomic import staged_directory
from llmtier.store.embedders import (
    EmbedderManifest,
    digest_of_files,
    file_digests,
    write_embedder_manifest,
)

EXPORT_EMBEDDER = worker_command("export_embedder")
LEAST_AGREEMENT = {"fp32": 0.9999, "int8": 0.97}
"""Least cosine with the original over the worker's trial texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderJob:
    """What to export and where to.

    Attributes:
        model: Folder of the model.
        name: What it is called.
        out: Folder to make.
        precision: Of the weights.
        max_tokens: Longer texts are cut to this; less where the model reads less.
        hub_id: Where the folder was downloaded from, so that what says how it pools is fetched too; ``None`` for a
            local folder. Likewise ``revision``.
    """

    model: Path
    name: str
    out: Path
    precision: Literal["fp32", "int8"]
    max_tokens: int = 96
    hub_id: str | None = None
    revision: str | None = None

    def for_worker(self, staging: Path) -> dict[str, object]:
        """Return what the worker is told."""
        return {
            "path": str(self.model),
            "out": str(staging),
            "precision": self.precision,
            "max_tokens": self.max_tokens,
            "hub_id": self.hub_id,
            "revision": self.revision,
        }


def export_embedder(
    job: EmbedderJob, *, python: Path, force: bool = False, on_note: Callable[[str], None] = lambda _text: None
) -> EmbedderManifest:
    """Export a model and return the manifest that was written.

    Args:
        job: What to do.
        python: Interpreter of the ``embed`` environment.
        force: Replace a folder that holds something.
        on_note: Gets a line for people now and then.

    Raises:
        UsageError: ``job.out`` holds something and ``force`` is not given.
        InputFileError: The model cannot be read or is of a kind that is not exported.
        NegativeAnswerError: The exported model does not agree with the original; nothing is kept.
        MachineError: The worker failed.
        DiskError: The file system refused.
    """
    with staged_directory(job.out, force=force) as staging:
        event = run_export(job.for_worker(staging), python=python, on_note=on_note)
        agreement = float(event["agreement"])
        needed = LEAST_AGREEMENT[job.precision]
        if not agreement > needed:
            raise NegativeAnswerError(
                f"{job.name}: as {job.precision} its embeddings agree with the original's by a cosine of "
                f"{agreement:.4f}, more than {needed} is needed; {advice(job.precision)}"
            )
        manifest = describe(job, event, staging)
        write_embedder_manifest(staging, manifest)
    return manifest


def run_export(job: dict[str, object], *, python: Path, on_note: Callable[[str], None]) -> Event:
    """Run the worker to its end and return its ``exported`` event.

    Raises:
        MachineError: It ended without one.
        LlmtierError: It refused.
    """
    result: dict[str, Any] | None = None
    with running_worker(job, python=python, worker=EXPORT_EMBEDDER) as events:
        for event in events:
            match event["event"]:
                case "exported":
                    result = event
                case _:
                    on_note(str(event.get("message", event["event"])))
    if result is None:
        raise MachineError("the export ended without a result; try again")
    return result


def describe(job: EmbedderJob, event: Event, staging: Path) -> EmbedderManifest:
    """Return the manifest of what lies in ``staging``."""
    files = file_digests(staging)
    return EmbedderManifest(
        name=job.name,
        digest=digest_of_files(files),
        dimensions=int(event["dimensions"]),
        max_tokens=int(event["max_tokens"]),
        pooling=str(event["pooling"]),
        is_normalised=True,
        precision=job.precision,
        inputs=("input_ids",),
        files=files,
        agreement=round(float(event["agreement"]), 6),
        versions=dict(event["versions"]),
    )


def advice(precision: str) -> str:
    """Say what to do about an export that does not agree."""
    return "leave --int8 out" if precision == "int8" else "report the model, it should not happen"
