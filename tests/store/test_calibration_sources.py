"""Sources: every kind of file gives its rows with their numbers, in chunks that do not change what is read."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError
from llmtier.store import calibration_sources
from llmtier.store.calibration_sources import (
    files_sha256,
    gather,
    no_text_advice,
    read_chunks,
    source_files,
)

ROWS = [{"text": f"row {n} é\u2028"} for n in range(5)]


def read(path, *, limit=None):
    return [pair for chunk in read_chunks(source_files(path), limit=limit) for pair in chunk.parse()]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "lines.json", "a.parquet"])
def test_rows_come_with_their_numbers(tmp_path, name):
    path = tmp_path / name
    if name == "a.json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    assert list(enumerate(ROWS, start=1)) == read(path)
    assert list(enumerate(ROWS, start=1))[:3] == read(path, limit=3)


def test_text_is_cut_at_blank_lines_and_numbered_by_line(tmp_path):
    (tmp_path / "a.txt").write_text("\n\nfirst\nstill first\n \n\nsecond\n")

    assert [(3, {"text": "first\nstill first"}), (7, {"text": "second"})] == read(tmp_path / "a.txt")


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=30), max_size=3), max_size=20), st.integers(1, 9))
def test_array_is_read_whole_however_it_is_cut(tmp_path_factory, rows, n_characters):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    original = calibration_sources.READ_CHARACTERS
    calibration_sources.READ_CHARACTERS = n_characters
    try:
        found = [row for _, row in calibration_sources.read_rows(path)]
    finally:
        calibration_sources.READ_CHARACTERS = original

    assert rows == found


@given(st.lists(st.binary(max_size=50)), st.integers(1, 4))
def test_chunks_lose_nothing(tmp_path_factory, lines, n_rows):
    original = calibration_sources.CHUNK_ROWS
    calibration_sources.CHUNK_ROWS = n_rows
    try:
        chunks = list(gather(tmp_path_factory.getbasetemp(), enumerate(lines)))
    finally:
        calibration_sources.CHUNK_ROWS = original

    assert list(enumerate(lines)) == [pair for c in chunks for pair in zip(c.numbers, c.rows, strict=True)]
    assert all(0 < len(chunk.rows) <= n_rows for chunk in chunks)


def test_folder_is_every_readable_file_and_its_digest_knows_names(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "b"}')
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "notes.pdf").write_text("x")
    files = source_files(tmp_path)
    before = files_sha256(tmp_path, files)
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")

    assert ["a.txt", "b.jsonl"] == [file.name for file in files]
    assert before != files_sha256(tmp_path, source_files(tmp_path))


def test_traffic_log_gives_messages_and_counts_rows_without_text(tmp_path):
    messages = [{"role": "user", "content": "Hi"}]
    rows = [
        {"request_id": "1", "received_at": "2026-01-01T00:00:00+00:00", "messages_json": json.dumps(messages)},
        {"request_id": "2", "received_at": "2026-01-01T00:00:00+00:00", "messages_json": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "traffic-000001-abc.parquet")

    (_, first), (_, second) = read(tmp_path)

    assert first is not None
    assert messages == first["messages"]
    assert second is None
    assert "log_text" in no_text_advice(source_files(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n{oops\n', r"a\.jsonl:2: expected a JSON object"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: expected a JSON object, got \[1\]"),
        ("a.json", b'[{"text": "a"}, 3]', "element 2: expected an object, got 3"),
        ("a.json", b'[{"text": "a"}, {"te', "expected a JSON array of objects"),
        ("a.parquet", b"no parquet", "expected Parquet"),
        ("a.txt", b"\xff\xfe", "expected UTF-8"),
        ("a.csv", b"a,b", r"expected \.json"),
    ],
)
def test_malformed_file_names_file_and_place(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InputFileError, match=said):
        read(tmp_path / name)


def test_absent_file_and_folder_without_texts_are_errors(tmp_path):
    with pytest.raises(InputFileError, match="no such file or folder"):
        source_files(tmp_path / "no.jsonl")
    with pytest.raises(InputFileError, match="holds no file with texts"):
        source_files(tmp_path)
