"""Calibration sets: the domain texts that quantization measures activations on.

Reads ``<domain>.jsonl`` with ``{"messages": [...]}`` or ``{"text": "..."}`` per line, or what was built from the recipe
``<domain>.toml``, and holds it against the manifest beside it; writes nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from llmtier.core.errors import InputFileError
from llmtier.store.calibration_manifest import SetPaths, check_unchanged
from llmtier.store.calibration_paths import read_errors
from llmtier.store.calibration_recipe import read_recipe
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

    Args:
        path: The ``.jsonl`` file, or the ``.toml`` recipe that it was built from.

    Raises:
        InputFileError: The file is absent or empty, a line is neither of the two forms (names file and line), a recipe
            was not built yet, or the file changed since it was built.
        ConfigError: The recipe is malformed.
    """
    file = find_calibration(path)
    decoder = Decoder(_Line)
    rows = []
    for number, row in read_jsonl(file):
        line = decoder.decode(row, path=file, line=number)
        if (line.messages is None) == (line.text is None):
            raise InputFileError("expected either 'messages' or 'text'", path=file, line=number)
        rows.append(line.model_dump(exclude_none=True, include={"messages", "text"}))
    sha256 = file_sha256(file)
    check_unchanged(file, sha256=sha256)
    return CalibrationSet(rows=tuple(rows), sha256=sha256, path=file)


def find_calibration(path: Path) -> Path:
    """Return the ``.jsonl`` file that ``path`` means: itself, or what was built beside a recipe.

    Raises:
        InputFileError: The recipe was not built, or was built elsewhere.
        ConfigError: The recipe is malformed.
    """
    if path.suffix.lower() != ".toml":
        return path
    file = SetPaths(path.parent, read_recipe(path).recipe.name).calibration
    with read_errors(file):
        is_built = file.exists()
    if not is_built:
        raise InputFileError(f"{file.name} was not built yet; run 'llmtier calibration build {path}'", path=path)
    return file
