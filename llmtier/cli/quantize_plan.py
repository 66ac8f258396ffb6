"""How a quantization plan reaches people: a table with notes, or one JSON document.

Formats what ``quantize.plan`` decided; decides nothing.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llmtier.quantize.job import Estimate, Facts, PlannedScheme, QuantizePlan

NUMBERS = ("groups", "memory", "cache", "disk", "time")
UNITS = ((3600.0, 5400.0, "h"), (60.0, 120.0, "min"), (1.0, 0.0, "s"))
"""Seconds of a unit, and from which time on it is taken."""


def render(plan: "QuantizePlan") -> "RenderableType":
    """Return the plan as people read it: model and target, a row for each scheme, then what to know."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    where = plan.facts.target.name if plan.facts is not None else "target"
    table = Table("scheme", f"on {where}")
    for column in NUMBERS:
        table.add_column(column, justify="right", no_wrap=True)
    for planned in plan.schemes:
        table.add_row(*map(Text, row(planned)))
    head = [Text(line) for line in describe_facts(plan.facts)] if plan.facts is not None else []
    notes = [Padding(Text(f"- {note}"), (0, 0, 0, 2)) for note in plan.notes]
    others = describe_others(plan)
    return Group(*head, table, *notes, *([Text(others)] if others else []))


def row(planned: "PlannedScheme") -> tuple[str, ...]:
    """Return the cells of one scheme."""
    verdict = "-" if planned.verdict is None else planned.verdict.grade.value
    groups = "-" if planned.group_size is None else str(planned.group_size)
    estimate = planned.estimate
    if estimate is None:
        return (planned.scheme.value, verdict, groups, "-", "-", "-", "-")
    cache = bytes_text(estimate.activation_cache_bytes) if planned.needs_data else "-"
    return (
        planned.scheme.value,
        verdict,
        groups,
        bytes_text(estimate.memory_bytes),
        f"{cache} on disk" if estimate.spills else cache,
        bytes_text(estimate.disk_bytes),
        time_text(estimate),
    )


def describe_facts(facts: "Facts") -> list[str]:
    """Return the lines above the table."""
    name = facts.architecture or "unnamed architecture"
    size = f"{count_text(facts.n_parameters)} parameters, {bytes_text(facts.source_bytes)}"
    lines = [
        f"model: {name}, {facts.n_layers} layers, {size}",
        f"linear layers: {facts.n_linears} quantized, {facts.n_kept} kept",
        f"target: {facts.target.description} ({facts.target.source})",
    ]
    if facts.n_rows is not None and facts.n_tokens is not None:
        lines.append(
            f"calibration: {facts.n_rows} of {facts.n_rows_available} rows, about {count_text(facts.n_tokens)} tokens"
        )
    room = f"{bytes_text(facts.free_memory_bytes)} of memory, {bytes_text(facts.free_disk_bytes)} of disk"
    return [*lines, f"free here: {room}"]


def describe_others(plan: "QuantizePlan") -> str:
    """Say what the schemes that were not asked for would be on the target."""
    if not plan.others:
        return ""
    found = ", ".join(f"{scheme.value} {verdict.grade.value}" for scheme, verdict in plan.others.items())
    return f"other schemes there: {found}"


def document(plan: "QuantizePlan") -> dict[str, object]:
    """Return the plan as one JSON-ready document, every number in bytes and seconds."""
    facts = plan.facts
    return {
        "schema_version": 1,
        "is_plan": True,
        "checkpoints": [str(planned.folder) for planned in plan.schemes],
        "schemes": [scheme_document(planned) for planned in plan.schemes],
        "other_schemes": {scheme.value: asdict(verdict) for scheme, verdict in plan.others.items()},
        "facts": None if facts is None else asdict(facts),
        "notes": list(plan.notes),
    }


def scheme_document(planned: "PlannedScheme") -> dict[str, object]:
    """Return one scheme as plain data."""
    return {**asdict(planned), "folder": str(planned.folder)}


def time_text(estimate: "Estimate") -> str:
    """Return the interval in one unit, such as ``2-5 min``."""
    low_s, high_s = estimate.seconds_low, estimate.seconds_high
    if low_s is None or high_s is None:
        return "unknown"
    seconds, unit = next((seconds, unit) for seconds, least_s, unit in UNITS if high_s >= least_s)
    digits = 1 if unit != "s" and low_s < 2 * seconds else 0
    return f"{low_s / seconds:.{digits}f}-{high_s / seconds:.{digits}f} {unit}"


def bytes_text(n_bytes: int) -> str:
    """Return bytes as people read them: ``16.1 GB``, ``12 MB``."""
    if n_bytes >= 1_000_000_000:
        return f"{n_bytes / 1e9:.1f} GB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 1_000_000 else f"{n_bytes / 1e3:.0f} kB"


def count_text(number: int) -> str:
    """Return a count in short: ``8.0 B``, ``1.7 M``, ``38.3 k``."""
    for size, sign in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.1f} {sign}"
    return str(number)
