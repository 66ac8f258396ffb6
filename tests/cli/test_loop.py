"""The whole loop on mock engines: profile, replay, fit, explain, serve, and the traffic log that closes it."""

import json
import random
import signal
import subprocess
import sys
import urllib.request

import pytest

N_EVALUATION = 24
N_TRAFFIC = 400


def make_rows(n, seed):
    """Return easy rows (say a colour) and hard rows (add two numbers), half of each."""
    random_ = random.Random(seed)
    rows = []
    for index in range(n):
        if index % 2:
            a, b = random_.randrange(10, 999), random_.randrange(10, 999)
            text, answer, scorer = f"What do {a} and {b} come to, please?", str(a + b), "number"
        else:
            colour = random_.choice(["red", "green", "blue", "white"])
            text, answer, scorer = f"Name the colour of my {colour} box number {index}", colour, "exact"
        rows.append({"messages": [{"role": "user", "content": text}], "answer": answer, "scorer": scorer})
    return rows


def as_engine(answers, sequence_s):
    return {"kind": "mock", "mock": {"answers": answers, "sequence_s": sequence_s, "alpha_s": 0.0005}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation, traffic = make_rows(N_EVALUATION, 1), make_rows(N_TRAFFIC, 2)
    right = {row["messages"][0]["content"]: row["answer"] for row in [*evaluation, *traffic]}
    easy_only = {text: answer if "colour" in text else "no idea" for text, answer in right.items()}
    tiers = [
        {"name": "big", "model": "m", "scheme": "bf16", "engine": as_engine(right, 0.0004), "price": {"usd_per_hour": 4}},
        {"name": "small", "model": "m", "scheme": "int8", "engine": as_engine(easy_only, 0.0001), "price": {"usd_per_hour": 1}},
    ]  # fmt: skip
    config = {
        "evaluation": "evaluation.jsonl",
        "policy": "policy.json",
        "tiers": tiers,
        "load": {"concurrency": [1, 4], "requests_per_point": 48, "warmup_requests": 2, "max_tokens": 8},
        "gateway": {"log_dir": "traffic", "log_text": True},
    }
    (tmp_path / "llmtier.yaml").write_text(json.dumps(config))
    for name, rows in (("evaluation", evaluation), ("log", traffic)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_loop_closes(llmtier, folder):
    for words in (
        ("profile",),
        ("replay", "log.jsonl"),
        ("fit-thresholds", "outcomes.parquet", "--max-accuracy-loss", "0.02", "--reference", "big"),
    ):
        ended = llmtier(*words)
        assert 0 == ended.code, ended.err
    explained = json.loads(llmtier("explain", "Name the colour of my red box number 7", "--json").out)
    sums = json.loads(llmtier("explain", "What do 12 and 400 come to, please?", "--json").out)

    assert ("small", "big") == (explained["tier"], sums["tier"])
    assert not list(folder.glob("*.partial.jsonl"))
    served = ask_gateway(folder)
    assert served == {"Name the colour of my red box number 7": "small", "What do 12 and 400 come to, please?": "big"}
    again = llmtier("replay", "traffic", "-o", "again.parquet")
    assert (3, True) == (again.code, "answer" in again.err)  # texts were logged; nobody labelled them


def ask_gateway(folder):
    """Serve in a process of its own, ask two questions, stop it; return who answered."""
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtier", "serve", "--port", "0"], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        url = next(line.split()[-1] for line in process.stderr if line.startswith("serving on"))
        texts = ("Name the colour of my red box number 7", "What do 12 and 400 come to, please?")
        return {text: ask(url, text) for text in texts}
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=15)[1]
        assert 0 == process.returncode, rest
        assert "Traceback" not in rest


def ask(url, text):
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{url}/chat/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.headers["x-llmtier-tier"]


def test_interrupted_replay_goes_on(llmtier, folder, monkeypatch):
    """The second tier dies; what the first answered is not asked again."""
    from llmtier.core.errors import EngineRequestError
    from llmtier.evaluate import replay as replay_module

    asked = []
    original = replay_module.ask_all

    async def failing(client, prompts, *, tier, **options):
        asked.append((tier, len(prompts)))
        if tier == "small" and len(asked) == 2:
            raise EngineRequestError("gone")
        return await original(client, prompts, tier=tier, **options)

    monkeypatch.setattr(replay_module, "ask_all", failing)
    first = llmtier("replay", "log.jsonl")
    journal = list(folder.glob("*.partial.jsonl"))
    second = llmtier("replay", "log.jsonl")

    assert (4, 1) == (first.code, len(journal))
    assert 0 == second.code, second.err
    assert "going on after" in second.err
    assert (folder / "outcomes.parquet").exists()
    assert not list(folder.glob("*.partial.jsonl"))


def test_tiers_measured_together_name_each_other(llmtier, folder):
    config = json.loads((folder / "llmtier.yaml").read_text())
    for tier in config["tiers"]:
        tier["device"] = "cpu:0"
    (folder / "llmtier.yaml").write_text(json.dumps(config))
    ended = llmtier("profile", "--together", "--json")
    again = llmtier("profile", "--together", "--resume")

    assert 0 == ended.code, ended.err
    assert {"big": ["small"], "small": ["big"]} == {t["tier"]: t["co_tenants"] for t in json.loads(ended.out)["tiers"]}
    assert ["big: profiled already", "small: profiled already"] == again.err.splitlines()


def test_failed_requests_keep_the_journal(llmtier, folder):
    """What failed is asked again, what was answered is not."""
    config = json.loads((folder / "llmtier.yaml").read_text())
    config["tiers"] = config["tiers"][:1]
    config["tiers"][0]["engine"]["mock"]["faults"] = [{"kind": "error", "on_nth_request": 5}]
    (folder / "llmtier.yaml").write_text(json.dumps(config))
    first = llmtier("replay", "log.jsonl", "--json")
    second = llmtier("replay", "log.jsonl", "--force", "--json")

    assert "1 answers are missing" in first.err
    assert 1 == json.loads(first.out)["tiers"][0]["missing"]
    assert f"going on after {N_TRAFFIC}" in second.err
    assert 0 == json.loads(second.out)["tiers"][0]["missing"]
    assert not list(folder.glob("*.partial.jsonl"))


def test_explain_obeys_the_configured_slo(llmtier, folder):
    for words in (("profile",), ("replay", "log.jsonl"), ("fit-thresholds", "outcomes.parquet", "--reference", "big")):
        assert 0 == llmtier(*words).code
    config = json.loads((folder / "llmtier.yaml").read_text())
    (folder / "llmtier.yaml").write_text(json.dumps(config | {"slo": {"ttft_s": 1e-9}}))
    explained = json.loads(llmtier("explain", "Name the colour of my red box number 7", "--json").out)

    assert "fallback" == explained["reason"]
    assert {"ttft"} <= {miss["reason"] for miss in explained["misses"]}
