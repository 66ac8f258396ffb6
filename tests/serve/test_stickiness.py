"""Conversations stay where their prefix is warm, while that tier meets the need."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import Decision, Miss, MissReason, Offer, Reason
from llmtier.core.prompt import Message
from llmtier.serve.stickiness import StickyTable, find_session, identify, keep, pick_replica

SYSTEM = Message(role="system", content="Be brief.")
FIRST = Message(role="user", content="Hello?")


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def decide(tier, *offered, missed=()):
    offers = tuple(Offer(tier=name, accuracy=0.5, usd=1.0) for name in offered)
    misses = tuple(Miss(tier=name, reason=MissReason.TTFT) for name in missed)
    return Decision(tier=tier, reason=Reason.CHEAPEST_FEASIBLE, offers=offers, misses=misses)


def test_remembers_until_so_long_after_the_last_turn():
    clock = Clock()
    table = StickyTable(ttl_s=10.0, clock=clock)

    table.note(b"a", "small")
    clock.now_s = 10.0
    table.note(b"a", "large")
    clock.now_s = 20.0
    within = table.find(b"a")
    clock.now_s = 20.1

    assert ("large", None, None) == (within, table.find(b"a"), table.find(b"b"))
    assert 0 == len(table)


def test_forgets_the_longest_unused_first():
    table = StickyTable(ttl_s=10.0, clock=Clock(), capacity=2)

    for conversation in (b"a", b"b", b"a", b"c"):
        table.note(conversation, "t")

    assert ("t", None, "t") == (table.find(b"a"), table.find(b"b"), table.find(b"c"))


@pytest.mark.parametrize(
    ("previous", "decision", "expected"),
    [
        (None, decide("small", "small", "large"), "small"),
        ("large", decide("small", "small", "large"), "large"),
        ("small", decide("large", "small", "large", missed=["small"]), "large"),
        ("gone", decide("small", "small", "large"), "small"),
        ("small", decide(None, "small", missed=["small"]), None),
    ],
)
def test_a_conversation_stays_only_where_its_need_is_met(previous, decision, expected):
    assert expected == keep(previous, decision)


names = st.sampled_from(["a", "b", "c"])


@given(previous=st.none() | names, tier=names, missed=st.sets(names))
def test_staying_never_adds_a_miss(previous, tier, missed):
    kept = keep(previous, decide(tier, "a", "b", "c", missed=missed))

    assert kept == tier or kept not in missed


def test_later_turns_do_not_change_who_a_conversation_is():
    answer, second = Message(role="assistant", content="Hi."), Message(role="user", content="More.")

    assert identify([SYSTEM, FIRST], session=None) == identify([SYSTEM, FIRST, answer, second], session=None)
    assert identify([SYSTEM, FIRST], session=None) != identify([FIRST], session=None)
    assert identify([FIRST], session=None) != identify([second], session=None)


def test_a_stated_session_wins_and_callers_do_not_share():
    assert identify([FIRST], session=b"s") == identify([SYSTEM], session=b"s")
    assert identify([FIRST], session=b"s") != identify([FIRST], session=None)
    assert identify([FIRST], session=b"s", caller=b"a" * 32) != identify([FIRST], session=b"s", caller=b"b" * 32)
    assert identify([], session=None) is None


def test_reads_the_session_header():
    assert b"s-1" == find_session([(b"accept", b"*/*"), (b"x-llmtier-session", b"s-1")])
    assert find_session([(b"x-llmtier-session", b"")]) is None


@given(conversation=st.binary(min_size=16, max_size=16), replicas=st.sets(st.text(min_size=1), min_size=2, max_size=6))
def test_every_worker_picks_the_same_replica_and_only_the_lost_ones_move(conversation, replicas):
    ordered = sorted(replicas)
    picked = pick_replica(conversation, ordered)

    assert picked == pick_replica(conversation, ordered[::-1])
    for lost in replicas - {picked}:
        assert picked == pick_replica(conversation, sorted(replicas - {lost}))


def test_replicas_get_like_shares():
    counts = Counter(pick_replica(number.to_bytes(16, "big"), ["a", "b", "c"]) for number in range(3000))

    assert all(900 < count < 1100 for count in counts.values())
