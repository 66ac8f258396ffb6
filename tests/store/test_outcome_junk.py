"""Whatever a file holds, reading outcomes of it ends in rows or in an error that names the file."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError
from llmtier.store.columns import LOG_COLUMNS, PLAIN_COLUMNS
from llmtier.store.outcomes import load_outcomes

NAMES = [*sorted(PLAIN_COLUMNS | LOG_COLUMNS), "score:a", "output_tokens:a", "confidence:a", "content", "role"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "2026-01-01", "{}", "[]", "[1]", "user", "exact"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), max_size=4)


def read_or_refuse(path, **options):
    said = ""
    try:
        load_outcomes([path], **options)
    except InputFileError as exc:
        said = str(exc)

    assert not said or path.name in said


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_junk_is_refused(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("junk") / name

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
    def check(data):
        path.write_bytes(data)
        read_or_refuse(path)

    check()


def test_any_objects_are_read_or_refused(tmp_path_factory):
    path = tmp_path_factory.mktemp("objects") / "a.jsonl"

    @settings(max_examples=300, deadline=None)
    @given(ROWS, st.none() | st.just(2))
    def check(rows, max_rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        read_or_refuse(path, max_rows=max_rows)

    check()


def test_any_cells_are_read_or_refused(tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "a.csv"
    cells = st.text(st.characters(exclude_characters='",\r\n\0', exclude_categories=["Cs"]), max_size=5)
    words = st.sampled_from(["", "nan", "inf", "1e400", "true", "[]", "[1]", "{}", '{"a": 1}', "2026-01-01", "-1"])

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(NAMES), cells | words), unique_by=lambda cell: cell[0], min_size=1))
    def check(row):
        path.write_text(
            "\n".join(
                '"' + '","'.join(part.replace('"', '""') for part in line) + '"' for line in zip(*row, strict=True)
            )
        )
        read_or_refuse(path)

    check()


def test_parquet_with_any_byte_changed_is_read_or_refused(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "a.parquet"
    table = pa.table({"id": ["q", "r"], "prompt": ["Hi", "Ho"], "scores": [{"a": 1.0}, {"a": 0.5}]})
    pq.write_table(table, path, write_page_checksum=True)
    whole = path.read_bytes()

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    def check(place, change):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        read_or_refuse(path)

    check()
