"""The first half of a build: every source read, scanned and spooled, then compared for duplicates.

Reads the sources, those of the hub through a worker; writes spools into the work folder. A source whose spool is whole
is not read again.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llmtier.core.errors import InputFileError
from llmtier.quantize.calibration.batch import Batch, make_batch, peak_memory_bytes
from llmtier.quantize.calibration.duplicates import DuplicateFinder, Duplicates
from llmtier.quantize.calibration.hub import fetch_rows
from llmtier.quantize.calibration.inputs import LocatedSource
from llmtier.quantize.calibration.pool import map_in_order
from llmtier.quantize.calibration.spool import Documents, Spool, open_spool, write_spool
from llmtier.quantize.calibration.steps import BuildStep, OnStep, Phase
from llmtier.store.calibration_recipe import Recipe
from llmtier.store.calibration_sources import no_text_advice, read_chunks


@dataclass(kw_only=True)
class Gatherer:
    """Reads the sources of one build.

    Attributes:
        work: The work folder.
        python: Gives the interpreter of the ``quantize`` environment; called only when a dataset is fetched.
        on_step: Called as the work goes on.
        n_processes: How many read and scan a large source.
        revisions: Commits of the sources read so far; ``None`` for files.
    """

    work: Path
    python: Callable[[], Path]
    on_step: OnStep
    n_processes: int
    revisions: list[str | None] = field(default_factory=list)
    _peaks: dict[int, int] = field(default_factory=dict)

    def gather(self, recipe: Recipe, sources: tuple[LocatedSource, ...]) -> Documents:
        """Return the documents of all sources.

        Raises:
            InputFileError: A source is malformed or holds no text.
            MachineError: The hub, the disk or a process failed.
        """
        spools = tuple(self._spool(source) for source in sources)
        return Documents(spools, tuple(recipe.domains.index(source.shape.domain) for source in sources))

    @property
    def peak_memory_bytes(self) -> int | None:
        """Upper bound of what this process and its readers held at once; ``None`` where the system does not tell."""
        own = peak_memory_bytes()
        return None if own is None else own + sum(self._peaks.values())

    def _spool(self, source: LocatedSource) -> Spool:
        files, revision = source.files, None
        if source.is_dataset:
            rows = self._fetch(source)
            files, revision = (rows[0],), rows[1]
        self.revisions.append(revision)
        label = source.source.label
        spool = open_spool(self.work, source.spool_key)
        if spool is not None:
            self.on_step(BuildStep(phase=Phase.NOTE, label=f"{label}: {spool.facts.n_rows} rows of an earlier build"))
            return spool
        spool = write_spool(self.work, source.spool_key, self._batches(source, files))
        if not spool.facts.n_rows:
            raise InputFileError("holds no rows", path=label)
        if spool.facts.n_without_text == spool.facts.n_rows:
            raise InputFileError(no_text_advice(files), path=label)
        return spool

    def _fetch(self, source: LocatedSource) -> tuple[Path, str | None]:
        def tell(n_rows: int) -> None:
            step = BuildStep(phase=Phase.FETCH, label=source.source.label, n_done=n_rows, n_total=source.source.limit)
            self.on_step(step)

        out = self.work / f"{source.fetch_key}.jsonl"
        rows = fetch_rows(source.source, folder=source.folder, out=out, python=self.python, on_rows=tell)
        return rows.path, rows.revision

    def _batches(self, source: LocatedSource, files: tuple[Path, ...]) -> Iterator[Batch]:
        n_rows = 0
        work = partial(make_batch, shape=source.shape, min_tokens=source.min_tokens)
        chunks = read_chunks(files, limit=source.source.limit)
        for batch in map_in_order(work, chunks, n_processes=self.n_processes):
            n_rows += batch.n_rows
            self.on_step(BuildStep(phase=Phase.READ, label=source.source.label, n_done=n_rows))
            pid, peak = batch.process
            if peak is not None and pid != os.getpid():
                self._peaks[pid] = peak
            yield batch


def find_duplicates(documents: Documents, *, similarity: float, on_step: OnStep) -> Duplicates:
    """Compare all documents, whatever their source and domain."""
    finder, n_done, n_total = DuplicateFinder(similarity=similarity), 0, len(documents.records)
    for texts in documents.texts():
        finder.add(texts)
        n_done += len(texts)
        on_step(BuildStep(phase=Phase.COMPARE, label="documents", n_done=n_done, n_total=n_total))
    return finder.find()
