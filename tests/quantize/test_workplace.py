"""The work folder: one run at a time, and what killed runs left."""

import errno
import subprocess
import sys

import pytest

from llmtier.core.errors import DiskError, UsageError
from llmtier.quantize import workplace as module
from llmtier.quantize.workplace import WORK_FOLDER, open_workplace, opened, tidy
from llmtier.store.atomic import beside


def test_second_run_waits_and_is_refused_while_the_first_goes_on(tmp_path):
    waited = []

    with (
        open_workplace(tmp_path, names=["m@int8"]),
        pytest.raises(UsageError, match="another llmtier quantize"),
        open_workplace(tmp_path, names=["m@int8"], sleep=waited.append),
    ):
        pass

    assert 10 <= sum(waited) <= 11


def test_whoever_inherited_the_open_folder_holds_the_lock_taken_on_it_later(tmp_path):
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    with opened(tmp_path) as descriptor:
        process = subprocess.Popen(sleeper, pass_fds=(descriptor,))
        with open_workplace(tmp_path, names=[], descriptor=descriptor):
            pass
    try:
        with pytest.raises(UsageError, match="another llmtier quantize"), open_workplace(tmp_path, names=[], wait_s=0):
            pass
    finally:
        process.kill()
        process.wait()

    with open_workplace(tmp_path, names=[], wait_s=0):
        pass


def test_half_written_folders_go_and_others_stay(tmp_path):
    for name in (".m@awq.0123abcd.tmp", ".m@awq-autoawq.0123abcd.tmp", ".n@awq.0123abcd.tmp"):
        (tmp_path / name).mkdir()

    with open_workplace(tmp_path, names=["m@awq"]):
        pass

    assert [".m@awq-autoawq.0123abcd.tmp", ".n@awq.0123abcd.tmp"] == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("is_replaced", [False, True])
def test_checkpoint_that_was_only_moved_aside_comes_back(tmp_path, is_replaced):
    old = tmp_path / ".m@awq.0123abcd.old"
    old.mkdir()
    (old / "config.json").write_text("old")
    if is_replaced:
        (tmp_path / "m@awq").mkdir()
        (tmp_path / "m@awq" / "config.json").write_text("new")

    with open_workplace(tmp_path, names=["m@awq"]):
        pass

    assert ["m@awq"] == [path.name for path in tmp_path.iterdir()]
    assert ("new" if is_replaced else "old") == (tmp_path / "m@awq" / "config.json").read_text()


def test_layers_of_an_unfinished_checkpoint_stay_on_success_and_all_stays_on_failure(tmp_path):
    with open_workplace(tmp_path, names=["m@awq"]) as workplace:
        workplace.scheme_folder("m@gptq").mkdir()
        workplace.scheme_folder("m@awq").mkdir()
        workplace.finish("m@awq")
    assert ["m@gptq"] == [path.name for path in (tmp_path / WORK_FOLDER).iterdir()]

    with pytest.raises(KeyboardInterrupt), open_workplace(tmp_path, names=["m@gptq"]) as workplace:  # noqa: PT012
        workplace.tokens({"seed": 1}).write_text("{}")
        raise KeyboardInterrupt
    assert 2 == len(list((tmp_path / WORK_FOLDER).iterdir()))


def test_file_system_without_locks_is_a_disk_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)

    with pytest.raises(DiskError, match="No locks available"), open_workplace(tmp_path, names=[]):
        pass


def test_names_with_signs_of_patterns_are_taken_as_they_are(tmp_path):
    for name in (".m[1]@awq.0123abcd.tmp", ".m1@awq.0123abcd.tmp"):
        (tmp_path / name).mkdir()

    with open_workplace(tmp_path, names=["m[1]@awq"]):
        pass

    assert [".m1@awq.0123abcd.tmp"] == [path.name for path in tmp_path.iterdir()]


def test_long_names_are_found_as_they_were_cut(tmp_path):
    name = "m" * 160 + "@awq"
    beside(tmp_path / name, "tmp").mkdir()
    old = beside(tmp_path / name, "old")
    old.mkdir()

    with open_workplace(tmp_path, names=[name]):
        pass

    assert [old] == list(tmp_path.iterdir())  # it may be another long name's


def test_tidying_waits_for_nobody(tmp_path):
    (tmp_path / ".m@awq.0123abcd.tmp").mkdir()

    with open_workplace(tmp_path, names=[]):
        tidy(tmp_path, names=["m@awq"])
    assert [".m@awq.0123abcd.tmp"] == [path.name for path in tmp_path.iterdir()]

    tidy(tmp_path, names=["m@awq"])
    assert [] == list(tmp_path.iterdir())
