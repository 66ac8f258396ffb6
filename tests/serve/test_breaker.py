"""The breaker: when it opens, who probes, and the laws that no course of events breaks."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmtier.serve.breaker import Breaker, BreakerSettings, BreakerState, Failure, classify_status

CLOSED, OPEN, HALF_OPEN = BreakerState
COUNTED = [kind for kind in Failure if kind is not Failure.BUSY]


def opened(now_s=100.0, settings=None):
    breaker = Breaker(settings)
    for _ in range(5):
        breaker.fail(now_s, Failure.CONNECT)
    return breaker


@pytest.mark.parametrize("kind", COUNTED)
def test_opens_on_five_failures_in_a_row(kind):
    breaker = Breaker()
    for _ in range(4):
        breaker.fail(1.0, kind)
    assert breaker.may_try(1.0)

    breaker.fail(1.0, kind)

    assert OPEN is breaker.state
    assert 6.0 == breaker.open_until_s
    assert not breaker.may_try(5.9)
    assert 1 == breaker.n_opened


def test_a_success_ends_a_row():
    breaker = Breaker()
    for _ in range(9):
        for _ in range(5):
            breaker.succeed(1.0)
        for _ in range(4):
            breaker.fail(1.0, Failure.STATUS)

    assert CLOSED is breaker.state


@pytest.mark.parametrize(("n", "state"), [(9, CLOSED), (10, OPEN)])
def test_opens_on_half_of_twenty(n, state):
    breaker = Breaker()
    for _ in range(n):
        breaker.succeed(0.0)
        breaker.fail(0.0, Failure.TIMEOUT)

    assert state is breaker.state


@pytest.mark.parametrize(("later_s", "state"), [(24.0, OPEN), (31.0, CLOSED), (400.0, CLOSED)])
def test_failures_older_than_the_window_are_forgotten(later_s, state):
    breaker = Breaker()
    for _ in range(9):
        breaker.succeed(0.0)
        breaker.fail(0.0, Failure.BROKEN)
    breaker.succeed(later_s)
    for _ in range(3):
        breaker.fail(later_s, Failure.BROKEN)

    assert state is breaker.state


def test_the_window_forgets_a_part_at_a_time():
    breaker = Breaker(BreakerSettings(n_consecutive=1000))
    for second in range(60):  # failures in the first half minute, successes in the second
        for _ in range(2):
            breaker.succeed(float(second))
        if second < 30:
            breaker.fail(float(second), Failure.STATUS)

    for _ in range(59):  # against the 60 successes that are left
        breaker.fail(59.0, Failure.STATUS)

    assert CLOSED is breaker.state
    breaker.fail(59.0, Failure.STATUS)
    assert OPEN is breaker.state


def test_one_probe_passes_and_its_success_closes():
    breaker = opened()

    assert not breaker.may_try(104.9)
    assert breaker.may_try(105.0)
    assert HALF_OPEN is breaker.state
    assert not breaker.may_try(105.0)
    assert not breaker.may_try(164.9)
    breaker.succeed(106.0, sent_s=105.0)
    assert CLOSED is breaker.state
    assert -math.inf == breaker.open_until_s
    assert breaker.may_try(106.0)


def test_back_off_doubles_to_its_limit_and_begins_anew():
    breaker, now_s, seen = opened(), 100.0, []
    for _ in range(6):
        seen.append(breaker.open_until_s - now_s)
        now_s = breaker.open_until_s
        assert breaker.may_try(now_s)
        breaker.fail(now_s, Failure.STATUS, sent_s=now_s)

    assert [5.0, 10.0, 20.0, 40.0, 60.0, 60.0] == seen
    assert breaker.may_try(breaker.open_until_s)
    breaker.succeed(1000.0)
    for _ in range(5):
        breaker.fail(1000.0, Failure.STATUS)
    assert 1005.0 == breaker.open_until_s


def test_first_tokens_of_a_probe_are_enough_to_close():
    breaker = opened()
    breaker.note_answering(101.0)
    assert OPEN is breaker.state
    assert breaker.may_try(105.0)

    breaker.note_answering(105.5, sent_s=105.0)

    assert CLOSED is breaker.state
    for _ in range(5):  # what that probe comes to counts like any other request
        breaker.fail(106.0, Failure.BROKEN, sent_s=105.0)
    assert OPEN is breaker.state


def test_a_probe_that_never_reports_frees_its_place():
    breaker = opened()
    assert breaker.may_try(105.0)

    assert breaker.may_try(165.0)
    assert not breaker.may_try(166.0)
    breaker.fail(167.0, Failure.TIMEOUT, sent_s=105.0)  # the lost one, at last
    assert HALF_OPEN is breaker.state


def test_a_dismissed_probe_lets_the_next_one_pass_at_once():
    breaker = opened()
    assert breaker.may_try(105.0)

    breaker.dismiss(105.5, sent_s=105.0)

    assert breaker.may_try(105.5)
    assert 1 == breaker.n_opened


def test_what_was_sent_before_the_opening_says_nothing_after_it():
    breaker = opened()
    breaker.succeed(101.0, sent_s=99.0)
    breaker.fail(101.0, Failure.TIMEOUT, sent_s=99.0)
    assert (OPEN, 105.0) == (breaker.state, breaker.open_until_s)
    assert breaker.may_try(105.0)
    breaker.succeed(105.1, sent_s=99.0)
    breaker.fail(105.1, Failure.TIMEOUT, sent_s=99.0)
    breaker.dismiss(105.1, sent_s=99.0)
    assert HALF_OPEN is breaker.state
    breaker.succeed(105.2, sent_s=105.0)
    for _ in range(9):
        breaker.fail(106.0, Failure.TIMEOUT, sent_s=99.0)
    assert CLOSED is breaker.state
    for _ in range(5):
        breaker.succeed(106.0, sent_s=99.0)
        breaker.fail(106.0, Failure.TIMEOUT, sent_s=106.0)
    assert OPEN is breaker.state


def test_busy_counts_towards_nothing():
    breaker = Breaker()
    for _ in range(100):
        breaker.fail(1.0, Failure.BUSY)

    assert CLOSED is breaker.state


@pytest.mark.parametrize("kind", [Failure.BUSY, Failure.STATUS])
@pytest.mark.parametrize(("asked_s", "until_s"), [(7.0, 17.0), (1e9, 310.0), (-5.0, None), (0.0, None)])
def test_retry_after_shuts_the_tier_for_that_long(kind, asked_s, until_s):
    breaker = Breaker()

    breaker.fail(10.0, kind, retry_after_s=asked_s)

    assert (CLOSED if until_s is None else OPEN) is breaker.state
    assert breaker.may_try(10.0) == (until_s is None)
    assert breaker.may_try(until_s or 10.0)


def test_retry_after_lengthens_what_is_left_and_never_shortens_it():
    breaker = opened()
    breaker.fail(101.0, Failure.BUSY, sent_s=99.0, retry_after_s=2.0)
    assert 105.0 == breaker.open_until_s
    breaker.fail(101.0, Failure.BUSY, sent_s=99.0, retry_after_s=20.0)
    assert 121.0 == breaker.open_until_s


def test_a_busy_probe_waits_again_but_no_longer_than_before():
    breaker = opened()
    for now_s in (105.0, 110.0, 115.0):
        assert breaker.may_try(now_s)
        breaker.fail(now_s, Failure.BUSY, sent_s=now_s)
        assert now_s + 5.0 == breaker.open_until_s

    assert breaker.may_try(120.0)
    breaker.fail(120.0, Failure.STATUS, sent_s=120.0, retry_after_s=3.0)
    assert 130.0 == breaker.open_until_s


def test_a_closed_breaker_waits_for_the_other_processes():
    breaker = Breaker()

    assert not breaker.may_try(10.0, others_open_until_s=12.0)
    assert not breaker.may_try(12.9, others_open_until_s=12.0)
    assert breaker.may_try(13.0, others_open_until_s=12.0)
    assert breaker.may_try(10.0, others_open_until_s=-math.inf)
    assert CLOSED is breaker.state


def test_the_process_that_opened_last_probes_and_the_others_wait_for_it():
    first, last = opened(100.0), opened(102.0)

    assert not first.may_try(105.0, others_open_until_s=last.open_until_s)
    assert last.may_try(107.0, others_open_until_s=first.open_until_s)
    assert not first.may_try(107.9, others_open_until_s=last.open_until_s)  # its probe is on its way
    assert first.is_shut(167.9, others_open_until_s=last.open_until_s)
    last.succeed(108.0, sent_s=107.0)
    assert first.may_try(108.0, others_open_until_s=last.open_until_s)


def test_the_head_start_is_not_for_those_that_opened_before():
    first, last = opened(100.0), opened(100.5)

    assert last.may_try(105.5, others_open_until_s=first.open_until_s)


def test_a_process_that_never_probes_does_not_lock_the_others_out():
    first, last = opened(100.0), opened(102.0)

    assert first.may_try(108.0, others_open_until_s=last.open_until_s)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, None) for status in (200, 400, 404, 499, 501)),
        (408, Failure.TIMEOUT),
        (429, Failure.BUSY),
        *((status, Failure.STATUS) for status in (500, 502, 503, 504)),
    ],
)
def test_status_is_the_engine_s_fault_or_not(status, kind):
    assert kind is classify_status(status)


@pytest.mark.parametrize(
    "values",
    [
        {"n_consecutive": 0},
        {"n_fewest": 0},
        {"failed_share": 0.0},
        {"failed_share": math.nan},
        {"first_open_s": 61.0},
        {"longest_open_s": math.inf},
        {"probe_s": 0.0},
        {"window_s": math.nan},
        {"others_first_s": -1.0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values):
    with pytest.raises(ValueError, match="must be"):
        BreakerSettings(**values)


@given(gaps_s=st.lists(st.floats(0.0, 100.0), max_size=200))
def test_successes_never_open(gaps_s):
    breaker, now_s = Breaker(), 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        assert breaker.may_try(now_s)
        breaker.succeed(now_s)
        assert CLOSED is breaker.state


class BreakerLaws(RuleBasedStateMachine):
    """Requests that pass end in any order, late, or never; the clock only moves on."""

    def __init__(self):
        super().__init__()
        self.settings = BreakerSettings(n_consecutive=3, n_fewest=6, probe_s=20.0)
        self.breaker = Breaker(self.settings)
        self.now_s = 0.0
        self.under_way = []
        self.probe_s = None  # when the probe that is out was sent
        self.before = (CLOSED, -math.inf)

    def _tick(self):
        self.now_s += 1e-3  # so that no two events are of one instant

    @rule(seconds=st.floats(0.0, 90.0))
    def wait(self, seconds):
        self.now_s += seconds

    @rule(n=st.integers(1, 4))
    def try_some(self, n):
        for _ in range(n):
            self._tick()
            is_shut = self.breaker.is_shut(self.now_s)
            passes = self.breaker.may_try(self.now_s)
            assert passes is not is_shut
            if passes:
                self.under_way.append(self.now_s)
            if passes and self.breaker.state is not CLOSED:
                assert self.probe_s is None or self.now_s >= self.probe_s + self.settings.probe_s, "two probes"
                self.probe_s = self.now_s

    @precondition(lambda self: self.under_way)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["succeed", "dismiss", "answer", "lost", *Failure]),
        retry_after_s=st.sampled_from([None, None, 0.0, 3.0, 1000.0]),
    )
    def end_one(self, data, outcome, retry_after_s):
        self._tick()
        sent_s = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        was = self.breaker.state
        match outcome:
            case "succeed":
                self.breaker.succeed(self.now_s, sent_s=sent_s)
            case "dismiss":
                self.breaker.dismiss(self.now_s, sent_s=sent_s)
            case "answer":
                self.breaker.note_answering(self.now_s, sent_s=sent_s)
                self.under_way.append(sent_s)
            case "lost":
                return
            case _:
                self.breaker.fail(self.now_s, outcome, sent_s=sent_s, retry_after_s=retry_after_s)
        if was is HALF_OPEN:
            assert (self.breaker.state is HALF_OPEN) == (sent_s != self.probe_s), "only the probe decides"
        if sent_s == self.probe_s and outcome != "answer":
            self.probe_s = None

    @invariant()
    def changes_only_as_it_may(self):
        state, until_s = self.breaker.state, self.breaker.open_until_s
        was, was_until_s = self.before
        assert (was, state) != (CLOSED, HALF_OPEN)
        if (was, state) == (OPEN, OPEN):
            assert until_s >= was_until_s
        if state is CLOSED:
            assert -math.inf == until_s
            self.probe_s = None
        self.before = (state, until_s)

    @invariant()
    def is_never_locked_for_good(self):
        longest_s = max(self.settings.longest_open_s, 300.0)
        assert not self.breaker.is_shut(self.now_s + longest_s)

    @invariant()
    def peeking_changes_nothing(self):
        self.breaker.is_shut(self.now_s, others_open_until_s=self.now_s + 5.0)
        assert self.before[0] is self.breaker.state


TestBreakerLaws = BreakerLaws.TestCase
TestBreakerLaws.settings = settings(max_examples=40, stateful_step_count=40)
