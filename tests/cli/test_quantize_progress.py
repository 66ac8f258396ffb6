"""What people see while a model is quantized."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress as Bar

from llmtier.cli.quantize_progress import BarWatch, LayerClock, LineWatch, describe_seconds, watching
from llmtier.core.tier import Scheme
from llmtier.quantize.progress import Progress, Step


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def layer(n_done: int, n_total: int = 4, *, is_resumed: bool = False) -> Progress:
    return Progress(event=Step.LAYER, scheme=Scheme.GPTQ, n_done=n_done, n_total=n_total, is_resumed=is_resumed)


def run(watch: LineWatch, clock: Clock, steps: list[tuple[float, Progress]]) -> None:
    for seconds, step in steps:
        clock.now_s += seconds
        watch(step)


def test_lines_state_each_layer_and_the_remaining_time(capsys):
    clock = Clock()

    run(
        LineWatch(clock),
        clock,
        [
            (0, Progress(event=Step.LOADING, scheme=Scheme.GPTQ)),
            (30, layer(1)),
            (10, layer(2)),
            (10, layer(3)),
            (10, layer(4)),
        ],
    )

    assert [
        "  gptq: loading",
        "  gptq: layer 1 of 4, about 2 min left",
        "  gptq: layer 2 of 4, about 20 s left",
        "  gptq: layer 3 of 4, about 10 s left",
        "  gptq: layer 4 of 4",
    ] == capsys.readouterr().err.splitlines()


def test_kept_layers_say_so_and_do_not_shorten_the_estimate(capsys):
    clock = Clock()

    run(LineWatch(clock), clock, [(5, layer(1, is_resumed=True)), (0, layer(2, is_resumed=True)), (12, layer(3))])

    first, _, third = capsys.readouterr().err.splitlines()
    assert "  gptq: layer 1 of 4 (kept from before)" == first
    assert "  gptq: layer 3 of 4, about 12 s left" == third


def test_remaining_time_is_unknown_before_a_layer_was_made():
    assert LayerClock(Clock()).remaining_s(n_left=3, is_resumed=True) is None


def test_a_terminal_gets_a_bar_and_lines_above_it():
    clock, text = Clock(), io.StringIO()
    with Bar(console=Console(file=text, force_terminal=True, width=80), auto_refresh=False) as bar:
        watch = BarWatch(bar, clock)
        run(watch, clock, [(0, Progress(event=Step.NOTE, message="a [note]")), (10, layer(1)), (10, layer(2))])
        task = bar.tasks[0]

    assert "a [note]" in text.getvalue()
    assert (2, 4, "gptq: layer 2 of 4") == (task.completed, task.total, task.description)
    assert "about 20 s left" == task.fields["rest"]


def test_without_a_terminal_there_are_lines(capsys):
    with watching() as watch:
        watch(Progress(event=Step.DONE, seconds=3.0))

    assert "  done in 3.0 s\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_durations_are_rounded_for_people(seconds, text):
    assert text == describe_seconds(seconds)
