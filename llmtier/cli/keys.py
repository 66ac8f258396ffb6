"""``llmtier keys``: make, list and revoke the keys that the gateway asks for.

Writes the keys file that ``gateway.keys_file`` names. A new key is printed once, on standard output; the file
holds its sha256 alone.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from llmtier.core.errors import UsageError

if TYPE_CHECKING:
    from llmtier.store.config_model import Config
    from llmtier.store.keys import ApiKey

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make, list and revoke the keys that the gateway asks for.\n\nExample: llmtier keys add alice --class chat",
)

NameArgument = Annotated[str, typer.Argument(help="Who the key is for: up to 64 letters, digits, '.', '_', '-', '@'.")]


@app.command()
def add(
    name: NameArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    slo_class: Annotated[str | None, typer.Option("--class", help="SLO class of requests that name none.")] = None,
    allow_class: Annotated[
        list[str] | None, typer.Option(help="An SLO class that requests may name; may be given again. Default: all.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Label of requests that state none.")] = None,
    accuracy: Annotated[float | None, typer.Option(help="Least P(correct) of any request.", min=0, max=1)] = None,
    max_usd: Annotated[float | None, typer.Option(help="Highest price of any request.", min=0)] = None,
    tier: Annotated[
        list[str] | None, typer.Option(help="A tier that may serve; may be given again. Default: all.")
    ] = None,
    is_json: JsonOption = False,
) -> None:
    """Make a key, print it once, and keep its sha256.

    Example: llmtier keys add alice --class chat --tier llama-8b@awq
    """
    from llmtier.store.keys import ApiKey, digest_key, make_key, write_keys

    loaded, path = find_file(config)
    check_names(loaded, classes=[*([slo_class] if slo_class else []), *(allow_class or [])], tiers=tier or [])
    keys = read_present(path)
    if any(key.name == name for key in keys):
        raise UsageError(f"{path} has a key named {name!r} already; revoke it, or choose another name")
    secret = make_key()
    added = ApiKey(
        name=name,
        digest=digest_key(secret),
        created=datetime.now(UTC).date(),
        slo_class=slo_class,
        classes=None if allow_class is None else frozenset(allow_class),
        domain=domain,
        accuracy=accuracy,
        max_usd=max_usd,
        tiers=None if tier is None else frozenset(tier),
    )
    write_keys(path, [*keys, added])
    if is_json:
        output.print_json({"schema_version": 1, "name": name, "key": secret, "file": str(path)})
        return
    output.say(f"{path}: added {name!r}; this is the only time that the key is shown")
    typer.echo(secret)


@app.command("list")
def list_keys(config: ConfigOption = DEFAULT_CONFIG, is_json: JsonOption = False) -> None:
    """Show the keys that the gateway takes, and what each may do.

    Example: llmtier keys list --json
    """
    from llmtier.store.keys import read_keys, to_entry

    _, path = find_file(config)
    keys = read_keys(path)
    if is_json:
        output.print_json({"schema_version": 1, "file": str(path), "keys": [to_entry(key) for key in keys]})
        return
    columns = ("name", "created", "class", "may name", "domain", "accuracy", "max USD", "tiers", "sha256")
    output.print_table(str(path), columns, [to_row(key) for key in keys])


@app.command()
def revoke(name: NameArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Take a key away.

    Example: llmtier keys revoke alice
    """
    from llmtier.store.keys import read_keys, write_keys

    _, path = find_file(config)
    keys = read_keys(path)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        known = ", ".join(key.name for key in keys) or "none"
        raise UsageError(f"{path} has no key named {name!r}; there are: {known}")
    write_keys(path, left)
    output.say(f"{path}: revoked {name!r}")


def find_file(config: Path) -> "tuple[Config, Path]":
    """Return the configuration and its keys file, which need not exist yet.

    Raises:
        UsageError: The configuration names none.
    """
    from llmtier.store.config import load_config

    loaded = load_config(config)
    if loaded.gateway.keys_file is None:
        raise UsageError(f"{config} names no keys file: add 'keys_file: keys.json' under 'gateway'")
    return loaded, loaded.gateway.keys_file


def read_present(path: Path) -> "tuple[ApiKey, ...]":
    """Return the keys of the file; none when there is no file yet."""
    from llmtier.store.keys import read_keys

    return read_keys(path) if path.exists() else ()


def check_names(config: "Config", *, classes: list[str], tiers: list[str]) -> None:
    """Check that a key speaks of classes and tiers that the configuration has.

    Raises:
        UsageError: One is not there; names those there are.
    """
    for name in tiers:
        config.tier(name)
    for name in classes:
        if name not in config.slo_classes:
            known = ", ".join(config.slo_classes) or "none is configured"
            raise UsageError(f"no SLO class {name!r} in the configuration; there are: {known}")


def to_row(key: "ApiKey") -> tuple[str, ...]:
    """Return a key as a row of the table."""
    return (
        key.name,
        "-" if key.created is None else key.created.isoformat(),
        key.slo_class or "-",
        "any class" if key.classes is None else ", ".join(sorted(key.classes)) or "no class",
        key.domain or "-",
        "-" if key.accuracy is None else f"{key.accuracy:g}",
        "-" if key.max_usd is None else f"{key.max_usd:g}",
        "all" if key.tiers is None else ", ".join(sorted(key.tiers)),
        key.digest.hex()[:16],
    )
