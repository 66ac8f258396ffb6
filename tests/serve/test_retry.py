"""Second tries: the budget's law, and what a Retry-After says."""

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.retry import MAX_RETRY_AFTER_S, RetryBudget, parse_retry_after

NOW = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)


@given(
    events=st.lists(st.booleans(), max_size=300),
    share=st.sampled_from([0.05, 0.1, 0.2, 0.3, 1.0]),
    burst=st.integers(1, 12),
    start=st.integers(0, 300),
)
def test_tries_of_any_stretch_stay_within_the_share_and_the_burst(events, share, burst, start):
    budget = RetryBudget(share=share, burst=burst)
    granted = []
    for is_request in events:
        if is_request:
            budget.earn()
        granted.append(not is_request and budget.take())

    n_requests = sum(events[start:])
    assert sum(granted[start:]) <= share * n_requests + burst + 1e-9
    assert (sum(granted), len(events) - sum(events)) == (budget.n_taken, budget.n_taken + budget.n_refused)
    assert 0 <= budget.n_left <= burst


def test_an_outage_adds_a_fifth_to_the_load():
    budget = RetryBudget()
    assert [True] * 10 + [False] == [budget.take() for _ in range(11)]

    n_granted = 0
    for _ in range(1000):
        budget.earn()
        n_granted += budget.take()

    assert 200 == n_granted
    assert (210, 801) == (budget.n_taken, budget.n_refused)


@given(n=st.integers(0, 10_000))
def test_an_idle_gateway_saves_no_more_than_the_burst(n):
    budget = RetryBudget()
    for _ in range(n):
        budget.earn()

    assert 10 == budget.n_left


@pytest.mark.parametrize("values", [{"share": 0.0}, {"share": 1.1}, {"burst": 0.5}, {"burst": float("inf")}])
def test_budgets_that_cannot_be_meant_are_refused(values):
    with pytest.raises(ValueError, match="must be"):
        RetryBudget(**values)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"7", 7.0),
        (b" 7\t", 7.0),
        (b"1.5", 1.5),
        (b"301", 300.0),
        (b"9" * 60, 300.0),
        (b"Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        (b"Wednesday, 21-Oct-26 07:28:30 GMT", 30.0),
        (b"Wed Oct 21 07:28:30 2026", 30.0),
        (b"Wed, 21 Oct 2026 07:27:30 GMT", 0.0),
        (b"Thu, 21 Oct 2032 07:27:30 GMT", 300.0),
        (b"", None),
        (b"-5", None),
        (b"+5", None),
        (b"1e3", None),
        (b"soon", None),
        (b"inf", None),
        (b"nan", None),
        (b"7" * 65, None),
        ("\u0667".encode(), None),
        (b"Wed, 99 Oct 2026 07:28:30 GMT", None),
    ],
)
def test_retry_after_is_read(value, seconds):
    assert seconds == parse_retry_after(value, NOW)


@given(delay_s=st.integers(-1000, 1000), zone_h=st.integers(-12, 12))
def test_a_date_is_the_time_until_then_wherever_now_is(delay_s, zone_h):
    value = format_datetime(NOW + timedelta(seconds=delay_s), usegmt=True).encode()

    got = parse_retry_after(value, NOW.astimezone(timezone(timedelta(hours=zone_h))))

    assert min(max(delay_s, 0), 300) == got


@given(value=st.binary(max_size=80) | st.from_regex(rb"[A-Za-z]{3}, [0-9]{1,3} [A-Za-z]{3} [0-9]{1,9}[ 0-9:GMT+-]*"))
def test_no_header_raises_or_asks_for_more_than_the_most(value):
    got = parse_retry_after(value, NOW)

    assert got is None or 0.0 <= got <= MAX_RETRY_AFTER_S
