"""Prompt files in every accepted form."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError, SchemaVersionError
from llmtier.core.prompt import AnswerScorer, Message, Prompt
from llmtier.store.prompts import read_prompts, write_prompts

MESSAGES = st.lists(st.builds(Message, role=st.text(min_size=1, max_size=9), content=st.text()), min_size=1, max_size=3)
PROMPTS = st.lists(
    st.builds(
        Prompt,
        id=st.text(min_size=1),
        messages=MESSAGES.map(tuple),
        domain=st.none() | st.text(),
        answer=st.none() | st.text(),
        scorer=st.sampled_from(AnswerScorer),
        arrival_s=st.none() | st.floats(0, 1e9),
        max_tokens=st.none() | st.integers(1, 10**6),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda prompt: prompt.id,
)


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_written_prompts_read_back(tmp_path_factory, name):
    @settings(max_examples=15, deadline=None)
    @given(PROMPTS)
    def check(prompts):
        path = tmp_path_factory.mktemp("prompts") / name
        write_prompts(path, prompts)

        assert prompts == read_prompts(path)

    check()


def test_plain_prompt_string_becomes_a_user_turn_with_a_default_id(tmp_path):
    path = write_lines(tmp_path / "log.jsonl", {"prompt": "Hi", "unknown": 1})

    assert [Prompt(id="log-1", messages=(Message(role="user", content="Hi"),))] == read_prompts(path)


def test_every_field_is_read(tmp_path):
    row = {
        "id": 7,
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "U"}]}],
        "domain": "math",
        "answer": 42,
        "scorer": "number",
        "arrival_s": 1,
        "max_tokens": 5,
    }
    expected = Prompt(
        id="7",
        messages=(Message(role="system", content="S"), Message(role="user", content="U")),
        domain="math",
        answer="42",
        scorer=AnswerScorer.NUMBER,
        arrival_s=1.0,
        max_tokens=5,
    )

    assert [expected] == read_prompts(write_lines(tmp_path / "a.jsonl", row))


def test_document_as_answer_becomes_its_json_text(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "x", "answer": {"a": [1, "é"]}, "scorer": "json"})

    assert '{"a": [1, "é"]}' == read_prompts(path)[0].answer


def test_parquet_of_pandas_is_read(tmp_path):
    frame = pd.DataFrame(
        {"prompt": ["a", "b"], "domain": ["x", None], "max_tokens": pd.array([4, None], dtype="Int64")}
    )
    frame.to_parquet(tmp_path / "a.parquet")

    first, second = read_prompts(tmp_path / "a.parquet")

    assert ("a-1", "x", 4) == (first.id, first.domain, first.max_tokens)
    assert ("a-2", None, None) == (second.id, second.domain, second.max_tokens)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, "expected either 'messages' .* or 'prompt'"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "expected either 'messages'"),
        ({"messages": ["Hi"]}, r"messages\[0\]: "),
        ({"messages": []}, "messages: list should have at least 1 item"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"messages\[0\]\.content: .*valid string",
        ),
        ({"prompt": "a", "scorer": "exactly"}, "scorer: input should be 'exact', 'number' or 'json', got 'exactly'"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: .* greater than or equal to 1, got 0"),
        ({"prompt": "a", "arrival_s": -1}, "arrival_s: "),
        ({"prompt": "a", "id": ""}, "id: "),
        ({"prompt": "a", "id": "first"}, "id 'first' is already that of .*:1"),
    ],
)
def test_malformed_row_is_named(tmp_path, row, expected):
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "x", "id": "first"}, row)

    with pytest.raises(InputFileError, match=rf"a\.jsonl:2: {expected}"):
        read_prompts(path)


def test_malformed_row_of_parquet_is_counted(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "a.parquet")

    with pytest.raises(InputFileError, match=r"a\.parquet: row 2: expected either"):
        read_prompts(tmp_path / "a.parquet")


def test_parquet_without_rows_is_an_error(tmp_path):
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "a.parquet")

    with pytest.raises(InputFileError, match="holds no rows"):
        read_prompts(tmp_path / "a.parquet")


def test_table_of_another_generation_is_refused(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"]}).replace_schema_metadata({"schema_version": "2"}), tmp_path / "a.parquet")

    with pytest.raises(SchemaVersionError, match="schema 2, this llmtier reads 1"):
        read_prompts(tmp_path / "a.parquet")
