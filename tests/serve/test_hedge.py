"""Hedging asks twice only where it can help, and never beyond its budget."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import Decision, Miss, MissReason, Offer, Reason
from llmtier.core.requirement import Requirement
from llmtier.serve.hedge import (
    Hedge,
    HedgeBudget,
    HedgeCandidate,
    Hedger,
    HedgeSettings,
    Late,
    NoHedge,
    eligible_offers,
)

SLOW = Offer(tier="slow", accuracy=0.8, usd=1.0, ttft_s=0.2, e2el_s=2.0)
SPARE = replace(SLOW, tier="spare", n_in_flight=2)
LATE = Late(received_s=9.9, sent_s=10.0, limits=Requirement(ttft_s=1.0), offer=SLOW, prompt_tokens=100)
IDLE = HedgeCandidate(offer=SPARE, max_in_flight=8)


def make(*, n_requests=20, is_on=True, **settings):
    hedger = Hedger(HedgeSettings(is_on=is_on, **settings))
    for _ in range(n_requests):
        hedger.note_request()
    return hedger


def test_asks_the_first_idle_candidate_once_the_predicted_p95_has_passed():
    hedger = make()

    assert 10.2 == hedger.due_s(LATE)
    assert NoHedge.EARLY is hedger.decide(LATE, [IDLE], now_s=10.19)
    assert Hedge(tier="spare") == hedger.decide(LATE, [IDLE], now_s=10.2)


@pytest.mark.parametrize(
    ("expected", "hedger", "late", "candidates"),
    [
        (NoHedge.OFF, Hedger(HedgeSettings()), LATE, [IDLE]),
        (NoHedge.UNPREDICTED, make(), replace(LATE, offer=None), [IDLE]),
        (NoHedge.UNPREDICTED, make(), replace(LATE, offer=replace(SLOW, ttft_s=None)), [IDLE]),
        (NoHedge.LONG_PROMPT, make(max_prompt_tokens=99), LATE, [IDLE]),
        (NoHedge.NOBODY_IDLE, make(), LATE, []),
        (NoHedge.NOBODY_IDLE, make(), LATE, [replace(IDLE, n_waiting=1)]),
        (NoHedge.NOBODY_IDLE, make(), LATE, [replace(IDLE, max_in_flight=3)]),
        (NoHedge.NOBODY_IDLE, make(), LATE, [replace(IDLE, max_in_flight=None)]),
        (NoHedge.NOBODY_IDLE, make(), LATE, [replace(IDLE, offer=replace(SPARE, is_healthy=False))]),
        (NoHedge.NOBODY_IDLE, make(), LATE, [replace(IDLE, offer=replace(SPARE, unusable=MissReason.SATURATED))]),
        (NoHedge.TOO_LATE, make(), replace(LATE, limits=Requirement(ttft_s=0.55)), [IDLE]),
        (NoHedge.TOO_LATE, make(), replace(LATE, limits=Requirement(e2el_s=2.3)), [IDLE]),
        (NoHedge.TOO_LATE, make(), LATE, [replace(IDLE, offer=replace(SPARE, ttft_s=None))]),
        (NoHedge.BUDGET, make(n_requests=19), LATE, [IDLE]),
    ],
)
def test_says_why_nobody_else_is_asked(expected, hedger, late, candidates):
    assert expected is hedger.decide(late, candidates, now_s=10.3)


def test_passes_over_candidates_that_are_busy_or_too_slow():
    busy = replace(IDLE, offer=replace(SPARE, tier="busy", n_in_flight=5))
    sluggish = replace(IDLE, offer=replace(SPARE, tier="sluggish", ttft_s=0.9))

    assert Hedge(tier="spare") == make().decide(LATE, [busy, sluggish, IDLE], now_s=10.3)


def test_a_refused_hedge_costs_nothing():
    hedger = make()
    hedger.decide(LATE, [], now_s=10.3)

    assert Hedge(tier="spare") == hedger.decide(LATE, [IDLE], now_s=10.3)
    assert NoHedge.BUDGET is hedger.decide(LATE, [IDLE], now_s=10.3)


def test_never_is_due_when_a_hedge_is_ruled_out():
    assert make(is_on=False).due_s(LATE) is None
    assert make(max_prompt_tokens=10).due_s(LATE) is None


def test_only_tiers_that_met_every_need_are_asked_the_cheapest_first():
    offers = (SLOW, replace(SLOW, tier="dear", usd=3.0), SPARE, replace(SLOW, tier="weak"), replace(SLOW, tier="free"))
    offers = (*offers[:-1], replace(offers[-1], usd=None))
    misses = (Miss(tier="weak", reason=MissReason.ACCURACY),)
    decision = Decision(tier="slow", reason=Reason.CHEAPEST_FEASIBLE, offers=offers, misses=misses)

    assert ["spare", "dear", "free"] == [offer.tier for offer in eligible_offers(decision, tried=["slow"])]


@given(
    share=st.floats(0.0, 1.0),
    max_saved=st.floats(1.0, 10.0),
    steps=st.lists(st.booleans(), max_size=200),
)
def test_hedges_never_exceed_their_share_of_the_requests(share, max_saved, steps):
    budget = HedgeBudget(share, max_saved)
    n_requests = n_hedges = 0
    window = []
    for is_request in steps:
        if is_request:
            budget.note_request()
            n_requests += 1
        elif budget.take():
            n_hedges += 1
        window.append((n_requests, n_hedges))

        assert n_hedges <= share * n_requests + 1e-9
        assert all(n_hedges - h <= share * (n_requests - n) + max_saved + 1e-9 for n, h in window)


@pytest.mark.parametrize(
    "wrong", [{"budget_share": 1.5}, {"max_load_share": float("nan")}, {"max_saved": 0.5}, {"max_prompt_tokens": -1}]
)
def test_refuses_settings_that_cannot_be_meant(wrong):
    with pytest.raises(ValueError, match="must"):
        HedgeSettings(**wrong)
