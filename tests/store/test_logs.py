"""Logs as prompt files: OpenAI batch input and LiteLLM spend logs. The gateway's own is in test_traffic."""

import csv
import json
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmtier.core.errors import InputFileError
from llmtier.store.outcomes import load_outcomes
from llmtier.store.prompts import read_prompts

MESSAGES = [{"role": "user", "content": "Hi"}]


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_openai_batch_input_is_read(tmp_path):
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 9}
    path = write_lines(
        tmp_path / "a.jsonl", {"custom_id": "q1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    )

    (prompt,) = read_prompts(path)

    assert ("q1", "Hi", 9) == (prompt.id, prompt.last_user_text, prompt.max_tokens)


def test_spend_log_is_read_with_arrivals_since_its_earliest_row(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        {"request_id": "late", "startTime": "2026-01-01T00:00:02.5Z", "messages": MESSAGES},
        {"request_id": "early", "startTime": "2026-01-01T00:00:00", "messages": json.dumps(MESSAGES)},
        {"request_id": "silent", "startTime": "2026-01-01T00:00:00", "messages": "{}"},
        {
            "request_id": "body",
            "startTime": "2026-01-01T00:00:01",
            "messages": {},
            "proxy_server_request": json.dumps({"messages": MESSAGES}),
        },
    )

    assert [("late", 2.5), ("early", 0.0), ("body", 1.0)] == [
        (prompt.id, prompt.arrival_s) for prompt in read_prompts(path)
    ]


def test_rows_of_a_log_may_stand_beside_plain_ones(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        {"request_id": "logged", "startTime": "2026-01-01T00:00:00Z", "messages": MESSAGES},
        {"prompt": "Hi"},
    )

    assert [0.0, None] == [prompt.arrival_s for prompt in read_prompts(path)]


def test_spend_log_without_texts_names_the_setting(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"request_id": "a", "startTime": "2026-01-01T00:00:02Z", "messages": "{}"})

    with pytest.raises(InputFileError, match="store_prompts_in_spend_logs: true"):
        read_prompts(path)


@pytest.mark.parametrize("row", [{"startTime": "yesterday", "messages": MESSAGES}, {"startTime": "x", "messages": "{"}])
def test_malformed_spend_row_is_named(tmp_path, row):
    path = write_lines(tmp_path / "a.jsonl", {"request_id": "a", **row})

    with pytest.raises(InputFileError, match=r"a\.jsonl:1: cannot be read as a log's row"):
        read_prompts(path)


@pytest.mark.parametrize("body", [{"prompt": "Hi"}, {"input": "Hi"}, {"input": MESSAGES}])
def test_openai_batch_input_of_completions_and_responses_is_read(tmp_path, body):
    path = write_lines(tmp_path / "a.jsonl", {"custom_id": "q1", "body": {**body, "max_output_tokens": 4}})

    (prompt,) = read_prompts(path)

    assert ("Hi", 4) == (prompt.last_user_text, prompt.max_tokens)


def test_openai_batch_output_names_the_file_that_is_wanted(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", {"id": "batch_req_1", "custom_id": "q1", "response": {"status_code": 200}, "error": None}
    )

    with pytest.raises(InputFileError, match=r"a\.jsonl:1: .*batch's output.*give the batch's input file"):
        read_prompts(path)


def spend_rows():
    return [
        {"request_id": "late", "startTime": "2026-01-01 00:00:02.5+00", "messages": json.dumps(MESSAGES), "spend": "1"},
        {"request_id": "silent", "startTime": "2026-01-01 00:00:00+00", "messages": "{}", "spend": "2"},
        {"request_id": "early", "startTime": "2026-01-01 00:00:01+00", "messages": json.dumps(MESSAGES), "spend": ""},
    ]


def test_spend_log_as_csv_is_read(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, spend_rows()[0].keys())
        writer.writeheader()
        writer.writerows(spend_rows())

    assert [("late", "Hi", 1.5), ("early", "Hi", 0.0)] == [
        (prompt.id, prompt.last_user_text, prompt.arrival_s) for prompt in read_prompts(tmp_path / "a.csv")
    ]


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_spend_log_as_parquet_is_read(tmp_path, unit):
    instants = [datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC) for second in (2, 0, 1)]
    table = pa.table(
        {
            "request_id": ["late", "silent", "early"],
            "startTime": pa.array(instants, pa.timestamp(unit, tz="UTC")),
            "messages": pa.array([MESSAGES, None, MESSAGES]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")

    assert [("late", 1.0), ("early", 0.0)] == [
        (prompt.id, prompt.arrival_s) for prompt in read_prompts(tmp_path / "a.parquet")
    ]


def test_labels_that_a_user_added_to_a_log_are_read(tmp_path):
    row = {"request_id": "a", "startTime": "2026-01-01T00:00:00Z", "messages": MESSAGES}
    path = write_lines(tmp_path / "a.jsonl", {**row, "scores": {"x": 1}, "answer": "7", "domain": "math", "weight": 2})

    (labelled,) = load_outcomes([path]).rows

    assert ({"x": 1.0}, "7", "math", 2.0) == (
        labelled.scores,
        labelled.prompt.answer,
        labelled.prompt.domain,
        labelled.weight,
    )


def test_turn_that_calls_a_tool_needs_no_text(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    path = write_lines(tmp_path / "a.jsonl", {"messages": [*MESSAGES, call]})

    assert ["Hi", ""] == [message.content for message in read_prompts(path)[0].messages]
