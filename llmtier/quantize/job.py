"""What to quantize and how, and what a plan for it looks like: the dataclasses that the stage passes around.

Pure: reads and writes nothing. ``plan.plan`` turns a ``QuantizeJob`` and what ``survey`` found into a ``QuantizePlan``,
before any library is loaded; ``run.quantize`` then carries the plan out.
Which formats exist and which group sizes load: llm-compressor's presets and vLLM's CPU and CUDA kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from llmtier.core.tier import Scheme, default_tier_name
from llmtier.quantize.target import Target, Verdict

GROUP_SIZES = (128, 64, 32)
"""Input features that share one 4-bit scale, best first; vLLM's CPU kernel takes no others."""

SCHEMES_WITH_DATA = frozenset({Scheme.AWQ, Scheme.GPTQ})
"""The schemes whose result depends on the calibration set."""

EXPORT_SUFFIX = "-autoawq"
"""What the folder of an export is called after its checkpoint's."""

PRESETS: Mapping[Scheme, str] = MappingProxyType(
    {
        Scheme.INT8: "W8A8",
        Scheme.FP8: "FP8_DYNAMIC",
        Scheme.FP8_BLOCK: "FP8_BLOCK",
        Scheme.GPTQ: "W4A16",
        Scheme.AWQ: "W4A16_ASYM",
    }
)
"""The names that compressed-tensors gives these formats."""


class Backend(StrEnum):
    """What does the quantizing; the value is what users type."""

    LLMCOMPRESSOR = "llmcompressor"
    AUTOAWQ = "autoawq"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqMapping:
    """One AWQ rule: scale the output of ``smooth`` down and the inputs of every layer of ``balance`` up.

    Attributes:
        smooth: Name of a norm or linear layer, or ``re:`` and a regular expression.
        balance: Names or expressions of the linear layers that read its output.
    """

    smooth: str
    balance: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeJob:
    """One model to be written in one or more schemes.

    Attributes:
        model: Folder of the source checkpoint.
        schemes: What to write, in order; none twice.
        out: Folder that gets one ``<model>@<scheme>`` folder for each.
        calibration: JSON lines of ``messages`` or ``text``; ``None`` where no scheme needs data.
        seed: Of the sample of rows and of the libraries.
        n_samples: Most rows to calibrate on.
        max_seq_tokens: Longer rows are cut to this.
        group_size: Input features per 4-bit scale; ``None`` takes the largest that divides every layer.
        backend: What does the quantizing; ``autoawq`` writes awq only, in AutoAWQ's own layout.
        ignore: Layers that stay as they are: names or ``re:`` expressions.
        smoothing_strength: SmoothQuant's alpha in (0, 1] for int8, which then uses GPTQ and data; ``None``: rounding.
        has_fp8_kv_cache: Whether scales for an fp8 KV cache are calibrated too.
        awq_mappings: YAML file with the mappings of an architecture that AWQ does not know.
        device: What it shall be served on: ``auto`` (this machine) or a name of ``target.TARGETS``.
        name: What its tiers are called before ``@``; "" takes the folder's name.
        revision: Commit of a downloaded model; ``None`` for a local one.
        has_autoawq_export: Whether 4-bit results are to be written in AutoAWQ's layout too.
    """

    model: Path
    schemes: tuple[Scheme, ...]
    out: Path
    calibration: Path | None = None
    seed: int = 0
    n_samples: int = 256
    max_seq_tokens: int = 512
    group_size: int | None = None
    backend: Backend = Backend.LLMCOMPRESSOR
    ignore: tuple[str, ...] = ("lm_head",)
    smoothing_strength: float | None = None
    has_fp8_kv_cache: bool = False
    awq_mappings: Path | None = None
    device: str = "auto"
    name: str = ""
    revision: str | None = None
    has_autoawq_export: bool = False

    @property
    def model_name(self) -> str:
        """What the model is called: as stated, or as its folder."""
        return self.name or self.model.absolute().name

    def __post_init__(self) -> None:
        if not self.schemes or len(set(self.schemes)) != len(self.schemes):
            raise ValueError(f"schemes must name at least one scheme and none twice, got {self.schemes}")
        if self.n_samples < 1 or self.max_seq_tokens < 1:
            raise ValueError("n_samples and max_seq_tokens must be >= 1")
        if self.smoothing_strength is not None and not 0 < self.smoothing_strength <= 1:
            raise ValueError(f"smoothing_strength must lie in (0, 1], got {self.smoothing_strength}")

    def folder(self, scheme: Scheme) -> Path:
        """Return where the checkpoint of a scheme will lie."""
        is_autoawq = self.backend is Backend.AUTOAWQ
        return self.out / (f"{self.model_name}@autoawq" if is_autoawq else default_tier_name(self.model_name, scheme))

    def needs_data(self, scheme: Scheme) -> bool:
        """Tell whether calibration rows change the result of a scheme."""
        is_smoothed = scheme is Scheme.INT8 and self.smoothing_strength is not None
        return scheme in SCHEMES_WITH_DATA or is_smoothed or self.has_fp8_kv_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What writing one scheme will take; the formulas and how far they are off stand in ``estimate``.

    Attributes:
        memory_bytes: Memory that must be free, with the activation cache unless it spills.
        activation_cache_bytes: The hidden states of the calibration rows between two layers.
        disk_bytes: The checkpoint's weights.
        work_bytes: Files that lie beside it during the run: finished layers and a spilled cache.
        seconds_low: Shortest time expected; ``None`` when it cannot be told.
        seconds_high: Longest time expected; ``None`` when it cannot be told.
        unknown_time: Why there are no seconds; ``None`` when there are.
        spills: Whether the activation cache lies in files, because memory is short.
        export_bytes: Weights of the export to AutoAWQ's layout; ``None`` where none is asked for.
    """

    memory_bytes: int
    activation_cache_bytes: int
    disk_bytes: int
    work_bytes: int
    seconds_low: float | None
    seconds_high: float | None
    unknown_time: str | None
    spills: bool
    export_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedScheme:
    """One checkpoint to be written.

    Attributes:
        scheme: Its format.
        preset: The format's name in compressed-tensors.
        folder: Where it will lie.
        needs_data: Whether calibration rows change the result.
        group_size: Input features per scale; ``None`` where scales are per channel.
        ignore: Layers that stay as they are: names or ``re:`` expressions.
        backend: What writes it.
        smoothing_strength: SmoothQuant's alpha; ``None`` without SmoothQuant.
        has_fp8_kv_cache: Whether scales for an fp8 KV cache are calibrated too.
        awq_mappings: The user's; ``None`` takes llm-compressor's for the architecture.
        spills: Whether the activation cache lies in files, as memory does not hold it.
        is_finished: Whether a checkpoint made with these options lies there; whether from the same model and data,
            ``run.quantize`` finds out.
        verdict: What it is worth on the target; ``None`` where nobody asked.
        estimate: What writing it will take; ``None`` where nobody asked.
    """

    scheme: Scheme
    preset: str
    folder: Path
    needs_data: bool
    group_size: int | None
    ignore: tuple[str, ...] = ("lm_head",)
    backend: Backend = Backend.LLMCOMPRESSOR
    smoothing_strength: float | None = None
    has_fp8_kv_cache: bool = False
    awq_mappings: tuple[AwqMapping, ...] | None = None
    spills: bool = False
    is_finished: bool = False
    verdict: Verdict | None = None
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a plan was made from, for people to check.

    Attributes:
        target: What the checkpoints shall be served on.
        architecture: Class of the model; ``None`` when ``config.json`` names none.
        n_layers: Decoder layers.
        n_parameters: Numbers in the source.
        source_bytes: Its weights.
        n_linears: Linear layers that are quantized.
        n_kept: Linear layers that stay as they are.
        n_rows: Calibration rows that will be used; ``None`` without a set.
        n_rows_available: Rows that the set holds; ``None`` without one.
        n_tokens: Tokens in the used rows, estimated; ``None`` without a set.
        free_memory_bytes: Memory that is free on this machine.
        free_disk_bytes: Room where the checkpoints go.
        gflops: Speed of this machine in float32, measured; ``None`` when it was not.
    """

    target: Target
    architecture: str | None
    n_layers: int
    n_parameters: int
    source_bytes: int
    n_linears: int
    n_kept: int
    n_rows: int | None
    n_rows_available: int | None
    n_tokens: int | None
    free_memory_bytes: int
    free_disk_bytes: int
    gflops: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizePlan:
    """A job that can work.

    Attributes:
        schemes: In the job's order.
        notes: What people should know before it starts, one line each.
        facts: What it was made from; ``None`` where nobody asked.
        others: The verdicts on the schemes that were not asked for.
    """

    schemes: tuple[PlannedScheme, ...]
    notes: tuple[str, ...]
    facts: Facts | None = None
    others: Mapping[Scheme, Verdict] = field(default_factory=dict)

    @property
    def needs_data(self) -> bool:
        """Whether any scheme reads the calibration rows."""
        return any(planned.needs_data for planned in self.schemes)
