"""What a finished request leaves: its counts, its line and its row."""

import hashlib
import json
import logging
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from llmtier.core.decision import Decision, Miss, MissReason, Offer, Reason
from llmtier.core.requirement import Requirement
from llmtier.engine.wire import Usage
from llmtier.serve.choose import Choice
from llmtier.serve.log import TrafficLog
from llmtier.serve.metrics import Metrics
from llmtier.serve.needs import Needs
from llmtier.serve.record import FAILOVER, Recorder, RequestOutcome, begin
from llmtier.serve.wire import BodyReader, Endpoint
from llmtier.store.traffic import TRAFFIC_COLUMNS, TrafficRow, TrafficWriter, read_traffic

NOW = datetime(2026, 1, 1, 12, 30, 1, 250_000, tzinfo=UTC)
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a secret prompt"}]
BODY = {"model": "auto", "messages": MESSAGES, "stream": True, "max_tokens": 64}
OFFERS = (
    Offer(tier="small", accuracy=0.2, usd=0.1, ttft_s=0.01, tpot_s=0.02, e2el_s=0.5),
    Offer(tier="large", accuracy=0.95, usd=1.0, ttft_s=0.02, tpot_s=0.03, e2el_s=0.7),
)
MISSES = (Miss(tier="small", reason=MissReason.ACCURACY, offered=0.2, needed=0.85),)


@pytest.fixture
def pool(make_profile):
    """Return a pool of two tiers at 0.01 and 0.1 USD per output token."""
    profiles = {"small": make_profile("small", usd=0.1), "large": make_profile("large", usd=1.0)}
    tiers = {name: SimpleNamespace(profile=profile) for name, profile in profiles.items()}
    return SimpleNamespace(tiers=tiers, n_in_flight=lambda _: 0, is_healthy=lambda _: True, sites={})


@pytest.fixture
def metrics(pool):
    return Metrics(pool)


@pytest.fixture
def recorder(pool, metrics):
    """Return a recorder without a log."""
    return Recorder(pool=pool, metrics=metrics, traffic=None, keeps_text=False, reference="large")


def make_record(tier="large", *, reason=Reason.CHEAPEST_FEASIBLE, limits=None, **facts):
    """A stream of 11 tokens that took 0.3 s."""
    headers = [(b"authorization", b"Bearer sk-made-up")]
    record = begin("req-1", now=lambda: NOW, received_s=10.0, headers=headers)
    record.request = BodyReader().read(Endpoint.CHAT, json.dumps(BODY).encode())
    decision = Decision(tier=tier, reason=reason, offers=OFFERS, misses=MISSES, rule="mine")
    record.choice = Choice(decision=decision, limits=Requirement(**(limits or {})), need_accuracy=0.85)
    record.needs = Needs(requirement=record.choice.limits, domain="quiz", slo_class="chat")
    record.tier, record.reason, record.n_attempts = tier, reason.value, 1
    record.body_s, record.sent_s, record.first_s, record.last_s = 10.01, 10.02, 10.1, 10.3
    record.usage, record.status, record.outcome = Usage(30, 11), 200, RequestOutcome.OK
    for name, value in facts.items():
        setattr(record, name, value)
    return record


def finish(recorder, record):
    recorder.decided(record)
    recorder.finish(record)
    return record


def row_of(record):
    cells, _ = record.write_down()
    return TrafficRow(**dict(zip([column.name for column in TRAFFIC_COLUMNS], cells, strict=True)))


def count_of(metrics, *key):
    return metrics.tally.counts.get((f"llmtier_{key[0]}", *key[1:]), 0.0)


def test_an_answer_is_counted_timed_and_priced(recorder, metrics):
    finish(recorder, make_record("small", n_pieces=6))
    histograms = metrics.tally.histograms

    assert 1 == count_of(metrics, "requests", "small", "ok")
    assert 1 == count_of(metrics, "route_decisions", "small", "cheapest_feasible")
    assert 0.11 == pytest.approx(count_of(metrics, "cost_usd", "small"))
    assert 0.99 == pytest.approx(count_of(metrics, "savings_usd", "small"))
    assert {
        ("llmtier_gateway_overhead_seconds",): pytest.approx(0.01),
        ("llmtier_ttft_seconds", "small"): pytest.approx(0.1),
        ("llmtier_itl_seconds", "small"): pytest.approx(0.04),
        ("llmtier_e2el_seconds", "small"): pytest.approx(0.3),
    } == {key: histogram.total for key, histogram in histograms.items()}


def test_an_answer_dearer_than_the_reference_saves_nothing(pool, metrics):
    recorder = Recorder(pool=pool, metrics=metrics, traffic=None, keeps_text=False, reference="small")
    finish(recorder, make_record("large"))

    assert 0.99 == pytest.approx(count_of(metrics, "overspend_usd", "large"))
    assert 0 == count_of(metrics, "savings_usd", "large")


def test_without_a_reference_nothing_is_saved(pool, metrics):
    recorder = Recorder(pool=pool, metrics=metrics, traffic=None, keeps_text=False)
    finish(recorder, make_record("small"))

    assert 0 == count_of(metrics, "savings_usd", "small")


def test_a_missed_limit_is_counted_by_its_cause(recorder, metrics):
    finish(recorder, make_record(limits={"ttft_s": 0.05}))
    finish(recorder, make_record(limits={"ttft_s": 0.5}))

    assert 1 == count_of(metrics, "sla_miss", "large", "engine")


def test_a_deviation_is_counted_by_the_tier_that_served(recorder, metrics):
    failed_over = make_record("large")
    failed_over.tier, failed_over.reason = "small", FAILOVER
    finish(recorder, failed_over)

    assert 1 == count_of(metrics, "deviations", "small")
    assert row_of(failed_over).is_deviation


def test_a_failed_request_costs_nothing_and_has_no_end(recorder, metrics):
    record = finish(recorder, make_record(outcome=RequestOutcome.INTERRUPTED))

    assert record.usd is None
    assert ("llmtier_e2el_seconds", "large") not in metrics.tally.histograms
    assert ("llmtier_ttft_seconds", "large") in metrics.tally.histograms


def test_a_refused_request_reached_no_tier(recorder, metrics):
    record = begin("req-2", now=lambda: NOW, received_s=10.0)
    record.outcome, record.status = RequestOutcome.REFUSED, 400
    recorder.finish(record)

    assert 1 == count_of(metrics, "requests", "none", "refused")
    assert (None, "", False) == (row_of(record).tier, row_of(record).prompt_sha256, record.write_down()[1])


def test_a_row_says_what_was_asked_decided_and_done(recorder):
    record = make_record(
        limits={"ttft_s": 0.4, "tpot_s": 0.05, "e2el_s": 2.0, "usd": 3.0},
        probabilities={"small": 0.2, "large": 0.95},
        n_in_flight=3,
        finish_reason="stop",
        session_sha256="5e55",
        queued_s=0.005,
    )
    row = row_of(finish(recorder, record))
    text = json.dumps(MESSAGES, separators=(",", ":"))
    key = hashlib.sha256(b"sk-made-up").hexdigest()[:16]

    assert ("req-1", "2026-01-01T12:30:01.250000+00:00", "auto", "quiz") == (
        row.request_id,
        row.received_at,
        row.alias,
        row.domain,
    )
    assert ("large", "large", "cheapest_feasible", "mine", "chat") == (
        row.tier,
        row.decided_tier,
        row.reason,
        row.rule,
        row.slo_class,
    )
    assert (0.85, 0.4, 0.05, 2.0, 3.0) == (
        row.need_accuracy,
        row.need_ttft_s,
        row.need_tpot_s,
        row.need_e2el_s,
        row.need_usd,
    )
    assert (0.95, 0.02, 0.03, 0.7, 1.0) == (
        row.predicted_accuracy,
        row.predicted_ttft_s,
        row.predicted_tpot_s,
        row.predicted_e2el_s,
        row.predicted_usd,
    )
    assert ({"small": 0.2, "large": 0.95}, 1.0, False) == (row.probabilities, row.propensity, row.is_deviation)
    assert (pytest.approx(0.1), pytest.approx(0.02), pytest.approx(0.3), pytest.approx(0.01), 0.005) == (
        row.ttft_s,
        row.tpot_s,
        row.e2el_s,
        row.overhead_s,
        row.queued_s,
    )
    assert (200, "ok", "stop", 1, True, None) == (
        row.status,
        row.outcome,
        row.finish_reason,
        row.n_attempts,
        row.is_met,
        row.miss_cause,
    )
    assert (30, 11, pytest.approx(1.1), 3, True) == (
        row.n_input_tokens,
        row.n_output_tokens,
        row.usd,
        row.n_in_flight,
        row.stream,
    )
    assert (2, 23, 8, 64) == (row.n_messages, row.n_characters, row.n_system_characters, row.max_tokens)
    assert (hashlib.sha256(text.encode()).hexdigest(), None, key, "5e55") == (
        row.prompt_sha256,
        row.messages_json,
        row.key_sha256,
        row.session_sha256,
    )
    assert "small: accuracy 0.2, needs 0.85" == row.misses


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, 1.0),
        ({"propensity": 0.05}, 0.05),
        ({"tier": "small", "reason": FAILOVER}, None),
        ({"tier": None, "outcome": RequestOutcome.REJECTED}, None),
    ],
)
def test_propensity_is_1_without_chance_and_unknown_after_a_fail_over(recorder, facts, expected):
    record = make_record()
    for name, value in facts.items():
        setattr(record, name, value)

    assert expected == row_of(finish(recorder, record)).propensity


@pytest.mark.parametrize("keeps_text", [True, False])
def test_text_is_kept_only_when_asked_for(pool, metrics, tmp_path, keeps_text):
    log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail)
    recorder = Recorder(pool=pool, metrics=metrics, traffic=log, keeps_text=keeps_text, policy_digest="d1")
    log.start()
    finish(recorder, make_record())
    recorder.finish(begin("req-2", now=lambda: NOW, received_s=10.0), n_bytes=3)
    log.close()
    [row] = read_traffic(tmp_path)

    assert (MESSAGES if keeps_text else None) == (row.messages_json and json.loads(row.messages_json))
    assert "d1" == row.policy_digest
    assert keeps_text == any(b"secret" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_prompt_of_token_ids_has_a_digest_and_no_text(recorder):
    body = json.dumps({"model": "auto", "prompt": [1, 2, 3]}).encode()
    record = make_record(request=BodyReader().read(Endpoint.COMPLETIONS, body), keeps_text=True)
    row = row_of(finish(recorder, record))

    assert (hashlib.sha256(b"[1, 2, 3]").hexdigest(), None) == (row.prompt_sha256, row.messages_json)
    assert (None, None) == (row.n_messages, row.n_characters)


def test_a_name_of_a_model_is_cut(recorder):
    body = json.dumps({**BODY, "model": "x" * 5000}).encode()
    record = make_record(request=BodyReader().read(Endpoint.CHAT, body))

    assert "x" * 200 == row_of(finish(recorder, record)).alias


def test_without_a_log_thread_the_line_goes_through_logging(recorder, caplog):
    caplog.set_level(logging.INFO, logger="llmtier")
    finish(recorder, make_record())
    [line] = caplog.records

    assert ("request", "llmtier.serve.record") == (line.getMessage(), line.name)
    assert ("req-1", "large", "mine", 200, 30) == (
        line.request_id,
        line.tier,
        line.rule,
        line.status,
        line.n_input_tokens,
    )
    assert "secret" not in str(vars(line))


def test_a_quiet_log_makes_no_line(recorder, caplog):
    caplog.set_level(logging.WARNING, logger="llmtier")
    finish(recorder, make_record())

    assert [] == caplog.records


def test_with_lines_of_its_own_the_log_thread_writes_them(pool, metrics, caplog):
    class Lines:
        def __init__(self):
            self.ids = []

        def put(self, cells):
            self.ids.append(cells[0])

        def flush(self):
            pass

        def close(self):
            pass

    caplog.set_level(logging.INFO, logger="llmtier")
    lines = Lines()
    log = TrafficLog(None, on_dropped=pytest.fail, lines=lines)
    recorder = Recorder(pool=pool, metrics=metrics, traffic=log, keeps_text=False)
    log.start()
    finish(recorder, make_record())
    log.close()

    assert (["req-1"], []) == (lines.ids, caplog.records)


def test_times_are_unknown_until_they_are_known():
    record = begin("req-1", now=lambda: NOW, received_s=10.0)

    assert [None] * 6 == [record.overhead_s, record.ttft_s, record.tpot_s, record.e2el_s, record.itl_s, record.offer]
