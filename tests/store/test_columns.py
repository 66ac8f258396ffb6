"""The user's names of columns brought to ours."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, UsageError
from llmtier.store.columns import ColumnMap
from llmtier.store.outcomes import load_outcomes

TIERS = st.text(min_size=1, max_size=6)


@given(st.dictionaries(TIERS, st.floats(0, 1), max_size=4), st.dictionaries(TIERS, st.integers(0, 9), max_size=4))
def test_wide_columns_are_gathered(scores, tokens):
    wide = {f"score:{tier}": score for tier, score in scores.items()}
    wide |= {f"output_tokens:{tier}": count for tier, count in tokens.items()}

    row = ColumnMap().apply({"prompt": "x", "other:thing": 1, **wide})

    assert (scores, tokens) == (row.get("scores", {}), row.get("output_tokens_by_tier", {}))
    assert {"prompt", "other:thing"} == row.keys() - {"scores", "output_tokens_by_tier"}


def test_wide_columns_join_the_map():
    row = ColumnMap().apply({"scores": {"a": 1.0}, "score:b": 0.5, "score:a": 1.0, "score:c": None})

    assert {"scores": {"a": 1.0, "b": 0.5}} == row


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"scores": {"a": 1.0}, "score:a": 0.0}, "'score:a' and the 'a' of 'scores' differ"),
        ({"scores": "high", "score:a": 0.0}, "expected a map of tiers, got 'high'"),
    ],
)
def test_wide_column_that_contradicts_the_map_is_refused(tmp_path, row, expected):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "x", **row}))

    with pytest.raises(InputFileError, match=rf"a\.jsonl:1: {expected}"):
        load_outcomes([tmp_path / "a.jsonl"])


def test_mapped_column_leaves_its_own_name():
    columns = ColumnMap({"prompt": "messages", "id": "messages"})

    assert {"prompt": "x", "id": "x"} == columns.apply({"messages": "x"})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("promt", "did you mean 'prompt'"), ("score:", "did you mean"), ("zzzz", "known are .*score:<tier>")],
)
def test_name_that_is_not_ours_is_refused(name, expected):
    with pytest.raises(UsageError, match=expected):
        ColumnMap({name: "x"})


@pytest.mark.parametrize(
    ("theirs", "expected"), [("qestion", "did you mean 'question'"), ("zz", "there are kind, question")]
)
def test_mapped_column_that_is_nowhere_is_refused(tmp_path, theirs, expected):
    (tmp_path / "a.csv").write_text("question,kind\nHi,x\n")

    with pytest.raises(InputFileError, match=f"no row has a column '{theirs}', which 'domain' .*{expected}"):
        load_outcomes([tmp_path / "a.csv"], columns={"prompt": "question", "domain": theirs})


def test_mapping_serves_files_of_both_forms(tmp_path):
    (tmp_path / "a.csv").write_text("question,score:a\nHi,1\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "Ho", "scores": {"a": 0}}\n')
    pq.write_table(pa.table({"question": ["He"], "score:a.1": [0.5], "big": [b"x"]}), tmp_path / "c.parquet")

    found = load_outcomes(
        [tmp_path / name for name in ("a.csv", "b.jsonl", "c.parquet")], columns={"prompt": "question"}
    )

    assert [("Hi", {"a": 1.0}), ("Ho", {"a": 0.0}), ("He", {"a.1": 0.5})] == [
        (row.prompt.last_user_text, row.scores) for row in found.rows
    ]


def test_mapped_prompt_of_a_log_is_not_looked_for_elsewhere(tmp_path):
    row = {"request_id": "1", "startTime": "2026-01-01T00:00:00Z", "messages": "{}", "asked": "Hi"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))

    (labelled,) = load_outcomes([tmp_path / "a.jsonl"], columns={"prompt": "asked", "id": "request_id"}).rows

    assert ("1", "Hi") == (labelled.prompt.id, labelled.prompt.last_user_text)


def test_row_without_a_prompt_says_what_it_has(tmp_path):
    (tmp_path / "a.csv").write_text("question,kind\nHi,x\n")

    with pytest.raises(InputFileError, match=r"a\.csv:2: expected either .*; found \['kind', 'question'\]"):
        load_outcomes([tmp_path / "a.csv"])
