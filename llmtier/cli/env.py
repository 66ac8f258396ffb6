"""``llmtier env``: the isolated environments that engines and quantizers run in."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import ForceOption, JsonOption
from llmtier.core.errors import UsageError

if TYPE_CHECKING:
    from llmtier.engine.environment import Environment, EnvironmentName

app = typer.Typer(help="Isolated environments for engines and quantizers.", no_args_is_help=True, rich_markup_mode=None)


@app.command("install")
def install(
    name: Annotated[str, typer.Argument(help="engine-cpu, engine-cuda, quantize or embed.")],
    force: ForceOption = False,
    is_json: JsonOption = False,
) -> None:
    """Make an environment from its lock file.

    Example: llmtier env install engine-cpu
    """
    environment = ensure_environment(parse_name(name), force=force)
    if is_json:
        output.print_json({"schema_version": 1, "name": environment.name.value, "python": str(environment.python)})
    else:
        typer.echo(str(environment.python))


@app.command("list")
def list_all(is_json: JsonOption = False) -> None:
    """Show which environments are installed.

    Example: llmtier env list
    """
    from llmtier.engine.environment import EnvironmentName, home_path, list_environments

    home = home_path(os.environ)
    statuses = list_environments(home)
    if is_json:
        environments = [{"name": s.name.value, "state": s.state, "path": str(s.path)} for s in statuses]
        output.print_json({"schema_version": 1, "home": str(home), "environments": environments})
        return
    known = {status.name for status in statuses}
    rows: list[tuple[str, str, str]] = [(s.name.value, s.state, str(s.path)) for s in statuses]
    absent = [name.value for name in EnvironmentName if name not in known]
    rows += [(name, "not installed", f"llmtier env install {name}") for name in absent]
    output.print_table(f"Environments in {home}", ("environment", "state", "where"), rows)


def parse_name(text: str) -> "EnvironmentName":
    """Return the environment called ``text``.

    Raises:
        UsageError: No environment has that name.
    """
    from llmtier.engine.environment import EnvironmentName

    try:
        return EnvironmentName(text)
    except ValueError as error:
        names = ", ".join(name.value for name in EnvironmentName)
        raise UsageError(f"no environment is called {text!r}; choose one of: {names}") from error


def ensure_environment(name: "EnvironmentName", *, force: bool = False) -> "Environment":
    """Return the environment, installing it first when it is absent."""
    from llmtier.engine.environment import find_environment, home_path, install_environment, lock_of

    home = home_path(os.environ)
    found = None if force else find_environment(name, home=home)
    if found is not None:
        return found
    output.say(f"installing environment {name.value} into {home} (once; minutes)")
    with output.progress(f"packages of {name.value}", len(lock_of(name).pins)) as line:

        def tell(text: str) -> None:
            if text.startswith(("Collecting ", "Processing ", "Requirement already satisfied")):  # pip, one a package
                line.advance()
            elif text[:1].islower():  # our own steps; the rest of pip's chatter helps nobody
                output.say(f"  {text}")

        environment = install_environment(name, home=home, on_line=tell, force=force)
    output.say(f"installed {name.value} in {environment.seconds:.0f} s")
    return environment
