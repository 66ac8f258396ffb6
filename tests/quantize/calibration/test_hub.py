"""Rows of datasets: what the worker writes of them, and when fetched rows are used again. No library of the hub."""

import json
import sys
from pathlib import Path

import pytest

from llmtier.quantize.calibration import hub
from llmtier.quantize.calibration.hub import fetch_rows
from llmtier.quantize.worker.hub_rows import write_rows
from llmtier.store.calibration_recipe import Source
from llmtier.store.jsonl import read_jsonl

WORKER = """
import json, sys
job = json.loads(sys.argv[1])
with open(job["out"], "w") as file:
    file.write('{"text": "new"}\\n')
print(json.dumps({"event": "fetched", "n_rows": 1, "revision": None}))
"""
NAN, INFINITE = float("nan"), float("inf")


def silent(event: str, **facts: object) -> None:
    pass


def written(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    assert len(rows) == write_rows(iter(rows), path, report=silent)
    return [row for _, row in read_jsonl(path)]


def test_numbers_that_json_lacks_become_null(tmp_path):
    rows = written(
        tmp_path,
        {"text": "a", "score": NAN, "parts": [{"x": INFINITE}, (1.5, -INFINITE)]},
        {"text": "b", "score": 0.5},
    )

    assert [
        {"text": "a", "score": None, "parts": [{"x": None}, [1.5, None]]},
        {"text": "b", "score": 0.5},
    ] == rows


def test_half_a_surrogate_pair_is_replaced_and_whole_characters_stay(tmp_path):
    assert [{"text": "a\ufffd", "b\ufffd": "😀"}] == written(tmp_path, {"text": "a\ud800", "b\udc00": "😀"})


def test_what_is_no_text_becomes_null(tmp_path):
    assert [{"image": None, "score": None}] == written(tmp_path, {"image": b"\x89PNG", "score": NAN})


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(hub, "HUB_ROWS", (str(worker),))
    out = tmp_path / "work" / "rows.jsonl"
    return lambda: fetch_rows(Source(dataset="org/name"), folder=None, out=out, python=lambda: Path(sys.executable))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"n_rows": "many"}', b"\xff\xfe", b'{"path": "a"}'])
def test_damaged_note_of_finished_rows_is_as_none(fetch, data):
    fetched = fetch()
    fetched.path.write_text('{"text": "old"}\n')
    fetched.path.with_name("rows.jsonl.done").write_bytes(data)

    again = fetch()

    assert fetched == again
    assert '{"text": "new"}\n' == again.path.read_text()


def test_finished_rows_are_found_after_their_folder_was_moved(fetch):
    fetched = fetch()
    fetched.path.write_text('{"text": "kept"}\n')
    done = fetched.path.with_name("rows.jsonl.done")
    done.write_text(json.dumps({**json.loads(done.read_text()), "path": "/elsewhere/rows.jsonl"}))

    assert fetched == fetch()
    assert '{"text": "kept"}\n' == fetched.path.read_text()
