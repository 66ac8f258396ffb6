"""``llmtier init``: write a commented configuration for the user's own model."""

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import DEFAULT_CONFIG, ForceOption
from llmtier.core.errors import UsageError
from llmtier.core.tier import Scheme


def init(
    model: Annotated[str, typer.Option(help="Local folder or hub id of the model to start from.")] = "models/my-model",
    path: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = DEFAULT_CONFIG,
    force: ForceOption = False,
) -> None:
    """Write a commented llmtier.yaml.

    Example: llmtier init --model meta-llama/Llama-3.1-8B-Instruct
    """
    from llmtier.engine.hardware import detect_hardware
    from llmtier.store.atomic import write_text

    if path.exists() and not force:
        raise UsageError(f"{path} exists; choose another --output, or --force to overwrite it")
    write_text(path, render(model, has_gpu=bool(detect_hardware().gpus)))
    output.say(f"wrote {path}; next: edit it, then 'llmtier doctor -c {path}'")


def render(model: str, *, has_gpu: bool) -> str:
    """Fill the template for ``model`` on a machine with or without a GPU."""
    template = resources.files("llmtier.cli").joinpath("templates/llmtier.yaml").read_text(encoding="utf-8")
    values = {
        "{name}": model.rstrip("/").rsplit("/", 1)[-1],
        "{model}": model,
        "{schemes}": " ".join(scheme.value for scheme in Scheme),
        "{device}": "gpu:0" if has_gpu else "cpu",
        "{cheap}": "awq" if has_gpu else "int8",
    }
    for mark, value in values.items():
        template = template.replace(mark, value)
    return template
