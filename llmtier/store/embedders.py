"""Embedders on disk: an ONNX model, its tokenizer and the manifest ``embedder.json``.

Reads and writes the manifest and digests the files it names; runs no model. ``llmtier embedder export`` makes such a
folder, manifest last; ``engine/embedder.py`` runs one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from llmtier.core.errors import InputFileError
from llmtier.store.atomic import write_json
from llmtier.store.digests import file_sha256
from llmtier.store.documents import SCHEMA_VERSION, Decoder, read_document

MANIFEST_NAME = "embedder.json"
MODEL_NAME = "model.onnx"
TOKENIZER_NAME = "tokenizer.json"
_ADVICE = "export the model again with 'llmtier embedder export'"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderManifest:
    """What an embedder's folder holds.

    Attributes:
        name: Of the model it was made from.
        digest: sha256 over names and digests of its files, hex: scorers and policies are bound to it.
        dimensions: Of an embedding.
        max_tokens: Longer texts are cut to this, special tokens counted.
        pooling: How token vectors become one, done inside the model: ``mean``, ``cls``, ``max`` or ``lasttoken``.
        is_normalised: Whether embeddings have unit norm, done inside the model.
        precision: Of the weights.
        inputs: Names of the model's inputs, in its order.
        files: File name to sha256, hex.
        agreement: Least cosine with the original over the trial texts; ``None`` when not measured.
        versions: Library to version, of what made it.
        schema_version: Of the manifest's format.

    Raises:
        ValueError: Dimensions or tokens are not positive, or a file's name leads out of the folder.
    """

    name: str
    digest: str
    dimensions: int
    max_tokens: int
    pooling: str
    is_normalised: bool
    precision: Literal["fp32", "int8"]
    inputs: tuple[str, ...]
    files: Mapping[str, str]
    agreement: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.dimensions < 1 or self.max_tokens < 1:
            raise ValueError(f"embedder: needs dimensions and tokens, got {self.dimensions} and {self.max_tokens}")
        foreign = [name for name in self.files if Path(name).name != name]
        if foreign:
            raise ValueError(f"embedder: {foreign[0]!r} is no name of a file in its folder")


def write_embedder_manifest(directory: Path, manifest: EmbedderManifest) -> None:
    """Write ``embedder.json``.

    Raises:
        DiskError: The file system refused.
    """
    write_json(directory / MANIFEST_NAME, asdict(manifest))


def read_embedder_manifest(directory: Path) -> EmbedderManifest:
    """Read ``embedder.json`` and check every file it names against its digest.

    Raises:
        InputFileError: There is none, it is malformed, or a file is absent or was changed.
        SchemaVersionError: Another generation of llmtier wrote it.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise InputFileError(f"is no embedder: it has no {MANIFEST_NAME}; {_ADVICE}", path=directory)
    document = read_document(path, artifact="embedder manifest", advice=_ADVICE)
    manifest = Decoder(EmbedderManifest).decode(document, path=path)
    absent = {MODEL_NAME, TOKENIZER_NAME} - set(manifest.files)
    if absent:
        raise InputFileError(f"names no {min(absent)}; {_ADVICE}", path=path)
    for name, expected in manifest.files.items():
        if file_sha256(directory / name) != expected:
            raise InputFileError(f"was changed since it was exported; {_ADVICE}", path=directory / name)
    if digest_of_files(manifest.files) != manifest.digest:
        raise InputFileError(f"its digest is not that of its files; {_ADVICE}", path=path)
    return manifest


def file_digests(directory: Path) -> dict[str, str]:
    """Return name to sha256 of the files an embedder consists of.

    Raises:
        InputFileError: One cannot be read.
    """
    return {name: file_sha256(directory / name) for name in (MODEL_NAME, TOKENIZER_NAME)}


def digest_of_files(files: Mapping[str, str]) -> str:
    """Return one sha256 over names and digests, whatever their order."""
    return hashlib.sha256("".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()).hexdigest()
