"""The queue against a plain list that does the same slowly, and the bound on how long anybody can be passed over."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmtier.serve.priority_queue import OVERDUE_EVERY, Priority, PriorityQueue, Waiting

PATIENCE_S = 5.0
PRIORITIES = st.sampled_from(Priority)
DEADLINES = st.sampled_from([1.0, 2.0, 2.0, 30.0, math.inf])
KEYS = st.sampled_from(["a", "b", None])


def make(name="x", priority=Priority.NORMAL, *, key=None, entered_s=0.0, deadline_s=math.inf, latest_s=math.inf):
    return Waiting(name, priority, key, entered_s, deadline_s, latest_s)


def make_queue(*waiting):
    queue = PriorityQueue(promote_after_s=PATIENCE_S)
    for each in waiting:
        queue.push(each)
    return queue


def pop_all(queue, now_s=0.0):
    return [queue.pop(now_s).item for _ in range(len(queue))]


def test_goes_by_class_then_deadline_then_arrival():
    queue = make_queue(
        make("late", deadline_s=9.0),
        make("open"),
        make("low", Priority.LOW, deadline_s=1.0),
        make("soon", deadline_s=2.0),
        make("soon too", deadline_s=2.0),
        make("high", Priority.HIGH),
    )

    assert ["high", "soon", "soon too", "late", "open", "low"] == pop_all(queue)
    assert queue.pop(0.0) is None


def test_every_fourth_turn_is_the_longest_waiting_ones_once_it_is_overdue():
    queue = make_queue(make("low", Priority.LOW), *(make(str(n), Priority.HIGH, entered_s=4.0) for n in range(5)))

    assert ["0", "1", "2", "low", "3", "4"] == pop_all(queue, now_s=PATIENCE_S)


def test_one_past_its_latest_start_costs_no_turn():
    queue = make_queue(
        make("low", Priority.LOW), *(make(str(n), Priority.HIGH, entered_s=4.0, latest_s=4.5) for n in range(4))
    )

    assert ["0", "1", "2", "3", "low"] == pop_all(queue, now_s=PATIENCE_S)


def test_the_last_of_the_lowest_class_gives_way_unless_it_is_overdue():
    queue = make_queue(make("normal"), make("low", Priority.LOW), make("lower", Priority.LOW, entered_s=2.0))

    def displaced(priority, now_s):
        found = queue.find_displaced(priority, now_s)
        return None if found is None else found.item

    assert ("lower", "lower", None) == tuple(displaced(priority, 2.0) for priority in Priority)
    assert displaced(Priority.HIGH, 2.0 + PATIENCE_S) is None


def test_refuses_to_remove_what_does_not_wait():
    waiting = make()
    queue = make_queue(waiting)
    queue.remove(waiting)

    with pytest.raises(KeyError):
        queue.remove(waiting)


@given(
    before=st.lists(st.tuples(PRIORITIES, DEADLINES), max_size=6),
    pushed=st.lists(st.lists(st.tuples(PRIORITIES, DEADLINES), max_size=2), min_size=40, max_size=40),
)
def test_an_overdue_request_is_served_within_the_bound_whoever_comes(before, pushed):
    victim = make("victim", Priority.LOW)
    queue = make_queue(*(make("older", priority, deadline_s=at_s) for priority, at_s in before), victim)
    bound = OVERDUE_EVERY * (len(before) + 1)
    turns = []
    for newcomers in pushed[:bound]:
        for priority, at_s in newcomers:
            queue.push(make("newer", priority, entered_s=PATIENCE_S, deadline_s=at_s))
        turns.append(queue.pop(PATIENCE_S).item)
        if turns[-1] == "victim":
            break

    assert "victim" in turns


class AgainstAList(RuleBasedStateMachine):
    """The same queue as an unsorted list."""

    def __init__(self):
        super().__init__()
        self.queue = PriorityQueue(promote_after_s=PATIENCE_S)
        self.model = []
        self.n_turns = 0
        self.n_pushed = 0
        self.now_s = 0.0

    @rule(priority=PRIORITIES, deadline_s=DEADLINES, key=KEYS, latest_s=DEADLINES)
    def push(self, priority, deadline_s, key, latest_s):
        waiting = make(str(self.n_pushed), priority, entered_s=self.now_s, deadline_s=deadline_s, latest_s=latest_s)
        waiting.key = key
        expected = sum(self.rank(other) < (priority, deadline_s, self.n_pushed) for other in self.model)
        assert expected == self.queue.n_ahead(priority, deadline_s)

        self.n_pushed += 1
        self.queue.push(waiting)
        self.model.append(waiting)

    @rule()
    def pop(self):
        popped = self.queue.pop(self.now_s)
        if not self.model:
            assert popped is None
            return
        oldest = self.model[0]
        is_due = self.now_s - oldest.entered_s >= PATIENCE_S and self.n_turns >= OVERDUE_EVERY - 1
        expected = oldest if is_due else min(self.model, key=self.rank)
        assert expected is popped

        self.model.remove(popped)
        if popped.latest_start_s >= self.now_s:
            self.n_turns = 0 if popped is oldest else self.n_turns + 1

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        waiting = data.draw(st.sampled_from(self.model))
        self.model.remove(waiting)
        self.queue.remove(waiting)

    @rule(passed_s=st.sampled_from([0.5, 4.0]))
    def wait(self, passed_s):
        self.now_s += passed_s

    @invariant()
    def agrees(self):
        assert self.model == list(self.queue)
        assert len(self.model) == len(self.queue)
        assert all(sum(w.key == key for w in self.model) == self.queue.n_of(key) for key in "ab")
        assert [w for w in self.model if w.latest_start_s < self.now_s] == self.queue.find_expired(self.now_s)

    @staticmethod
    def rank(waiting):
        return (waiting.priority, waiting.deadline_s, waiting.number)


TestAgainstAList = AgainstAList.TestCase
