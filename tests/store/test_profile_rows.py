"""The router's summary table."""

import pytest

from llmtier.core.errors import InputFileError
from llmtier.store.profile_rows import PROFILE_COLUMNS, from_summary_rows


def test_row_out_of_range_is_an_input_error(tmp_path):
    row = {column.name: None for column in PROFILE_COLUMNS}

    with pytest.raises(InputFileError, match=r"expected a profile's summary: .*concurrency >= 1"):
        from_summary_rows([{**row, "concurrency": 0, "duration_s": 1.0}], path=tmp_path)
    with pytest.raises(InputFileError, match="expected a profile's summary"):
        from_summary_rows([{**row, "domain": "all", "accuracy_low": None}], path=tmp_path)
