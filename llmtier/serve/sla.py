"""What became of a request's limits: whether they held, what cost one that did not, and what the load did to the choice.

Reads a finished record; writes nothing. Only limits of time are judged: the accuracy of one answer is known to nobody.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from llmtier.core.decision import Decision, MissReason, Offer, Reason
from llmtier.core.requirement import Requirement

if TYPE_CHECKING:
    from llmtier.serve.record import Record


class MissCause(StrEnum):
    """What cost a limit of time: the first of these without whose time alone it would have held.

    ``NETWORK`` is the time that the request's own body took to arrive, or an engine that could not be reached.
    ``QUEUE`` is waiting in the gateway; and, where the next did not cost it, a tier that had as much in flight as its
    knee when it was chosen, or no tier that could take the request in time.
    ``GATEWAY`` is its work between the whole body and the hand-over, or a failure of its own.
    ``ENGINE`` is all else: the tier took longer than predicted, failed, or broke off.
    """

    NETWORK = "network"
    GATEWAY = "gateway"
    QUEUE = "queue"
    ENGINE = "engine"


class Verdict(NamedTuple):
    """Whether every limit of time held; ``None`` when there was none or nobody can tell. ``cause`` is of a miss."""

    is_met: bool | None
    cause: MissCause | None = None


_UNKNOWN = Verdict(None)
_MET = Verdict(True)
_FULL = frozenset({MissReason.SATURATED, MissReason.QUEUE, MissReason.KV, MissReason.PREEMPTIONS})
_OF_ACCURACY = frozenset({MissReason.ACCURACY})
_OF_TIME = frozenset({MissReason.TTFT, MissReason.TPOT, MissReason.E2EL})
_FAILURES = {
    "upstream_error": MissCause.ENGINE,
    "interrupted": MissCause.ENGINE,
    "worthless": MissCause.ENGINE,
    "shed": MissCause.QUEUE,
    "internal_error": MissCause.GATEWAY,
}
_CHOSEN = frozenset({Reason.CHEAPEST_FEASIBLE, Reason.HIGHEST_UTILITY})


def judge(record: "Record", *, max_in_flight: int | None) -> Verdict:
    """Return what became of the limits.

    Args:
        record: Of a finished request.
        max_in_flight: The knee of the tier that answered; ``None`` when unknown.
    """
    choice = record.choice
    if choice is None:
        return _UNKNOWN
    limits = choice.limits
    if limits.ttft_s is None and limits.e2el_s is None and limits.tpot_s is None:
        return _UNKNOWN
    outcome = record.outcome.value
    if outcome == "ok":
        return _judge_answer(record, limits, max_in_flight)
    if outcome == "rejected":
        return _judge_rejection(choice.decision)
    if outcome == "upstream_error" and record.is_unreachable:
        return Verdict(False, MissCause.NETWORK)
    cause = _FAILURES.get(outcome)  # none when the client left, or asked for what no engine does
    return _UNKNOWN if cause is None else Verdict(False, cause)


def _judge_answer(record: "Record", limits: Requirement, max_in_flight: int | None) -> Verdict:
    e2el_s = record.e2el_s
    if limits.e2el_s is not None and e2el_s is not None and e2el_s > limits.e2el_s:
        return Verdict(False, _find_cause(record, e2el_s, limits.e2el_s, max_in_flight))
    ttft_s = record.ttft_s
    if limits.ttft_s is not None and ttft_s is not None and ttft_s > limits.ttft_s:
        return Verdict(False, _find_cause(record, ttft_s, limits.ttft_s, max_in_flight))
    tpot_s = record.tpot_s
    if limits.tpot_s is not None and tpot_s is not None and tpot_s > limits.tpot_s:
        return Verdict(False, MissCause.QUEUE if _is_full(record, max_in_flight) else MissCause.ENGINE)
    return _MET if _could_be_judged(record, limits) else _UNKNOWN


def _could_be_judged(record: "Record", limits: Requirement) -> bool:
    """Return whether each limit has its measurement; the first token came no later than a whole answer."""
    known_ttft_s = record.ttft_s if record.first_s is not None else record.e2el_s
    if limits.ttft_s is not None and (known_ttft_s is None or known_ttft_s > limits.ttft_s):
        return False
    if limits.tpot_s is not None and record.tpot_s is None:
        return False
    return limits.e2el_s is None or record.e2el_s is not None


def _judge_rejection(decision: Decision) -> Verdict:
    reasons = {miss.reason for miss in decision.misses}
    if reasons & _FULL:
        return Verdict(False, MissCause.QUEUE)
    return Verdict(False, MissCause.ENGINE) if reasons & _OF_TIME else _UNKNOWN


def _find_cause(record: "Record", measured_s: float, limit_s: float, max_in_flight: int | None) -> MissCause:
    excess_s = measured_s - limit_s
    body_s, queued_s = record.body_s, record.queued_s or 0.0
    if body_s is not None and body_s - record.received_s >= excess_s:
        return MissCause.NETWORK
    if queued_s >= excess_s:
        return MissCause.QUEUE
    if (record.overhead_s or 0.0) - queued_s >= excess_s:
        return MissCause.GATEWAY
    return MissCause.QUEUE if _is_full(record, max_in_flight) else MissCause.ENGINE


def _is_full(record: "Record", max_in_flight: int | None) -> bool:
    return max_in_flight is not None and record.n_in_flight >= max_in_flight


def is_deviation(record: "Record") -> bool:
    """Return whether the tier is less accurate than the one that the policy chooses when nothing is loaded or down.

    For decisions that nobody pinned. Without load the policy takes the cheapest tier with the accuracy needed, or, by
    utility, what the decision itself names: the load's part in a utility is not told apart.
    """
    choice = record.choice
    if choice is None or record.tier is None:
        return False
    decision = choice.decision
    if decision.reason in (Reason.PINNED, Reason.RULE):
        return False
    if record.tier == decision.tier and decision.reason in _CHOSEN and not _has_load_misses(decision):
        return False
    chosen, served = _unloaded(decision, choice.need_accuracy), record.offer
    if chosen is None or served is None or chosen.accuracy is None:
        return False
    return served.accuracy is None or served.accuracy < chosen.accuracy


def _has_load_misses(decision: Decision) -> bool:
    return not {miss.reason for miss in decision.misses} <= _OF_ACCURACY


def _unloaded(decision: Decision, need: float | None) -> Offer | None:
    """Return the cheapest offer with the accuracy needed; what was decided where the policy asks for none."""
    if need is None:
        return next((offer for offer in decision.offers if offer.tier == decision.tier), None)
    able = [offer for offer in decision.offers if offer.accuracy is not None and offer.accuracy >= need]
    return min(able, key=lambda offer: (offer.usd is None, offer.usd or 0.0), default=None)
