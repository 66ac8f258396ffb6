"""Exact token counts of documents, by the worker ``count_tokens`` in the ``quantize`` environment.

Each document is counted once, however often it is asked for. Without a model the build goes by estimates and needs none
of this.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmtier.core.errors import MachineError
from llmtier.quantize.calibration.spool import Documents
from llmtier.quantize.process import running_worker, worker_command
from llmtier.store.atomic import disk_errors

COUNT_TOKENS = worker_command("count_tokens")
ROWS_NAME = "tmp-counted.jsonl"  # one counter a folder; what a kill leaves, the next build removes


@dataclass
class TokenCounter:
    """Counts with one model's tokenizer and chat template.

    Attributes:
        model: Folder or hub id.
        python: Interpreter of the ``quantize`` environment.
        folder: Where rows are put for the worker.
        on_counted: Called with how many of how many rows are counted.
        is_plain_text: Whether messages were counted without a chat template.
    """

    model: str
    python: Path
    folder: Path
    on_counted: Callable[[int, int], None] = lambda _n_done, _n_total: None
    is_plain_text: bool = False
    _known: dict[int, int] = field(default_factory=dict)

    def count(self, documents: Documents, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of tokens of each document of ``indices``, uncut.

        Raises:
            InputFileError: The tokenizer cannot be loaded, or its chat template refuses a row.
            MachineError: The worker failed.
            DiskError: There is no room for the rows.
        """
        new = [int(index) for index in indices if int(index) not in self._known]
        if new:
            self._known.update(zip(new, self._ask(documents, new), strict=True))
        return np.array([self._known[int(index)] for index in indices], dtype=np.int64)

    def _ask(self, documents: Documents, indices: Sequence[int]) -> list[int]:
        rows = self.folder / ROWS_NAME
        try:
            with disk_errors(rows), rows.open("wb") as file:
                file.writelines(documents.lines(indices))
            counts = self._run(rows, n_rows=len(indices))
        finally:
            with suppress(OSError):  # goes away with its folder
                rows.unlink(missing_ok=True)
        if len(counts) != len(indices):
            raise MachineError(f"counting tokens ended after {len(counts)} of {len(indices)} rows; try again")
        return counts

    def _run(self, rows: Path, *, n_rows: int) -> list[int]:
        counts: list[int] = []
        job = {"model": self.model, "rows": str(rows), "label": "the calibration set"}
        with running_worker(job, python=self.python, worker=COUNT_TOKENS) as events:
            for event in events:
                if event["event"] == "counts":
                    counts += event["counts"]
                    self.on_counted(len(counts), n_rows)
                elif event["event"] == "counted":
                    self.is_plain_text = self.is_plain_text or event["is_plain_text"]
        return counts
