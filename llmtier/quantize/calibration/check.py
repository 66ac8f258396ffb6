"""What can be said of a calibration set that lies there: its sizes, and whether it may be trusted.

Reads ``<name>.jsonl``, ``<name>.heldout.jsonl`` and the manifest where there is one; a bare ``.jsonl`` will do. Writes
nothing.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmtier.quantize.calibration.caution import small_set
from llmtier.quantize.calibration.document import estimate_tokens, full_text, own_text, unprompted_text
from llmtier.quantize.calibration.duplicates import DuplicateFinder
from llmtier.quantize.calibration.inspection import describe_system_prompt, phrase
from llmtier.quantize.calibration.outputs import describe_strata
from llmtier.quantize.calibration.scan import scan
from llmtier.store.calibration import find_calibration, read_calibration
from llmtier.store.calibration_manifest import (
    CalibrationManifest,
    SetPaths,
    Stratum,
    check_unchanged,
    paths_of,
    read_calibration_manifest,
)
from llmtier.store.calibration_paths import read_errors
from llmtier.store.jsonl import read_jsonl

SIMILARITY = 0.8  # a recipe's default
N_PLACES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What one file holds; tokens are estimates.

    Attributes:
        path: The file.
        rows_by_domain: Their number; ``-`` where a row names no domain.
        tokens_by_domain: Likewise.
        strata: Quartiles of length, shortest first.
        first_rows: The first few, as they are.
    """

    path: Path
    n_rows: int
    n_tokens: int
    rows_by_domain: dict[str, int]
    tokens_by_domain: dict[str, int]
    strata: tuple[Stratum, ...]
    first_rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a check found.

    Attributes:
        path: The calibration file.
        has_manifest: Whether there was one to hold the files against.
        n_rows: Of the calibration file; ``n_heldout_rows`` of the other, ``None`` when there is none.
        problems: Why the set should not be used.
        warnings: What people should look at.
        n_findings: Rows with what looks like a secret or personal data, the recipe's system prompt left aside.
        prompt_findings: What that prompt holds, a line for each kind; they are among the warnings.
    """

    path: Path
    has_manifest: bool
    n_rows: int
    n_heldout_rows: int | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    n_findings: int
    prompt_findings: tuple[str, ...]


def describe_file(path: Path, *, n_first_rows: int) -> FileFacts:
    """Return what a file of rows holds.

    Raises:
        InputFileError: It cannot be read, or a line is malformed.
    """
    read_calibration(path)  # for its errors
    rows: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    lengths: list[int] = []
    first: list[dict[str, Any]] = []
    for _, row in read_jsonl(path):
        domain = str(row.get("domain", "-"))
        lengths.append(estimate_tokens(full_text(row)))
        rows[domain] += 1
        tokens[domain] += lengths[-1]
        if len(first) < n_first_rows:
            first.append(row)
    return FileFacts(
        path=path,
        n_rows=len(lengths),
        n_tokens=sum(lengths),
        rows_by_domain=dict(rows),
        tokens_by_domain=dict(tokens),
        strata=describe_strata(np.array(lengths, dtype=np.int64)),
        first_rows=tuple(first),
    )


def check_set(path: Path) -> CheckResult:
    """Hold a set against its manifest and look into its rows.

    Args:
        path: The ``.jsonl`` file or the recipe; the held-out file means its set where both are there.

    Raises:
        InputFileError: A file is absent, malformed, or was changed since it was built.
    """
    file = _find_set(path)
    paths = paths_of(file)
    manifest = read_calibration_manifest(paths.manifest)
    rows = _read(file)
    heldout = None if file == paths.heldout else _read_heldout(paths, manifest)
    recipe = manifest.recipe if manifest else {}
    similarity = recipe.get("near_duplicate_similarity") or SIMILARITY
    n_within, n_across = _count_duplicates(rows, heldout or [], similarity=similarity)
    problems = [f"{n_across} held-out rows are (nearly) equal to rows of {file.name}: they prove nothing"] * (
        n_across > 0
    )
    warnings = [f"{n_within} rows of {file.name} are (nearly) equal to others in it"] * (n_within > 0)
    n_tokens = sum(estimate_tokens(full_text(row)) for row in rows)
    warnings += small_set(len(rows), n_tokens if manifest is None else manifest.calibration.n_tokens)
    prompt = recipe.get("system_prompt")
    named = [*_name_places(file, rows), *_name_places(paths.heldout, heldout or [])]
    n_findings, found = _find(named, system_prompt=prompt)
    of_prompt = describe_system_prompt(prompt)
    return CheckResult(
        path=file,
        has_manifest=manifest is not None,
        n_rows=len(rows),
        n_heldout_rows=None if heldout is None else len(heldout),
        problems=tuple(problems),
        warnings=(*warnings, *of_prompt, *found),
        n_findings=n_findings,
        prompt_findings=of_prompt,
    )


def _find_set(path: Path) -> Path:
    file = find_calibration(path)
    paths = paths_of(file)
    with read_errors(paths.calibration):
        return paths.calibration if file == paths.heldout and paths.calibration.exists() else file


def _read(path: Path) -> list[dict[str, Any]]:
    return list(read_calibration(path).rows)


def _read_heldout(paths: SetPaths, manifest: CalibrationManifest | None) -> list[dict[str, Any]] | None:
    """Return the held-out rows; ``None`` when the set has none. An empty file is one."""
    is_promised = manifest is not None and manifest.heldout is not None
    with read_errors(paths.heldout):
        is_there = paths.heldout.exists()
        is_empty = is_there and not paths.heldout.stat().st_size
    if not is_promised and not is_there:
        return None
    if is_empty:
        check_unchanged(paths.heldout)
        return []
    return _read(paths.heldout)


def _count_duplicates(
    rows: list[dict[str, Any]], heldout: list[dict[str, Any]], *, similarity: float
) -> tuple[int, int]:
    """Return how many calibration rows repeat an earlier one, and how many held-out rows repeat a calibration row."""
    finder = DuplicateFinder(similarity=similarity)
    finder.add([own_text(row) for row in (*rows, *heldout)])
    first = finder.find().first
    n_within = int((first[: len(rows)] != np.arange(len(rows))).sum())
    return n_within, int((first[len(rows) :] < len(rows)).sum())


def _name_places(file: Path, rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{file.name}:{number}", row) for number, row in enumerate(rows, start=1)]


def _find(rows: list[tuple[str, dict[str, Any]]], *, system_prompt: str | None) -> tuple[int, list[str]]:
    """Return how many rows hold secrets or personal data of their own, and a line for each kind."""
    places: dict[str, list[str]] = {}
    n_rows = 0
    for place, row in rows:
        found = scan(unprompted_text(row, system_prompt))
        masked = {finding.kind.value: finding.masked for finding in reversed(found)}
        n_rows += bool(masked)
        for kind, text in masked.items():
            places.setdefault(kind, []).append(f"{place} {text}")
    lines = [
        f"{len(of_kind)} rows hold what looks like {phrase(kind)} ({'; '.join(of_kind[:N_PLACES])})"
        for kind, of_kind in places.items()
    ]
    return n_rows, lines
