"""An embedder's manifest: round trip, and every way in which its files may not be what it says."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from llmtier.core.errors import InputFileError, SchemaVersionError
from llmtier.store.embedders import (
    MANIFEST_NAME,
    EmbedderManifest,
    digest_of_files,
    file_digests,
    read_embedder_manifest,
    write_embedder_manifest,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "embedder"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "tiny"))


def test_what_is_written_is_read_again(folder):
    manifest = dataclasses.replace(read_embedder_manifest(folder), max_tokens=3, agreement=None)
    write_embedder_manifest(folder, manifest)

    assert manifest == read_embedder_manifest(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_changed_file_is_refused(folder, name):
    with (folder / name).open("ab") as file:
        file.write(b" ")

    with pytest.raises(InputFileError, match=rf"{name}: was changed.*embedder export"):
        read_embedder_manifest(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_an_absent_file_is_refused(folder, name):
    (folder / name).unlink()

    with pytest.raises(InputFileError, match=rf"{name}: cannot be read"):
        read_embedder_manifest(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "0" * 64}, "digest is not that of its files"),
        ({"dimensions": 0}, "needs dimensions and tokens"),
        ({"dimensions": "many"}, "dimensions: "),
        ({"files": {"../secret": "0"}}, "no name of a file"),
        ({"files": {"model.onnx": "0"}}, "names no tokenizer.json"),
        ({"precision": "int4"}, "precision: "),
        ({"schema_version": None}, "no schema_version"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(folder, change, message):
    document = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**document, **change}))

    with pytest.raises(InputFileError, match=message):
        read_embedder_manifest(folder)


def test_another_generation_and_another_folder_are_refused(folder, tmp_path):
    document = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**document, "schema_version": 9}))

    with pytest.raises(SchemaVersionError, match="schema 9"):
        read_embedder_manifest(folder)
    with pytest.raises(InputFileError, match=r"is no embedder: it has no embedder\.json"):
        read_embedder_manifest(tmp_path)


def test_the_digest_depends_on_names_and_contents_and_not_on_their_order(folder):
    files = file_digests(folder)
    swapped = dict(zip(files, reversed(files.values()), strict=True))

    assert digest_of_files(files) == digest_of_files(dict(reversed(files.items())))
    assert digest_of_files(files) != digest_of_files(swapped)
    assert isinstance(read_embedder_manifest(folder), EmbedderManifest)
