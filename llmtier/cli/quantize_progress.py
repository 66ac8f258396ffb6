"""How a quantization in progress is shown: a bar with the remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from typing_extensions import override

from llmtier.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from llmtier.quantize.progress import Progress

Clock = Callable[[], float]


class LayerClock:
    """Tells from the layers so far how long the rest of a scheme will take.

    The first interval holds the loading of the model and is used only until there is a second one;
    layers kept from an earlier run cost nothing and are left out.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_s = clock()
        self._intervals_s: list[float] = []

    def remaining_s(self, *, n_left: int, is_resumed: bool) -> float | None:
        """Count a finished layer and return the seconds that ``n_left`` more will take; ``None`` while unknown."""
        now_s = self._clock()
        if not is_resumed:
            self._intervals_s.append(now_s - self._last_s)
        self._last_s = now_s
        known = self._intervals_s[1:] or self._intervals_s
        return sum(known) / len(known) * n_left if known else None


class LineWatch:
    """Says every step as a line on standard error."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._layers = LayerClock(clock)

    def __call__(self, step: "Progress") -> None:
        """Show a step."""
        from llmtier.quantize.progress import Step

        if step.event is Step.LOADING:
            self._layers = LayerClock(self._clock)
        if step.event is not Step.LAYER or step.n_total is None or step.n_done is None:
            self.show(f"  {step.describe()}")
            return
        remaining_s = self._layers.remaining_s(n_left=step.n_total - step.n_done, is_resumed=step.is_resumed)
        self.show_layer(step, remaining_s)

    def show(self, line: str) -> None:
        """Write a line."""
        output.say(line)

    def show_layer(self, step: "Progress", remaining_s: float | None) -> None:
        """Write a line for a layer, with the remaining time while there is any."""
        is_last = step.n_done == step.n_total
        rest = "" if remaining_s is None or is_last else f", about {describe_seconds(remaining_s)} left"
        self.show(f"  {step.describe()}{rest}")


class BarWatch(LineWatch):
    """Draws the layers of a scheme as a bar; every other step is a line above it."""

    def __init__(self, bar: "Bar", clock: Clock = time.monotonic) -> None:
        super().__init__(clock)
        self._bar = bar
        self._task = bar.add_task("starting", total=None, rest="")

    @override
    def show(self, line: str) -> None:
        """Write a line above the bar."""
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    @override
    def show_layer(self, step: "Progress", remaining_s: float | None) -> None:
        """Move the bar."""
        rest = "" if remaining_s is None else f"about {describe_seconds(remaining_s)} left"
        name = step.scheme.value if step.scheme else ""
        description = f"{name}: layer {step.n_done} of {step.n_total}"
        self._bar.update(self._task, completed=step.n_done, total=step.n_total, description=description, rest=rest)


@contextmanager
def watching() -> Iterator[LineWatch]:
    """Give what shows the steps, for as long as the block runs."""
    if not sys.stderr.isatty():
        yield LineWatch()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[rest]}"), console=Console(file=sys.stderr), transient=True) as bar:
        yield BarWatch(bar)


def describe_seconds(seconds: float) -> str:
    """Return a rounded duration for people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
