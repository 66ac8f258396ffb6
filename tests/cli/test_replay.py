"""Replay on mock engines: three ways to score, a weighted sample, ratings, log probabilities, and going on after a kill."""

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from llmtier.store.outcomes import read_outcomes_parts
from llmtier.store.parquet import read_any

N = 60
COLOURS = ("red", "green", "blue")


def text_of(index):
    return f"Name the colour of box {index}" if index % 2 else f"Add {index} and {index} " + "please " * index


def right_of(index):
    return COLOURS[index % 3] if index % 2 else str(2 * index)


def make_rows(*, with_answers=True):
    return [
        {
            "messages": [{"role": "user", "content": text_of(index)}],
            "domain": "colours" if index % 2 else "sums",
            **({"answer": right_of(index)} if with_answers else {}),
        }
        for index in range(N)
    ]


def as_engine(answers, **more):
    return {"kind": "mock", "mock": {"answers": answers, "sequence_s": 0, "alpha_s": 0, "beta_s_per_token": 0, **more}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    right = {text_of(index): right_of(index) for index in range(N)}
    easy = {text: answer if answer in COLOURS else "no idea" for text, answer in right.items()}
    engines = {
        "big": as_engine(right),
        "small": as_engine(easy),
        "seven": as_engine({}, tokenizer="characters", output_tokens=1),  # echoes the first sign of what it is asked
    }
    tiers = [{"name": name, "model": "m", "scheme": "bf16", "engine": engine} for name, engine in engines.items()]
    (tmp_path / "llmtier.yaml").write_text(json.dumps({"tiers": tiers, "load": {"max_tokens": 8}}))
    write_rows(tmp_path / "log.jsonl", make_rows())
    write_rows(tmp_path / "plain.jsonl", make_rows(with_answers=False))
    return tmp_path


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_tier(folder, name, **mock):
    config = json.loads((folder / "llmtier.yaml").read_text())
    [tier] = [tier for tier in config["tiers"] if tier["name"] == name]
    tier["engine"]["mock"] |= mock
    (folder / "llmtier.yaml").write_text(json.dumps(config))


def read(path):
    """Return the rows of an outcomes file by id, maps as dictionaries."""
    rows = read_any(path).rows
    return {
        row["id"]: {key: dict(value) if isinstance(value, list) and key != "messages" else value for key, value in row.items()}
        for row in rows
    }  # fmt: skip


TWO = ("--tier", "big", "--tier", "small")


def test_rows_hold_scores_and_confidences(llmtier, folder):
    ended = llmtier("replay", "log.jsonl", *TWO, "--json")
    rows = read(folder / "outcomes.parquet")
    document = json.loads(ended.out)

    assert 0 == ended.code, ended.err
    assert N == len(rows)
    assert all(row["scores"]["big"] == 1.0 and row["weight"] == 1.0 for row in rows.values())
    assert all(row["confidences"].keys() == {"big", "small"} for row in rows.values())
    assert all(value < 0.0 for row in rows.values() for value in row["confidences"].values())
    assert [("big", N, 1.0), ("small", N, 0.5)] == [(t["tier"], t["n"], t["mean_score"]) for t in document["tiers"]]
    assert [] == list(folder.glob("*.partial.jsonl"))


def test_logprobs_may_be_left_out(llmtier, folder):
    assert 0 == llmtier("replay", "log.jsonl", *TWO, "--no-logprobs").code
    assert all(not row["confidences"] for row in read(folder / "outcomes.parquet").values())


def test_only_rows_with_an_answer_are_asked_and_that_is_said(llmtier, folder):
    rows = make_rows(with_answers=False)
    for row, labelled in zip(rows[:20], make_rows(), strict=False):
        row["answer"] = labelled["answer"]
    write_rows(folder / "some.jsonl", rows)

    ended = llmtier("replay", "some.jsonl", *TWO)

    assert f"20 of {N} rows have an answer" in ended.err
    assert 20 == len(read(folder / "outcomes.parquet"))


def test_agreement_needs_no_answers_and_asks_the_reference_too(llmtier, folder):
    ended = llmtier("replay", "plain.jsonl", "--tier", "small", "--score-by", "agreement", "--reference", "big")
    rows = read(folder / "outcomes.parquet").values()

    assert 0 == ended.code, ended.err
    assert "big is asked too" in ended.err
    assert {1.0} == {row["scores"]["big"] for row in rows}
    assert {float(row["domain"] == "colours") for row in rows} == {0.0, 1.0}
    assert all(row["scores"]["small"] == float(row["domain"] == "colours") for row in rows)


JUDGED = ("--score-by", "judge", "--judge", "seven")


def judge_with(folder, *, verdict):
    """Let the tier "seven" answer any question about an answer as ``verdict`` decides from the answer."""
    from llmtier.evaluate.verdict import build_verdict_messages
    from llmtier.store.prompts import read_prompts

    prompts = read_prompts(folder / "plain.jsonl")
    answers = {
        build_verdict_messages(prompt, answer)[-1].content: verdict(answer)
        for prompt in prompts
        for answer in (right_of(int(prompt.id.split("-")[1]) - 1), "no idea")
    }
    change_tier(folder, "seven", answers=answers, tokenizer="words")


def test_a_judge_scores_and_identical_answers_are_judged_once(llmtier, folder):
    judge_with(folder, verdict=lambda answer: "2" if answer == "no idea" else "Rating: 9")
    ended = llmtier("replay", "plain.jsonl", *TWO, *JUDGED, "--json")
    rows = read(folder / "outcomes.parquet").values()

    assert 0 == ended.code, ended.err
    assert {"n": N + N // 2, "unreadable": 0} == json.loads(ended.out)["judge"]
    assert {0.9} == {row["scores"]["big"] for row in rows}
    assert all(row["scores"]["small"] == (0.9 if row["domain"] == "colours" else 0.2) for row in rows)


def test_verdicts_that_are_no_number_are_counted_and_leave_no_score(llmtier, folder):
    judge_with(folder, verdict=lambda answer: "hm" if answer == "no idea" else "9")
    ended = llmtier("replay", "plain.jsonl", *TWO, *JUDGED)
    rows = read(folder / "outcomes.parquet").values()

    assert f"{N // 2} of {N + N // 2} verdicts are no number from 0 to 10 and were left out, such as 'hm'" in ended.err
    assert all(("small" in row["scores"]) == (row["domain"] == "colours") for row in rows)


def test_a_judge_of_junk_alone_exits_5(llmtier, folder):
    ended = llmtier("replay", "plain.jsonl", *TWO, *JUDGED)

    assert 5 == ended.code
    assert "no answer got a score" in ended.err


def test_a_tier_that_grades_itself_is_told_of(llmtier, folder):
    assert "big grades its own answers too" in llmtier(
        "replay", "plain.jsonl", *TWO, "--score-by", "judge", "--judge", "big"
    ).err  # fmt: skip


def test_prompts_are_rated_and_junk_is_no_rating(llmtier, folder):
    from llmtier.evaluate.ratings import rating_prompts
    from llmtier.store.prompts import read_prompts

    questions = rating_prompts(read_prompts(folder / "log.jsonl"))
    answers = {question.messages[-1].content: "7" if index % 4 else "so" for index, question in enumerate(questions)}
    change_tier(folder, "seven", answers=answers)
    ended = llmtier("replay", "log.jsonl", *TWO, "--rate", "seven")
    ratings = [row["rating"] for row in read(folder / "outcomes.parquet").values()]

    assert [None if index % 4 == 0 else 7.0 for index in range(N)] == ratings
    assert f"{N // 4} of {N} ratings are no number from 0 to 10" in ended.err


def test_a_budget_asks_a_weighted_sample(llmtier, folder):
    ended = llmtier("replay", "log.jsonl", *TWO, "--max-requests", 40, "--json")
    rows = read(folder / "outcomes.parquet")
    document = json.loads(ended.out)

    assert 20 == len(rows) == document["plan"]["asked"]
    assert pytest.approx(N) == sum(row["weight"] for row in rows.values())
    assert pytest.approx(N) == sum(stratum["asked"] * stratum["weight"] for stratum in document["plan"]["strata"])
    half = sum(row["weight"] * row["scores"]["small"] for row in rows.values()) / N
    assert pytest.approx(half) == document["tiers"][1]["mean_score"]
    again = llmtier("replay", "log.jsonl", *TWO, "--max-requests", 40, "--dry-run", "--json")
    other = llmtier("replay", "log.jsonl", *TWO, "--max-requests", 40, "--dry-run", "--json", "--seed", 1)
    digests = [json.loads(found.out)["plan"]["digest"] for found in (ended, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_dry_run_shows_strata_and_asks_nobody(llmtier, folder):
    change_tier(folder, "big", faults=[{"kind": "refuse"}])
    ended = llmtier("replay", "plain.jsonl", *TWO, *JUDGED, "--rate", "seven", "--max-requests", 100, "--dry-run")

    assert 0 == ended.code, ended.err
    assert f"20 of {N} prompts" in ended.out  # two answers, two verdicts, one rating each
    assert "requests, at most: big 20, small 20, seven 60; price unknown" in ended.out
    assert "colours" in ended.out
    assert [] == list(folder.glob("outcomes*"))


def test_the_tier_that_served_is_a_stratum(llmtier, folder):
    rows = [row | {"tier": "big" if index % 4 else "small"} for index, row in enumerate(make_rows())]
    write_rows(folder / "served.jsonl", rows)
    ended = llmtier("replay", "served.jsonl", *TWO, "--max-requests", 100, "--dry-run", "--json")

    assert {"big", "small"} == {stratum["tier"] for stratum in json.loads(ended.out)["plan"]["strata"]}


def test_a_budget_in_dollars_takes_the_profiles_prices(llmtier, folder):
    config = json.loads((folder / "llmtier.yaml").read_text())
    for tier in config["tiers"]:
        tier["price"] = {"usd_per_hour": 3600}
        tier["engine"]["mock"] |= {"alpha_s": 0.001}
    config |= {"evaluation": "log.jsonl"}
    config["load"] = {
        "max_tokens": 2,
        "concurrency": [1, 4],
        "requests_per_point": 48,
        "warmup_requests": 2,
        "latency_model": False,
    }
    (folder / "llmtier.yaml").write_text(json.dumps(config))
    before = llmtier("replay", "log.jsonl", *TWO, "--budget-usd", 1, "--dry-run")
    assert 0 == llmtier("profile", *TWO).code
    whole = json.loads(llmtier("replay", "log.jsonl", *TWO, "--dry-run", "--json").out)["plan"]
    half = llmtier("replay", "log.jsonl", *TWO, "--budget-usd", whole["usd"] / 2, "--dry-run", "--json")
    none = llmtier("replay", "log.jsonl", *TWO, "--budget-usd", whole["usd"] / N / 2, "--dry-run")

    assert (2, True, True) == (before.code, "--max-requests" in before.err, "big, small" in before.err)
    assert N // 2 - 1 <= json.loads(half.out)["plan"]["asked"] <= N // 2
    assert json.loads(half.out)["plan"]["usd"] <= whole["usd"] / 2
    assert (2, True) == (none.code, "pays for no prompt" in none.err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--reference", "big"), "--reference belongs to --score-by agreement"),
        (("--judge", "big"), "--judge belongs to --score-by judge"),
        (("--score-by", "judge"), "--score-by judge needs --judge TIER"),
        (("--score-by", "agreement"), "--score-by agreement needs --reference TIER"),
        (("--score-by", "agreement", "--reference", "huge"), "huge"),
        (("--score-by", "judge", "--judge", "huge"), "huge"),
        (("--score-by", "guess"), "agreement"),
        (("--rate", "huge"), "huge"),
        (("--max-requests", "0"), "--max-requests"),
        (("--max-requests", "2"), "pays for no prompt: each takes big 1, small 1, seven 1"),
        (("--budget-usd", "-1"), "--budget-usd"),
    ],
)
def test_wrong_options_exit_2(llmtier, folder, words, said):
    ended = llmtier("replay", "log.jsonl", *words)

    assert 2 == ended.code
    assert said in ended.err
    assert "Traceback" not in ended.err


def write_traffic(folder):
    from llmtier.store.traffic import TrafficRow, TrafficWriter

    row = TrafficRow(
        request_id="r1", received_at=datetime(2026, 1, 1, tzinfo=UTC).isoformat(), tier="big", reason="cheapest",
        alias="auto", domain=None, predicted_accuracy=None, need_accuracy=None, n_in_flight=0, ttft_s=None, e2el_s=None,
        n_input_tokens=None, n_output_tokens=None, usd=None, status=200, stream=False, misses="", prompt_sha256="x",
    )  # fmt: skip
    writer = TrafficWriter(folder / "log")
    writer.append(row)
    writer.close()


def write_spend(folder):
    write_rows(
        folder / "log",
        [{"request_id": "r1", "startTime": "2026-01-01T00:00:00", "model": "gpt", "messages": {}, "response": {}}],
    )


def write_batch_output(folder):
    write_rows(folder / "log", [{"id": "b1", "custom_id": "r1", "response": {"status_code": 200, "body": {}}}])


@pytest.mark.parametrize(
    ("write", "advice"),
    [
        (write_traffic, "gateway.log_text: true"),
        (write_spend, "store_prompts_in_spend_logs: true"),
        (write_batch_output, "input file"),
    ],
)
@pytest.mark.parametrize("words", [(), ("--score-by", "agreement", "--reference", "big", "--max-requests", "10")])
def test_a_log_without_text_exits_3_and_says_what_would_record_it(llmtier, folder, write, advice, words):
    write(folder)
    ended = llmtier("replay", "log", *TWO, *words)

    assert 3 == ended.code
    assert advice in ended.err


INTERRUPTED = """
import os, signal, sys
from llmtier.cli import main, replay_ask
from llmtier.store import outcomes

replay_ask.JOURNAL_EVERY = 5
n_written, write = 0, outcomes.append_outcomes_part

def write_then_die(path, rows):
    global n_written
    write(path, rows)
    n_written += 1
    if n_written == {after}:
        os.kill(os.getpid(), signal.{signal})

outcomes.append_outcomes_part = write_then_die
sys.argv = ["llmtier", *{words}]
main()
"""


def run_and_die(words, *, after, how):
    script = INTERRUPTED.format(after=after, signal=how.name, words=list(words))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=18, check=False)


SAMPLED = ("replay", "plain.jsonl", *TWO, *JUDGED, "--max-requests", "120", "--concurrency", "2")


@pytest.mark.parametrize(("after", "n_kept", "kind"), [(3, 15, "answers"), (14, 10, "verdicts")])
def test_a_killed_replay_goes_on_with_the_same_sample(llmtier, folder, after, n_kept, kind):
    """Killed among the answers, or among the judge's verdicts: nothing in a journal is asked again."""
    judge_with(folder, verdict=lambda answer: "2" if answer == "no idea" else "9")
    plan = json.loads(llmtier(*SAMPLED, "--dry-run", "--json").out)["plan"]
    killed = run_and_die(SAMPLED, after=after, how=signal.SIGKILL)
    journals = [path.with_name(path.name.removesuffix(".partial.jsonl")) for path in folder.glob("*.partial.jsonl")]
    kept = [len(read_outcomes_parts(journal)) for journal in journals]
    ended = llmtier(*SAMPLED, "--json")
    whole = llmtier(*SAMPLED, "--json", "-o", "whole.parquet")

    assert -signal.SIGKILL == killed.returncode, killed.stderr
    assert n_kept in kept
    assert f"going on after {n_kept} {kind} of an interrupted replay" in ended.err
    assert plan == json.loads(ended.out)["plan"] == json.loads(whole.out)["plan"]
    assert read(folder / "outcomes.parquet") == read(folder / "whole.parquet")
    assert [] == list(folder.glob("*.partial.jsonl"))


def test_ctrl_c_exits_130_and_says_how_to_go_on(llmtier, folder):
    stopped = run_and_die(("replay", "log.jsonl", *TWO, "--concurrency", "2"), after=2, how=signal.SIGINT)
    ended = llmtier("replay", "log.jsonl", *TWO)

    assert 130 == stopped.returncode, stopped.stderr
    assert "run the same again to go on" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "going on after" in ended.err
    assert N == len(read(folder / "outcomes.parquet"))


def test_a_larger_budget_and_another_way_to_score_ask_nobody_twice(llmtier, folder):
    first = (*TWO, "--max-requests", "40", "--concurrency", "2")
    stopped = run_and_die(("replay", "log.jsonl", *first), after=2, how=signal.SIGKILL)
    ended = llmtier(
        "replay", "log.jsonl", *TWO, "--score-by", "agreement", "--reference", "big", "--max-requests", "80", "--json"
    )

    assert -signal.SIGKILL == stopped.returncode
    assert "going on after 10 answers" in ended.err
    assert [40, 40] == [tier["n"] for tier in json.loads(ended.out)["tiers"]]
