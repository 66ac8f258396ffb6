"""A finished request's record -> the cells of its traffic-log row, in the order of ``TRAFFIC_COLUMNS``.

Runs in the log's thread, where digests and texts may take their time. Reads the record; changes nothing.
"""

import hashlib
from typing import TYPE_CHECKING

from llmtier.core.decision import Decision, Offer
from llmtier.store.traffic_buffer import Cells

if TYPE_CHECKING:
    from llmtier.serve.record import Record

_SYSTEM_ROLES = frozenset({"system", "developer"})
_ALIAS_CHARACTERS = 200
"""Of what a client calls the model; longer names are nobody's."""


def make_cells(record: "Record") -> Cells:
    """Return the row."""
    offer = record.offer
    return (
        *_old_cells(record, offer),
        *_outcome_cells(record),
        *_decision_cells(record, offer),
        *_prompt_cells(record),
        record.replica,
        record.hedged,
        record.resumed,
    )


def _old_cells(record: "Record", offer: Offer | None) -> Cells:
    """Return the columns of version 1."""
    request, choice, usage = record.request, record.choice, record.usage
    sha256, text = _digest(record)
    return (
        record.request_id,
        record.received_at.isoformat(),
        record.tier,
        record.reason or "",
        "" if request is None else request.model[:_ALIAS_CHARACTERS],
        None if record.needs is None else record.needs.domain,
        None if offer is None else offer.accuracy,
        None if choice is None else choice.need_accuracy,
        record.n_in_flight,
        record.ttft_s,
        record.e2el_s,
        usage.prompt_tokens,
        usage.completion_tokens,
        record.usd,
        record.status,
        request is not None and request.is_stream,
        "" if choice is None else _describe_misses(choice.decision),
        sha256,
        text,
        record.key_sha256,
    )


def _outcome_cells(record: "Record") -> Cells:
    is_met, cause = record.verdict
    return (
        record.outcome.value,
        record.finish_reason,
        record.n_attempts,
        record.retry_after_s,
        record.overhead_s,
        record.queued_s,
        record.tpot_s,
        is_met,
        None if cause is None else cause.value,
    )


def _decision_cells(record: "Record", offer: Offer | None) -> Cells:
    choice, needs = record.choice, record.needs
    slo_class = None if needs is None else needs.slo_class
    if choice is None:
        return (None, None, slo_class, *(None,) * 8, record.probabilities or None, None, record.policy_digest, None)
    limits, decision = choice.limits, choice.decision
    return (
        decision.tier,
        decision.rule,
        slo_class,
        limits.ttft_s,
        limits.tpot_s,
        limits.e2el_s,
        limits.usd,
        *((None,) * 4 if offer is None else (offer.ttft_s, offer.tpot_s, offer.e2el_s, offer.usd)),
        record.probabilities or None,
        _find_propensity(record, decision),
        record.policy_digest,
        record.is_deviation,
    )


def _prompt_cells(record: "Record") -> Cells:
    """Return what is cheap to know of the text, and the conversation's digest."""
    request = record.request
    if request is None:
        return (None, None, None, None, record.session_sha256)
    n_characters = n_system_characters = 0
    for message in request.messages:
        n_characters += len(message.content)
        if message.role in _SYSTEM_ROLES:
            n_system_characters += len(message.content)
    n_messages = len(request.messages)
    sizes = (n_messages, n_characters, n_system_characters) if n_messages else (None, None, None)  # token ids
    return (*sizes, request.max_tokens, record.session_sha256)


def _find_propensity(record: "Record", decision: Decision) -> float | None:
    """Return the chance that was at work; 1 where there was none and the decision's own tier answered."""
    if record.propensity is not None or record.tier is None:
        return record.propensity
    return 1.0 if record.tier == decision.tier else None


def _digest(record: "Record") -> tuple[str, str | None]:
    """Return the prompt's sha256, and its text where it is kept."""
    request = record.request
    if request is None or record.choice is None:
        return "", None
    if not request.messages:
        return request.prompt_sha256, None
    data = request.messages_json
    return hashlib.sha256(data).hexdigest(), data.decode() if record.keeps_text else None


def _describe_misses(decision: Decision) -> str:
    return "; ".join([miss.describe() for miss in decision.misses])
