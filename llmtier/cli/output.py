"""How results and progress reach people: JSON or tables on stdout, progress on stderr.

Rich is imported inside functions: ``llmtier --help`` must not pay for it.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from typing_extensions import override


def print_json(document: object) -> None:
    """Write exactly one JSON document to standard output; NaN is refused."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def say(text: str) -> None:
    """Write one line of progress to standard error."""
    typer.echo(text, err=True)


_NUMBER_STARTS = frozenset("0123456789-+$")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output; columns of numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for index, column in enumerate(columns):
        is_number = all(row[index][:1] in _NUMBER_STARTS for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Piped output gets a fixed width: tables must not be cut to 80 columns.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(title, style="bold", markup=False)  # not the table's own title, which is cut to the table's width
    console.print(table)


class ProgressLine:
    """A counter that people can watch: a bar on a terminal, a line at the end elsewhere."""

    def __init__(self, label: str, total: int) -> None:
        self.label = label
        self.total = total
        self.done = 0

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more as done."""
        self.done += n


class _BarLine(ProgressLine):
    """A ``ProgressLine`` drawn by Rich."""

    def __init__(self, label: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__(label, total)
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        self.task = self.bar.add_task(label, total=total)

    @override
    def advance(self, n: int = 1) -> None:
        """Count and draw."""
        super().advance(n)
        self.bar.advance(self.task, n)


@contextmanager
def progress(label: str, total: int) -> Iterator[ProgressLine]:
    """Show progress of ``total`` steps on standard error while the block runs."""
    if not sys.stderr.isatty():
        line = ProgressLine(label, total)
        yield line
        say(f"  {label}: {line.done}/{total}")
        return
    bar_line = _BarLine(label, total)
    with bar_line.bar:
        yield bar_line
    say(f"  {label}: {bar_line.done}/{total}")


def milliseconds(value_s: float | None) -> str:
    """Render seconds as milliseconds; unknown as a dash."""
    return "-" if value_s is None else f"{value_s * 1000:.1f}"


def percent(value: float | None) -> str:
    """Render a share; unknown as a dash."""
    return "-" if value is None else f"{value * 100:.1f} %"


def dollars(value: float | None) -> str:
    """Render dollars with four significant digits, whole ones from a thousand on; unknown as a dash."""
    if value is None:
        return "-"
    return f"${value:,.0f}" if value >= 1000 else f"${value:.4g}"
