"""What to quantize and how, and the checks that need no more than the model's ``config.json``.

Pure: reads and writes nothing. ``plan`` turns a ``QuantizeJob`` into a ``QuantizePlan`` or says why it
cannot work, before any library is loaded; ``run.quantize`` then carries the plan out.
Which formats exist and which group sizes load: llm-compressor's presets and vLLM's CPU and CUDA kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from llmtier.core.errors import UsageError
from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme, default_tier_name

GROUP_SIZES = (128, 64, 32)
"""Input features that share one 4-bit scale, best first; vLLM's CPU kernel takes no others."""

SCHEMES_WITH_DATA = frozenset({Scheme.AWQ, Scheme.GPTQ})
"""The schemes whose result depends on the calibration set."""

PRESETS: Mapping[Scheme, str] = MappingProxyType(
    {Scheme.INT8: "W8A8", Scheme.FP8: "FP8_DYNAMIC", Scheme.GPTQ: "W4A16", Scheme.AWQ: "W4A16_ASYM"}
)
"""The names that compressed-tensors gives these formats."""


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
    """

    model: Path
    schemes: tuple[Scheme, ...]
    out: Path
    calibration: Path | None = None
    seed: int = 0
    n_samples: int = 256
    max_seq_tokens: int = 512
    group_size: int | None = None

    def __post_init__(self) -> None:
        if not self.schemes or len(set(self.schemes)) != len(self.schemes):
            raise ValueError(f"schemes must name at least one scheme and none twice, got {self.schemes}")
        if self.n_samples < 1 or self.max_seq_tokens < 1:
            raise ValueError("n_samples and max_seq_tokens must be >= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedScheme:
    """One checkpoint to be written.

    Attributes:
        scheme: Its format.
        preset: The format's name in compressed-tensors.
        target: Folder that will hold it.
        needs_data: Whether calibration rows change the result.
        group_size: Input features per scale; ``None`` where scales are per channel.
    """

    scheme: Scheme
    preset: str
    target: Path
    needs_data: bool
    group_size: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizePlan:
    """A job that can work.

    Attributes:
        schemes: In the job's order.
        notes: What people should know before it starts, one line each.
    """

    schemes: tuple[PlannedScheme, ...]
    notes: tuple[str, ...]

    @property
    def needs_data(self) -> bool:
        """Whether any scheme reads the calibration rows."""
        return any(planned.needs_data for planned in self.schemes)


def plan(job: QuantizeJob, model_config: Mapping[str, object]) -> QuantizePlan:
    """Return what will be written, or refuse.

    Args:
        job: What is asked.
        model_config: The source's ``config.json``.

    Raises:
        UsageError: A scheme cannot be written, the source is quantized already, a calibration set is
            missing, or no group size divides the model's layers.
    """
    check_source(job, model_config)
    for scheme in job.schemes:
        check_scheme(scheme, job)
    is_grouped = any(scheme in SCHEMES_WITH_DATA for scheme in job.schemes)
    group_size = choose_group_size(job, linear_in_features(model_config)) if is_grouped else None
    planned = tuple(plan_scheme(scheme, job, group_size=group_size) for scheme in job.schemes)
    return QuantizePlan(schemes=planned, notes=make_notes(job, group_size=group_size))


def check_source(job: QuantizeJob, model_config: Mapping[str, object]) -> None:
    """Refuse a source whose weights are quantized already.

    Raises:
        UsageError: ``config.json`` names a quantization.
    """
    found = model_config.get("quantization_config")
    if found is not None:
        method = found.get("quant_method", "unknown") if isinstance(found, Mapping) else "unknown"
        raise UsageError(
            f"{job.model}: already quantized ({method}); give the bf16 or fp16 checkpoint it was made from"
        )


def check_scheme(scheme: Scheme, job: QuantizeJob) -> None:
    """Refuse a scheme that cannot be written, or not without data.

    Raises:
        UsageError: Naming the schemes, or the file, that would do.
    """
    if scheme not in QUANTIZABLE_SCHEMES:
        names = ", ".join(known.value for known in QUANTIZABLE_SCHEMES)
        raise UsageError(f"scheme {scheme.value}: llmtier does not write it; choose one of {names}")
    if scheme in SCHEMES_WITH_DATA and job.calibration is None:
        raise UsageError(
            f"scheme {scheme.value} needs data of your domain: give --calibration FILE.jsonl, "
            'one {"messages": [...]} or {"text": "..."} a line'
        )


def plan_scheme(scheme: Scheme, job: QuantizeJob, *, group_size: int | None) -> PlannedScheme:
    """Return where and how one scheme will be written."""
    needs_data = scheme in SCHEMES_WITH_DATA
    return PlannedScheme(
        scheme=scheme,
        preset=PRESETS[scheme],
        target=job.out / default_tier_name(job.model.name, scheme),
        needs_data=needs_data,
        group_size=group_size if needs_data else None,
    )


def linear_in_features(model_config: Mapping[str, object]) -> tuple[int, ...]:
    """Return the distinct input widths of the decoder's linear layers, ascending, as far as the config tells.

    Attention reads the hidden state, its output projection reads all heads; the feed-forward part reads
    the hidden state and its inner state.
    """
    fields = ("hidden_size", "intermediate_size", "moe_intermediate_size")
    widths = [model_config.get(name) for name in fields]
    heads, head_dim = model_config.get("num_attention_heads"), model_config.get("head_dim")
    if isinstance(heads, int) and isinstance(head_dim, int):
        widths.append(heads * head_dim)
    return tuple(sorted({width for width in widths if isinstance(width, int)}))


def choose_group_size(job: QuantizeJob, in_features: tuple[int, ...]) -> int:
    """Return the asked group size, or the largest one that divides every layer.

    Raises:
        UsageError: None divides, or the asked one does not.
    """
    candidates = GROUP_SIZES if job.group_size is None else (job.group_size,)
    for size in candidates:
        if size in GROUP_SIZES and all(width % size == 0 for width in in_features):
            return size
    widths = ", ".join(map(str, in_features))
    allowed = ", ".join(map(str, GROUP_SIZES))
    if job.group_size is not None and job.group_size not in GROUP_SIZES:
        raise UsageError(f"group size {job.group_size}: must be one of {allowed}")
    asked = " or ".join(map(str, candidates))
    raise UsageError(f"{job.model}: layers of {widths} inputs do not divide into groups of {asked}; use int8 or fp8")


def make_notes(job: QuantizeJob, *, group_size: int | None) -> tuple[str, ...]:
    """Return the lines that say what people might not expect."""
    notes = []
    if group_size is not None and job.group_size is None and group_size != GROUP_SIZES[0]:
        notes.append(f"group size {group_size}: the layers do not divide into groups of {GROUP_SIZES[0]}")
    ignoring = [scheme.value for scheme in job.schemes if scheme not in SCHEMES_WITH_DATA]
    if ignoring and job.calibration is not None:
        notes.append(f"{', '.join(ignoring)}: weights are rounded without data; the calibration set changes nothing")
    return tuple(notes)
