"""What holds of admission whatever happens in whatever order."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from llmtier.serve.admission import Admission, PlaceState
from llmtier.serve.admission_plan import AdmissionHooks, AdmissionSettings, Fleet, TierLimit
from llmtier.serve.priority_queue import Priority
from llmtier.serve.shed import Shed

SETTINGS = AdmissionSettings(max_waiting=4, max_waiting_in_all=6, key_share=0.5, promote_after_s=3.0, max_wait_s=20.0)
LIMITS = {"one": 1, "three": 3}
TIERS = st.sampled_from(sorted(LIMITS))


class Laws(RuleBasedStateMachine):
    """One worker: every limit is exact."""

    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.limits = dict(LIMITS)
        self.places = []  # (tier, key, latest start, place) of all that ever got one
        self.n_refused = 0
        self.told = Counter()
        self.admission = Admission(
            {tier: TierLimit(max_in_flight=limit, service_s=1.0) for tier, limit in LIMITS.items()},
            SETTINGS,
            clock=lambda: self.now_s,
            hooks=AdmissionHooks(on_turn=self.note_turn, on_shed=self.note_shed),
        )

    def note_turn(self, tier, priority, waited_s):
        self.told["turn"] += 1
        assert 0 <= waited_s <= SETTINGS.max_wait_s

    def note_shed(self, tier, priority, reason):
        self.told["shed"] += 1

    def find(self, state, tier=None):
        return [entry for entry in self.places if entry[3].state is state and tier in {None, entry[0]}]

    @rule(
        tier=TIERS,
        priority=st.sampled_from(Priority),
        key=st.sampled_from(["a", "b", None]),
        left_s=st.sampled_from([None, 0.5, 2.0, 6.0]),
        predicted_s=st.sampled_from([None, 0.5, 1.0]),
    )
    def enter(self, tier, priority, key, left_s, predicted_s):
        deadline_s = None if left_s is None else self.now_s + left_s
        found = self.admission.enter(tier, priority=priority, key=key, deadline_s=deadline_s, predicted_s=predicted_s)
        if isinstance(found, Shed):
            self.n_refused += 1
            return
        latest_s = self.now_s + SETTINGS.max_wait_s
        if deadline_s is not None:
            latest_s = min(latest_s, deadline_s - (predicted_s or 0.0))
        self.places.append((tier, key, latest_s, found))

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def leave(self, data):
        """The request ends, or its client goes; perhaps for the second time."""
        place = data.draw(st.sampled_from(self.places))[3]
        before = place.state
        place.leave()
        ends = {PlaceState.RUNNING: PlaceState.SERVED, PlaceState.WAITING: PlaceState.CANCELLED}
        assert ends.get(before, before) is place.state

    @rule(passed_s=st.sampled_from([0.25, 1.0, 4.0]))
    def wait(self, passed_s):
        self.now_s += passed_s
        self.admission.tick()

    @rule(tier=TIERS, limit=st.integers(1, 3))
    def reload(self, tier, limit):
        """Not below what runs: such a limit is met only when requests end."""
        running = len(self.find(PlaceState.RUNNING, tier))
        self.limits[tier] = max(limit, running)
        self.admission.update({tier: TierLimit(max_in_flight=self.limits[tier])})

    @invariant()
    def never_more_than_the_limit_and_nobody_waits_while_a_slot_is_free(self):
        for tier, limit in self.limits.items():
            n_running = len(self.find(PlaceState.RUNNING, tier))
            n_waiting = len(self.find(PlaceState.WAITING, tier))
            assert (n_running, n_waiting) == (self.admission.n_running(tier), self.admission.n_waiting(tier))
            assert n_running <= limit
            assert not n_waiting or n_running == limit

    @invariant()
    def waiting_is_bounded(self):
        waiting = self.find(PlaceState.WAITING)
        by_tier = Counter(tier for tier, *_ in waiting)
        by_key = Counter((tier, key) for tier, key, *_ in waiting if key is not None)
        assert len(waiting) == self.admission.n_waiting_in_all <= SETTINGS.max_waiting_in_all
        assert all(n <= SETTINGS.max_waiting for n in by_tier.values())
        assert all(n <= SETTINGS.max_waiting * SETTINGS.key_share for n in by_key.values())

    @invariant()
    def nobody_waits_past_the_latest_start(self):
        assert all(self.now_s <= latest_s for _, _, latest_s, _ in self.find(PlaceState.WAITING))

    @invariant()
    def every_end_is_told_once(self):
        assert self.told["shed"] == self.n_refused + len(self.find(PlaceState.SHED))
        assert all((place.shed is not None) == (place.state is PlaceState.SHED) for *_, place in self.places)

    @override
    def teardown(self):
        """Everybody leaves: each has come to one end, and nothing is left."""
        for *_, place in self.places:
            place.leave()
        ends = {PlaceState.SERVED, PlaceState.SHED, PlaceState.CANCELLED}
        assert all(place.state in ends for *_, place in self.places)
        for tier in LIMITS:
            assert (0, 0) == (self.admission.n_running(tier), self.admission.n_waiting(tier))
        assert 0 == self.admission.n_waiting_in_all


class Fleets(RuleBasedStateMachine):
    """Two workers that see each other at once: shares are never denied, and borrowing stays within the limit."""

    LIMIT = 5

    def __init__(self):
        super().__init__()
        self.workers = []
        self.places = []
        for worker in range(2):
            fleet = Fleet(worker=worker, n_workers=2, others=self.count_of(1 - worker))
            limits = {"t": TierLimit(max_in_flight=self.LIMIT)}
            self.workers.append(Admission(limits, AdmissionSettings(), clock=lambda: 0.0, fleet=fleet))

    def count_of(self, worker):
        return lambda tier: float(self.workers[worker].n_running(tier))

    @rule(worker=st.integers(0, 1))
    def enter(self, worker):
        self.places.append(self.workers[worker].enter("t"))

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def leave(self, data):
        self.places.pop(data.draw(st.integers(0, len(self.places) - 1))).leave()

    @rule(worker=st.integers(0, 1))
    def tick(self, worker):
        self.workers[worker].tick()

    @invariant()
    def a_share_is_never_denied(self):
        for worker, share in zip(self.workers, (3, 2), strict=True):
            assert not worker.n_waiting("t") or worker.n_running("t") >= share

    @invariant()
    def beyond_the_limit_is_only_what_was_lent(self):
        n_running = [worker.n_running("t") for worker in self.workers]
        n_borrowed = sum(max(n - share, 0) for n, share in zip(n_running, (3, 2), strict=True))
        assert max(n_running) <= self.LIMIT
        assert sum(n_running) <= self.LIMIT + n_borrowed

    @invariant()
    def after_a_tick_of_both_nobody_waits_while_a_slot_is_idle(self):
        for worker in self.workers:
            worker.tick()
        is_idle = sum(worker.n_running("t") for worker in self.workers) < self.LIMIT
        assert not (is_idle and any(worker.n_waiting("t") for worker in self.workers))


Laws.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
Fleets.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
TestLaws = Laws.TestCase
TestFleets = Fleets.TestCase
