"""``fit-thresholds`` and ``audit`` as typed: goals, prices by hand, logs without labels, mistakes."""

import json
import random

import pyarrow.parquet as pq
import pytest

HARD = ("prove", "theorem", "integral", "lemma")
EASY = ("hello", "weather", "colour", "lunch")
FILLERS = ("please", "tell", "me", "about", "the", "thing", "now", "again", "why", "how")
COSTS = ("--costs", "small=1,large=10")


def make_rows(n, seed=0):
    """Return prompts whose easy half the small tier answers; the large one answers all."""
    draw = random.Random(seed)
    for number in range(n):
        is_hard = draw.random() < 0.5
        words = [*draw.sample(FILLERS, 5), draw.choice(HARD if is_hard else EASY), str(number)]
        draw.shuffle(words)
        yield {"prompt": " ".join(words), "scores": {"small": float(not is_hard), "large": 1.0}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = list(make_rows(700))
    (tmp_path / "outcomes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    lines = ["question,small_ok,large_ok", *(f"{r['prompt']},{r['scores']['small']},1.0" for r in rows)]
    (tmp_path / "outcomes.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def fit(llmtier, *words):
    ended = llmtier("fit-thresholds", *words, "--json", "--force")
    assert 0 == ended.code, ended.err
    return json.loads(ended.out)


def shares_of(document):
    return {tier["name"]: tier["share"] for tier in document["tiers"]}


def test_a_loss_is_promised_from_prices_by_hand(llmtier, folder):
    found = fit(llmtier, "outcomes.jsonl", *COSTS, "--max-accuracy-loss", "0.05")

    assert "at most 0.05 below the reference's with 95% confidence" in found["guarantee"]["statement"]
    assert 0.5 == pytest.approx(shares_of(found)["small"], abs=0.1)
    assert found["judgement"]["loss"] <= 0.05
    assert [True] == sorted(
        {step["is_certified"] for step in found["path"] if step["gap"] <= found["max_accuracy_gap"]}
    )
    assert json.loads((folder / "policy.json").read_text())["guarantee"] == found["guarantee"]


def test_csv_columns_are_mapped_and_give_the_same_policy(llmtier, folder):
    mapped = ["prompt=question", "score:small=small_ok", "score:large=large_ok"]
    options = [word for pair in mapped for word in ("--column", pair)]
    from_csv = fit(llmtier, "outcomes.csv", *COSTS, *options)
    from_json = fit(llmtier, "outcomes.jsonl", *COSTS)

    assert from_csv["max_accuracy_gap"] == from_json["max_accuracy_gap"]
    assert shares_of(from_csv) == shares_of(from_json)


def test_a_log_without_scores_gets_shares_and_no_guarantee(llmtier, folder):
    found = fit(llmtier, "log.jsonl", *COSTS, "--target-shares", "small=0.7,large=0.3")

    assert found["guarantee"] is None
    assert found["judgement"] is None
    assert 0.7 == pytest.approx(shares_of(found)["small"], abs=0.03)
    assert any("no guarantee" in warning for warning in found["warnings"])
    shown = llmtier("fit-thresholds", "log.jsonl", *COSTS, "--force")  # default thresholds
    assert (0, True) == (shown.code, "no guarantee" in shown.out)


def test_a_log_without_scores_promises_no_loss(llmtier, folder):
    ended = llmtier("fit-thresholds", "log.jsonl", *COSTS, "--max-accuracy-loss", "0.01")

    assert (3, True) == (ended.code, "llmtier replay" in ended.err)
    assert not (folder / "policy.json").exists()


def test_what_cannot_be_reached_exits_5_with_what_can(llmtier, folder):
    floor = llmtier("fit-thresholds", "outcomes.jsonl", *COSTS, "--min-accuracy", "0.9999")
    budget = llmtier("fit-thresholds", "outcomes.jsonl", *COSTS, "--budget-usd-per-1k", "900")

    assert (5, True) == (floor.code, "which certifies 0.9" in floor.err)
    assert (5, True) == (budget.code, "everything on small costs $1000" in budget.err)


def test_few_labels_leave_all_on_the_reference_and_say_how_many_would_do(llmtier, folder):
    lines = (folder / "outcomes.jsonl").read_text().splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(lines[:100]))
    ended = llmtier("fit-thresholds", "few.jsonl", *COSTS, "--max-accuracy-loss", "0.005")

    assert 0 == ended.code
    assert "everything goes to large" in ended.out
    assert "labelled prompts" in ended.out


WEIGHTS = ("--objective", "utility", "--weights")


def test_utility_weighs_accuracy_against_cost(llmtier, folder):
    """The large tier adds 1 to the hard half; at 0.05 for $1,000 it costs 0.45 more."""
    found = fit(llmtier, "outcomes.jsonl", *COSTS, *WEIGHTS, "accuracy=1,usd_per_1k=0.00005", "--fallback", "utility")
    written = json.loads((folder / "policy.json").read_text())
    weights = {"accuracy": 1.0, "latency_per_s": 0.0, "cost_per_usd_1k": 0.00005}

    assert ("utility", "utility", weights) == (found["objective"], found["goal"]["kind"], found["weights"])
    assert ("utility", "utility", weights) == (written["objective"], written["fallback"], written["weights"])
    assert 0.5 == pytest.approx(shares_of(found)["small"], abs=0.1)
    assert found["judgement"]["loss"] <= found["guarantee"]["max_loss"] < 0.1


def test_utility_is_told_in_words_and_a_dear_dollar_moves_all(llmtier, folder):
    words = (*COSTS, *WEIGHTS, "accuracy=1,usd_per_1k=0.001", "--reference", "large")
    ended = llmtier("fit-thresholds", "outcomes.jsonl", *words, "--force")

    assert 0 == ended.code, ended.err
    assert "each prompt goes where this is highest: 1 x P(correct) - 0 x E2EL in s - 0.001 x $" in ended.out
    assert "small 100.0 %" in ended.out


def test_utility_needs_scores(llmtier, folder):
    ended = llmtier("fit-thresholds", "log.jsonl", *COSTS, *WEIGHTS, "accuracy=1")

    assert (3, True) == (ended.code, "llmtier replay" in ended.err)
    assert not (folder / "policy.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--max-accuracy-loss", "0.1", "--min-accuracy", "0.5"), 2, "a policy is fitted for one goal"),
        (("--max-accuracy-loss", "1.5"), 2, "must lie in"),
        (("--target-shares", "small=0.7"), 2, "sum to 1"),
        (("--target-shares", "small"), 2, "expected pairs such as"),
        (("--target-shares", "tiny=1"), 2, "names tiny"),
        (("--tiers", "smal,large"), 2, "did you mean small?"),
        (("--column", "prompt"), 2, "ours=theirs"),
        (("--scorer", "semantic"), 2, "needs --embedder"),
        (("--scorer", "magic"), 2, "magic"),
        (("--simple", "a.txt"), 2, "belong together"),
        (("--confidence", "1"), 2, "confidence"),
        (("--costs", "small=1"), 2, "no cost of large"),
        ((*WEIGHTS, "accuracy=1", "--min-accuracy", "0.5"), 2, "a policy is fitted for one goal"),
        (("--objective", "utility"), 2, "needs --weights"),
        (("--weights", "accuracy=1"), 2, "belong to --objective utility"),
        (("--fallback", "utility"), 2, "belong to --objective utility"),
        ((*WEIGHTS, "accuracy=1", "--per-domain"), 2, "--per-domain is for thresholds"),
        ((*WEIGHTS, "speed=1"), 2, "--weights names speed; there are accuracy, latency_s, usd_per_1k"),
        ((*WEIGHTS, "accuracy=0"), 2, "all weights are 0"),
        ((*WEIGHTS, "accuracy=-1"), 2, "must be finite and >= 0"),
        ((*WEIGHTS, "accuracy=1,latency_s=1"), 2, "no profile tells those of small, large"),
        (("--costs", "small=-1,large=2"), 2, "must be >= 0"),
    ],
)
def test_mistakes_are_named(llmtier, folder, words, code, message):
    costs = () if "--costs" in words else COSTS
    ended = llmtier("fit-thresholds", "outcomes.jsonl", *costs, *words)

    assert (code, True) == (ended.code, message in ended.err), ended.err
    assert 1 == len([line for line in ended.err.splitlines() if not line.startswith("warning")])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x", "scores": {"small": 1.5}}', "score of small must lie in [0, 1]"),
        ('{"prompt": "x", "scores": {"small": NaN}}', "bad.jsonl:2"),
        ('{"prompt": "x", "scores": ', "bad.jsonl:2"),
        ("\x00\x01\x02", "bad.jsonl"),
    ],
)
def test_bad_rows_name_file_and_line(llmtier, folder, line, message):
    good = (folder / "outcomes.jsonl").read_text().splitlines()[0]
    (folder / "bad.jsonl").write_text(f"{good}\n{line}\n")
    ended = llmtier("fit-thresholds", "bad.jsonl", *COSTS)

    assert (3, True) == (ended.code, message in ended.err), ended.err


def test_audit_scores_a_log_as_the_policy_routes_it(llmtier, folder):
    fit(llmtier, "outcomes.jsonl", *COSTS, "--max-accuracy-loss", "0.05")
    ended = llmtier("audit", "log.jsonl", "-o", "scored.parquet", "--json")
    found = json.loads(ended.out)
    table = pq.read_table(folder / "scored.parquet").to_pydict()

    assert ["prompt", "score", "tier", "p_small", "p_large"] == list(table)
    assert 700 == found["n"] == len(table["prompt"])
    assert found["shares"]["small"] == pytest.approx(table["tier"].count("small") / 700)
    hard = [any(word in prompt for word in HARD) for prompt in table["prompt"]]
    gains = sorted(zip(table["score"], hard, strict=True), reverse=True)
    assert sum(is_hard for _, is_hard in gains[:300]) > 290
    assert table["score"] == pytest.approx([b - a for a, b in zip(table["p_small"], table["p_large"], strict=True)])


def test_audit_warns_of_other_traffic_and_refuses_what_it_cannot_read(llmtier, folder):
    fit(llmtier, "outcomes.jsonl", *COSTS, "--max-accuracy-loss", "0.05")
    (folder / "other.jsonl").write_text('{"prompt": "prove the lemma of this theorem"}\n' * 300)
    other = llmtier("audit", "other.jsonl")
    again = llmtier("audit", "log.jsonl", "-o", "scored.csv")
    (folder / "empty.jsonl").write_text("")
    empty = llmtier("audit", "empty.jsonl", "-o", "scored.parquet")
    (folder / "policy.json").write_text("{}")
    broken = llmtier("audit", "log.jsonl")

    assert (0, True) == (other.code, "the traffic is another one" in other.err)
    assert "the same score" in other.err
    assert (2, 3, 3) == (again.code, empty.code, broken.code)
    assert not (folder / "scored.parquet").exists()
    assert not list(folder.glob("*.tmp*"))
