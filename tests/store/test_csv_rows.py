"""CSV and TSV: cells as written, records as the csv module writes them, and a place for each fault."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError
from llmtier.store.csv_rows import is_csv, parse_cells, read_csv_rows
from llmtier.store.outcomes import load_outcomes

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
RECORDS = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4)


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.TSV", "\t")])
def test_written_records_read_back(tmp_path_factory, name, separator):
    @settings(max_examples=30, deadline=None)
    @given(RECORDS)
    def check(records):
        path = tmp_path_factory.mktemp("csv") / name
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *records])

        found = [(row["a"] or "", row["b"] or "") for _, row in read_csv_rows(path)]
        assert records == found

    check()


def test_rows_are_numbered_by_the_line_that_they_begin_on(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfprompt, n\r\n"one\r\ntwo",1\r\n\r\nthree,\r\n')

    assert [(2, {"prompt": "one\r\ntwo", "n": "1"}), (5, {"prompt": "three", "n": None})] == list(
        read_csv_rows(tmp_path / "a.csv")
    )


def test_cell_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    (tmp_path / "a.csv").write_text(f"prompt,n\n{'x' * 200_000},1\n")

    assert 200_000 == len(next(read_csv_rows(tmp_path / "a.csv"))[1]["prompt"])


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (b"a,b,c", r"a\.csv:3: expected 2 cells, as the header has, found 3"),
        (b"a", r"a\.csv:3: expected 2 cells, as the header has, found 1"),
        (b'"a,b\nc,d', r"a\.csv:3: malformed CSV: .*quote"),
        (b"caf\xe9,b", r"a\.csv:3: expected UTF-8: .* at byte 4"),
    ],
)
def test_malformed_record_is_named_after_the_rows_before_it(tmp_path, record, expected):
    (tmp_path / "a.csv").write_bytes(b"prompt,n\nx,y\n" + record + b"\n")
    rows = read_csv_rows(tmp_path / "a.csv")

    assert (2, {"prompt": "x", "n": "y"}) == next(rows)
    with pytest.raises(InputFileError, match=expected):
        next(rows)


def test_binary_junk_after_the_head_is_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,n\n" + b"x,y\n" * 20_000 + b"a\0,b\n")

    with pytest.raises(InputFileError, match=r"a\.csv:20002: is not text: NUL at character 2"):
        list(read_csv_rows(tmp_path / "a.csv"))


def test_column_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,n,n\n")

    with pytest.raises(InputFileError, match=r"a\.csv:1: the header has 'n' twice"):
        list(read_csv_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({"weight": "2"}, 2.0),
        ({"weight": "two"}, "two"),
        ({"max_tokens": "12.0"}, 12),
        ({"max_tokens": "12.5"}, "12.5"),
        ({"max_tokens": "inf"}, "inf"),
        ({"max_tokens": "twelve"}, "twelve"),
        ({"scores": {"a": "True", "b": "0.5", "c": None}}, {"a": 1.0, "b": 0.5, "c": None}),
        ({"output_tokens_by_tier": {"a": "7"}}, {"a": 7}),
        ({"messages": '[{"role": "user"}]'}, [{"role": "user"}]),
        ({"messages": "[oops"}, "[oops"),
        ({"answer": "42"}, "42"),
        ({"prompt": None}, ""),
    ],
)
def test_cells_become_values(cell, expected):
    assert [expected] == list(parse_cells(cell).values())


def test_names_that_say_csv(tmp_path):
    assert [True, True, False] == [is_csv(tmp_path / name) for name in ("a.CSV", "a.tsv", "a.jsonl")]


def test_outcomes_with_mapped_columns_are_read(tmp_path):
    (tmp_path / "a.csv").write_text(
        "question,kind,nano ok,score:mini,output_tokens:mini,weight\n2+2?,math,1,0.5,12,4\nHi,,,1,,\n,,1,1,,\n"
    )

    found = load_outcomes(
        [tmp_path / "a.csv"], columns={"prompt": "question", "domain": "kind", "score:nano": "nano ok"}
    )

    assert [
        ("a-2", "2+2?", "math", {"nano": 1.0, "mini": 0.5}, {"mini": 12}, 4.0),
        ("a-3", "Hi", None, {"mini": 1.0}, {}, 1.0),
    ] == [
        (
            row.prompt.id,
            row.prompt.last_user_text,
            row.prompt.domain,
            row.scores,
            row.output_tokens,
            row.weight,
        )
        for row in found.rows
    ]
    assert 3 == found.n_read
    assert "a.csv: 1 row has an empty prompt and is left out (first: 4)" in found.warnings[0]
