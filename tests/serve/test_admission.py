"""Who gets a slot, who waits, and what the others are told."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import Offer
from llmtier.core.requirement import Requirement
from llmtier.serve.admission import Admission, PlaceState
from llmtier.serve.admission_plan import (
    AdmissionHooks,
    AdmissionSettings,
    Fleet,
    TierLimit,
    find_deadline,
    limit_of,
)
from llmtier.serve.priority_queue import Priority
from llmtier.serve.shed import Shed, ShedReason


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class Told:
    def __init__(self):
        self.turns, self.sheds = [], []

    @property
    def hooks(self):
        return AdmissionHooks(
            on_turn=lambda *facts: self.turns.append(facts), on_shed=lambda *facts: self.sheds.append(facts)
        )


def make(max_in_flight=1, *, service_s=None, clock=None, fleet=None, told=None, **settings):
    return Admission(
        {"t": TierLimit(max_in_flight=max_in_flight, service_s=service_s), "other": TierLimit(max_in_flight=1)},
        AdmissionSettings(**settings),
        clock=clock or Clock(),
        fleet=fleet,
        hooks=None if told is None else told.hooks,
    )


def states(*places):
    return [place.state.value for place in places]


def test_a_slot_that_ends_goes_to_the_next():
    clock, told = Clock(), Told()
    admission = make(clock=clock, told=told)
    first, second, third = (admission.enter("t") for _ in range(3))
    assert ["running", "waiting", "waiting"] == states(first, second, third)

    clock.now_s = 2.0
    first.leave()
    first.leave()
    assert ["served", "running", "waiting"] == states(first, second, third)
    assert [("t", Priority.NORMAL, 2.0)] == told.turns

    third.leave()
    second.leave()
    assert ["served", "served", "cancelled"] == states(first, second, third)
    assert (0, 0, 0) == (admission.n_running("t"), admission.n_waiting("t"), admission.n_waiting_in_all)


def test_without_a_limit_nobody_waits():
    admission = make(max_in_flight=None)

    assert {PlaceState.RUNNING} == {admission.enter("t").state for _ in range(1000)}


def test_sheds_at_the_door_what_cannot_be_served_in_time():
    admission = make(max_in_flight=2, service_s=4.0)
    for _ in range(3):  # two run, one waits: the next starts in 2 x 4 s / 2
        admission.enter("t", deadline_s=1e9)

    in_time = admission.enter("t", deadline_s=1e9 + 1, predicted_s=1.0)
    assert PlaceState.WAITING is in_time.state

    in_time.leave()
    assert PlaceState.WAITING is admission.enter("t", deadline_s=5.0, predicted_s=3.0).state  # before the open one
    late = admission.enter("t", deadline_s=6.0, predicted_s=3.0)

    assert Shed(tier="t", reason=ShedReason.DEADLINE, retry_after_s=1) == late
    assert late.may_upgrade
    assert 503 == late.status


def test_sheds_a_waiting_request_past_its_latest_start_rather_than_starting_it():
    clock, told = Clock(), Told()
    admission = make(clock=clock, told=told)
    running = admission.enter("t")
    late = admission.enter("t", priority=Priority.HIGH, deadline_s=5.0, predicted_s=2.0)
    patient = admission.enter("t")

    clock.now_s = 3.5
    running.leave()

    assert ["shed", "running"] == states(late, patient)
    assert ShedReason.DEADLINE is late.shed.reason
    assert [("t", Priority.HIGH, ShedReason.DEADLINE)] == told.sheds


def test_nobody_waits_longer_than_the_longest_wait():
    clock = Clock()
    admission = make(clock=clock, max_wait_s=10.0)
    admission.enter("t")
    waiting = admission.enter("t")

    clock.now_s = 10.0
    admission.tick()
    assert PlaceState.WAITING is waiting.state

    clock.now_s = 10.5
    admission.tick()
    assert PlaceState.SHED is waiting.state


def test_a_full_queue_sheds_and_says_when_it_will_be_empty():
    told = Told()
    admission = make(max_in_flight=2, service_s=3.0, max_waiting=3, told=told)
    for _ in range(5):
        admission.enter("t")

    shed = admission.enter("t")

    assert Shed(tier="t", reason=ShedReason.QUEUE_FULL, retry_after_s=5) == shed  # 3 x 3 s / 2
    assert 429 == shed.status
    assert [("t", Priority.NORMAL, ShedReason.QUEUE_FULL)] == told.sheds


def test_a_higher_class_displaces_a_lower_one_from_a_full_queue():
    admission = make(max_waiting=2)
    admission.enter("t")
    normal, low = admission.enter("t"), admission.enter("t", priority=Priority.LOW)

    high = admission.enter("t", priority=Priority.HIGH)
    again = admission.enter("t")

    assert ["waiting", "shed", "waiting"] == states(normal, low, high)
    assert (ShedReason.QUEUE_FULL, ShedReason.QUEUE_FULL) == (low.shed.reason, again.reason)


def test_a_key_fills_its_share_of_the_queue_and_no_more():
    admission = make(service_s=2.0, max_waiting=4, key_share=0.5)
    admission.enter("t", key="a")
    for _ in range(2):
        admission.enter("t", key="a")

    shed = admission.enter("t", key="a")

    assert Shed(tier="t", reason=ShedReason.KEY_SHARE, retry_after_s=4) == shed
    assert 429 == shed.status
    assert PlaceState.WAITING is admission.enter("t", key="b").state
    assert PlaceState.RUNNING is admission.enter("other", key="a").state


def test_waiting_is_bounded_over_all_tiers():
    admission = make(max_waiting_in_all=2)
    for tier in ("t", "t", "other", "other"):
        admission.enter(tier)

    assert [ShedReason.QUEUE_FULL] * 2 == [admission.enter(tier).reason for tier in ("t", "other")]


def test_draining_lets_nobody_in_and_keeps_who_waits():
    admission = make()
    running, next_one, last = (admission.enter("t") for _ in range(3))

    admission.drain()
    shed = admission.enter("other")
    running.leave()
    assert ["served", "running", "waiting"] == states(running, next_one, last)
    assert (ShedReason.DRAINING, 503, False) == (shed.reason, shed.status, shed.may_upgrade)

    admission.shed_waiting()
    assert ShedReason.DRAINING is last.shed.reason


def test_a_reload_moves_the_limit_under_running_requests():
    admission = make(max_in_flight=2)
    places = [admission.enter("t") for _ in range(4)]

    admission.update({"t": TierLimit(max_in_flight=3)})
    assert ["running"] * 3 + ["waiting"] == states(*places)

    admission.update({"t": TierLimit(max_in_flight=1)})
    places[0].leave()
    places[1].leave()
    assert ["running", "waiting"] == states(*places[2:])

    places[2].leave()
    assert ["running"] == states(places[3])


def test_a_reload_changes_the_bounds_of_waiting():
    clock = Clock()
    admission = make(max_waiting=1, clock=clock)
    running, low = admission.enter("t"), admission.enter("t", priority=Priority.LOW)

    admission.update({"new": TierLimit(max_in_flight=1)}, AdmissionSettings(max_waiting=2, promote_after_s=0.0))
    assert PlaceState.WAITING is admission.enter("t").state
    assert ShedReason.QUEUE_FULL is admission.enter("t", priority=Priority.HIGH).reason  # the low one is overdue
    assert PlaceState.RUNNING is admission.enter("new").state

    running.leave()
    assert PlaceState.WAITING is low.state


def test_a_mean_time_of_service_is_learned_from_slots():
    clock = Clock()
    admission = make(clock=clock)
    place = admission.enter("t")
    clock.now_s = 4.0
    place.leave()
    admission.enter("t")

    assert PlaceState.WAITING is admission.enter("t", deadline_s=8.0).state
    assert ShedReason.DEADLINE is admission.enter("t", deadline_s=11.9).reason


@given(limit=st.integers(1, 300), n_workers=st.integers(1, 16))
def test_the_workers_shares_sum_to_the_limit(limit, n_workers):
    shares = [Fleet(worker=worker, n_workers=n_workers).share_of(limit) for worker in range(n_workers)]

    assert max(limit, n_workers) == sum(shares)
    assert max(shares) - min(shares) <= 1
    assert min(shares) >= 1


def test_a_worker_borrows_what_others_leave_idle_and_always_has_its_own():
    others = {"t": 0.0}
    admission = make(max_in_flight=4, fleet=Fleet(worker=0, n_workers=2, others=others.__getitem__))
    places = [admission.enter("t") for _ in range(5)]
    assert ["running"] * 4 + ["waiting"] == states(*places)

    others["t"] = 2.0  # the lender took its share back: no more than the own share from here on
    places[0].leave()
    places[1].leave()
    assert "waiting" == places[4].state.value

    places[2].leave()
    assert "running" == places[4].state.value

    waiting = admission.enter("t")
    others["t"] = 1.0
    admission.tick()
    assert "running" == waiting.state.value


@pytest.mark.parametrize("reason", ShedReason)
def test_a_refusal_tells_its_reason_in_stable_words(reason):
    shed = Shed(tier="t", reason=reason, retry_after_s=7)
    refusal = shed.refusal()

    assert (shed.status, 7) == (refusal.status, refusal.retry_after_s)
    assert reason.value == refusal.code.replace("_", "-")
    assert {b"x-llmtier-dropped-reason", b"x-llm-d-request-dropped-reason"} == {name for name, _ in shed.headers}
    assert {reason.value.encode()} == {value for _, value in shed.headers}


def test_a_deadline_is_the_limit_that_leaves_least_time():
    offer = Offer(tier="t", accuracy=None, usd=None, ttft_s=0.2, e2el_s=3.0)

    def find(offer=offer, **limits):
        found = find_deadline(Requirement(**limits), offer, received_s=10.0)
        return None if found is None else (found.at_s, found.predicted_s)

    assert (10.5, 0.2) == find(ttft_s=0.5, e2el_s=4.0)
    assert (13.1, 3.0) == find(ttft_s=0.5, e2el_s=3.1)
    assert (10.5, 0.0) == find(offer=None, ttft_s=0.5)
    assert find(tpot_s=0.1) is None


def test_a_class_has_the_priority_that_the_configuration_gives_it():
    settings = AdmissionSettings(priorities={"chat": Priority.HIGH})

    assert [Priority.HIGH, Priority.NORMAL, Priority.NORMAL] == [
        settings.priority_of(each) for each in ("chat", "batch", None)
    ]


def test_without_a_profile_there_is_no_limit_but_the_configured_one():
    assert (None, 5) == (limit_of(None).max_in_flight, limit_of(None, configured=5).max_in_flight)


@pytest.mark.parametrize(
    "wrong",
    [{"max_waiting": -1}, {"max_waiting_in_all": -1}, {"key_share": 0.0}, {"key_share": float("nan")},
     {"promote_after_s": float("nan")}, {"max_wait_s": -1.0}, {"max_wait_s": float("inf")}],
)  # fmt: skip
def test_refuses_settings_that_cannot_be_meant(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("_in_all")):
        AdmissionSettings(**wrong)


def test_refuses_a_limit_that_lets_nobody_in():
    with pytest.raises(ValueError, match="max_in_flight"):
        TierLimit(max_in_flight=0)


def test_turn_returns_when_the_slot_is_there():
    async def drive():
        admission = make()
        first, second = admission.enter("t"), admission.enter("t")
        assert await first.turn() is None

        waiter = asyncio.create_task(second.turn())
        await asyncio.sleep(0)
        assert not waiter.done()

        first.leave()
        assert await waiter is None
        assert PlaceState.RUNNING is second.state

    asyncio.run(drive())


def test_turn_tells_at_the_latest_start_that_there_will_be_none():
    async def drive():
        admission = make()
        admission.enter("t")
        late = admission.enter("t", deadline_s=2.0, predicted_s=2.0)  # the timer is due at once

        shed = await late.turn()

        assert ShedReason.DEADLINE is shed.reason
        assert shed is await late.turn()
        assert 0 == admission.n_waiting_in_all

    asyncio.run(drive())


@pytest.mark.parametrize("is_handed_over", [False, True])
def test_a_cancelled_wait_leaks_nothing(is_handed_over):
    """The second case is the narrow one: the slot was handed to a task that is cancelled before it runs."""

    async def drive():
        admission = make()
        first, second, third = (admission.enter("t") for _ in range(3))
        waiter = asyncio.create_task(second.turn())
        await asyncio.sleep(0)
        if is_handed_over:
            first.leave()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        first.leave()
        assert PlaceState.RUNNING is third.state

        second.leave()
        third.leave()
        assert (0, 0) == (admission.n_running("t"), admission.n_waiting_in_all)

    asyncio.run(drive())


def test_shed_before_turn_is_asked_is_told_then():
    async def drive():
        admission = make(max_waiting=1)
        admission.enter("t")
        low = admission.enter("t", priority=Priority.LOW)
        admission.enter("t", priority=Priority.HIGH)

        assert ShedReason.QUEUE_FULL is (await low.turn()).reason

    asyncio.run(drive())
