"""Whether limits of time held, what cost those that did not, and what the load did to the choice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import Decision, Miss, MissReason, Offer, Reason
from llmtier.core.requirement import Requirement
from llmtier.engine.wire import Usage
from llmtier.serve.choose import Choice
from llmtier.serve.record import Record, RequestOutcome
from llmtier.serve.sla import MissCause, is_deviation, judge

OK = RequestOutcome.OK


def make_record(*, limits=None, decision=None, need=None, **facts):
    """A stream of 11 tokens: 0.01 s of body, 0.01 s of gateway, first content after 0.1 s, last after 0.2 s."""
    record = Record(request_id="r", received_at=None, received_s=100.0)
    decision = decision or Decision(tier="small", reason=Reason.CHEAPEST_FEASIBLE)
    record.choice = Choice(decision=decision, limits=Requirement(**(limits or {})), need_accuracy=need)
    record.tier, record.outcome, record.usage = decision.tier, OK, Usage(completion_tokens=11)
    record.body_s, record.sent_s, record.first_s, record.last_s = 100.01, 100.02, 100.1, 100.2
    for name, value in facts.items():
        setattr(record, name, value)
    return record


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"accuracy": 0.9, "usd": 1.0}, None),
        ({"ttft_s": 0.11, "tpot_s": 0.011, "e2el_s": 0.21}, True),
        ({"ttft_s": 0.09}, False),
        ({"tpot_s": 0.009}, False),
        ({"e2el_s": 0.19}, False),
        ({"ttft_s": 0.09, "e2el_s": 9.0}, False),
    ],
)
def test_every_limit_must_hold(limits, expected):
    assert expected is judge(make_record(limits=limits), max_in_flight=None).is_met


@pytest.mark.parametrize(("limit_s", "expected"), [(0.3, True), (0.15, None)])
def test_a_whole_answer_in_time_had_its_first_token_in_time(limit_s, expected):
    record = make_record(limits={"ttft_s": limit_s}, first_s=None)

    assert expected is judge(record, max_in_flight=None).is_met


def test_nobody_can_tell_the_time_per_token_of_a_whole_answer():
    assert judge(make_record(limits={"tpot_s": 0.01}, first_s=None), max_in_flight=None).is_met is None


@pytest.mark.parametrize(
    ("facts", "knee", "cause"),
    [
        ({}, None, MissCause.ENGINE),
        ({"n_in_flight": 3}, 4, MissCause.ENGINE),
        ({"n_in_flight": 4}, 4, MissCause.QUEUE),
        ({"body_s": 100.06, "sent_s": 100.07}, 0, MissCause.NETWORK),
        ({"sent_s": 100.07}, 0, MissCause.GATEWAY),
        ({"sent_s": 100.07, "queued_s": 0.055}, None, MissCause.QUEUE),
        ({"sent_s": 100.07, "queued_s": 0.03}, None, MissCause.ENGINE),
    ],
)
def test_a_miss_is_laid_to_whoever_alone_could_have_kept_the_limit(facts, knee, cause):
    record = make_record(limits={"ttft_s": 0.05}, **facts)

    assert (False, cause) == judge(record, max_in_flight=knee)


@pytest.mark.parametrize(
    ("outcome", "is_unreachable", "expected"),
    [
        (RequestOutcome.UPSTREAM_ERROR, True, (False, MissCause.NETWORK)),
        (RequestOutcome.UPSTREAM_ERROR, False, (False, MissCause.ENGINE)),
        (RequestOutcome.INTERRUPTED, False, (False, MissCause.ENGINE)),
        (RequestOutcome.INTERNAL_ERROR, False, (False, MissCause.GATEWAY)),
        (RequestOutcome.CLIENT_GONE, False, (None, None)),
        (RequestOutcome.ABORTED, False, (None, None)),
        (RequestOutcome.ENGINE_REFUSED, False, (None, None)),
        (RequestOutcome.REFUSED, False, (None, None)),
    ],
)
def test_a_failure_misses_its_limits_and_a_leaving_client_proves_nothing(outcome, is_unreachable, expected):
    record = make_record(limits={"e2el_s": 9.0}, outcome=outcome, is_unreachable=is_unreachable)

    assert expected == judge(record, max_in_flight=None)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([MissReason.TTFT, MissReason.SATURATED], (False, MissCause.QUEUE)),
        ([MissReason.TTFT], (False, MissCause.ENGINE)),
        ([MissReason.ACCURACY, MissReason.CONTEXT], (None, None)),
    ],
)
def test_a_rejection_misses_limits_only_where_time_was_its_reason(reasons, expected):
    misses = tuple(Miss(tier="small", reason=reason) for reason in reasons)
    decision = Decision(tier=None, reason=Reason.REJECTED, misses=misses)
    record = make_record(limits={"ttft_s": 1.0}, decision=decision, outcome=RequestOutcome.REJECTED)

    assert expected == judge(record, max_in_flight=None)


def test_a_request_that_was_never_decided_has_no_verdict():
    record = Record(request_id="r", received_at=None, received_s=0.0)

    assert judge(record, max_in_flight=None).is_met is None
    assert not is_deviation(record)


def deviates(served, reason, misses=(), *, need=0.7, decided=None):
    offers = (
        Offer(tier="small", accuracy=0.6, usd=1.0),
        Offer(tier="middle", accuracy=0.8, usd=2.0),
        Offer(tier="large", accuracy=0.9, usd=3.0),
    )
    found = tuple(Miss(tier=tier, reason=why) for tier, why in misses)
    decision = Decision(tier=decided or served, reason=reason, offers=offers, misses=found)
    return is_deviation(make_record(decision=decision, need=need, tier=served))


TOO_INACCURATE = ("small", MissReason.ACCURACY)
LATE = ("middle", MissReason.TTFT)


@pytest.mark.parametrize(
    ("served", "reason", "misses", "expected"),
    [
        ("middle", Reason.CHEAPEST_FEASIBLE, [TOO_INACCURATE], False),
        ("large", Reason.CHEAPEST_FEASIBLE, [TOO_INACCURATE, LATE], False),  # dearer, not worse
        ("small", Reason.FALLBACK, [TOO_INACCURATE, LATE, ("large", MissReason.TTFT)], True),
        ("small", Reason.PINNED, [TOO_INACCURATE], False),  # the client's own choice
        ("small", Reason.RULE, [TOO_INACCURATE], False),
    ],
)
def test_a_less_accurate_tier_than_without_load_is_a_deviation(served, reason, misses, expected):
    assert expected is deviates(served, reason, misses)


def test_a_fail_over_to_a_less_accurate_tier_is_a_deviation():
    assert deviates("small", Reason.CHEAPEST_FEASIBLE, [TOO_INACCURATE], decided="middle")
    assert not deviates("large", Reason.CHEAPEST_FEASIBLE, [TOO_INACCURATE], decided="middle")


def test_where_no_tier_is_accurate_enough_none_deviates():
    assert not deviates("small", Reason.FALLBACK, [TOO_INACCURATE], need=0.99)


def test_by_utility_what_was_decided_is_the_measure():
    assert not deviates("small", Reason.HIGHEST_UTILITY, [LATE], need=None)
    assert deviates("small", Reason.HIGHEST_UTILITY, need=None, decided="large")


@given(
    st.floats(0.001, 1), st.floats(0, 0.2), st.floats(0, 0.2), st.floats(0, 0.2), st.sampled_from(["ttft_s", "e2el_s"])
)
def test_a_cause_goes_with_a_miss_and_only_with_one(limit_s, body_s, gateway_s, engine_s, name):
    sent_s = 100.0 + body_s + gateway_s
    done_s = sent_s + engine_s
    record = make_record(limits={name: limit_s}, body_s=100.0 + body_s, sent_s=sent_s, first_s=done_s, last_s=done_s)
    verdict = judge(record, max_in_flight=None)

    assert verdict.is_met is (done_s - 100.0 <= limit_s)
    assert (verdict.cause is None) is verdict.is_met
