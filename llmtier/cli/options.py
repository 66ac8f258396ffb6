"""Options that several commands share, so that they are spelled and explained once."""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="LLMTIER_CONFIG", help="Configuration file; 'llmtier init' writes one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document.")]
SeedOption = Annotated[int, typer.Option(help="Seed of every random choice.", min=0)]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]

DEFAULT_CONFIG = Path("llmtier.yaml")
