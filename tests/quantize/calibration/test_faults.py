"""A file system that refuses, and names that nothing can be called: one error each, with the exit code that it deserves."""

import errno
import fcntl
import json
import os
import shutil
import sys

import pytest

from llmtier.core.errors import ConfigError, DiskError, InputFileError, LlmtierError
from llmtier.quantize.calibration import tokens, workfolder
from llmtier.quantize.calibration.spool import Documents, write_spool
from llmtier.quantize.calibration.tokens import TokenCounter
from llmtier.quantize.calibration.workfolder import locked_work, work_folder
from llmtier.store.calibration_manifest import SetPaths
from tests.quantize.calibration.conftest import write_rows
from tests.quantize.calibration.test_batch import make_batches

LONG = "a" * 250


@pytest.fixture
def documents(tmp_path):
    return Documents((write_spool(tmp_path, "spool", make_batches(tmp_path, [{"text": "some words"}])),), (0,))


def refuse(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_no_room_for_the_rows_to_count_is_a_disk_error(documents, tmp_path, monkeypatch):
    monkeypatch.setattr(Documents, "lines", refuse(errno.ENOSPC))
    counter = TokenCounter("org/name", tmp_path, tmp_path)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(DiskError, match="No space left on device; free some space"):
        counter.count(documents, documents.sources)
    assert before == sorted(tmp_path.iterdir())


def test_no_folder_for_the_rows_to_count_is_a_disk_error(documents, tmp_path):
    with pytest.raises(DiskError, match="No such file or directory"):
        TokenCounter("org/name", tmp_path, tmp_path / "gone").count(documents, documents.sources)


def test_counted_rows_are_gone_afterwards(documents, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(
        'import json, sys\nprint(json.dumps({"event": "counts", "counts": '
        '[len(open(json.loads(sys.argv[1])["rows"]).readlines())]}))\n'
    )
    monkeypatch.setattr(tokens, "COUNT_TOKENS", (str(worker),))
    before = sorted(tmp_path.iterdir())

    assert [1] == TokenCounter("org/name", sys.executable, tmp_path).count(documents, documents.sources).tolist()
    assert before == sorted(tmp_path.iterdir())


def test_spool_that_vanished_is_a_disk_error(documents):
    documents.spools[0].lines.unlink()

    with pytest.raises(DiskError, match=r"spool\.jsonl: No such file"):
        list(documents.texts())
    with pytest.raises(DiskError, match=r"spool\.jsonl: No such file"):
        list(documents.lines([0]))


def test_file_system_without_locks_is_a_disk_error(recipe, make, monkeypatch):
    monkeypatch.setattr(workfolder.fcntl, "flock", refuse(errno.ENOLCK))

    with pytest.raises(DiskError, match="No locks available"):
        make(recipe)


def test_work_folder_that_another_build_just_removed_is_made_again(tmp_path, monkeypatch):
    paths, flock, n_calls = SetPaths(tmp_path, "a"), fcntl.flock, []

    def lock(*arguments):
        if not n_calls:
            shutil.rmtree(work_folder(paths))
        n_calls.append(1)
        flock(*arguments)

    monkeypatch.setattr(workfolder.fcntl, "flock", lock)
    with locked_work(paths) as folder:
        assert folder.is_dir()


def test_folder_in_the_place_of_a_file_is_one_of_our_errors(recipe, make):
    recipe.write_text("heldout_share = 0\n" + recipe.read_text())
    (recipe.with_name("support.heldout.jsonl") / "x").mkdir(parents=True)

    with pytest.raises(DiskError, match=r"support\.heldout\.jsonl"):
        make(recipe, force=True)


def test_folder_among_the_leftovers_is_one_of_our_errors(recipe, make):
    (work_folder(SetPaths(recipe.parent, "support")) / "tmp-x").mkdir(parents=True)

    with pytest.raises(DiskError, match="tmp-x"):
        make(recipe)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('name = "support"', f'name = "{LONG}"', LlmtierError),
        ("sources/general.jsonl", f"{LONG}{LONG}.jsonl", InputFileError),
        ("sources/general.jsonl", "~nobody-of-this-name/a.jsonl", ConfigError),
        ('path = "sources/general.jsonl"', f'dataset = "{LONG}{LONG}"', InputFileError),
        ('path = "sources/general.jsonl"', 'dataset = "~nobody-of-this-name/a"', ConfigError),
        ('system_prompt = "You help."', 'system_prompt_file = "~nobody-of-this-name/a"', ConfigError),
        ('system_prompt = "You help."', f'model = "{LONG}{LONG}"', InputFileError),
        ('system_prompt = "You help."', f"x = {'[' * 5000}", ConfigError),
    ],
)
def test_name_that_cannot_be_is_one_of_our_errors(recipe, make, old, new, error):
    recipe.write_text(recipe.read_text().replace(old, new))

    with pytest.raises(error):
        make(recipe)


def test_half_a_surrogate_pair_in_an_array_is_refused_as_in_lines(recipe, make):
    source = recipe.parent / "sources" / "general.json"
    source.write_text(json.dumps([{"text": "good words in a row"}, {"text": "bad words \ud800 in a row"}]))
    recipe.write_text(recipe.read_text().replace("general.jsonl", "general.json"))

    with pytest.raises(InputFileError, match=r"general\.json: element 2: .*surrogate"):
        make(recipe)


def test_log_row_of_another_kind_is_an_input_error(recipe, make):
    write_rows(recipe.parent / "sources" / "general.jsonl", [{"messages_json": 5, "request_id": "a"}])

    with pytest.raises(InputFileError, match=r"general\.jsonl:1"):
        make(recipe)
