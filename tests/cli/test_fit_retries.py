"""``fit-thresholds --retries-from`` as typed: what is charged, said and warned of."""

import json
import random

import pytest

COSTS = ("--costs", "small=1,large=10")
WORDS = "please tell me about the thing now again why how prove theorem hello weather lunch colour".split()  # noqa: SIM905
BEGIN = "why does the sea look blue on a clear day and grey when clouds come over it from the north"


def make_rows():
    draw = random.Random(0)
    for number in range(400):
        is_hard = draw.random() < 0.5
        prompt = " ".join([*draw.sample(WORDS[:10], 5), "prove" if is_hard else "hello", str(number)])
        yield {"prompt": prompt, "scores": {"small": float(not is_hard), "large": 1.0}}


def make_log(n_again, *, n=100, **more):
    """Return a log of the small tier, of which the large one was asked some again a minute later."""
    for number in range(n):
        row = {"prompt": f"{BEGIN} {number}", "key": f"k{number % 7}", "arrival_s": 1000.0 * number, "tier": "small"}
        yield {**row, **more}
        if number < n_again:
            yield {**row, "arrival_s": 1000.0 * number + 60, "tier": "large", **more}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def fit(llmtier, tmp_path, monkeypatch):
    """Return a function that fits with a log of retries; the outcomes are there."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "outcomes.jsonl", make_rows())

    def run(rows, *words):
        write(tmp_path / "log.jsonl", rows)
        loss = () if "--budget-usd-per-1k" in words else ("--max-accuracy-loss", "0.2")
        return llmtier(
            "fit-thresholds", "outcomes.jsonl", *COSTS, *loss, "--retries-from", "log.jsonl", "--force", *words
        )

    return run


def document_of(ended):
    assert 0 == ended.code, ended.err
    return json.loads(ended.out)


def test_the_report_says_what_is_charged_to_whom(fit):
    ended = fit(make_log(30))

    assert 0 == ended.code, ended.err
    # pooled 30 of 130; small (30 + 20 x 30/130) / 120 x 10; large (20 x 30/130) / 50 x 10
    assert "retries: small 30.0 % of 100 requests, charged $2,885 for 1,000 requests" in ended.out
    assert "retries: large 0.0 % of 30 requests, charged $923.1 for 1,000 requests" in ended.out
    assert "warning: log.jsonl" not in ended.err


def test_what_is_asked_again_makes_a_tier_dearer(fit, tmp_path):
    plain = document_of(fit(make_log(0), "--json"))
    charged = document_of(fit(make_log(30), "--json"))

    assert 0.0 == plain["retries"]["tiers"]["small"]["usd_per_request"]
    assert 30 == charged["retries"]["tiers"]["small"]["n_retried"]
    assert charged["judgement"]["usd_per_request"] > plain["judgement"]["usd_per_request"]
    assert {"outcomes.jsonl", "log.jsonl"} == json.loads((tmp_path / "policy.json").read_text())["inputs"].keys()


def test_a_tier_whose_answers_are_all_asked_again_is_not_used(fit):
    content = [{"prompt": BEGIN, "key": f"c{n}", "arrival_s": 0.0, "tier": "large"} for n in range(900)]
    shares = {
        tier["name"]: tier["share"] for tier in document_of(fit([*make_log(400, n=400), *content], "--json"))["tiers"]
    }

    assert {"large": 1.0} == shares


def test_the_guarantee_is_that_of_the_same_rule_without_charges(fit):
    plain, charged = document_of(fit(make_log(0), "--json")), document_of(fit(make_log(10), "--json"))

    assert plain["guarantee"] == charged["guarantee"]
    assert plain["max_accuracy_gap"] == charged["max_accuracy_gap"]


def test_a_budget_holds_with_its_retries(fit):
    assert 0 == fit(make_log(0), "--budget-usd-per-1k", "1500").code
    ended = fit(make_log(30), "--budget-usd-per-1k", "1500")

    assert (5, True) == (ended.code, "everything on small costs $3885" in ended.err)


def test_the_window_is_the_users(fit):
    document = document_of(fit(make_log(30), "--json", "--retry-window-s", "59"))

    assert 0 == document["retries"]["tiers"]["small"]["n_retried"]


@pytest.mark.parametrize(
    ("more", "warning"),
    [
        ({"key": None}, "no row has all of key"),
        ({"arrival_s": None}, "no row has all of key"),
        ({"tier": "gpt"}, "none of its tiers (gpt) is among those to fit (large, small)"),
        ({"key": "k"}, "all requests have one key"),
    ],
)
def test_what_a_log_cannot_tell_is_a_warning(fit, more, warning):
    ended = fit(make_log(30, **more))

    assert 0 == ended.code, ended.err
    assert f"warning: log.jsonl: {warning}" in ended.err


def test_polls_are_left_out_and_counted(fit):
    poll = [{"prompt": "ping", "key": "p", "arrival_s": 60.0 * n, "tier": "small"} for n in range(50)]
    document = document_of(fit([*make_log(30), *poll, {"prompt": "hello"}], "--json"))

    assert (50, 1) == (document["retries"]["n_machine"], document["retries"]["n_unknown"])
    assert 100 == document["retries"]["tiers"]["small"]["n_served"]


def test_a_log_that_is_not_there_is_named(llmtier, fit):
    ended = fit(make_log(1), "--retries-from", "absent.jsonl")

    assert (3, True) == (ended.code, "absent.jsonl" in ended.err)
