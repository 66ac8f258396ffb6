"""The quantile agrees with numpy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtier.stats.quantiles import quantile


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_quantile_agrees_with_numpy(values, q):
    assert float(np.quantile(values, q)) == quantile(values, q)


def test_quantile_of_nothing_is_none():
    assert quantile([], 0.5) is None


@pytest.mark.parametrize(("values", "q"), [([1.0, math.nan], 0.5), ([1.0], 1.5)])
def test_quantile_refuses_what_has_no_answer(values, q):
    with pytest.raises(ValueError, match=r"NaN|q must"):
        quantile(values, q)
