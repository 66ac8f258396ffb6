"""JSON lines: rows with their lines, errors that point."""

import pytest

from llmtier.core.errors import InputFileError
from llmtier.store.jsonl import read_jsonl, write_jsonl


def test_rows_come_with_the_line_they_stand_on(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "x\u2028y"}\r\n\n  \n{"a": 2}'.encode())

    assert [(1, {"a": "x\u2028y"}), (4, {"a": 2})] == list(read_jsonl(path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"a": ', "expected a JSON object: not JSON: .* at column"),
        (b"[1, 2]", r"expected a JSON object, got \[1, 2\]"),
        (b'{"a": NaN}', "expected a JSON object: NaN is not JSON"),
        (b'{"a": "\\ud800"}', "expected a JSON object: .* half of a surrogate pair"),
        (b'{"a": "\xff"}', "expected UTF-8: invalid start byte at byte 8"),
        (b"[" * 100_000, "expected a JSON object: nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "expected a JSON object"),
    ],
)
def test_malformed_line_is_named_with_what_was_expected(tmp_path, line, expected):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")

    with pytest.raises(InputFileError, match=rf"a\.jsonl:2: {expected}") as caught:
        list(read_jsonl(path))

    assert (path, 2, 3) == (caught.value.path, caught.value.line, caught.value.exit_code)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file_is_an_error(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)

    with pytest.raises(InputFileError, match="holds no rows"):
        list(read_jsonl(tmp_path / "a.jsonl"))


def test_absent_file_is_an_error(tmp_path):
    with pytest.raises(InputFileError, match="No such file"):
        list(read_jsonl(tmp_path / "a.jsonl"))


def test_written_rows_read_back(tmp_path):
    rows = [{"a": "x\ny\u2028"}, {"b": [1, None]}]
    write_jsonl(tmp_path / "a.jsonl", rows)

    assert rows == [row for _, row in read_jsonl(tmp_path / "a.jsonl")]
