"""The spool: every document of a source on disk, so that inputs may be larger than memory.

Writes ``<key>.jsonl`` (a document a line), ``<key>.npy`` (their numbers) and ``<key>.json`` (what was read), the last
of them when the source is finished: an interrupted build goes on with the next source. ``Documents`` is all of them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import DiskError, InputFileError
from llmtier.quantize.calibration.batch import RECORD, Batch, Records
from llmtier.quantize.calibration.document import own_text
from llmtier.store.atomic import disk_errors, write_json
from llmtier.store.documents import Decoder, parse_json

TEXTS_AT_ONCE = 4096
DECODE = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolFacts:
    """What was read of a source.

    Attributes:
        files: The files, in the order of ``RECORD``'s ``file``.
        n_rows: Rows read; likewise those left out.
        rows_by_finding: Rows that hold a secret or personal data, by kind.
    """

    files: tuple[str, ...]
    n_rows: int
    n_without_text: int
    n_too_short: int
    rows_by_finding: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spool:
    """A finished source."""

    lines: Path
    records: Records
    facts: SpoolFacts


def open_spool(folder: Path, key: str) -> Spool | None:
    """Return what an earlier build finished; ``None`` when there is nothing or it is not whole."""
    lines, records, facts = _paths(folder, key)
    if not facts.exists():
        return None
    try:
        found = Decoder(SpoolFacts).decode(parse_json(facts.read_text(encoding="utf-8")), path=facts)
        numbers = np.load(records)
        n_bytes = lines.stat().st_size
    except (OSError, ValueError, EOFError, InputFileError):  # cut short, or of another llmtier
        return None
    is_whole = numbers.dtype == RECORD and numbers["length"].sum() == n_bytes
    return Spool(lines=lines, records=numbers, facts=found) if is_whole else None


def write_spool(folder: Path, key: str, batches: Iterable[Batch]) -> Spool:
    """Write the documents of a source as they come.

    Raises:
        DiskError: The file system refused.
        InputFileError: What reading the batches raises.
    """
    lines, records, facts = _paths(folder, key)
    files: dict[Path, int] = {}
    counts: Counter[str] = Counter()
    findings: Counter[str] = Counter()
    numbers: list[Records] = []
    with disk_errors(facts):
        facts.unlink(missing_ok=True)
    with disk_errors(lines), lines.open("wb") as stream:
        for batch in batches:
            stream.write(batch.lines)
            batch.records["file"] = files.setdefault(batch.path, len(files))
            numbers.append(batch.records)
            counts.update(n_rows=batch.n_rows, n_without_text=batch.n_without_text, n_too_short=batch.n_too_short)
            findings.update(batch.rows_by_finding)
    found = SpoolFacts(
        files=tuple(map(str, files)),
        n_rows=counts["n_rows"],
        n_without_text=counts["n_without_text"],
        n_too_short=counts["n_too_short"],
        rows_by_finding=dict(findings),
    )
    spool = Spool(lines=lines, records=np.concatenate([np.empty(0, RECORD), *numbers]), facts=found)
    with disk_errors(records):
        np.save(records, spool.records)
    write_json(facts, asdict(found))
    return spool


@dataclass(frozen=True)
class Documents:
    """The documents of all sources, numbered from 0 in the order of the recipe.

    Attributes:
        spools: One a source.
        domains: Number of each source's domain.
    """

    spools: tuple[Spool, ...]
    domains: tuple[int, ...]

    @cached_property
    def records(self) -> Records:
        """Numbers of each document, (n_documents,) of ``RECORD``."""
        return np.concatenate([np.empty(0, RECORD), *(spool.records for spool in self.spools)])

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """Source of each document."""
        return np.repeat(np.arange(len(self.spools)), [len(spool.records) for spool in self.spools])

    @cached_property
    def domain(self) -> NDArray[np.int64]:
        """Domain of each document."""
        return np.array(self.domains, dtype=np.int64)[self.sources]

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        """Where each document begins in its spool."""
        ends = [np.cumsum(spool.records["length"]) for spool in self.spools]
        starts = [end - spool.records["length"] for end, spool in zip(ends, self.spools, strict=True)]
        return np.concatenate([np.empty(0, np.int64), *starts])

    def texts(self) -> Iterator[list[str]]:
        """Yield what sets each document apart, some at a time, in order.

        Raises:
            DiskError: A spool cannot be read.
        """
        held: list[str] = []
        for line in chain.from_iterable(map(_read_lines, self.spools)):
            held.append(own_text(DECODE(line)))
            if len(held) >= TEXTS_AT_ONCE:
                yield held
                held = []
        if held:
            yield held

    def lines(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[bytes]:
        """Yield the lines of some documents, in the order of ``indices``.

        Raises:
            DiskError: A spool cannot be read.
        """
        streams: dict[int, IO[bytes]] = {}
        try:
            for index in indices:
                source = int(self.sources[index])
                with _read_errors(self.spools[source]):
                    stream = streams.get(source) or streams.setdefault(source, self.spools[source].lines.open("rb"))
                    stream.seek(int(self._offsets[index]))
                    line = stream.read(int(self.records["length"][index]))
                yield line
        finally:
            for stream in streams.values():
                stream.close()

    def place(self, index: int) -> str:
        """Return where a document comes from: file name and line or row."""
        record, facts = self.records[index], self.spools[int(self.sources[index])].facts
        return f"{Path(facts.files[int(record['file'])]).name}:{int(record['number'])}"


def decode_line(line: bytes) -> dict[str, Any]:
    """Return a document from its line."""
    document: dict[str, Any] = json.loads(line)
    return document


def _read_lines(spool: Spool) -> Iterator[bytes]:
    with _read_errors(spool), spool.lines.open("rb") as stream:
        yield from stream


@contextmanager
def _read_errors(spool: Spool) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or exc
        raise DiskError(f"cannot read {spool.lines}: {reason}; remove {spool.lines.parent} and build again") from exc


def _paths(folder: Path, key: str) -> tuple[Path, Path, Path]:
    return folder / f"{key}.jsonl", folder / f"{key}.npy", folder / f"{key}.json"
