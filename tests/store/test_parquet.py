"""Parquet artifacts: schema, units, version, and files of other origin."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, SchemaVersionError
from llmtier.store.measured_points import SAMPLE_COLUMNS
from llmtier.store.outcomes import OUTCOME_COLUMNS
from llmtier.store.parquet import Column, decode_rows, encode_rows, make_schema, read_any, read_rows, write_rows
from llmtier.store.profile_rows import POINT_COLUMNS, PROFILE_COLUMNS
from llmtier.store.profiles import ACCURACY_COLUMNS, REQUEST_COLUMNS
from llmtier.store.prompt_rows import PROMPT_COLUMNS
from llmtier.store.traffic import TRAFFIC_COLUMNS

COLUMNS = (Column("name", "string"), Column("wait_s", "float64", unit="s", nullable=True))
ADVICE = "run it again"


def read(path):
    return read_rows(path, COLUMNS, artifact="waits", advice=ADVICE)


def test_rows_read_back_and_the_file_states_version_and_units(tmp_path):
    rows = [{"name": "a", "wait_s": 1.5}, {"name": "b", "wait_s": None}]
    write_rows(tmp_path / "a.parquet", rows, COLUMNS, artifact="waits")
    schema = pq.read_schema(tmp_path / "a.parquet")

    assert rows == read(tmp_path / "a.parquet")
    assert b"1" == schema.metadata[b"schema_version"]
    assert b"s" == schema.field("wait_s").metadata[b"unit"]


@pytest.mark.parametrize(
    "columns",
    [
        REQUEST_COLUMNS,
        POINT_COLUMNS,
        ACCURACY_COLUMNS,
        PROFILE_COLUMNS,
        OUTCOME_COLUMNS,
        PROMPT_COLUMNS,
        TRAFFIC_COLUMNS,
        SAMPLE_COLUMNS,
    ],
)
def test_every_number_has_a_unit(columns):
    fields = list(make_schema(columns))

    numbers = [field for field in fields if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]
    assert [] == [field.name for field in numbers if not (field.metadata or {}).get(b"unit")]


@pytest.mark.parametrize("rows", [[{"name": None, "wait_s": 1.0}], [{"name": "a", "wait_s": float("nan")}]])
def test_null_and_nan_are_refused_where_they_cannot_be_meant(tmp_path, rows):
    with pytest.raises(ValueError, match="must not hold"):
        write_rows(tmp_path / "a.parquet", rows, COLUMNS, artifact="waits")

    assert [] == list(tmp_path.iterdir())


def test_lone_surrogates_become_the_replacement_character(tmp_path):
    write_rows(tmp_path / "a.parquet", [{"name": "a\ud800b", "wait_s": None}], COLUMNS, artifact="waits")

    assert "a\ufffdb" == read(tmp_path / "a.parquet")[0]["name"]


def test_other_version_is_refused_with_both_versions_and_advice(tmp_path):
    table = pa.table({"name": ["a"]}).replace_schema_metadata({"schema_version": "3", "artifact": "waits"})
    pq.write_table(table, tmp_path / "a.parquet")

    with pytest.raises(SchemaVersionError, match=r"a\.parquet: schema 3, this llmtier reads 1; run it again"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "no schema_version"),
        ({"schema_version": "1", "artifact": "prompts"}, "expected waits, found prompts"),
        ({"schema_version": "1", "artifact": "waits"}, "expected column 'name', which is missing; run it again"),
    ],
)
def test_other_tables_are_refused(tmp_path, metadata, expected):
    pq.write_table(pa.table({"wait_s": [1.0]}).replace_schema_metadata(metadata), tmp_path / "a.parquet")

    with pytest.raises(InputFileError, match=expected):
        read(tmp_path / "a.parquet")


def write_foreign(path, **columns):
    pq.write_table(pa.table(columns).replace_schema_metadata({"schema_version": "1", "artifact": "waits"}), path)


def test_nullable_column_that_a_file_lacks_reads_as_null(tmp_path):
    write_foreign(tmp_path / "a.parquet", name=["a", "b"])

    assert [{"name": "a", "wait_s": None}, {"name": "b", "wait_s": None}] == read(tmp_path / "a.parquet")


def test_column_of_another_type_is_refused(tmp_path):
    write_foreign(tmp_path / "a.parquet", name=["a"], wait_s=["soon"])

    with pytest.raises(InputFileError, match="expected column 'wait_s' of type float64, found string; run it again"):
        read(tmp_path / "a.parquet")


LISTS = (Column("instants_s", "floats", unit="s"), Column("reasons", "strings", nullable=True))


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "instants_s": st.lists(st.floats(allow_nan=False), max_size=4).map(tuple),
                "reasons": st.none() | st.lists(st.text(max_size=4), max_size=3),
            }
        ),
        max_size=6,
    )
)
def test_lists_read_back(rows):
    data = encode_rows(rows, LISTS, artifact="waits")

    assert rows == decode_rows(data, LISTS, path=Path("a"), artifact="waits", advice=ADVICE)


def test_nullable_floats_may_be_null():
    columns = (Column("instants_s", "floats", unit="s", nullable=True),)
    data = encode_rows([{"instants_s": None}, {"instants_s": (1.0,)}], columns, artifact="waits")
    found = decode_rows(data, columns, path=Path("a"), artifact="waits", advice=ADVICE)

    assert [None, [1.0]] == [row["instants_s"] for row in found]


@pytest.mark.parametrize("hole", [float("nan"), None])
@pytest.mark.parametrize("is_nullable", [True, False])
def test_no_hole_in_a_list_of_numbers(hole, is_nullable):
    columns = (Column("instants_s", "floats", unit="s", nullable=is_nullable),)
    rows = [{"instants_s": (1.0, hole)}, {"instants_s": None if is_nullable else ()}]

    with pytest.raises((ValueError, TypeError), match=r"instants_s must not hold|NoneType"):
        encode_rows(rows, columns, artifact="waits")


def test_changed_page_is_refused(tmp_path):
    rows = [{"name": str(n), "wait_s": math.sqrt(n)} for n in range(500)]
    write_rows(tmp_path / "a.parquet", rows, COLUMNS, artifact="waits")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[len(data) // 2] ^= 1  # among 4 kB of square roots
    (tmp_path / "a.parquet").write_bytes(data)

    with pytest.raises(InputFileError, match="expected Parquet"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not a table at all, only text"])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "a.parquet").write_bytes(data)

    with pytest.raises(InputFileError, match="expected Parquet"):
        read(tmp_path / "a.parquet")


def test_cut_file_is_refused(tmp_path):
    write_rows(tmp_path / "a.parquet", [{"name": "a" * 1000, "wait_s": 1.0}], COLUMNS, artifact="waits")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])

    with pytest.raises(InputFileError, match="expected Parquet"):
        read(tmp_path / "a.parquet")


def test_instant_beyond_any_calendar_is_refused(tmp_path):
    pq.write_table(pa.table({"at": pa.array([2**53], pa.timestamp("ms"))}), tmp_path / "a.parquet")

    with pytest.raises(InputFileError, match="expected Parquet"):
        read_any(tmp_path / "a.parquet")
