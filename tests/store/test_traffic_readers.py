"""Everything that reads a traffic log reads what the gateway writes today, with texts and without."""

import json

import pytest

from llmtier.core.errors import InputFileError
from llmtier.store.arrivals import read_arrivals
from llmtier.store.outcomes import load_outcomes
from llmtier.store.prompts import read_prompts, stream_prompts
from llmtier.store.served import stream_served
from llmtier.store.traffic import TRAFFIC_COLUMNS, Rotation, TrafficRow, TrafficWriter


def make_row(number, *, text):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"question {number}"}]
    return TrafficRow(
        request_id=f"r{number}",
        received_at=f"2026-01-01T00:00:{number:02d}+00:00",
        tier="small",
        reason="cheapest_feasible",
        alias="auto",
        domain="quiz",
        predicted_accuracy=0.5,
        need_accuracy=0.4,
        n_in_flight=1,
        ttft_s=0.1,
        e2el_s=0.2,
        n_input_tokens=3,
        n_output_tokens=4,
        usd=1e-6,
        status=200,
        stream=True,
        misses="large: cost 2, needs 1",
        prompt_sha256=f"{number:064x}",
        messages_json=json.dumps(messages) if text else None,
        key_sha256="00112233aabbccdd",
        outcome="ok",
        finish_reason="stop",
        n_attempts=1,
        retry_after_s=1.0,
        overhead_s=0.0001,
        queued_s=0.0,
        tpot_s=0.03,
        is_met=False,
        miss_cause="engine",
        decided_tier="small",
        rule="mine",
        slo_class="chat",
        need_ttft_s=0.05,
        need_tpot_s=0.05,
        need_e2el_s=2.0,
        need_usd=1.0,
        predicted_ttft_s=0.1,
        predicted_tpot_s=0.03,
        predicted_e2el_s=0.2,
        predicted_usd=1e-6,
        probabilities={"small": 0.5, "large": 0.9},
        propensity=1.0,
        policy_digest="d1",
        is_deviation=False,
        n_messages=2,
        n_characters=20,
        n_system_characters=8,
        max_tokens=64,
        session_sha256="5e55",
        replica=2,
        hedged="won",
        resumed="ids",
    )


@pytest.fixture
def write_log(tmp_path):
    """Return a function that writes a log of five rows in three files."""

    def write(*, text):
        writer = TrafficWriter(tmp_path / "traffic", rotation=Rotation(rows=2))
        writer.open()  # its mark must not disturb a reader
        for number in range(5):
            writer.append(make_row(number, text=text))
        writer.flush()
        return tmp_path / "traffic"

    return write


def test_every_column_is_filled_here():
    row = make_row(0, text=True)

    assert [] == [column.name for column in TRAFFIC_COLUMNS if getattr(row, column.name) is None]


def test_replay_and_audit_read_the_prompts(write_log):
    folder = write_log(text=True)
    prompts = read_prompts(folder)

    assert [f"r{number}" for number in range(5)] == [prompt.id for prompt in prompts]
    assert ("question 3", "quiz", 3.0) == (prompts[3].last_user_text, prompts[3].domain, prompts[3].arrival_s)
    assert [prompt.messages for prompt in prompts] == [prompt.messages for prompt in stream_prompts(folder)]


def test_a_prediction_is_not_taken_for_an_outcome(write_log):
    """``scores`` are what a fit learns from; what the gateway's own scorer said has another name."""
    found = load_outcomes([write_log(text=True)])

    assert (5, 5) == (len(found.rows), found.n_read)
    assert [{}] * 5 == [dict(row.scores) for row in found.rows]


def test_a_fit_reads_who_asked_and_who_answered(write_log):
    assert [("00112233aabbccdd", "small", "question 2")] == [
        (row.key, row.tier, row.messages[-1].content) for row in list(stream_served(write_log(text=True)))[2:3]
    ]


def test_a_load_test_reads_arrivals_and_lengths(write_log):
    arrivals = read_arrivals(write_log(text=False))

    assert [(float(number), 3, 4) for number in range(5)] == [
        (arrival.arrival_s, arrival.input_tokens, arrival.output_tokens) for arrival in arrivals
    ]


def test_without_texts_digests_are_left_to_know_prompts_by(write_log):
    served = list(stream_served(write_log(text=False)))

    assert [None] * 5 == [row.messages for row in served]
    assert 5 == len({row.digest for row in served})


@pytest.mark.parametrize(
    "read", [read_prompts, lambda path: list(stream_prompts(path)), lambda path: load_outcomes([path])]
)
def test_without_texts_each_reader_of_prompts_says_what_is_missing(write_log, read):
    with pytest.raises(InputFileError, match=r"text"):
        read(write_log(text=False))
