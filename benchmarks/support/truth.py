"""What the mock engine knows of the requests it answered, and how far a client's figures are from it.

Starts the mock as a process of its own and takes its notes over HTTP between loads. All instants are seconds on
CLOCK_MONOTONIC, which the mock and llmtier's client both read.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

MOCK = Path(__file__).parent / "sse_mock.py"
STOP_TIMEOUT_S = 5.0
NOTES_TIMEOUT_S = 60.0

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Note:
    """One request as the mock saw it.

    Attributes:
        tag: The number in its prompt; ``None`` when it carries none.
        arrived_s: When its last byte had come to the mock's socket.
        read_s: When the mock had read it: later where it was busy.
        written_s: When each content chunk was handed to the kernel.
        is_whole: Whether the answer went out to its end.
    """

    tag: int | None
    arrived_s: float
    read_s: float
    written_s: tuple[float, ...]
    is_whole: bool

    @property
    def ttft_s(self) -> float:
        """From the arrival of the request to the first content chunk; what the mock takes to read it is its own time."""
        return self.written_s[0] - self.arrived_s

    @property
    def itl_s(self) -> float:
        """Mean gap between content chunks; of two and more."""
        return (self.written_s[-1] - self.written_s[0]) / (len(self.written_s) - 1)


@dataclass(frozen=True)
class Mock:
    """A running mock engine."""

    url: str

    def take_notes(self) -> list[Note]:
        """Return the whole answers since the last time, in the order the requests came."""
        with urlopen(f"{self.url}/mock/requests", timeout=NOTES_TIMEOUT_S) as response:  # noqa: S310 - our own mock
            notes = [_read_note(note) for note in json.load(response)]
        return [note for note in notes if note.is_whole]


@contextmanager
def mock_engine(*, n_chunks: int, interval_s: float) -> Iterator[Mock]:
    """Start a mock in a process of its own; it is stopped at the end."""
    command = [sys.executable, str(MOCK), "--chunks", str(n_chunks), "--interval-s", str(interval_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not (url := process.stdout.readline().strip()):
                raise RuntimeError("the mock engine did not start")
            yield Mock(url)
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def describe_truth(notes: Sequence[Note]) -> dict[str, float | None]:
    """Return mean and median of the true latencies."""
    gaps = [note.itl_s for note in notes if len(note.written_s) > 1]
    return {
        "ttft_mean_s": statistics.fmean(note.ttft_s for note in notes),
        "ttft_p50_s": statistics.median(note.ttft_s for note in notes),
        "itl_mean_s": statistics.fmean(gaps) if gaps else None,
    }


def aggregate_errors(reported: Mapping[str, float | None], notes: Sequence[Note]) -> dict[str, Any]:
    """Return a client's own means and median, the true ones, and their differences (client - truth)."""
    truth = describe_truth(notes)
    errors = {
        name.replace("_mean_s", "_error_mean_s").replace("_p50_s", "_error_p50_s"): reported_s - truth_s
        for name, truth_s in truth.items()
        if (reported_s := reported.get(name)) is not None and truth_s is not None
    }
    return {"reported": dict(reported), "truth": truth, **errors}


def _read_note(note: Mapping[str, Any]) -> Note:
    return Note(**{**note, "written_s": tuple(note["written_s"])})
