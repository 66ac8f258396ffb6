"""``vllm bench serve`` as a peer: one run against a server that is up, read back as per-request figures.

Runs the engine environment's own interpreter; reads the detailed JSON that the tool writes. Latencies there count from
the send instant, TTFT from the first chunk with ``choices``: on ``/v1/completions`` that is the first token.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MODULE = "vllm.entrypoints.cli.main"
END_OF_OUTPUT = 2000


@dataclass(frozen=True)
class BenchLoad:
    """What is sent: requests of one length, at a rate or with a number in flight.

    Attributes:
        n: Requests.
        input_tokens: Of each.
        output_tokens: Of each, the end-of-text token ignored.
        concurrency: In flight; ``None`` for an open loop.
        rate_rps: Poisson arrivals per second; ``None`` for a closed loop.
    """

    n: int
    input_tokens: int
    output_tokens: int
    concurrency: int | None = None
    rate_rps: float | None = None


@dataclass(frozen=True)
class Figures:
    """What one run says, whole run, warm-up and tail included; means over requests, of ITL over all gaps.

    Attributes:
        offsets_s: Each send, counted from the first.
    """

    n_ok: int
    n_failed: int
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float
    itl_s: float
    e2el_s: float
    request_rps: float
    output_tokens_per_s: float
    offsets_s: tuple[float, ...]


def bench_command(python: Path, base_url: str, *, model: str, tokenizer: Path, load: BenchLoad, seed: int) -> list[str]:
    """Return the command, without where to write."""
    shape = ["--request-rate", "inf" if load.rate_rps is None else repr(load.rate_rps)]
    if load.concurrency is not None:
        shape += ["--max-concurrency", str(load.concurrency)]
    return [
        *(str(python), "-m", MODULE, "bench", "serve", "--backend", "openai", "--endpoint", "/v1/completions"),
        *("--base-url", base_url, "--model", model, "--tokenizer", str(tokenizer)),
        *("--dataset-name", "random", "--random-input-len", str(load.input_tokens)),
        *("--random-output-len", str(load.output_tokens), "--num-prompts", str(load.n), *shape),
        *("--ignore-eos", "--temperature", "0", "--seed", str(seed), "--disable-tqdm"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--ready-check-timeout-sec", "0"),
    ]


def run_bench(python: Path, base_url: str, *, model: str, tokenizer: Path, load: BenchLoad, seed: int) -> Figures:
    """Run the peer once.

    Raises:
        RuntimeError: It failed; holds the end of what it said.
    """
    command = bench_command(python, base_url, model=model, tokenizer=tokenizer, load=load, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        where = ["--save-result", "--save-detailed", "--result-dir", folder, "--result-filename", "result.json"]
        done = subprocess.run([*command, *where], capture_output=True, text=True, check=False)
        path = Path(folder) / "result.json"
        if done.returncode != 0 or not path.exists():
            raise RuntimeError(f"vllm bench serve failed: {(done.stdout + done.stderr)[-END_OF_OUTPUT:]}")
        return read_figures(json.loads(path.read_text(encoding="utf-8")))


def bench_offsets(load: BenchLoad, seed: int) -> tuple[float, ...]:
    """Return the arrival instants that the tool draws: Poisson from numpy's old generator, scaled to end at ``n / rate``.

    Source: ``get_request`` in vllm/benchmarks/serve.py of 0.32; ``Figures.offsets_s`` tells whether it still holds.
    """
    if load.rate_rps is None:
        raise ValueError("a closed loop has no arrival instants")
    offsets_s = np.cumsum(np.random.RandomState(seed).gamma(1.0, 1 / load.rate_rps, load.n))
    return tuple((offsets_s * (load.n / load.rate_rps / offsets_s[-1])).tolist())


def read_figures(document: Mapping[str, Any]) -> Figures:
    """Return the figures of the tool's own result file; its milliseconds become seconds.

    Throughput is taken from the first send to the last token: the tool's own begins before the first arrival.
    """
    starts_s = document["start_times"]
    waits_s = zip(document["ttfts"], document["itls"], strict=True)
    ends_s = [start_s + ttft_s + sum(itl_s) for start_s, (ttft_s, itl_s) in zip(starts_s, waits_s, strict=True)]
    duration_s = max(ends_s) - min(starts_s)
    return Figures(
        n_ok=document["completed"],
        n_failed=document["failed"],
        input_tokens=document["total_input_tokens"],
        output_tokens=document["total_output_tokens"],
        request_rps=document["completed"] / duration_s,
        output_tokens_per_s=document["total_output_tokens"] / duration_s,
        **{f"{name}_s": document[f"mean_{name}_ms"] / 1000 for name in ("ttft", "tpot", "itl", "e2el")},
        offsets_s=tuple(start_s - starts_s[0] for start_s in starts_s),
    )
