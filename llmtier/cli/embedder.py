"""``llmtier embedder``: embedding models for the ``semantic`` scorer.

``export`` reads a sentence-transformers model, from a folder or the hub, and writes what the gateway runs: ONNX, a
tokenizer and a manifest.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import ForceOption, JsonOption

if TYPE_CHECKING:
    from llmtier.quantize.progress import Progress
    from llmtier.store.embedders import EmbedderManifest

app = typer.Typer(help="Embedding models for the semantic scorer.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """Keep ``export`` a command of its own while it is the only one."""


@app.command("export")
def export(
    model: Annotated[str, typer.Argument(help="Folder of a sentence-transformers model, or its hub id.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights: a quarter of the size, faster.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Of a longer text beginning and end are read.", min=8, max=8192)] = 96,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub model.")] = None,
    python: Annotated[Path | None, typer.Option(help="Interpreter with torch and onnx, for the environment.")] = None,
    force: ForceOption = False,
    is_json: JsonOption = False,
) -> None:
    """Write an embedding model as ONNX for the gateway.

    Example: llmtier embedder export sentence-transformers/all-MiniLM-L6-v2 -o models/minilm --int8
    """
    from llmtier.quantize.embedder import EmbedderJob, export_embedder
    from llmtier.quantize.fetch import resolve_model
    from llmtier.store.atomic import check_replaceable

    check_replaceable(out, force=force)
    source = resolve_model(
        model, revision=revision, python_of=lambda: python or find_interpreter(), on_progress=say_progress
    )
    job = EmbedderJob(
        model=source.path.absolute(),
        name=source.name,
        out=out.absolute(),
        precision="int8" if int8 else "fp32",
        max_tokens=max_tokens,
        hub_id=None if source.revision is None else model,
        revision=source.revision,
    )
    manifest = export_embedder(job, python=python or find_interpreter(), force=force, on_note=output.say)
    if is_json:
        output.print_json({"schema_version": 1, "path": str(out), "digest": manifest.digest, **facts(manifest)})
        return
    output.say(f"{manifest.dimensions} dimensions, {manifest.max_tokens} tokens, cosine {manifest.agreement}")
    typer.echo(str(out))


def find_interpreter() -> Path:
    """Return the interpreter of the ``embed`` environment, installed when it is absent."""
    from llmtier.cli.env import ensure_environment
    from llmtier.engine.environment import EnvironmentName

    return ensure_environment(EnvironmentName.EMBED).python


def say_progress(progress: "Progress") -> None:
    """Write a line on the download."""
    output.say(progress.describe())


def facts(manifest: "EmbedderManifest") -> dict[str, object]:
    """Return what a program wants to know of an embedder."""
    return {
        "name": manifest.name,
        "dimensions": manifest.dimensions,
        "max_tokens": manifest.max_tokens,
        "pooling": manifest.pooling,
        "precision": manifest.precision,
        "agreement": manifest.agreement,
    }
