"""How a measurement in progress is shown: a live table on a terminal, plain lines elsewhere.

The live table is drawn twice a second by the very process that measures; a drawing takes a millisecond or two, which
shows in the schedule delay. Where that matters, redirect standard error.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, assert_never

from llmtier.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llmtier.core.profile import LoadPoint
    from llmtier.profile.events import ProfileEvent
    from llmtier.profile.load import LoadProgress

_DRAW_PERIOD_S = 0.5


def tell(event: "ProfileEvent") -> None:
    """Say on standard error what has been measured."""
    from llmtier.profile.events import AccuracyProgress, PointDone, PointStarted

    match event:
        case PointDone():
            found = "found measured: " if event.is_resumed else ""
            output.say(f"  {event.tier}: {event.purpose}: {found}{describe_point(event.point)}")
        case AccuracyProgress():
            if event.n_done == event.n_total:
                mean = output.percent(event.score_sum / event.n_total)
                output.say(f"  {event.tier}: accuracy {mean}, n {event.n_total}")
        case PointStarted():
            pass
        case never:
            assert_never(never)


def describe_point(point: "LoadPoint") -> str:
    """Return one line about a load point, its faults included."""
    text = (
        f"{point.shape}: {point.request_rps:.3g} requests/s, TTFT p50 {output.milliseconds(point.ttft_p50_s)} ms, "
        f"TPOT p50 {output.milliseconds(point.tpot_p50_s)} ms, n {point.n_ok}, failed {point.n_failed}"
    )
    return f"{text}; INVALID: {'; '.join(point.invalid)}" if point.invalid else text


class LiveView:
    """The point that is being measured, as a table that is redrawn.

    Args:
        progress: Of the load that runs.
    """

    def __init__(self, progress: "LoadProgress") -> None:
        self._progress = progress
        self._tier = self._shape = self._purpose = ""
        self._n_left = 0
        self._begun_s = time.monotonic()

    def __call__(self, event: "ProfileEvent") -> None:
        """Note which point begins; say which has ended."""
        from llmtier.profile.events import PointStarted

        if isinstance(event, PointStarted):
            self._tier, self._shape, self._purpose = event.tier, event.shape, event.purpose
            self._n_left = event.n_left
            self._begun_s = time.monotonic()
        tell(event)

    def render(self) -> "RenderableType":
        """Return the table."""
        from rich.table import Table

        seen = self._progress
        table = Table(title=f"{self._tier}  {self._purpose}  {self._shape}", title_justify="left")
        for name in (
            "sent",
            "done",
            "failed",
            "first byte p50 ms",
            "p95 ms",
            "E2EL p50 ms",
            "p95 ms",
            "left",
            "points left",
        ):
            table.add_column(name, justify="right")
        table.add_row(
            f"{seen.n_sent}/{seen.n_planned}",
            str(seen.n_done),
            str(seen.n_failed),
            *(
                output.milliseconds(value)
                for value in (*middle_and_tail(seen.first_byte_s), *middle_and_tail(seen.e2el_s))
            ),
            self._remaining(),
            str(self._n_left),
        )
        return table

    def _remaining(self) -> str:
        seen = self._progress
        if not seen.n_done:
            return "-"
        elapsed_s = time.monotonic() - self._begun_s
        return f"{elapsed_s / seen.n_done * (seen.n_planned - seen.n_done):.0f} s"


def middle_and_tail(values: list[float]) -> tuple[float | None, float | None]:
    """Return median and 95th percentile of what has come so far."""
    from llmtier.stats.quantiles import quantile

    return quantile(values, 0.5), quantile(values, 0.95)


@asynccontextmanager
async def shown(view: LiveView) -> AsyncIterator[None]:
    """Redraw the view while the block runs; nothing is drawn when standard error is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=sys.stderr), auto_refresh=False, transient=True) as live:

        async def redraw() -> None:
            while True:
                live.update(view.render(), refresh=True)
                await asyncio.sleep(_DRAW_PERIOD_S)

        drawing = asyncio.create_task(redraw())
        try:
            yield
        finally:
            drawing.cancel()
            with suppress(asyncio.CancelledError):
                await drawing
