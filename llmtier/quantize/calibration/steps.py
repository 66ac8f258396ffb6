"""What a build reports while it runs: one ``BuildStep`` an event. Holds no I/O."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What the build is doing."""

    FETCH = "fetch"
    READ = "read"
    COMPARE = "compare"
    COUNT = "count"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStep:
    """One step.

    Attributes:
        phase: What is being done.
        label: To what; of a note, what it says.
        n_done: Rows so far; ``None`` of a note.
        n_total: Of how many; ``None`` while unknown.
    """

    phase: Phase
    label: str
    n_done: int | None = None
    n_total: int | None = None


OnStep = Callable[[BuildStep], None]
