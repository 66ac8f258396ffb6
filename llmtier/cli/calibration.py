"""``llmtier calibration``: build, show and check the texts that quantization calibrates on."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtier.cli import output
from llmtier.cli.options import ForceOption, JsonOption
from llmtier.core.errors import NegativeAnswerError

if TYPE_CHECKING:
    from llmtier.quantize.calibration.check import FileFacts
    from llmtier.quantize.calibration.planning import BuildPlan
    from llmtier.quantize.calibration.steps import BuildStep, OnStep
    from llmtier.store.calibration_manifest import CalibrationManifest, SetPaths, SplitFacts

app = typer.Typer(
    help="Calibration sets: the texts of your own domain that awq, gptq and SmoothQuant measure a model on.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SetArgument = Annotated[Path, typer.Argument(metavar="FILE|RECIPE", help="A set's .jsonl file, or its .toml recipe.")]
FailOption = Annotated[
    bool, typer.Option("--fail-on-findings", help="Exit 5 when rows hold what looks like secrets or personal data.")
]
SHOWN_CHARACTERS = 300


@app.command("build")
def build(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Names sources, shares, budget and seed.")],
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the set; default: beside it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Count tokens with this model's tokenizer, in place of the recipe's.")
    ] = None,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter with datasets and transformers, in place of the environment.")
    ] = None,
    fail_on_findings: FailOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and say what would be read and written.")] = False,
    force: ForceOption = False,
    is_json: JsonOption = False,
) -> None:
    """Build a calibration set and its held-out split from a recipe.

    Example: llmtier calibration build calibration/support.toml
    """
    from llmtier.quantize.calibration.inspection import describe_system_prompt
    from llmtier.quantize.calibration.planning import plan_build
    from llmtier.store.calibration_recipe import read_recipe

    plan = plan_build(read_recipe(recipe), output=folder, model=model)
    if dry_run:
        show_plan(plan, is_json=is_json)
        return
    manifest = carry_out(plan, python, force=force)
    for warning in manifest.warnings:
        output.say(f"  note: {warning}")
    is_new = force or not plan.is_current
    if is_json:
        output.print_json({"schema_version": 1, "is_new": is_new, **document(plan.paths, manifest)})
    else:
        for split in manifest.splits:
            typer.echo(f"{plan.paths.folder / split.file}: {split.n_rows} rows, {tokens_of(split, manifest)}")
        if not is_new:
            output.say("  up to date: recipe and sources are those it was built from")
    has_rows = any(finding.n_rows for finding in manifest.findings)
    problems = finding_problems("rows" if has_rows else None, describe_system_prompt(plan.file.system_prompt))
    if fail_on_findings and problems:
        raise NegativeAnswerError(f"{plan.paths.calibration}: {'; '.join(problems)}")


@app.command("show")
def show(
    path: SetArgument,
    rows: Annotated[int, typer.Option(help="How many of the first rows to show.", min=0)] = 3,
    is_json: JsonOption = False,
) -> None:
    """Show what a calibration set holds and how it was made.

    Example: llmtier calibration show calibration/support.toml
    """
    from llmtier.quantize.calibration.check import describe_file
    from llmtier.store.calibration import find_calibration
    from llmtier.store.calibration_manifest import paths_of, read_calibration_manifest

    facts = describe_file(find_calibration(path), n_first_rows=rows)
    paths = paths_of(facts.path)
    manifest = read_calibration_manifest(paths.manifest)
    if is_json:
        made = None if manifest is None else document(paths, manifest)
        output.print_json({"schema_version": 1, **file_document(facts), "made": made})
        return
    show_file(facts)
    if manifest is None:
        output.say(f"no manifest beside it: nothing is known of how it was made; tokens are estimates ({facts.path})")
    else:
        show_manifest(manifest)
    for row in facts.first_rows:
        typer.echo(shorten_row(row))


@app.command("check")
def check(path: SetArgument, fail_on_findings: FailOption = False, is_json: JsonOption = False) -> None:
    """Hold a set against its manifest: digests, duplicates across the splits, malformed rows, secrets, size.

    Exits 3 when the files do not match the manifest, 5 when a check says no.

    Example: llmtier calibration check calibration/support.toml
    """
    from llmtier.quantize.calibration.check import check_set

    result = check_set(path)
    problems = list(result.problems)
    if fail_on_findings:
        problems += finding_problems(f"{result.n_findings} rows" if result.n_findings else None, result.prompt_findings)
    if is_json:
        facts = {"path": str(result.path), "has_manifest": result.has_manifest, "rows": result.n_rows}
        answer = {"is_fine": not problems, "problems": problems, "warnings": list(result.warnings)}
        output.print_json({"schema_version": 1, **facts, "heldout_rows": result.n_heldout_rows, **answer})
    for warning in result.warnings:
        output.say(f"  note: {warning}")
    if problems:
        raise NegativeAnswerError(f"{result.path}: {'; '.join(problems)}")
    if not is_json:
        against = "matches its manifest" if result.has_manifest else "has no manifest to hold it against"
        held = "no held-out split" if result.n_heldout_rows is None else f"{result.n_heldout_rows} held-out rows"
        typer.echo(f"{result.path}: {result.n_rows} rows, {held}; {against}")


def carry_out(plan: "BuildPlan", python: Path | None, *, force: bool) -> "CalibrationManifest":
    """Build the set, with progress."""
    from llmtier.cli.env import ensure_environment
    from llmtier.cli.provenance import make_provenance
    from llmtier.engine.environment import EnvironmentName
    from llmtier.engine.hardware import count_cores, detect_hardware
    from llmtier.quantize.calibration.build import build as build_set

    hardware = detect_hardware()

    @cache
    def interpreter() -> Path:
        return python or ensure_environment(EnvironmentName.QUANTIZE).python

    if plan.needs_environment and (force or not plan.is_current):
        interpreter()  # before the bar is drawn
    with watching() as on_step:
        return build_set(
            plan,
            python=interpreter,
            provenance_of=lambda inputs: make_provenance(hardware=hardware, seed=plan.file.recipe.seed, inputs=inputs),
            on_step=on_step,
            force=force,
            n_processes=count_cores(),
        )


@contextmanager
def watching() -> "Iterator[OnStep]":
    """Give what shows the steps: a bar on a terminal, a line at the end of each phase elsewhere."""
    if not sys.stderr.isatty():
        lines = PhaseLines()
        yield lines
        lines.end()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def draw(step: "BuildStep") -> None:
            if step.n_done is None:
                bar.console.print(f"  {step.label}", markup=False, highlight=False)
                return
            title = f"{step.phase.value} {step.label}"
            if title not in tasks:
                tasks[title] = bar.add_task(title, total=None)
            bar.update(tasks[title], completed=step.n_done, total=step.n_total)

        yield draw


class PhaseLines:
    """Says a line when a phase is over."""

    def __init__(self) -> None:
        self._last: BuildStep | None = None

    def __call__(self, step: "BuildStep") -> None:
        """Take a step."""
        last = self._last
        if last is not None and (last.phase, last.label) != (step.phase, step.label):
            self.end()
        self._last = step

    def end(self) -> None:
        """Say how the last phase ended."""
        step, self._last = self._last, None
        if step is not None:
            output.say(
                f"  {step.label}" if step.n_done is None else f"  {step.phase.value} {step.label}: {step.n_done}"
            )


def finding_problems(rows: str | None, of_prompt: Sequence[str]) -> list[str]:
    """Return what ``--fail-on-findings`` says no to: ``rows`` as they are called, and the system prompt."""
    said = "what looks like secrets or personal data"
    return [
        *([] if rows is None else [f"{rows} hold {said}"]),
        *([f"the system prompt holds {said}"] if of_prompt else []),
    ]


def show_plan(plan: "BuildPlan", *, is_json: bool) -> None:
    """Say what a build would read and write."""
    recipe = plan.file.recipe
    names = [plan.paths.calibration, *([plan.paths.heldout] if recipe.heldout_share else []), plan.paths.manifest]
    sources = [
        {"source": s.source.label, "domain": s.shape.domain, "sha256": s.sha256, "is_pinned": s.is_pinned}
        for s in plan.sources
    ]
    counted = plan.tokenizer.label if plan.tokenizer else None
    if is_json:
        wanted = {"token_budget": recipe.token_budget, "shares": recipe.share_by_domain, "tokenizer": counted}
        facts = {"is_plan": True, "is_current": plan.is_current, "sources": sources, **wanted}
        output.print_json({"schema_version": 1, **facts, "files": [str(name) for name in names]})
        return
    for source in sources:
        pinned = "" if source["is_pinned"] else " (its revision floats)"
        typer.echo(f"would read {source['source']} as {source['domain']}{pinned}")
    shares = ", ".join(f"{share:.0%} {domain}" for domain, share in recipe.share_by_domain.items())
    typer.echo(f"would choose {recipe.token_budget} tokens: {shares}; counted by {counted or 'bytes / 4'}")
    for name in names:
        typer.echo(f"{'is up to date' if plan.is_current else 'would write'} {name}")


def show_file(facts: "FileFacts") -> None:
    """Print rows and tokens of each domain."""
    rows = [
        (
            domain,
            str(n),
            str(facts.tokens_by_domain[domain]),
            output.percent(facts.tokens_by_domain[domain] / facts.n_tokens if facts.n_tokens else None),
        )
        for domain, n in facts.rows_by_domain.items()
    ]
    output.print_table(f"{facts.path}: {facts.n_rows} rows", ("domain", "rows", "tokens (estimate)", "share"), rows)
    lengths = ", ".join(f"{s.n_rows} rows of {s.min_tokens}-{s.max_tokens}" for s in facts.strata)
    typer.echo(f"lengths in tokens: {lengths}")


def show_manifest(manifest: "CalibrationManifest") -> None:
    """Print how a set was made."""
    counts = manifest.counts
    typer.echo(
        f"made of {counts.n_rows} rows: {counts.n_without_text} without text, {counts.n_too_short} too short, "
        f"{counts.n_exact_duplicates} exact and {counts.n_near_duplicates} near duplicates, {counts.n_kept} kept"
    )
    for source in manifest.sources:
        identity = source.revision or (source.sha256 or "")[:12]
        typer.echo(f"  {source.domain}: {source.label} ({identity}), {source.n_rows} rows")
    for split in manifest.splits:
        typer.echo(f"{split.file}: {split.n_rows} rows, {tokens_of(split, manifest)}")


def tokens_of(split: "SplitFacts", manifest: "CalibrationManifest") -> str:
    """Return a split's tokens and the shares that the domains got, for people."""
    about = "about " if manifest.tokens.model is None else ""
    got = ((domain, n) for domain, n in split.tokens_by_domain.items() if split.n_tokens)
    shares = ", ".join(f"{n / split.n_tokens:.0%} {domain}" for domain, n in got)
    return f"{about}{split.n_tokens} tokens" + (f" ({shares})" if shares else "")


def document(paths: "SetPaths", manifest: "CalibrationManifest") -> dict[str, Any]:
    """Return a manifest as plain data, and where it lies."""
    from dataclasses import asdict

    return {"folder": os.fspath(paths.folder), "manifest": json.loads(json.dumps(asdict(manifest)))}


def file_document(facts: "FileFacts") -> dict[str, Any]:
    """Return what a file holds as plain data."""
    from dataclasses import asdict

    return {**asdict(facts), "path": str(facts.path)}


def shorten_row(row: dict[str, Any]) -> str:
    """Return a row on one line, cut when long."""
    turns = row.get("messages") or [{"role": "text", "content": row.get("text", "")}]
    text = " | ".join(f"{turn['role']}: {' '.join(turn['content'].split())}" for turn in turns)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
