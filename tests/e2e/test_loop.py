"""The whole loop on the real vLLM, small: profile, replay, fit, serve, the openai client, no process left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.store.traffic import read_traffic

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

DEMO = Path(__file__).parents[2] / "examples" / "demo"
ENGINE = {"kind": "vllm", "args": {"max_model_len": 256, "enforce_eager": True}, "start_timeout_s": 200}


@pytest.fixture
def folder(tmp_path):
    if find_environment(EnvironmentName.ENGINE_CPU, home=home_path(os.environ)) is None:
        pytest.skip("run 'llmtier env install engine-cpu'")
    cores = sorted(os.sched_getaffinity(0))
    tiers = [
        {
            "name": f"{model}@bf16",
            "model": str(DEMO / "models" / model),
            "scheme": "bf16",
            "device": f"cpu:{core}",
            "engine": ENGINE,
            "price": {"usd_per_hour": 0.05},
        }
        for model, core in zip(("nano", "mini"), (cores[0], cores[-1]), strict=True)
    ]
    config = {
        "evaluation": "evaluation.jsonl",
        "policy": "policy.json",
        "tiers": tiers,
        "load": {
            "concurrency": [1, 8],
            "requests_per_point": 48,
            "warmup_requests": 8,
            "max_tokens": 64,
            "latency_model": False,
        },
        "gateway": {"log_dir": "traffic"},
    }
    (tmp_path / "llmtier.yaml").write_text(json.dumps(config))
    for name, n_rows in (("evaluation", 40), ("traffic", 240)):
        rows = (DEMO / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:n_rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    return tmp_path


def run(folder, *words):
    """Run one command; return its JSON document."""
    result = subprocess.run(
        [sys.executable, "-m", "llmtier", *words, "--json"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert 0 == result.returncode, result.stderr
    return json.loads(result.stdout)


def test_the_loop_closes_on_the_real_engine(folder):
    profiled = run(folder, "profile")
    replayed = run(folder, "replay", "traffic.jsonl", "-o", "outcomes.parquet")
    fitted = run(folder, "fit-thresholds", "outcomes.parquet", "--max-accuracy-loss", "0.1", "--reference", "mini@bf16")

    assert all(
        point["n_failed"] == 0 and point["tpot_p50_s"] > 0 for tier in profiled["tiers"] for point in tier["points"]
    )
    assert {"nano@bf16": 240, "mini@bf16": 240} == {tier["tier"]: tier["n"] for tier in replayed["tiers"]}
    assert "mini@bf16" == fitted["reference"]
    ask_gateway(folder)


def ask_gateway(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtier", "serve", "--port", "0"], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        url = next(line.split()[-1] for line in process.stderr if line.startswith("serving on"))
        ask(OpenAI(base_url=url, api_key="none", max_retries=0))
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]

    assert 0 == process.returncode, rest
    assert [] == psutil.wait_procs(family, timeout=20)[1]
    assert 3 == len(read_traffic(folder / "traffic"))


def ask(client):
    """Ask routed, pinned and streaming; the answers of greedy decoding are the same each way."""
    messages = [{"role": "user", "content": "My order ORD-48213 has not arrived yet, where is it?"}]
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=messages, max_tokens=32, temperature=0
    )
    tier = raw.headers["x-llmtier-tier"]
    pinned = client.chat.completions.create(model=tier, messages=messages, max_tokens=32, temperature=0)
    chunks = list(
        client.chat.completions.create(model=tier, messages=messages, max_tokens=32, temperature=0, stream=True)
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    assert raw.parse().choices[0].message.content == pinned.choices[0].message.content == streamed
    assert {"auto", tier} <= {model.id for model in client.models.list()}
