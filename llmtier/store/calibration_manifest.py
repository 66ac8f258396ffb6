"""The manifest of a built calibration set: what it was made of, how, and what came out.

Reads and writes ``<name>.manifest.json`` beside ``<name>.jsonl``; it is written last, so that a set whose files do not
match it is one that was changed, or half replaced. The files themselves are only digested.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from llmtier.core.errors import InputFileError
from llmtier.core.provenance import Provenance
from llmtier.store.atomic import write_json
from llmtier.store.calibration_paths import read_errors
from llmtier.store.digests import file_sha256
from llmtier.store.documents import SCHEMA_VERSION, Decoder, read_document

BUILD_ADVICE = "run 'llmtier calibration build' on its recipe again"


class TokenMethod(StrEnum):
    """How tokens were counted."""

    EXACT = "exact"
    ESTIMATE = "estimate"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """One source as it was read.

    Attributes:
        label: Its path as the recipe has it, or the dataset's id.
        domain: What its rows are labelled.
        sha256: Of the file, or of a folder's files; ``None`` for a dataset of the hub.
        revision: Commit of a dataset; ``None`` for files.
        is_pinned: Whether the recipe names that very commit; files are pinned by their sha256.
        n_rows: Rows read.
        n_without_text: Of these, rows whose text a log did not keep or that hold something else, such as images.
        n_too_short: Rows below the recipe's ``min_tokens``.
    """

    label: str
    domain: str
    sha256: str | None
    revision: str | None
    is_pinned: bool
    n_rows: int
    n_without_text: int
    n_too_short: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentCounts:
    """What became of the rows; ``n_kept`` is what the split and the choice draw from.

    ``n_uncompared`` rows shared so much with so many others that not all of their pairs were compared.
    """

    n_rows: int
    n_without_text: int
    n_too_short: int
    n_exact_duplicates: int
    n_near_duplicates: int
    n_uncompared: int
    n_dropped_for_findings: int
    n_kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """Rows of one range of lengths."""

    min_tokens: int
    max_tokens: int
    n_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFacts:
    """One written file.

    Attributes:
        file: Its name, beside the manifest.
        sha256: Of the file.
        n_rows: Rows in it.
        n_tokens: Tokens of its rows, each counted up to the recipe's ``sequence_tokens``.
        n_cut: Rows that are longer than that, which the quantizer cuts.
        rows_by_domain: Their number; likewise ``tokens_by_domain``.
        strata: Quartiles of length, shortest first.
    """

    file: str
    sha256: str
    n_rows: int
    n_tokens: int
    n_cut: int
    rows_by_domain: Mapping[str, int]
    tokens_by_domain: Mapping[str, int]
    strata: tuple[Stratum, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingFacts:
    """Secrets or personal data of one kind.

    Attributes:
        kind: Such as ``email``.
        n_rows: Rows of the written files that hold one.
        n_source_rows: Rows of all sources that hold one.
        places: The first few in the written files: source, row and the masked value.
    """

    kind: str
    n_rows: int
    n_source_rows: int
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounting:
    """How tokens were counted.

    Attributes:
        method: Exactly, by a model's tokenizer, or as a quarter of the bytes.
        model: Whose tokenizer; ``None`` for an estimate.
        tokenizer_sha256: Of its files; ``None`` for an estimate or a model of the hub.
        is_plain_text: Whether messages were counted without a chat template, since the model has none.
    """

    method: TokenMethod
    model: str | None = None
    tokenizer_sha256: str | None = None
    is_plain_text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationManifest:
    """How a calibration set was made.

    Attributes:
        name: The recipe's.
        provenance: The run that made it.
        recipe_sha256: Digest of what the recipe says, comments left out.
        recipe: What it says, as plain data.
        sources: In the recipe's order.
        counts: What became of the rows.
        shares: Share of the token budget that was asked for, by domain.
        tokens: How they were counted.
        calibration: The file that quantization reads.
        heldout: The file that it never sees; ``None`` when the recipe wants none.
        findings: Secrets and personal data, by kind.
        warnings: What the build said aloud.
        versions: Of the libraries that decided what was kept.
        seconds: Wall-clock time of the build.
        peak_memory_bytes: Upper bound of the resident memory of all its processes; ``None`` when not measured.
        schema_version: Of the manifest's format.
    """

    name: str
    provenance: Provenance
    recipe_sha256: str
    recipe: Mapping[str, Any]
    sources: tuple[SourceFacts, ...]
    counts: DocumentCounts
    shares: Mapping[str, float]
    tokens: TokenCounting
    calibration: SplitFacts
    heldout: SplitFacts | None
    findings: tuple[FindingFacts, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def splits(self) -> tuple[SplitFacts, ...]:
        """The written files."""
        return (self.calibration,) if self.heldout is None else (self.calibration, self.heldout)


@dataclass(frozen=True, slots=True)
class SetPaths:
    """The three files of a calibration set."""

    folder: Path
    name: str

    @property
    def calibration(self) -> Path:
        """What quantization reads."""
        return self.folder / f"{self.name}.jsonl"

    @property
    def heldout(self) -> Path:
        """What it never sees."""
        return self.folder / f"{self.name}.heldout.jsonl"

    @property
    def manifest(self) -> Path:
        """How both were made."""
        return self.folder / f"{self.name}.manifest.json"


class _Recipe(BaseModel):
    """What is read again of a recorded recipe; it is plain data, of which the rest is for people."""

    near_duplicate_similarity: float | None = Field(default=None, gt=0, le=1, strict=True)
    system_prompt: str | None = None


class _Document(BaseModel):
    recipe: _Recipe


def paths_of(file: Path) -> SetPaths:
    """Return the set that a ``.jsonl`` file, or its manifest, belongs to by its name."""
    stem = file.name.removesuffix(".jsonl").removesuffix(".heldout").removesuffix(".manifest.json")
    return SetPaths(file.parent, stem)


def write_calibration_manifest(path: Path, manifest: CalibrationManifest) -> None:
    """Write a manifest atomically.

    Raises:
        DiskError: The file system refused.
    """
    write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(manifest)})


def read_calibration_manifest(path: Path) -> CalibrationManifest | None:
    """Read a manifest; ``None`` when there is none.

    Raises:
        InputFileError: It is malformed.
        SchemaVersionError: It was written by another generation of llmtier.
    """
    with read_errors(path):
        if not path.exists():
            return None
    document = read_document(path, artifact="calibration manifest", advice=BUILD_ADVICE)
    Decoder(_Document).decode(document, path=path)  # for its errors
    return Decoder(CalibrationManifest).decode(document, path=path)


def check_unchanged(file: Path, *, sha256: str | None = None) -> None:
    """Refuse a calibration or held-out file that differs from what the manifest beside it says.

    A file without a manifest, or that its manifest does not name, is the user's own and passes.

    Args:
        file: The ``.jsonl`` file.
        sha256: Its digest where it is known already.

    Raises:
        InputFileError: It was changed since it was built, or the manifest is malformed.
    """
    manifest = read_calibration_manifest(paths_of(file).manifest)
    split = next((split for split in manifest.splits if split.file == file.name), None) if manifest else None
    if split is not None and split.sha256 != (sha256 or file_sha256(file)):
        advice = "run 'llmtier calibration build' again, or remove its manifest if the change is meant"
        raise InputFileError(f"changed since it was built; {advice}", path=file)
