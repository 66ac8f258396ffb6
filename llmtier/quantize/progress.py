"""What the quantizer reports while it runs: one ``Progress`` an event.

The worker's events are decoded here and nowhere else; ``run.quantize`` adds steps of its own (notes, reuse).
Reads and writes no file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

from pydantic import TypeAdapter, ValidationError

from llmtier.core.errors import MachineError
from llmtier.core.tier import Scheme
from llmtier.quantize.process import Event


class Step(StrEnum):
    """What has just happened; ``REUSED`` comes from ``run.quantize``, ``NOTE`` from both, the rest from the worker."""

    NOTE = "note"
    REUSED = "reused"
    TOKENIZED = "tokenized"
    LOADING = "loading"
    LAYER = "layer"
    SAVED = "saved"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step; a fact that the step does not have is ``None`` or empty.

    Attributes:
        event: What happened.
        scheme: Whose step it is; ``None`` for the whole job.
        n_done: Layers calibrated, of ``n_total``.
        is_resumed: Whether the layer is an earlier run's.
        n_samples: Calibration rows in use, with ``n_tokens`` together; ``n_cut`` were longer than allowed.
        seconds_by_phase: Of the scheme, or of tokenizing.
        is_plain_text: Whether messages were rendered without a chat template.
        n_rounded: Layers that GPTQ could only round to the nearest value.
        peak_memory_bytes: Largest resident memory of the worker during the scheme.
        peak_device_bytes: Most memory that tensors held on the GPU.
        versions: Library to version, of what did the work.
        seconds: Of the whole job.
        message: A line for people.
    """

    event: Step
    scheme: Scheme | None = None
    n_done: int | None = None
    n_total: int | None = None
    is_resumed: bool = False
    n_samples: int | None = None
    n_tokens: int | None = None
    n_cut: int | None = None
    seconds_by_phase: Mapping[str, float] = field(default_factory=dict)
    is_plain_text: bool | None = None
    n_rounded: int | None = None
    peak_memory_bytes: int | None = None
    peak_device_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    message: str | None = None

    @property
    def phases_s(self) -> float:
        """Seconds of all phases together."""
        return sum(self.seconds_by_phase.values())

    def describe(self) -> str:
        """Return one line for people."""
        who = f"{self.scheme.value}: " if self.scheme else ""
        match self.event:
            case Step.TOKENIZED:
                cut = f", {self.n_cut} rows cut to the sequence length" if self.n_cut else ""
                return f"calibrating on {self.n_samples} rows, {self.n_tokens} tokens{cut}"
            case Step.LAYER:
                return f"{who}layer {self.n_done} of {self.n_total}{' (kept from before)' if self.is_resumed else ''}"
            case Step.SAVED:
                return f"{who}saved after {self.phases_s:.1f} s"
            case Step.DONE:
                return f"done in {self.seconds:.1f} s"
            case _:
                return who + (self.message or self.event.value)


@cache
def progress_adapter() -> TypeAdapter[Progress]:
    """Return what checks a step; made with the first event, as the worker is starting then."""
    return TypeAdapter(Progress)


def parse_progress(event: Event) -> Progress:
    """Decode one event of the worker.

    Raises:
        MachineError: It is not what the worker writes: the interpreter runs something else.
    """
    try:
        return progress_adapter().validate_python(event)
    except ValidationError as exc:
        raise MachineError(f"quantizer: unknown progress {str(event)[:200]}") from exc
