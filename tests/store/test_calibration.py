"""Calibration sets."""

import json

import pytest

from llmtier.core.errors import InputFileError
from llmtier.store.calibration import read_calibration
from llmtier.store.digests import file_sha256

TURN = {"role": "user", "content": "Hi"}


def test_both_forms_are_read(tmp_path):
    rows = [{"messages": [TURN]}, {"text": "Hello"}]
    path = tmp_path / "support.jsonl"
    path.write_text("".join(json.dumps({**row, "more": 1}) + "\n" for row in rows))

    found = read_calibration(path)

    assert tuple(rows) == found.rows
    assert (path, file_sha256(path)) == (found.path, found.sha256)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, "expected either 'messages' or 'text'"),
        ({"text": "a", "messages": [TURN]}, "expected either"),
        ({"text": ""}, "text: "),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content is missing"),
        ({"text": 3}, "text: .*valid string, got 3"),
    ],
)
def test_malformed_line_is_named(tmp_path, row, expected):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + json.dumps(row))

    with pytest.raises(InputFileError, match=rf"a\.jsonl:2: {expected}"):
        read_calibration(tmp_path / "a.jsonl")
