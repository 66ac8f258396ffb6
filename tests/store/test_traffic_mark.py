"""What an abrupt end of a gateway leaves behind, and that a later one counts it."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from llmtier.core.errors import DiskError
from llmtier.store import traffic_mark
from llmtier.store.traffic_mark import OpenMark, collect_lost

KILLED = """
import os, signal, sys
from pathlib import Path
from llmtier.store.traffic_mark import OpenMark
mark = OpenMark(Path(sys.argv[1]))
mark.note_taken(7)
mark.note_settled(3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_its_count_of_lost_rows(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)

    assert -signal.SIGKILL == done.returncode
    assert 4 == collect_lost(tmp_path)
    assert 0 == collect_lost(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_a_closed_mark_leaves_nothing(tmp_path):
    mark = OpenMark(tmp_path)
    mark.note_taken(5)
    mark.close()
    mark.note_taken(6)

    assert [] == list(tmp_path.iterdir())


def test_the_mark_of_a_living_process_is_left_alone(tmp_path):
    mark = OpenMark(tmp_path)
    mark.note_taken(5)

    assert 0 == collect_lost(tmp_path)
    mark.abandon()
    assert 5 == collect_lost(tmp_path)


def test_several_marks_add_up(tmp_path):
    for n_taken in (2, 3):
        mark = OpenMark(tmp_path)
        mark.note_taken(n_taken)
        mark.abandon()

    assert 5 == collect_lost(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_mark_that_nobody_could_fill_counts_nothing(tmp_path, content):
    (tmp_path / "traffic-1-0a.open").write_bytes(content)

    assert 0 == collect_lost(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_a_full_disk_refuses_the_mark_and_leaves_no_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(DiskError, match="No space left"):
        OpenMark(tmp_path)

    assert [] == list(tmp_path.iterdir())


def test_a_mark_that_another_process_collects_first_counts_once(tmp_path, monkeypatch):
    mark = OpenMark(tmp_path)
    mark.note_taken(5)
    mark.abandon()
    [path] = tmp_path.iterdir()
    lock = traffic_mark.fcntl.flock

    def lock_too_late(descriptor, how):
        path.unlink()
        lock(descriptor, how)

    monkeypatch.setattr(traffic_mark.fcntl, "flock", lock_too_late)

    assert 0 == collect_lost(tmp_path)
    assert 0 == traffic_mark._collect(path)
