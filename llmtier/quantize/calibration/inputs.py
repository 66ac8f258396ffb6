"""The sources of a recipe as they lie on this machine, before anything is read of them.

Reads names and digests only. The digests tell whether a set that was built still is what a build would make, and which
sources an interrupted build has finished.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtier.core.errors import InputFileError
from llmtier.quantize.calibration.document import Shape
from llmtier.quantize.calibration.hub import is_pinned
from llmtier.store.calibration_paths import expand_home, read_errors
from llmtier.store.calibration_recipe import RecipeFile, Source
from llmtier.store.calibration_sources import files_sha256, source_files
from llmtier.store.digests import tree_sha256

SPOOL_VERSION = 1  # raised when documents or their numbers are made differently
TOKENIZER_PATTERNS = ("tokenizer*", "chat_template*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedSource:
    """One source.

    Attributes:
        source: What the recipe says of it.
        shape: How its rows become documents.
        files: What is read; empty for a dataset, whose rows are fetched first.
        folder: The local folder that a dataset is; ``None`` for files and hub ids.
        sha256: Of the files; ``None`` for a hub id.
        min_tokens: Shorter rows are left out.
    """

    source: Source
    shape: Shape
    files: tuple[Path, ...]
    folder: Path | None
    sha256: str | None
    min_tokens: int

    @property
    def is_dataset(self) -> bool:
        """Whether ``datasets`` reads it."""
        return self.source.dataset is not None

    @property
    def is_pinned(self) -> bool:
        """Whether its contents are known to be those of the last build without asking anybody."""
        return self.sha256 is not None or is_pinned(self.source)

    @property
    def fetch_key(self) -> str:
        """Name of the file that a dataset's rows are fetched into."""
        of_source = self.source.model_dump(mode="json", exclude={"domain"})
        return f"rows-{_digest({'source': of_source, 'sha256': self.sha256})}"

    @property
    def spool_key(self) -> str:
        """Name of its spool: all that its documents depend on."""
        shape = {**asdict(self.shape), "fields": self.shape.fields and self.shape.fields.model_dump()}
        of_rows = {"rows": self.fetch_key, "shape": shape, "min_tokens": self.min_tokens}
        return f"spool-{_digest({**of_rows, 'version': SPOOL_VERSION})}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerChoice:
    """Whose tokenizer counts.

    Attributes:
        label: As the recipe or the command line has it, which the manifest keeps.
        model: Folder, or hub id.
        sha256: Of its files; ``None`` for a hub id.
    """

    label: str
    model: str
    sha256: str | None


def locate_sources(file: RecipeFile) -> tuple[LocatedSource, ...]:
    """Find the sources of a recipe and digest their files.

    Raises:
        InputFileError: A file or folder is absent, cannot be read, or is of an unknown kind.
    """
    return tuple(_locate(file, source) for source in file.recipe.source)


def locate_tokenizer(file: RecipeFile, model: str | None) -> TokenizerChoice | None:
    """Return whose tokenizer counts: ``model`` or else the recipe's; ``None`` when neither is given.

    Raises:
        InputFileError: The folder holds no tokenizer, or cannot be read.
        ConfigError: It starts from the home of a user that does not exist.
    """
    label = model or file.recipe.model
    if label is None:
        return None
    folder = expand_home(label) if model else file.resolve(label)
    with read_errors(folder):
        if not folder.is_dir():
            return TokenizerChoice(label=label, model=label, sha256=None)
        if not any(folder.glob("tokenizer*")):
            raise InputFileError("holds no tokenizer; give the folder of a model, or leave 'model' out", path=folder)
        digest = tree_sha256(folder, TOKENIZER_PATTERNS)
    return TokenizerChoice(label=label, model=str(folder.absolute()), sha256=digest)


def _locate(file: RecipeFile, source: Source) -> LocatedSource:
    files: tuple[Path, ...] = ()
    folder = sha256 = None
    if source.path is not None:
        path = file.resolve(source.path)
        files = source_files(path)
        sha256 = files_sha256(path, files)
    elif source.dataset is not None:
        folder, sha256 = _find_folder(file.resolve(source.dataset))
    shape = Shape(
        domain=file.recipe.domain_of(source),
        fields=source.fields,
        template=source.template,
        system_prompt=file.system_prompt,
    )
    return LocatedSource(
        source=source,
        shape=shape,
        files=files,
        folder=folder,
        sha256=sha256,
        min_tokens=file.recipe.min_tokens,
    )


def _find_folder(path: Path) -> tuple[Path | None, str | None]:
    """Return the folder that a dataset is and its digest; ``None`` twice for a hub id."""
    with read_errors(path):
        if not path.is_dir():
            return None, None
        return path, files_sha256(path, sorted(entry for entry in path.rglob("*") if entry.is_file()))


def _digest(document: object) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
