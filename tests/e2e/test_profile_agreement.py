"""``llmtier``'s load and ``vllm bench serve`` on one running vLLM: the same counts by the same definitions.

No timing is compared here: two runs on a busy machine differ. ``benchmarks/agree.py`` does that, with repeats.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.engine.launch import EngineSpec, RunningEngine, running_engine
from llmtier.engine.load_client import LoadClient
from llmtier.profile.load import LoadPlan, run_load
from llmtier.profile.sample import RequestSample
from llmtier.profile.shapes import ClosedLoop
from llmtier.profile.workload import COMPLETION_PATH, WorkItem

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300), pytest.mark.anyio]

NANO = Path(__file__).parents[2] / "examples" / "demo" / "models" / "nano"
ARGS = {"max_model_len": 256, "enforce_eager": True, "enable_prefix_caching": False}
N, N_INPUT, N_OUTPUT, CONCURRENCY = 24, 32, 16, 4
PLAIN_TOKENS = (10, 40)  # neither end is a special token


@pytest.fixture
def python() -> Path:
    """Return the interpreter that holds vLLM."""
    environment = find_environment(EnvironmentName.ENGINE_CPU, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install engine-cpu'")
    return environment.python


def random_prompts(seed: int) -> Iterator[WorkItem]:
    """Yield prompts of exactly ``N_INPUT`` tokens; special tokens in the answer are to have a text, as they take time."""
    rng = np.random.default_rng(seed)
    for number in range(N):
        fields = {
            "prompt": rng.integers(*PLAIN_TOKENS, N_INPUT).tolist(),
            "max_tokens": N_OUTPUT,
            "temperature": 0.0,
            "ignore_eos": True,
            "skip_special_tokens": False,
        }
        yield WorkItem(id=str(number), path=COMPLETION_PATH, fields=fields, prompt_id=str(number))


async def load_with_llmtier(engine: RunningEngine) -> tuple[RequestSample, ...]:
    plan = LoadPlan(
        tier=engine.model_name,
        model_name=engine.model_name,
        shape=ClosedLoop(concurrency=CONCURRENCY),
        n_requests=N,
        warmup_requests=0,
        seed=0,
    )
    async with LoadClient(engine.base_url) as client:
        return (await run_load(client, plan, random_prompts(0))).samples


def load_with_vllm_bench(engine: RunningEngine, python: Path, folder: Path) -> dict[str, Any]:
    command = [
        *(str(python), "-m", "vllm.entrypoints.cli.main", "bench", "serve"),
        *("--backend", "openai", "--endpoint", "/v1/completions", "--base-url", engine.base_url),
        *("--model", engine.model_name, "--tokenizer", str(NANO), "--dataset-name", "random"),
        *("--random-input-len", str(N_INPUT), "--random-output-len", str(N_OUTPUT), "--num-prompts", str(N)),
        *("--max-concurrency", str(CONCURRENCY), "--request-rate", "inf", "--ignore-eos", "--temperature", "0"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--ready-check-timeout-sec", "0", "--disable-tqdm"),
        *("--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "bench.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout[-2000:] + done.stderr[-2000:]
    document: dict[str, Any] = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    return document


async def test_counts_and_definitions_are_those_of_vllm_bench(python, tmp_path):
    spec = EngineSpec(tier="nano@bf16", model_path=str(NANO), python=python, args=ARGS)
    async with running_engine(spec, log_path=tmp_path / "engine.log") as engine:
        samples = await load_with_llmtier(engine)
        theirs = await asyncio.to_thread(load_with_vllm_bench, engine, python, tmp_path)

    timings = [sample.timing for sample in samples]
    assert (N, 0) == (theirs["completed"], theirs["failed"])
    assert ["ok"] * N == [sample.row.status for sample in samples]
    assert N * N_INPUT == theirs["total_input_tokens"] == sum(sample.row.n_input_tokens for sample in samples)
    assert N * N_OUTPUT == theirs["total_output_tokens"] == sum(sample.row.n_output_tokens for sample in samples)
    for timing in timings:
        assert timing.e2el_from_send_s == pytest.approx(timing.ttft_from_send_s + sum(timing.itl_s))
        assert timing.e2el_from_send_s == pytest.approx(timing.ttft_from_send_s + (N_OUTPUT - 1) * timing.tpot_s)
    means = {name: theirs[f"mean_{name}_ms"] for name in ("ttft", "tpot", "itl", "e2el")}
    assert means["e2el"] == pytest.approx(1000 * np.mean(np.array(theirs["ttfts"]) + [sum(i) for i in theirs["itls"]]))
    assert means["e2el"] == pytest.approx(means["ttft"] + (N_OUTPUT - 1) * means["tpot"])
    assert means["itl"] == pytest.approx(1000 * np.mean([gap for itl in theirs["itls"] for gap in itl]))
    duration_s = max(sample.row.done_s for sample in samples) - min(sample.row.sent_s for sample in samples)
    assert 0.2 < (N / duration_s) / theirs["request_throughput"] < 5  # the same load, not another number in flight
