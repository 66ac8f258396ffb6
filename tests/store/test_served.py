"""Who asked, when, and who answered, from logs of several forms."""

import json
from dataclasses import replace

import pytest

from llmtier.core.errors import InputFileError
from llmtier.store.parquet import Column, write_rows
from llmtier.store.served import stream_served
from llmtier.store.traffic import TRAFFIC_COLUMNS, TrafficRow, TrafficWriter, read_traffic

ROW = TrafficRow(
    request_id="r1",
    received_at="1970-01-01T00:01:00+00:00",
    tier="small",
    reason="cheapest_feasible",
    alias="auto",
    domain=None,
    predicted_accuracy=None,
    need_accuracy=None,
    n_in_flight=0,
    ttft_s=None,
    e2el_s=None,
    n_input_tokens=1,
    n_output_tokens=1,
    usd=None,
    status=200,
    stream=False,
    misses="",
    prompt_sha256="cafe",
    messages_json=json.dumps([{"role": "user", "content": "hello"}]),
    key_sha256="00112233aabbccdd",
)


@pytest.fixture
def traffic(tmp_path):
    """Return a function that writes a folder of traffic logs."""

    def write(*rows):
        writer = TrafficWriter(tmp_path / "traffic")
        for row in rows:
            writer.append(row)
        writer.close()
        return tmp_path / "traffic"

    return write


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows):
        path = tmp_path / "log.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def facts(path):
    """Return key, arrival, tier and first text of each row."""
    return [
        (row.key, row.arrival_s, row.tier, None if row.messages is None else row.messages[0].content)
        for row in stream_served(path)
    ]


def test_a_traffic_log_tells_who_asked_and_who_answered(traffic):
    folder = traffic(ROW, replace(ROW, request_id="r2", key_sha256=None, tier=None))

    assert [("00112233aabbccdd", 60.0, "small", "hello"), (None, 60.0, None, "hello")] == facts(folder)


def test_a_traffic_log_without_texts_has_digests(traffic):
    [row] = stream_served(traffic(replace(ROW, messages_json=None)))

    assert (None, "cafe") == (row.messages, row.digest)


@pytest.mark.parametrize(("status", "tier"), [(200, "small"), (399, "small"), (400, None), (499, None), (503, None)])
def test_a_request_that_failed_was_served_by_nobody(traffic, status, tier):
    [row] = stream_served(traffic(replace(ROW, status=status)))

    assert tier == row.tier


def test_a_traffic_log_of_an_older_version_has_no_keys(tmp_path):
    path = tmp_path / "traffic-000001-00000000.parquet"
    older = [column for column in TRAFFIC_COLUMNS if column.name != "key_sha256"]
    write_rows(path, [{column.name: getattr(ROW, column.name) for column in older}], older, artifact="traffic")

    assert [(None, 60.0, "small", "hello")] == facts(path)
    assert [replace(ROW, key_sha256=None)] == read_traffic(path)


def test_a_spend_log_names_key_and_user(jsonl):
    row = {
        "request_id": "r",
        "startTime": "1970-01-01 00:00:05",
        "api_key": "88dc",
        "user": "",
        "end_user": "ann",
        "model": "small",
        "messages": [{"role": "user", "content": "hello"}],
    }
    path = jsonl(row, {**row, "end_user": None, "status": "failure"}, {**row, "api_key": "", "end_user": ""})

    assert [
        ("88dc||ann", 5.0, "small", "hello"),
        ("88dc||", 5.0, None, "hello"),
        (None, 5.0, "small", "hello"),
    ] == facts(path)


def test_spend_logs_of_two_users_behind_one_key_differ(jsonl):
    row = {"request_id": "r", "startTime": "1970-01-01T00:00:05Z", "api_key": "k", "messages": "[]", "model": "m"}
    path = jsonl({**row, "user": "a"}, {**row, "end_user": "a"})

    assert 2 == len({row.key for row in stream_served(path)})
    assert [None, None] == [row.messages for row in stream_served(path)]


def test_plain_files_of_any_form_state_it_themselves(tmp_path, jsonl):
    path = jsonl({"prompt": "hello", "key": 7, "arrival_s": 3, "tier": "small"}, {"prompt": "hello"})
    (tmp_path / "log.csv").write_text("prompt,key,arrival_s,tier\nhello,7,3,small\nhello,,,\n")
    columns = [Column(name, "string", nullable=True) for name in ("prompt", "key", "tier")]
    columns.append(Column("arrival_s", "float64", nullable=True))
    rows = [{"prompt": "hello", "key": "7", "tier": "small", "arrival_s": 3.0}, {"prompt": "hello"}]
    write_rows(tmp_path / "log.parquet", rows, columns, artifact="log")
    expected = [("7", 3.0, "small", "hello"), (None, None, None, "hello")]

    assert expected == facts(path)
    assert expected == facts(tmp_path / "log.csv")
    assert expected == facts(tmp_path / "log.parquet")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "hello", "received_at": "yesterday"}, "expected a date and time"),
        ({"prompt": "hello", "arrival_s": "soon"}, "arrival_s"),
        ({"prompt": "hello", "arrival_s": -1}, "arrival_s"),
        ({"key": "k"}, "expected either 'messages'"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(jsonl, row, message):
    with pytest.raises(InputFileError, match=message) as caught:
        list(stream_served(jsonl({"prompt": "hello"}, row)))

    assert ":2" in str(caught.value)
