"""What the build keeps of some rows: their documents as bytes, and a few numbers of each.

Pure; runs in the processes of ``pool``. Documents that hold no text or too little of it are counted and left out.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import InputFileError
from llmtier.quantize.calibration.document import Shape, estimate_tokens, full_text, own_text, unprompted_text
from llmtier.quantize.calibration.scan import scan
from llmtier.store.calibration_sources import Chunk
from llmtier.store.jsonl import format_line

RECORD = np.dtype(
    [
        ("length", np.int64),  # bytes of the spooled line
        ("tokens", np.int64),  # estimated
        ("key", np.uint64),  # of the document's own text
        ("number", np.int64),  # line or row in its file
        ("file", np.int32),
        ("has_finding", np.bool_),
    ]
)
"""The numbers of one document."""

Records = NDArray[np.void]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The documents of one chunk.

    Attributes:
        lines: One line of JSON a document, with its line feed.
        records: (n_documents,) of ``RECORD``; ``file`` is yet to be set.
        path: The file that they come from.
        n_rows: Rows of the chunk, those left out included.
        n_without_text: Rows left out because they hold no text.
        n_too_short: Rows left out because they hold too little.
        rows_by_finding: Rows that hold a secret or personal data, by kind.
        process: Who made it: process id and its highest resident memory so far; ``None`` when not known.
    """

    lines: bytes
    records: Records
    path: Path
    n_rows: int
    n_without_text: int
    n_too_short: int
    rows_by_finding: Mapping[str, int] = field(default_factory=dict)
    process: tuple[int, int | None] = (0, None)


def make_batch(chunk: Chunk, *, shape: Shape, min_tokens: int) -> Batch:
    """Turn a chunk's rows into documents.

    Raises:
        InputFileError: A row is malformed; names file and line.
    """
    lines: list[bytes] = []
    records: list[tuple[int, int, int, int, int, bool]] = []
    findings: Counter[str] = Counter()
    n_without_text = n_too_short = 0
    for number, row in chunk.parse():
        document = None if row is None else to_document(shape, row, path=chunk.path, number=number)
        if document is None:
            n_without_text += 1
            continue
        text, own = full_text(document), own_text(document)
        if not own.strip() or estimate_tokens(own) < min_tokens:
            n_too_short += 1
            continue
        kinds = {finding.kind.value for finding in scan(unprompted_text(document, shape.system_prompt))}
        findings.update(kinds)
        line = format_line(document).encode()
        lines.append(line)
        records.append((len(line), estimate_tokens(text), key_of(own), number, 0, bool(kinds)))
    return Batch(
        lines=b"".join(lines),
        records=np.array(records, dtype=RECORD),
        path=chunk.path,
        n_rows=len(chunk.rows),
        n_without_text=n_without_text,
        n_too_short=n_too_short,
        rows_by_finding=dict(findings),
        process=(os.getpid(), peak_memory_bytes()),
    )


def to_document(shape: Shape, row: Mapping[str, object], *, path: Path, number: int) -> dict[str, object] | None:
    """Do the work of ``Shape.to_document``.

    Raises:
        InputFileError: The row is malformed; names file and line.
    """
    try:
        return shape.to_document(row)
    except ValueError as exc:
        raise InputFileError(str(exc), path=path, line=number) from exc


def key_of(text: str) -> int:
    """Return 64 bits that stand for a text wherever it lies."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def peak_memory_bytes() -> int | None:
    """Return this process's highest resident memory; ``None`` where the system does not tell.

    Not ``getrusage``: what a forked process inherits counts there, too.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024
