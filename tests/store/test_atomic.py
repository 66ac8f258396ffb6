"""Atomic writes: whole or not at all."""

import errno
import json
import os
import stat

import pytest

from llmtier.core.errors import DiskError, UsageError
from llmtier.store.atomic import replace_directory, staged_directory, write_bytes, write_json, write_text


def test_write_makes_missing_folders_and_leaves_no_temporary(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "é")

    assert ["b.txt"] == [path.name for path in (tmp_path / "a").iterdir()]
    assert "é".encode() == (tmp_path / "a" / "b.txt").read_bytes()


def test_write_obeys_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(old)

    assert 0o640 == stat.S_IMODE((tmp_path / "a").stat().st_mode)


@pytest.mark.parametrize("call", ["write", "replace"])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, fill_disk, call):
    path = tmp_path / "policy.json"
    path.write_bytes(b"old")
    fill_disk(call)

    with pytest.raises(DiskError, match=r"cannot write .*policy\.json: No space left on device; free some space"):
        write_bytes(path, b"new")

    assert b"old" == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_short_writes_of_the_system_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))

    write_bytes(tmp_path / "a", b"0123456789")

    assert b"0123456789" == (tmp_path / "a").read_bytes()


def test_folder_in_the_way_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError, match="not a regular file"):
        write_bytes(tmp_path, b"x")


def test_file_as_folder_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("x")

    with pytest.raises(DiskError, match="cannot write"):
        write_bytes(tmp_path / "file" / "below", b"x")


def test_write_goes_through_a_symbolic_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")

    write_text(tmp_path / "link", "new")

    assert (tmp_path / "link").is_symlink()
    assert "new" == (tmp_path / "real").read_text()


def test_json_refuses_nan_before_it_touches_the_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"x": float("nan")})

    assert "old" == path.read_text()


def test_json_holds_no_lone_surrogate(tmp_path):
    write_json(tmp_path / "a.json", ["file-\udcff", "\U0001f600"])

    assert ["file-\ufffd", "\U0001f600"] == json.loads((tmp_path / "a.json").read_bytes())


def test_json_is_indented_in_its_own_order(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})

    assert '{\n  "b": 1,\n  "a": "é"\n}\n' == (tmp_path / "a.json").read_text()


def test_staged_folder_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "profile"
    target.mkdir()
    (target / "old").write_text("x")

    with staged_directory(target, force=True) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "new").write_text("y")

    assert [target] == list(tmp_path.iterdir())
    assert ["sub"] == [path.name for path in target.iterdir()]


def test_staged_folder_vanishes_when_its_block_fails(tmp_path):
    def fail_inside() -> None:
        with staged_directory(tmp_path / "profile") as staging:
            (staging / "half").write_text("y")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail_inside()

    assert [] == list(tmp_path.iterdir())


def test_staged_folder_refuses_to_overwrite_unasked(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights").write_text("x")

    with pytest.raises(UsageError, match="--force"), staged_directory(tmp_path / "models"):
        pass


def test_staged_folder_may_take_an_empty_one(tmp_path):
    (tmp_path / "models").mkdir()

    with staged_directory(tmp_path / "models") as staging:
        (staging / "a").write_text("x")

    assert "x" == (tmp_path / "models" / "a").read_text()


@pytest.mark.parametrize("failing_call", [1, 2])
def test_old_folder_is_back_when_a_rename_fails(tmp_path, monkeypatch, failing_call):
    target, staging = tmp_path / "target", tmp_path / "staging"
    for folder, text in ((target, "old"), (staging, "new")):
        folder.mkdir()
        (folder / "a").write_text(text)
    real, calls = os.replace, []

    def replace(source: object, destination: object) -> None:
        calls.append(source)
        if len(calls) == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(str(source), str(destination))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(DiskError, match="No space left"):
        replace_directory(staging, target)

    assert "old" == (target / "a").read_text()
    assert {"target", "staging"} == {path.name for path in tmp_path.iterdir()}


def test_new_folder_on_a_full_disk_leaves_nothing(tmp_path, fill_disk):
    fill_disk("replace")

    with pytest.raises(DiskError, match="No space left"), staged_directory(tmp_path / "models") as staging:
        (staging / "a").write_text("x")

    assert [] == list(tmp_path.iterdir())
