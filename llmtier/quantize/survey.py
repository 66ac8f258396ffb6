"""All that the plan has to read: the model's shape, the calibration set's size, this machine, AWQ's mappings.

Reads ``config.json``, the headers of the weight files, the calibration file (once, line by line), the YAML file of AWQ
mappings, ``awq_architectures.json``, what earlier runs left in the output folder, and what the system tells of memory
and disk. Writes nothing, decides nothing:
``plan`` does, without reading.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from llmtier.core.errors import InputFileError, UsageError
from llmtier.core.hardware import Hardware
from llmtier.core.tier import Scheme
from llmtier.engine.hardware import detect_hardware
from llmtier.quantize.architecture import Architecture, describe_architecture
from llmtier.quantize.awq_mappings import AwqRegistry
from llmtier.quantize.demand import Workload
from llmtier.quantize.job import EXPORT_SUFFIX, AwqMapping, QuantizeJob
from llmtier.quantize.workplace import WORK_FOLDER, left_beside
from llmtier.store.checkpoints import read_manifest
from llmtier.store.documents import Decoder, parse_json, shorten
from llmtier.store.safetensors import read_tensors

BYTES_PER_TOKEN = 4.0
"""Of JSON text, roughly, with a vocabulary of words; what lies around the text makes up for longer words."""

SMALL_VOCABULARY = 1_000
"""Below it a token is a byte or a character."""

MATRIX_WIDTH = 768
N_MULTIPLICATIONS = 6  # 0.9 GFLOP each: some 50 ms on two cores
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What earlier runs left where one checkpoint is to be written.

    Attributes:
        recipe: With which the finished checkpoint there was made; ``None`` without one, or when it is to be replaced.
        is_exported: Whether a finished export lies there that is not to be replaced.
        n_bytes: Of the checkpoint's folder.
        export_bytes: Of the export's folder.
        work_bytes: Of the finished layers of a checkpoint that is not; a run uses or drops them.
        stale_bytes: Of half-written folders, which a run removes before anything else.
    """

    recipe: Mapping[str, object] | None = None
    is_exported: bool = False
    n_bytes: int = 0
    export_bytes: int = 0
    work_bytes: int = 0
    stale_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found.

    Attributes:
        architecture: The model's shape.
        max_position: Longest context that ``config.json`` states; ``None`` when it states none.
        machine: This one.
        free_memory_bytes: Memory that a new process may take.
        free_disk_bytes: Room where the checkpoints will lie.
        gflops: Speed of float32 matrix products; ``None`` when no scheme asked calibrates.
        rows: The calibration set, every row; ``None`` without one.
        awq_mappings: The user's; ``None`` without a file.
        registry: What the quantizers know of architectures.
        earlier: What lies already where each scheme is to be written.
    """

    architecture: Architecture
    max_position: int | None
    machine: Hardware
    free_memory_bytes: int
    free_disk_bytes: int
    gflops: float | None
    rows: Workload | None
    awq_mappings: tuple[AwqMapping, ...] | None
    registry: AwqRegistry
    earlier: Mapping[Scheme, Earlier] = field(default_factory=dict)


def survey(
    job: QuantizeJob,
    *,
    force: bool = False,
    detect: Callable[[], Hardware] = detect_hardware,
    measure_speed: Callable[[], float] | None = None,
) -> Survey:
    """Look at everything that the plan for ``job`` depends on.

    Args:
        job: What is asked.
        force: Whether what is finished is to be replaced.
        detect: Finds out what this machine is.
        measure_speed: Returns its GFLOP/s; ``None`` multiplies a few matrices.

    Raises:
        InputFileError: The model, the calibration set or the file of mappings cannot be read.
        UsageError: The model is of a kind that cannot be quantized.
    """
    config = read_config(job.model)
    tensors = read_tensors(job.model)
    try:
        architecture = describe_architecture(config, tensors)
    except UsageError as exc:
        raise UsageError(f"{job.model}: {exc}") from exc
    longest = config.get("max_position_embeddings")
    return Survey(
        architecture=architecture,
        max_position=longest if isinstance(longest, int) else None,
        machine=detect(),
        free_memory_bytes=free_memory_bytes(),
        free_disk_bytes=shutil.disk_usage(nearest_folder(job.out)).free,
        gflops=(measure_speed or measure_gflops)() if any(map(job.needs_data, job.schemes)) else None,
        rows=count_rows(job, architecture.vocabulary_size) if job.calibration is not None else None,
        awq_mappings=read_mappings(job.awq_mappings) if job.awq_mappings is not None else None,
        registry=read_registry(),
        earlier={scheme: find_earlier(job, scheme, force=force) for scheme in job.schemes},
    )


def find_earlier(job: QuantizeJob, scheme: Scheme, *, force: bool) -> Earlier:
    """Look at what lies where a scheme is to be written."""
    folder = job.folder(scheme)
    export = folder.with_name(f"{folder.name}{EXPORT_SUFFIX}")
    return Earlier(
        recipe=None if force else read_recipe(folder),
        is_exported=not force and read_recipe(export) is not None,
        n_bytes=folder_bytes(folder),
        export_bytes=folder_bytes(export),
        work_bytes=folder_bytes(job.out / WORK_FOLDER / folder.name),
        stale_bytes=sum(map(folder_bytes, left_beside(job.out, folder.name, "tmp"))),
    )


def read_recipe(folder: Path) -> Mapping[str, object] | None:
    """Return how a finished checkpoint was made; ``None`` where there is none that says it."""
    try:
        manifest = read_manifest(folder)
    except InputFileError:  # ``run.quantize`` refuses it with this very error, unless it is to be replaced
        return None
    return None if manifest is None else manifest.recipe


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder, 0 without one; what vanishes meanwhile is not counted."""
    n_bytes = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            n_bytes += path.lstat().st_size if path.is_file() else 0
    return n_bytes


def read_config(model: Path) -> Mapping[str, object]:
    """Return the source's ``config.json``.

    Raises:
        InputFileError: There is none, or it is not a JSON object.
    """
    path = model / "config.json"
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputFileError("is no checkpoint: config.json cannot be read; give a local folder", path=model) from exc
    except ValueError as exc:
        raise InputFileError(f"expected JSON: {exc}", path=path) from exc
    if not isinstance(document, dict):
        raise InputFileError("expected a JSON object", path=path)
    return document


def count_rows(job: QuantizeJob, vocabulary_size: int | None) -> Workload:
    """Return the number and the estimated lengths of the calibration rows, each cut to ``job.max_seq_tokens``.

    Lengths are bytes / 4, or bytes where the vocabulary is that of characters: nothing is tokenized here.

    Raises:
        InputFileError: The file is absent or holds no row, or the recipe was not built.
    """
    from llmtier.store.calibration import find_calibration

    path = find_calibration(job.calibration or Path())
    is_small = vocabulary_size is not None and vocabulary_size < SMALL_VOCABULARY
    per_token = 1.0 if is_small else BYTES_PER_TOKEN
    n_rows, total, squares = 0, 0.0, 0.0
    for n_bytes in line_lengths(path):
        n_tokens = min(job.max_seq_tokens, max(1.0, n_bytes / per_token))
        n_rows, total, squares = n_rows + 1, total + n_tokens, squares + n_tokens**2
    if not n_rows:
        raise InputFileError("holds no rows; expected one JSON object a line", path=path)
    return Workload(n_rows=n_rows, mean_tokens=total / n_rows, mean_square_tokens=squares / n_rows)


def line_lengths(path: Path) -> Iterator[int]:
    """Yield the bytes of each line that is not blank.

    Raises:
        InputFileError: The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            for line in stream:
                if line.strip():
                    yield len(line)
    except OSError as exc:
        raise InputFileError(f"cannot be read: {exc.strerror or exc}", path=path) from exc


def read_mappings(path: Path) -> tuple[AwqMapping, ...]:
    """Return the user's AWQ mappings.

    Raises:
        InputFileError: The file is absent or is no list of mappings; names the entry.
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise InputFileError(f"expected AWQ mappings as YAML: {exc}", path=path) from exc
    if not isinstance(document, list) or not document:
        raise InputFileError("expected a list of {smooth: ..., balance: [...]}", path=path)
    return tuple(read_mapping(entry, number, path) for number, entry in enumerate(document, start=1))


def read_mapping(entry: Any, number: int, path: Path) -> AwqMapping:  # noqa: ANN401 - YAML
    """Return one mapping.

    Raises:
        InputFileError: A key is unknown, absent or of another kind, or an expression is malformed.
    """
    if not isinstance(entry, dict) or set(entry) != {"smooth", "balance"}:
        raise InputFileError(f"entry {number}: expected smooth and balance, got {shorten(entry)}", path=path)
    balance = [entry["balance"]] if isinstance(entry["balance"], str) else entry["balance"]
    mapping = Decoder(AwqMapping).decode({"smooth": entry["smooth"], "balance": balance}, path=path)
    if not mapping.balance:
        raise InputFileError(f"entry {number}: balance names no layer", path=path)
    for pattern in (mapping.smooth, *mapping.balance):
        try:
            re.compile(pattern.removeprefix("re:"))
        except re.error as exc:
            raise InputFileError(f"entry {number}: {pattern} is no regular expression: {exc}", path=path) from exc
    return mapping


def read_registry() -> AwqRegistry:
    """Return what ``scripts/write_awq_architectures.py`` wrote."""
    text = resources.files("llmtier.quantize").joinpath("awq_architectures.json").read_text(encoding="utf-8")
    document = json.loads(text)
    sets = [
        tuple(AwqMapping(smooth=rule["smooth"], balance=tuple(rule["balance"])) for rule in rules)
        for rules in document["mappings"]
    ]
    return AwqRegistry(
        version=document["llmcompressor"],
        mappings={
            name: None if index == "dynamic" else sets[index] for name, index in document["architectures"].items()
        },
        smoothquant=frozenset(document["smoothquant_architectures"]),
        autoawq_model_types=frozenset(document["autoawq_model_types"]),
    )


def nearest_folder(path: Path) -> Path:
    """Return the deepest folder on the way to ``path`` that exists."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def free_memory_bytes(cgroup: Path = CGROUP) -> int:
    """Return the memory that a new process may take: what the system has, or what is left of a container's limit."""
    free = psutil.virtual_memory().available
    limit, used = read_number(cgroup / "memory.max"), read_number(cgroup / "memory.current")
    if limit is None or used is None:
        return free
    cached = read_number(cgroup / "memory.stat", key="inactive_file") or 0  # file pages that the kernel can drop
    return min(free, max(0, limit - used + cached))


def read_number(path: Path, *, key: str | None = None) -> int | None:
    """Return the number in a control file, or behind ``key``; ``None`` where there is none, or no limit."""
    try:
        words = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return None
    index = 0 if key is None else words.index(key) + 1 if key in words else len(words)
    return int(words[index]) if index < len(words) and words[index].isdigit() else None


def measure_gflops() -> float:
    """Return this machine's speed in float32 matrix products now, the best of a few, in GFLOP/s."""
    import numpy as np

    matrix = np.ones((MATRIX_WIDTH, MATRIX_WIDTH), dtype=np.float32)
    seconds = []
    for _ in range(N_MULTIPLICATIONS + 1):  # the first one starts the threads
        begun_s = perf_counter()
        matrix @ matrix
        seconds.append(perf_counter() - begun_s)
    return 2 * MATRIX_WIDTH**3 / min(seconds[1:]) / 1e9
