"""What a scheme's needs are counted from: its rows of calibration data, its layers, its options. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from llmtier.core.tier import Scheme
from llmtier.quantize.architecture import Architecture, Linear
from llmtier.quantize.awq_mappings import Coverage
from llmtier.quantize.job import PlannedScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The calibration rows that a scheme reads.

    Attributes:
        n_rows: How many.
        mean_tokens: Mean length, after the cut.
        mean_square_tokens: Mean of the squared length: attention masks are square.
    """

    n_rows: int
    mean_tokens: float
    mean_square_tokens: float

    @property
    def n_tokens(self) -> int:
        """Tokens in all rows."""
        return round(self.n_rows * self.mean_tokens)

    def with_rows(self, n_rows: int) -> "Workload":
        """Return the same mixture of lengths with another number of rows."""
        return Workload(n_rows=n_rows, mean_tokens=self.mean_tokens, mean_square_tokens=self.mean_square_tokens)


def uniform_workload(*, n_rows: int, n_tokens: int) -> Workload:
    """Return rows of one length."""
    return Workload(n_rows=n_rows, mean_tokens=n_tokens, mean_square_tokens=n_tokens**2)


NO_DATA = Workload(n_rows=0, mean_tokens=0, mean_square_tokens=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One scheme on one model.

    Attributes:
        architecture: The model.
        linears: The layers that are quantized.
        planned: The scheme and its options.
        coverage: What AWQ scales; ``None`` for the other schemes, and for AutoAWQ.
    """

    architecture: Architecture
    linears: tuple[Linear, ...]
    planned: PlannedScheme
    coverage: Coverage | None = None

    @property
    def layers(self) -> Mapping[int, tuple[Linear, ...]]:
        """The quantized layers of each decoder layer."""
        return self.architecture.layers(self.linears)

    @property
    def is_awq(self) -> bool:
        """Whether AWQ searches scales."""
        return self.planned.scheme is Scheme.AWQ

    @property
    def is_gptq(self) -> bool:
        """Whether GPTQ rounds the weights."""
        return self.planned.scheme is Scheme.GPTQ or self.planned.smoothing_strength is not None

    @property
    def n_stages(self) -> int:
        """How many times the rows pass through the model: once for each modifier that reads data."""
        if not self.planned.needs_data:
            return 0
        is_twice = self.planned.smoothing_strength is not None or (self.is_awq and self.planned.has_fp8_kv_cache)
        return 2 if is_twice else 1

    @property
    def can_spill(self) -> bool:
        """Whether the activation cache may go into files; AWQ keeps further copies of its own in memory."""
        return self.planned.needs_data and not self.is_awq
