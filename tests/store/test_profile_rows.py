"""The router's summary table."""

from dataclasses import fields

import pytest

from llmtier.core.errors import InputFileError
from llmtier.core.profile import LoadPoint
from llmtier.store.profile_rows import POINT_COLUMNS, PROFILE_COLUMNS, from_summary_rows, shape_or_closed


def test_row_out_of_range_is_an_input_error(tmp_path):
    row = {column.name: None for column in PROFILE_COLUMNS}

    with pytest.raises(InputFileError, match=r"expected a profile's summary: .*concurrency >= 1"):
        from_summary_rows([{**row, "concurrency": 0, "n_ok": 1, "n_failed": 0, "duration_s": 1.0}], path=tmp_path)
    with pytest.raises(InputFileError, match="a load point has no n_failed"):
        from_summary_rows([{**row, "n_ok": 1, "duration_s": 1.0}], path=tmp_path)
    with pytest.raises(InputFileError, match="expected a profile's summary"):
        from_summary_rows([{**row, "domain": "all", "accuracy_low": None}], path=tmp_path)


def test_columns_are_the_fields_of_a_load_point():
    assert {field.name for field in fields(LoadPoint)} == {column.name for column in POINT_COLUMNS}


@pytest.mark.parametrize(("shape", "concurrency", "expected"), [(None, 4, "closed:4"), (None, None, ""), ("", 4, "")])
def test_a_point_without_shape_was_a_closed_loop(shape, concurrency, expected):
    assert expected == shape_or_closed(shape, concurrency)
