"""``llmtier quantize``: write cheaper tiers of a model with the user's own calibration data.

Reads a checkpoint, from a folder or the hub, and a calibration set; writes ``<out>/<model>@<scheme>/`` with its
manifest last. Every run begins with the plan, and ``--dry-run`` ends there.
"""

import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from llmtier.cli import output
from llmtier.cli.options import ForceOption, JsonOption, SeedOption
from llmtier.cli.quantize_progress import LineWatch, watching
from llmtier.core.errors import UsageError
from llmtier.core.provenance import Provenance
from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme

if TYPE_CHECKING:
    from llmtier.quantize.fetch import ResolvedModel
    from llmtier.quantize.job import Backend, QuantizeJob, QuantizePlan

CALIBRATION_HINT = "A set built by 'llmtier calibration build', its recipe, or any JSON lines of messages or text."
SCHEME_HINT = f"{', '.join(QUANTIZABLE_SCHEMES[:-1])} or {QUANTIZABLE_SCHEMES[-1]}; may be given again."
IGNORE_HINT = "Layer to leave as it is: a name or re:...; may be given again."
PYTHON_HINT = "Interpreter with llm-compressor, in place of the environment."
EXPORT_HINT = "autoawq: also write 4-bit results in AutoAWQ's layout; without --scheme, MODEL itself."
STRENGTH_HINT = "SmoothQuant's alpha: how much of the activations' outliers goes into the weights."
AUTOAWQ = "autoawq"
EXPORT_OPTIONS = frozenset({"--export", "--output", "--python", "--dry-run", "--force", "--seed", "--json"})
"""What an export of a checkpoint that is there takes."""

PIPED_WIDTH = 120
FOUR_BIT = frozenset({Scheme.AWQ, Scheme.GPTQ})


def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder of the bf16 or fp16 checkpoint, or its hub id.")],
    scheme: Annotated[list[str] | None, typer.Option(help=SCHEME_HINT)] = None,
    calibration: Annotated[Path | None, typer.Option(help=CALIBRATION_HINT)] = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder that gets <model>@<scheme>.")] = Path("models"),
    target: Annotated[str, typer.Option(help="What will serve it: auto, cpu, t4, a10, l4, h100, b200, ...")] = "auto",
    samples: Annotated[int, typer.Option(help="Most calibration rows to use.", min=1)] = 256,
    max_seq_tokens: Annotated[int, typer.Option(help="Longer rows are cut to this.", min=1)] = 512,
    group_size: Annotated[int | None, typer.Option(help="Input features per 4-bit scale: 128, 64 or 32.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help=IGNORE_HINT)] = None,
    smoothquant: Annotated[bool, typer.Option("--smoothquant", help="int8 by SmoothQuant and GPTQ.")] = False,
    smoothing_strength: Annotated[float, typer.Option(help=STRENGTH_HINT, min=0.01, max=1.0)] = 0.8,
    kv_cache: Annotated[str | None, typer.Option(help="fp8: calibrate scales for an fp8 KV cache too.")] = None,
    awq_mappings: Annotated[Path | None, typer.Option(help="YAML of AWQ mappings for a new architecture.")] = None,
    backend: Annotated[str, typer.Option(help="llmcompressor, or autoawq (awq only, archived).")] = "llmcompressor",
    export: Annotated[str | None, typer.Option(help=EXPORT_HINT)] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub model.")] = None,
    python: Annotated[Path | None, typer.Option(help=PYTHON_HINT)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    force: ForceOption = False,
    seed: SeedOption = 0,
    is_json: JsonOption = False,
) -> None:
    """Quantize a model.

    Example: llmtier quantize models/llama --scheme awq --calibration calibration/support.jsonl
    """
    from llmtier.quantize.job import QuantizeJob

    schemes = tuple(dict.fromkeys(parse_scheme(text) for text in scheme or ()))
    exports = is_choice("--export", export, AUTOAWQ)
    interpreters = Interpreters(python)
    has_fp8_kv_cache = is_choice("--kv-cache", kv_cache, "fp8")
    if exports and not schemes:
        folder = export_folder(Path(model), out, given=given_options(context))
        return export_one(Path(model), folder, interpreters, dry_run=dry_run, seed=seed, force=force, is_json=is_json)
    chosen = parse_backend(backend)
    check_schemes(schemes, exports=exports, is_exportable=not has_fp8_kv_cache and chosen.value != AUTOAWQ)
    source = resolve(model, revision=revision, interpreters=interpreters)
    job = QuantizeJob(
        model=source.path,
        name=source.name,
        revision=source.revision,
        schemes=schemes,
        out=out,
        calibration=calibration,
        seed=seed,
        n_samples=samples,
        max_seq_tokens=max_seq_tokens,
        group_size=group_size,
        backend=chosen,
        ignore=tuple(ignore or ("lm_head",)),
        smoothing_strength=smoothing_strength if smoothquant else None,
        has_fp8_kv_cache=has_fp8_kv_cache,
        awq_mappings=awq_mappings,
        device=target,
        has_autoawq_export=exports,
    )
    return carry_out(job, interpreters, dry_run=dry_run, exports=exports, force=force, is_json=is_json)


def carry_out(
    job: "QuantizeJob", interpreters: "Interpreters", *, dry_run: bool, exports: bool, force: bool, is_json: bool
) -> None:
    """Plan, and unless that is all that is wanted, do it and print the folders."""
    from llmtier.quantize.run import prepare

    plan = prepare(job, force=force)
    if dry_run:
        return show_plan(plan, is_json=is_json)
    return report(run(job, plan, interpreters, force=force, exports=exports), is_json=is_json)


class Interpreters:
    """The interpreters of the isolated environments, installed when first needed."""

    def __init__(self, given: Path | None) -> None:
        self._given = given

    def for_backend(self, backend: "Backend") -> Path:
        """Return the one that quantizes: the user's, or the backend's environment's."""
        from llmtier.cli.env import ensure_environment
        from llmtier.engine.environment import EnvironmentName
        from llmtier.quantize.job import Backend

        name = EnvironmentName.AUTOAWQ if backend is Backend.AUTOAWQ else EnvironmentName.QUANTIZE
        return self._given or ensure_environment(name).python

    def for_llmcompressor(self) -> Path:
        """Return the one that downloads models and writes other layouts."""
        from llmtier.quantize.job import Backend

        return self.for_backend(Backend.LLMCOMPRESSOR)


def parse_scheme(text: str) -> Scheme:
    """Return the scheme called ``text``; whether llmtier writes it is for the plan to say.

    Raises:
        UsageError: None is.
    """
    if text not in set(Scheme):
        names = ", ".join(scheme.value for scheme in QUANTIZABLE_SCHEMES)
        raise UsageError(f"unknown scheme {text!r}; llmtier quantize writes: {names}")
    return Scheme(text)


def parse_backend(text: str) -> "Backend":
    """Return the backend called ``text``.

    Raises:
        UsageError: None is.
    """
    from llmtier.quantize.job import Backend

    if text not in set(Backend):
        raise UsageError(f"unknown backend {text!r}; choose {' or '.join(Backend)}")
    return Backend(text)


def is_choice(option: str, text: str | None, only: str) -> bool:
    """Tell whether an option with one possible value was given.

    Raises:
        UsageError: With another value.
    """
    if text not in {None, only}:
        raise UsageError(f"{option} {text}: the only choice is {only}")
    return text is not None


def check_schemes(schemes: tuple[Scheme, ...], *, exports: bool, is_exportable: bool) -> None:
    """Refuse a job without schemes, and an export of what AutoAWQ's layout cannot hold, before anything is done.

    Raises:
        UsageError: Saying what to add or to leave out.
    """
    if not schemes:
        raise UsageError("say what to write: --scheme int8, for example; it may be given several times")
    if exports and not FOUR_BIT & set(schemes):
        raise UsageError("--export autoawq: the layout holds 4-bit weights only; add --scheme awq or --scheme gptq")
    if exports and not is_exportable:
        raise UsageError("--export autoawq: goes with neither --backend autoawq, which writes it, nor --kv-cache fp8")


def given_options(context: typer.Context) -> list[str]:
    """Return the options that stand on the command line, each by its first name."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if is_given(context.get_parameter_source(parameter.name))
    ]


def is_given(source: Enum | None) -> bool:
    """Tell whether a parameter's value is the user's."""
    return source is not None and source.name == "COMMANDLINE"


def export_folder(checkpoint: Path, out: Path, *, given: list[str]) -> Path:
    """Return where the export of a checkpoint that is there goes: below ``--output`` when it is given, or beside it.

    Raises:
        UsageError: An option is given that means nothing to it.
    """
    from llmtier.quantize.export import autoawq_folder

    meaningless = [option for option in given if option.startswith("--") and option not in EXPORT_OPTIONS]
    if meaningless:
        names = ", ".join(meaningless)
        raise UsageError(
            f"{names}: means nothing where --export autoawq is given without --scheme: nothing is quantized"
        )
    folder = autoawq_folder(checkpoint.absolute())
    return out.absolute() / folder.name if "--output" in given else folder


def export_one(
    checkpoint: Path,
    folder: Path,
    interpreters: Interpreters,
    *,
    dry_run: bool,
    seed: int,
    force: bool,
    is_json: bool,
) -> None:
    """Export a checkpoint that is there to ``folder``, or only say so."""
    if not dry_run:
        return report(export_all({checkpoint: folder}, interpreters, seed=seed, force=force), is_json=is_json)
    from llmtier.store.checkpoints import infer_scheme

    scheme = infer_scheme(checkpoint)
    if is_json:
        document = {"schema_version": 1, "is_plan": True, "checkpoints": [str(folder)]}
        output.print_json({**document, "exported_from": str(checkpoint), "exported_scheme": scheme.value})
    else:
        typer.echo(f"{checkpoint} ({scheme.value}) in AutoAWQ's layout: {folder}")
    return None


def resolve(model: str, *, revision: str | None, interpreters: Interpreters) -> "ResolvedModel":
    """Return the model's folder, downloaded where it is a hub id."""
    from llmtier.quantize.fetch import resolve_model

    python_of = interpreters.for_llmcompressor
    return resolve_model(model, revision=revision, python_of=python_of, on_progress=LineWatch())


def show_plan(plan: "QuantizePlan", *, is_json: bool) -> None:
    """Print the plan as the result: what ``--dry-run`` is for."""
    from llmtier.cli.quantize_plan import document

    if is_json:
        output.print_json(document(plan))
    else:
        print_plan(plan, sys.stdout)


def print_plan(plan: "QuantizePlan", stream: TextIO) -> None:
    """Write the plan for people; a pipe gets a fixed width."""
    from rich.console import Console

    from llmtier.cli.quantize_plan import render

    Console(file=stream, width=None if stream.isatty() else PIPED_WIDTH, highlight=False).print(render(plan))


def run(
    job: "QuantizeJob", plan: "QuantizePlan", interpreters: Interpreters, *, force: bool, exports: bool
) -> list[Path]:
    """Say the plan and carry it out; return the folders."""
    from llmtier.quantize.export import autoawq_folder
    from llmtier.quantize.run import quantize as write_checkpoints

    print_plan(plan, sys.stderr)
    python = interpreters.for_backend(job.backend)
    provenance_of = provenance_by(job.seed)
    with watching() as watch:
        folders = write_checkpoints(
            job, plan=plan, python=python, provenance_of=provenance_of, on_progress=watch, force=force
        )
    if not exports:
        return folders
    packed = [planned.folder for planned in plan.schemes if planned.scheme in FOUR_BIT]
    exported = {folder: autoawq_folder(folder) for folder in packed}
    return [*folders, *export_all(exported, interpreters, seed=job.seed, force=force)]


def export_all(folders: Mapping[Path, Path], interpreters: Interpreters, *, seed: int, force: bool) -> list[Path]:
    """Write checkpoints in AutoAWQ's layout, each to its folder; return the new folders."""
    from llmtier.quantize.export import export_autoawq

    python = interpreters.for_llmcompressor()
    provenance_of = provenance_by(seed)
    with watching() as watch:
        return [
            export_autoawq(
                checkpoint,
                folder,
                python=python,
                provenance_of=provenance_of,
                on_progress=watch,
                force=force,
            )
            for checkpoint, folder in folders.items()
        ]


def provenance_by(seed: int) -> Callable[[Mapping[str, str]], Provenance]:
    """Return what describes this command, from the sha256 of its inputs by name."""
    from llmtier.cli.provenance import make_provenance
    from llmtier.engine.hardware import detect_hardware

    hardware = detect_hardware()
    return lambda inputs: make_provenance(hardware=hardware, seed=seed, inputs=inputs)


def report(folders: list[Path], *, is_json: bool) -> None:
    """Print the checkpoints' folders."""
    if is_json:
        output.print_json({"schema_version": 1, "is_plan": False, "checkpoints": [str(folder) for folder in folders]})
        return
    for folder in folders:
        typer.echo(str(folder))
