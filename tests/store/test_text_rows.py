"""Lines of text and JSON lines: what is no text is refused with its place, and one line is held at a time."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.core.errors import InputFileError
from llmtier.store.jsonl import read_jsonl
from llmtier.store.text_rows import read_json_rows

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def test_rows_are_those_of_the_standard_library(tmp_path_factory):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), min_size=1, max_size=4), st.booleans())
    def check(rows, is_ascii):
        path = tmp_path_factory.mktemp("rows") / "a.jsonl"
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=is_ascii) for row in rows), encoding="utf-8")

        assert list(read_jsonl(path)) == list(read_json_rows(path))

    check()


def test_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')

    assert [(1, {"a": 1})] == list(read_json_rows(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"prompt": "caf\xe9"}', r"a\.jsonl:2: expected UTF-8: .* at byte 16"),
        (b'{"prompt": NaN}', r"a\.jsonl:2: .*NaN is not JSON"),
        (b'{"prompt": "\\ud800"}', r"a\.jsonl:2: .*surrogate"),
        (b'{"prompt": ', r"a\.jsonl:2: .*not JSON"),
        (b"[1]", r"a\.jsonl:2: expected a JSON object, got \[1\]"),
        (b"[" * 100_000, r"a\.jsonl:2: .*nested too deeply|a\.jsonl:2: .*not JSON"),
    ],
)
def test_malformed_line_is_named_after_the_rows_before_it(tmp_path, line, expected):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "x"}\n' + line + b"\n")
    rows = read_json_rows(tmp_path / "a.jsonl")

    assert (1, {"prompt": "x"}) == next(rows)
    with pytest.raises(InputFileError, match=expected):
        next(rows)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"PAR1", r"Parquet; let its name end in \.parquet"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"PK\x03\x04", "spreadsheet"),
        ('{"prompt": "x"}'.encode("utf-16"), "UTF-16"),
        (b"\x7fELF\x02\x01\x01\x00", "byte 8 is NUL"),
    ],
)
def test_binary_file_is_no_text(tmp_path, head, expected):
    (tmp_path / "a.jsonl").write_bytes(head)

    with pytest.raises(InputFileError, match=rf"a\.jsonl: is not text: .*{expected}"):
        next(read_json_rows(tmp_path / "a.jsonl"))


def test_absent_file_is_named(tmp_path):
    with pytest.raises(InputFileError, match=r"a\.jsonl: cannot be read: No such file"):
        next(read_json_rows(tmp_path / "a.jsonl"))
