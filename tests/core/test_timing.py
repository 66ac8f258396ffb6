"""TTFT, TPOT, ITL and E2EL have one definition each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.timing import RequestTiming, predict_e2el_s


def make(content_s=(), n_output_tokens=None, scheduled_s=0.0, sent_s=1.0, done_s=100.0):
    return RequestTiming(
        scheduled_s=scheduled_s, sent_s=sent_s, done_s=done_s, content_s=content_s, n_output_tokens=n_output_tokens
    )


def test_latencies_count_from_the_scheduled_instant():
    timing = make(content_s=(3.0, 4.0, 6.0), n_output_tokens=4)

    assert 3.0 == timing.ttft_s
    assert 2.0 == timing.ttft_from_send_s
    assert 6.0 == timing.e2el_s
    assert 5.0 == timing.e2el_from_send_s
    assert 1.0 == timing.tpot_s
    assert (1.0, 2.0) == timing.itl_s


def test_absent_events_are_none_never_zero():
    timing = make()

    assert timing.ttft_s is None
    assert timing.ttft_from_send_s is None
    assert timing.e2el_s is None
    assert timing.e2el_from_send_s is None
    assert timing.tpot_s is None
    assert () == timing.itl_s


@pytest.mark.parametrize("n_output_tokens", [None, 0, 1])
def test_tpot_needs_two_tokens(n_output_tokens):
    assert make(content_s=(2.0, 3.0), n_output_tokens=n_output_tokens).tpot_s is None


def test_instants_out_of_order_are_refused():
    with pytest.raises(ValueError, match="scheduled_s <= sent_s"):
        make(scheduled_s=2.0, sent_s=1.0)


@given(st.floats(0, 10), st.floats(0, 1), st.integers(2, 500))
def test_predicted_e2el_inverts_the_definition_of_tpot(ttft_s, tpot_s, n_output_tokens):
    e2el_s = predict_e2el_s(ttft_s=ttft_s, tpot_s=tpot_s, n_output_tokens=n_output_tokens)

    assert tpot_s == pytest.approx((e2el_s - ttft_s) / (n_output_tokens - 1), abs=1e-9)
