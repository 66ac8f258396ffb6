"""Logs as prompt files: OpenAI batch input and LiteLLM spend logs. The gateway's own is in test_traffic."""

import json

import pytest

from llmtier.core.errors import InputFileError
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
