"""Digests of files and checkpoints."""

import hashlib

import pytest

from llmtier.core.errors import InputFileError
from llmtier.store.digests import checkpoint_digest, file_sha256, tree_sha256


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")

    assert hashlib.sha256(b"abc").hexdigest() == file_sha256(tmp_path / "a")


def test_absent_file_is_an_input_error(tmp_path):
    with pytest.raises(InputFileError, match="No such file"):
        file_sha256(tmp_path / "a")


def test_tree_digest_depends_on_names_and_contents_that_match(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1")
    before = tree_sha256(tmp_path, ["*.bin"])

    (tmp_path / "readme").write_bytes(b"2")
    same = tree_sha256(tmp_path, ["*.bin", "a*"])
    (tmp_path / "a.bin").rename(tmp_path / "b.bin")

    assert before == same
    assert before != tree_sha256(tmp_path, ["*.bin"])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"])
def test_checkpoint_digest_changes_with_what_changes_answers(tmp_path, name):
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_text("{}")
    before = checkpoint_digest(tmp_path)

    (tmp_path / "README.md").write_text("a card")
    (tmp_path / "llmtier.json").write_text("{}")
    same = checkpoint_digest(tmp_path)
    (tmp_path / name).write_text("{ }")

    assert before == same
    assert before != checkpoint_digest(tmp_path)


def test_folder_without_config_is_no_checkpoint(tmp_path):
    with pytest.raises(InputFileError, match=r"no config\.json"):
        checkpoint_digest(tmp_path)
