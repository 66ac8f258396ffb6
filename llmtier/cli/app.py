"""The command tree. Commands import their stage inside the function, so that ``--help`` stays fast."""

from typing import Annotated

import typer

from llmtier import __version__
from llmtier.cli import (
    audit,
    calibration,
    demo,
    doctor,
    embedder,
    env,
    explain,
    fit,
    init,
    keys,
    logs,
    profile,
    quantize,
    replay,
    serve,
)

app = typer.Typer(
    name="llmtier",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: no 0.1 s for Rich, and usage errors stay one line
    pretty_exceptions_enable=False,
    add_completion=False,
    help=(
        "Find, prove and serve the cheapest (model, quantization) tier that still meets each request's need.\n\n"
        "Example: llmtier init && llmtier doctor && llmtier profile && llmtier serve"
    ),
)


def show_version(is_wanted: bool) -> None:
    """Print the version and leave."""
    if is_wanted:
        typer.echo(f"llmtier {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens inside.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Set up logging before any command runs."""
    logs.configure(is_verbose=verbose)


app.command("init")(init.init)
app.command("doctor")(doctor.doctor)
app.add_typer(env.app, name="env")
app.add_typer(calibration.app, name="calibration")
app.command("quantize")(quantize.quantize)
app.add_typer(embedder.app, name="embedder")
app.command("profile")(profile.profile)
app.command("replay")(replay.replay)
app.command("fit-thresholds")(fit.fit_thresholds)
app.command("audit")(audit.audit)
app.command("explain")(explain.explain)
app.command("serve")(serve.serve)
app.add_typer(keys.app, name="keys")
app.command("demo")(demo.demo)
