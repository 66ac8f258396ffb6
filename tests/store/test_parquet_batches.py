"""Parquet of any origin, a batch at a time: the values pyarrow gives, and a place for each fault."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError
from llmtier.store import parquet_batches
from llmtier.store.parquet_batches import BATCH_ROWS, read_parquet_rows, to_plain

TEXTS = st.none() | st.text(max_size=4)
COLUMNS = [
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
    (pa.float64(), st.none() | st.floats(allow_nan=False)),
    (pa.int64(), st.none() | st.integers(-9, 9)),
    (pa.list_(pa.string()), st.none() | st.lists(TEXTS, max_size=3)),
    (
        pa.map_(pa.string(), pa.float64()),
        st.none() | st.lists(st.tuples(st.text(max_size=3), st.floats(0, 1)), max_size=3),
    ),
    (
        pa.large_list(pa.struct([("role", pa.string()), ("content", pa.string())])),
        st.none() | st.lists(st.none() | st.fixed_dictionaries({"role": TEXTS, "content": TEXTS}), max_size=3),
    ),
    (
        pa.struct([("a", pa.float64()), ("b", pa.list_(pa.int64()))]),
        st.none()
        | st.fixed_dictionaries(
            {"a": st.none() | st.floats(0, 1), "b": st.none() | st.lists(st.integers(0, 9), max_size=2)}
        ),
    ),
]


@pytest.mark.parametrize(("kind", "values"), COLUMNS, ids=lambda value: str(value)[:20])
def test_values_are_those_of_pyarrow(kind, values):
    @settings(max_examples=40)
    @given(st.lists(values, max_size=6), st.integers(0, 3))
    def check(found, start):
        array = pa.array(found, kind).slice(start)

        expected = array.to_pylist()
        if pa.types.is_map(kind):
            expected = [None if pairs is None else dict(pairs) for pairs in expected]
        assert expected == to_plain(array)

    check()


def write(path, n_rows, **options):
    pq.write_table(
        pa.table({"prompt": [f"p{number}" for number in range(n_rows)], "big": [b"x"] * n_rows}), path, **options
    )


def test_rows_of_all_batches_are_numbered_and_only_the_columns_that_matter_read(tmp_path):
    write(tmp_path / "a.parquet", BATCH_ROWS + 3, row_group_size=BATCH_ROWS - 5)

    rows = list(read_parquet_rows(tmp_path / "a.parquet", reads=lambda name: name == "prompt"))

    assert [(number, {"prompt": f"p{number - 1}"}) for number in range(1, BATCH_ROWS + 4)] == rows


def test_all_columns_are_read_where_none_matters(tmp_path):
    write(tmp_path / "a.parquet", 1)

    assert [(1, {"prompt": "p0", "big": b"x"})] == list(
        read_parquet_rows(tmp_path / "a.parquet", reads=lambda _: False)
    )


def test_damage_is_found_after_the_rows_before_it(tmp_path):
    path = tmp_path / "a.parquet"
    write(
        path,
        3 * BATCH_ROWS,
        row_group_size=BATCH_ROWS,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    data = path.read_bytes()
    last = data.index(f"p{3 * BATCH_ROWS - 1}".encode())
    path.write_bytes(data[:last] + b"?" + data[last + 1 :])
    rows = read_parquet_rows(path, reads=lambda _: True)

    assert (1, {"prompt": "p0", "big": b"x"}) == next(rows)
    with pytest.raises(InputFileError, match=r"a\.parquet: expected Parquet: .*"):
        list(rows)


def test_text_that_is_not_utf8_is_named(tmp_path):
    offsets = pa.array([0, 2, 6], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"okcaf\xe9")])
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "a.parquet")

    with pytest.raises(InputFileError, match=r"a\.parquet: row 2: expected UTF-8: .* at byte 4"):
        list(read_parquet_rows(tmp_path / "a.parquet", reads=lambda _: True))


@pytest.mark.parametrize(
    ("data", "expected"), [(b"", "expected Parquet"), (b"junk\0junk" * 9, "expected Parquet"), (None, "No such file")]
)
def test_file_that_is_no_parquet_is_named(tmp_path, data, expected):
    path = tmp_path / "a.parquet"
    if data is not None:
        path.write_bytes(data)

    with pytest.raises(InputFileError, match=rf"a\.parquet: .*{expected}"):
        list(read_parquet_rows(path, reads=lambda _: True))


def test_column_that_stands_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "a.parquet")

    with pytest.raises(InputFileError, match="a column stands twice"):
        list(read_parquet_rows(tmp_path / "a.parquet", reads=lambda _: True))


def test_instant_beyond_those_of_python_is_refused(tmp_path):
    pq.write_table(pa.table({"startTime": pa.array([2**62], pa.timestamp("us"))}), tmp_path / "a.parquet")

    with pytest.raises(InputFileError, match="expected Parquet"):
        list(read_parquet_rows(tmp_path / "a.parquet", reads=lambda _: True))


def test_column_that_pyarrow_cannot_convert_is_an_error_of_the_file(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", 1)

    def fail(array):
        raise pa.ArrowNotImplementedError("no such kind")

    monkeypatch.setattr(parquet_batches, "to_plain", fail)
    with pytest.raises(InputFileError, match="expected Parquet: no such kind"):
        list(read_parquet_rows(tmp_path / "a.parquet", reads=lambda _: True))
