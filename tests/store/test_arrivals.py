"""Traces come in as they were recorded, or with the line that is wrong."""

import gzip
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError
from llmtier.store.arrivals import Arrival, read_arrivals

HEADER = "arrival_s,input_tokens,output_tokens"


def write_csv(path, *lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def as_tuples(arrivals):
    return [(arrival.arrival_s, arrival.input_tokens, arrival.output_tokens) for arrival in arrivals]


def test_a_csv_is_read_from_its_first_arrival_on(tmp_path):
    path = write_csv(tmp_path / "a.csv", "10.5,100,7", "11,200.0, 8 ", "12.25,0,0")

    assert [(0.0, 100, 7), (0.5, 200, 8), (1.75, 0, 0)] == as_tuples(read_arrivals(path))


def test_further_columns_and_another_order_do_no_harm(tmp_path):
    path = write_csv(tmp_path / "a.csv", "x,7,100,0", "3,8,200,1", header="note,output_tokens,input_tokens,arrival_s")

    assert [(0.0, 100, 7), (1.0, 200, 8)] == as_tuples(read_arrivals(path))


def test_the_azure_traces_are_read_as_they_are(tmp_path):
    """2023: ticks of 100 ns and no offset. 2024: microseconds, left out when 0, and an offset."""
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens"
    older = write_csv(
        tmp_path / "2023.csv", "2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.0319600,3180,8", header=azure
    )
    newer = write_csv(
        tmp_path / "2024.csv",
        "2024-05-10 00:00:00.009930+00:00,2162,5",
        "2024-05-10 00:00:01+00:00,2399,6",
        header=azure,
    )

    assert [(0.0, 4808, 10), (pytest.approx(0.052, abs=1e-6), 3180, 8)] == as_tuples(read_arrivals(older))
    assert [(0.0, 2162, 5), (pytest.approx(0.99007, abs=1e-6), 2399, 6)] == as_tuples(read_arrivals(newer))


def test_compressed_bom_and_windows_lines_are_read(tmp_path):
    text = f"\ufeff{HEADER}\r\n0,1,2\r\n1,3,4\r\n".encode()
    plain, packed = tmp_path / "a.csv", tmp_path / "a.csv.gz"
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text))

    assert [(0.0, 1, 2), (1.0, 3, 4)] == as_tuples(read_arrivals(plain))
    assert read_arrivals(plain) == read_arrivals(packed)


def test_parquet_is_read_whatever_types_its_columns_have(tmp_path):
    numbers = write_parquet(tmp_path / "n.parquet", arrival_s=[5, 6], input_tokens=[1.0, 2.0], output_tokens=[3, 4])
    instants = write_parquet(
        tmp_path / "i.parquet",
        TIMESTAMP=pa.array([1_700_000_000_000, 1_700_000_001_000], pa.timestamp("ms", tz="Europe/Paris")),
        ContextTokens=pa.array([1, 2], pa.int32()),
        GeneratedTokens=pa.array(["3", "4"]).dictionary_encode(),
        other=["x", "y"],
    )

    assert [(0.0, 1, 3), (1.0, 2, 4)] == as_tuples(read_arrivals(numbers))
    assert read_arrivals(numbers) == read_arrivals(instants)


def test_a_traffic_log_gives_the_requests_that_were_answered(tmp_path):
    for number, (first, second) in enumerate([("00", "01"), ("02", "03")]):
        write_parquet(
            tmp_path / f"traffic-{number}-ab.parquet",
            received_at=[f"2026-01-01T00:00:{first}.500000+00:00", f"2026-01-01T00:00:{second}+00:00"],
            n_input_tokens=[10 + number, 20],
            n_output_tokens=pa.array([5, None], pa.int64()),
        )

    assert [(0.0, 10, 5), (2.0, 11, 5)] == as_tuples(read_arrivals(tmp_path))


def test_a_trace_out_of_order_is_sorted_with_a_warning(tmp_path, caplog):
    path = write_csv(tmp_path / "a.csv", "3,1,1", "1,2,2", "2,3,3")

    with caplog.at_level(logging.WARNING):
        arrivals = read_arrivals(path)

    assert [(0.0, 2, 2), (1.0, 3, 3), (2.0, 1, 1)] == as_tuples(arrivals)
    assert ["trace was not in order of arrival; sorted"] == [record.getMessage() for record in caplog.records]


def test_an_ordered_trace_warns_of_nothing(tmp_path, caplog):
    read_arrivals(write_csv(tmp_path / "a.csv", "1,1,1", "1,2,2", "2,3,3"))

    assert not caplog.records


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
def test_a_limit_takes_the_first_rows(tmp_path, limit):
    path = write_csv(tmp_path / "a.csv", "1,1,1", "2,2,2", "3,3,3")

    assert read_arrivals(path)[:limit] == read_arrivals(path, limit=limit)


def test_rows_beyond_the_limit_are_not_even_checked(tmp_path):
    path = write_csv(tmp_path / "a.csv", "1,1,1", "2,2,2", "junk,3,3")

    assert 2 == len(read_arrivals(path, limit=2))
    with pytest.raises(ValueError, match="limit"):
        read_arrivals(path, limit=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,1,1", "arrival_s must be a number, got 'x'"),
        (",1,1", "arrival_s must be a number, got ''"),
        ("nan,1,1", "arrival_s must be a number, got 'nan'"),
        ("inf,1,1", "arrival_s must be a number, got 'inf'"),
        ("-2,1,1", "arrival_s must not be negative, got -2"),
        ("2,-1,1", "input_tokens must be a whole number from 0 to 2147483647, got -1"),
        ("2,1.5,1", "input_tokens must be a whole number"),
        ("2,1,1700000000000", "output_tokens must be a whole number"),
        ("2,1,NaN", "output_tokens must be a number, got 'NaN'"),
        ("2,1", "has more or fewer columns than line 1: '2,1'"),
        ("2,1,1,1", "has more or fewer columns than line 1"),
    ],
)
@pytest.mark.parametrize("n_blank", [0, 2])
def test_junk_is_quoted_with_its_line(tmp_path, row, message, n_blank):
    path = write_csv(tmp_path / "a.csv", "1,1,1", *[""] * n_blank, "1.5,1,1", row, "3,1,1")

    with pytest.raises(InputFileError) as caught:
        read_arrivals(path)

    assert message in str(caught.value)
    assert (path, 4 + n_blank) == (caught.value.path, caught.value.line)


def test_the_line_is_right_far_into_a_long_file(tmp_path):
    """Beyond pyarrow's first block of 1 MiB, with blank lines in both blocks."""
    rows = [f"{number}.000000,{number % 5000},{number % 300}" for number in range(100_000)]
    rows[10] = rows[90_000] = ""
    path = write_csv(tmp_path / "a.csv", *rows, "1e6,-5,1", "1e6,1,1")

    with pytest.raises(InputFileError, match="input_tokens must be") as caught:
        read_arrivals(path)

    assert 100_002 == caught.value.line
    assert 99_998 == len(read_arrivals(path, limit=99_998))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("yesterday", "such as 2023-11-16 18:17:03.979, got 'yesterday'"),
        ("", "got ''"),
        ("1700000000", "got '1700000000'"),
        ("2023-11-16 18:17:05+00:00", "in every row or in none"),
    ],
)
def test_an_instant_that_is_none_is_refused(tmp_path, cell, message):
    header = "TIMESTAMP,ContextTokens,GeneratedTokens"
    path = write_csv(tmp_path / "a.csv", "2023-11-16 18:17:03,1,1", f"{cell},1,1", header=header)

    with pytest.raises(InputFileError, match="TIMESTAMP must be") as caught:
        read_arrivals(path)

    assert message in str(caught.value)


def test_junk_in_parquet_is_quoted_with_its_row(tmp_path):
    negative = write_parquet(tmp_path / "a.parquet", arrival_s=[0.0, 1.0], input_tokens=[1, -1], output_tokens=[1, 1])
    absent = write_parquet(tmp_path / "b.parquet", arrival_s=[0.0, None], input_tokens=[1, 1], output_tokens=[1, 1])
    numeric = write_parquet(tmp_path / "c.parquet", TIMESTAMP=[1.0], ContextTokens=[1], GeneratedTokens=[1])

    for path, message in (
        (negative, "row 2: input_tokens must be"),
        (absent, "row 2: arrival_s must be a number, got None"),
        (numeric, "row 1: TIMESTAMP must be a date and time"),
    ):
        with pytest.raises(InputFileError, match=message):
            read_arrivals(path)


def test_files_that_are_no_trace_are_refused(tmp_path):
    empty, header_only, foreign, text = (tmp_path / name for name in ("e.csv", "h.csv", "f.csv", "t.parquet"))
    empty.write_bytes(b"")
    header_only.write_text(HEADER + "\n")
    foreign.write_text("arrival_s,input_tokens,tokens\n0,1,1\n")
    text.write_text("no parquet")

    for path, message in (
        (tmp_path / "absent.csv", "cannot be read: No such file"),
        (empty, "cannot be read as CSV"),
        (header_only, "holds no arrivals"),
        (foreign, "has no column 'output_tokens'; expected arrival_s,input_tokens,output_tokens or TIMESTAMP"),
        (text, "cannot be read as Parquet"),
    ):
        with pytest.raises(InputFileError, match=message) as caught:
            read_arrivals(path)
        assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(HEADER.encode() + b"\n0,1,\xff\xfe\n")

    with pytest.raises(InputFileError, match="cannot be read as CSV"):
        read_arrivals(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(0, 100_000), st.integers(0, 100_000)), min_size=1, max_size=20
    )
)
def test_csv_and_parquet_give_the_same_trace(tmp_path, rows):
    columns = dict(zip(HEADER.split(","), map(list, zip(*rows, strict=True)), strict=True))
    as_csv = write_csv(tmp_path / "a.csv", *[f"{instant!r},{n_in},{n_out}" for instant, n_in, n_out in rows])
    as_parquet = write_parquet(tmp_path / "a.parquet", **columns)

    expected = sorted(rows, key=lambda row: row[0])
    since_s = expected[0][0]
    arrivals = read_arrivals(as_csv)
    assert (
        tuple(
            Arrival(arrival_s=instant - since_s, input_tokens=n_in, output_tokens=n_out)
            for instant, n_in, n_out in expected
        )
        == arrivals
    )
    assert arrivals == read_arrivals(as_parquet)
