"""The worker that counts the tokens of calibration rows exactly as the quantizer will see them.

    python -I bootstrap.py llmtier.quantize.worker.count_tokens '{"model": "...", "rows": "rows.jsonl", "label": "..."}'

Reads the rows (JSON lines) and the model's tokenizer; reports ``counts`` (some rows at a time, in order) and, at the
end, ``counted`` with whether messages went without a chat template. Cuts nothing.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtier.quantize.worker.fetch_model import DENIED, DISK, GATED, HIDDEN, HUB_ERROR, UNREACHABLE, reason_of
from llmtier.quantize.worker.report import Report, WorkerError, run_worker
from llmtier.quantize.worker.tokens import line_offsets, read_row, row_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_AT_ONCE = 200
KINDS = {**dict.fromkeys((HIDDEN, GATED, DENIED, UNREACHABLE, HUB_ERROR), "machine"), DISK: "disk"}
"""Whose fault it is when the hub does not hand a tokenizer out; of all else, the input's."""


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a model.

    Raises:
        WorkerError: It cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise WorkerError(f"{model}: its tokenizer cannot be loaded: {reason}", kind=kind_of(error)) from error
    return tokenizer


def kind_of(error: BaseException) -> str:
    """Return the ``kind`` of an error, which transformers may have wrapped around one of the hub library's."""
    cause: BaseException | None = error
    while cause is not None:
        reason = reason_of(cause) if isinstance(cause, Exception) else None
        if reason is not None:
            return KINDS.get(reason, "input")
        cause = cause.__cause__ or cause.__context__
    return "input"


def read_all(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every row of a file."""
    with path.open("rb") as file:
        for offset in line_offsets(path):
            yield read_row(file, offset)


def run(job: dict[str, Any], report: Report) -> None:
    """Do the job."""
    tokenizer = load_tokenizer(job["model"])
    rows, has_messages = read_all(Path(job["rows"])), False
    while some := list(islice(rows, ROWS_AT_ONCE)):
        has_messages = has_messages or any("messages" in row for row in some)
        report("counts", counts=[len(row_ids(tokenizer, row, path=job["label"])) for row in some])
    report("counted", is_plain_text=has_messages and tokenizer.chat_template is None)


if __name__ == "__main__":
    run_worker(run)
