"""``llmtier quantize``: write cheaper tiers of a model with the user's own calibration data.

Reads a checkpoint and a calibration set; writes ``<out>/<model>@<scheme>/`` with its manifest last.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import ForceOption, JsonOption, SeedOption
from llmtier.core.errors import UsageError
from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme

if TYPE_CHECKING:
    from llmtier.quantize.job import QuantizeJob
    from llmtier.quantize.progress import Progress

CALIBRATION_HINT = "JSON lines of {'messages': [...]} or {'text': '...'}; needed by awq and gptq."


def quantize(
    model: Annotated[Path, typer.Argument(help="Folder of the bf16 or fp16 checkpoint.")],
    scheme: Annotated[list[str], typer.Option(help="int8, awq, gptq or fp8; may be given again.")],
    calibration: Annotated[Path | None, typer.Option(help=CALIBRATION_HINT)] = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder that gets <model>@<scheme>.")] = Path("models"),
    samples: Annotated[int, typer.Option(help="Most calibration rows to use.", min=1)] = 256,
    max_seq_tokens: Annotated[int, typer.Option(help="Longer rows are cut to this.", min=1)] = 512,
    group_size: Annotated[int | None, typer.Option(help="Input features per 4-bit scale: 128, 64 or 32.")] = None,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter with llm-compressor, in place of the environment.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and say what would be written.")] = False,
    force: ForceOption = False,
    seed: SeedOption = 0,
    is_json: JsonOption = False,
) -> None:
    """Quantize a model.

    Example: llmtier quantize models/llama --scheme awq --calibration calibration/support.jsonl
    """
    from llmtier.cli.env import ensure_environment
    from llmtier.engine.environment import EnvironmentName
    from llmtier.quantize.job import QuantizeJob
    from llmtier.quantize.run import prepare

    schemes = tuple(dict.fromkeys(parse_scheme(text) for text in scheme))
    job = QuantizeJob(
        model=model,
        schemes=schemes,
        out=out,
        calibration=calibration,
        seed=seed,
        n_samples=samples,
        max_seq_tokens=max_seq_tokens,
        group_size=group_size,
    )
    plan = prepare(job)
    if dry_run:
        report([planned.target for planned in plan.schemes], is_json=is_json, is_plan=True)
        for note in plan.notes:
            output.say(f"  {note}")
        return
    interpreter = python or ensure_environment(EnvironmentName.QUANTIZE).python
    report(run(job, interpreter, force=force), is_json=is_json, is_plan=False)


def parse_scheme(text: str) -> Scheme:
    """Return the scheme called ``text``.

    Raises:
        UsageError: None is, or llmtier does not write it.
    """
    if text not in set(QUANTIZABLE_SCHEMES):
        names = ", ".join(scheme.value for scheme in QUANTIZABLE_SCHEMES)
        raise UsageError(f"unknown scheme {text!r}; llmtier quantize writes: {names}")
    return Scheme(text)


def run(job: "QuantizeJob", python: Path, *, force: bool) -> list[Path]:
    """Carry the job out; return the folders."""
    from llmtier.cli.provenance import make_provenance
    from llmtier.engine.hardware import detect_hardware
    from llmtier.quantize.run import quantize as write_checkpoints

    hardware = detect_hardware()
    return write_checkpoints(
        job,
        python=python,
        provenance_of=lambda inputs: make_provenance(hardware=hardware, seed=job.seed, inputs=inputs),
        on_progress=tell_progress,
        force=force,
    )


def tell_progress(step: "Progress") -> None:
    """Say on standard error what has just happened."""
    from llmtier.quantize.progress import Step

    name = "" if step.scheme is None else f"{step.scheme.value}: "
    match step.event:
        case Step.TOKENIZED:
            output.say(f"  calibrating on {step.n_samples} rows, {step.n_tokens} tokens")
        case Step.LAYER:
            output.say(f"  {name}layer {step.n_done} of {step.n_total}")
        case Step.SAVED | Step.DONE:
            output.say(f"  {name}{step.event.value}" + ("" if step.seconds is None else f" in {step.seconds:.0f} s"))
        case _:
            output.say(f"  {name}{step.message or step.event.value}")


def report(folders: list[Path], *, is_json: bool, is_plan: bool) -> None:
    """Print the checkpoints' folders."""
    if is_json:
        output.print_json({"schema_version": 1, "is_plan": is_plan, "checkpoints": [str(folder) for folder in folders]})
        return
    for folder in folders:
        typer.echo(f"{'would write ' if is_plan else ''}{folder}")
