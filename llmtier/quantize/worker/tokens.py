"""Calibration rows to token ids, and ids to batches: sampled, rendered and cut by us, never by a library.

Reads the calibration file (JSON lines) and the model's tokenizer; keeps the ids in a file of the work folder, so that
a resumed run tokenizes nothing again. llm-compressor's own loader would sample without a seed, cut rows to the
shortest of a batch and put a second BOS before what a chat template has rendered.
"""

import hashlib
import json
import os
import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtier.quantize.worker.report import Report, WorkerError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

PLAIN_TEXT_NOTE = "no chat template: messages are calibrated on as plain text, which the model may never see in service"


@dataclass(frozen=True, slots=True)
class Samples:
    """Token ids of the calibration rows.

    Attributes:
        ids: One list a row, none empty.
        n_cut: Rows that were longer than allowed.
        is_plain_text: Whether messages were rendered without a chat template.
    """

    ids: list[list[int]]
    n_cut: int
    is_plain_text: bool

    @property
    def n_tokens(self) -> int:
        """Ids of all rows together."""
        return sum(map(len, self.ids))

    @property
    def sha256(self) -> str:
        """Of the ids, hex."""
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()


def read_rows(path: Path, *, n_samples: int, seed: int) -> list[dict[str, Any]]:
    """Return at most ``n_samples`` calibration rows, drawn by ``seed``, in the file's order."""
    offsets = line_offsets(path)
    chosen = sorted(random.Random(seed).sample(range(len(offsets)), min(n_samples, len(offsets))))  # noqa: S311
    with path.open("rb") as file:
        return [read_row(file, offsets[index]) for index in chosen]


def line_offsets(path: Path) -> list[int]:
    """Return where each line that is not blank begins, in bytes."""
    offsets, position = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return offsets


def read_row(file: Any, offset: int) -> dict[str, Any]:  # noqa: ANN401 - a binary file
    """Return the row whose line begins at ``offset``."""
    file.seek(offset)
    row: dict[str, Any] = json.loads(file.readline())
    return row


def render(tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any]) -> tuple[str, bool]:
    """Return a row's text, and whether it already holds the special tokens of a chat template."""
    if "messages" not in row:
        return row["text"], False
    if tokenizer.chat_template is None:
        return "\n".join(message["content"] for message in row["messages"]), False
    return tokenizer.apply_chat_template(row["messages"], tokenize=False), True


def token_ids(tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any]) -> list[int]:
    """Return the ids of one row with exactly one BOS where the tokenizer or the template brings one."""
    text, is_templated = render(tokenizer, row)
    ids = list(tokenizer(text, add_special_tokens=not is_templated)["input_ids"])
    is_doubled = tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2
    return ids[1:] if is_doubled else ids


def tokenize(job: dict[str, Any]) -> Samples:
    """Tokenize the rows that the job's seed draws, each cut to ``max_seq_tokens``.

    Raises:
        WorkerError: The tokenizer cannot be loaded or refuses a row, or no row holds a token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(job["model"])
    except (OSError, ValueError, KeyError) as error:
        raise WorkerError(f"{job['model']}: its tokenizer cannot be loaded: {error}", kind="input") from error
    rows = read_rows(Path(job["calibration"]), n_samples=job["n_samples"], seed=job["seed"])
    full = [ids for ids in (row_ids(tokenizer, row, path=job["calibration"]) for row in rows) if ids]
    if not full:
        raise WorkerError(f"{job['calibration']}: no row holds a token", kind="input")
    limit = job["max_seq_tokens"]
    is_plain_text = tokenizer.chat_template is None and any("messages" in row for row in rows)
    return Samples([ids[:limit] for ids in full], sum(len(ids) > limit for ids in full), is_plain_text)


def row_ids(tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], *, path: str) -> list[int]:
    """Return ``token_ids``; a chat template that cannot take the row's roles is told as such.

    Raises:
        WorkerError: The template refuses the row.
    """
    from jinja2 import TemplateError

    try:
        return token_ids(tokenizer, row)
    except TemplateError as error:
        start = json.dumps(row, ensure_ascii=False)[:120]
        raise WorkerError(f"{path}: the chat template refuses a row ({error}): {start}", kind="input") from error


def load_samples(job: dict[str, Any], *, report: Report) -> Samples:
    """Return the samples of an earlier run where its file is there, otherwise tokenize and keep them.

    The file's name is a digest of all that the ids depend on but the library, whose version lies in it.
    """
    path = Path(job["tokens"])
    made_by = f"transformers {version('transformers')}, tokenizers {version('tokenizers')}"
    samples = read_kept(path, made_by)
    if samples is None:
        samples = tokenize(job)
        facts = {"n_cut": samples.n_cut, "is_plain_text": samples.is_plain_text}
        write_whole(path, json.dumps({"made_by": made_by, **facts, "ids": samples.ids}))
    if samples.is_plain_text:
        report("note", message=PLAIN_TEXT_NOTE)
    return samples


def read_kept(path: Path, made_by: str) -> Samples | None:
    """Return the samples of an earlier run; ``None`` when there are none, of these libraries, in one piece."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        samples = Samples(kept["ids"], kept["n_cut"], kept["is_plain_text"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return samples if kept["made_by"] == made_by else None


def write_whole(path: Path, text: str) -> None:
    """Write a file that is either whole or absent."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def equal_length_batches(samples: list[list[int]], *, max_tokens: int) -> list[list[list[int]]]:
    """Put samples of one length together, at most ``max_tokens`` a batch: nothing is padded, nothing is cut.

    AWQ runs each layer some twenty times over every batch; short chats are several times faster so.
    """
    batches: list[list[list[int]]] = []
    for ids in sorted(samples, key=len):
        last = batches[-1] if batches else []
        if last and len(last[0]) == len(ids) and (len(last) + 1) * len(ids) <= max_tokens:
            last.append(ids)
        else:
            batches.append([ids])
    return batches


def make_loader(samples: list[list[int]], *, max_tokens: int) -> "torch.utils.data.DataLoader[dict[str, torch.Tensor]]":
    """Return batches of shape (n_samples, n_tokens), in order; a loader of ours is taken as it is."""
    import torch

    tensors = [torch.tensor(batch) for batch in equal_length_batches(samples, max_tokens=max_tokens)]
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tensors]
    return torch.utils.data.DataLoader(rows, batch_size=1, shuffle=False, collate_fn=lambda one: one[0])
