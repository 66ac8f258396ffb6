"""Calibration sets: the domain texts that quantization measures activations on.

Reads ``<domain>.jsonl`` with ``{"messages": [...]}`` or ``{"text": "..."}`` per line; writes nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from llmtier.core.errors import InputFileError
from llmtier.store.digests import file_sha256
from llmtier.store.documents import Decoder
from llmtier.store.jsonl import read_jsonl
from llmtier.store.parquet import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """Texts of one domain.

    Attributes:
        rows: Each ``{"messages": [{"role", "content"}, ...]}`` or ``{"text": str}``.
        sha256: Of the file.
        path: The file.
    """

    rows: tuple[Row, ...]
    sha256: str
    path: Path


class _Turn(BaseModel):
    role: str = Field(min_length=1)
    content: str


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore")

    messages: list[_Turn] | None = Field(default=None, min_length=1)
    text: str | None = Field(default=None, min_length=1)


def read_calibration(path: Path) -> CalibrationSet:
    """Read a calibration set.

    Raises:
        InputFileError: The file is absent or empty, or a line is neither of the two forms; names file and line.
    """
    decoder = Decoder(_Line)
    rows = []
    for number, row in read_jsonl(path):
        line = decoder.decode(row, path=path, line=number)
        if (line.messages is None) == (line.text is None):
            raise InputFileError("expected either 'messages' or 'text'", path=path, line=number)
        rows.append(line.model_dump(exclude_none=True))
    return CalibrationSet(rows=tuple(rows), sha256=file_sha256(path), path=path)
