"""The coefficients once more through everything that ``llmtier profile`` runs: sockets, stamps, design, fit.

Starts the mock engine as a process of its own and lets ``profile.run.measure_tier`` profile it in real time.
"""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from llmtier.core.prompt import Message, Prompt
from llmtier.core.tier import EngineIdentity
from llmtier.engine.client import EngineClient
from llmtier.engine.load_client import LoadClient
from llmtier.engine.mock_settings import MockSettings
from llmtier.profile.conclude import RawMeasurement, conclude
from llmtier.profile.lengths import SyntheticLengths, UniformLength
from llmtier.profile.point import Bench
from llmtier.profile.run import measure_tier
from llmtier.profile.settings import Evaluation, ProfileSettings, TierFacts
from llmtier.profile.shapes import ClosedLoop
from support.truth_coefficients import SCRIPTED

ENGINE = MockSettings(
    alpha_s=0.006, beta_s_per_token=4e-5, sequence_s=4e-4, gamma_s_per_kv_token=1.5e-6, noise=0.05, max_num_seqs=32
)
SETTINGS = ProfileSettings(
    shapes=(ClosedLoop(concurrency=8),),
    requests_per_point=80,
    warmup_requests=8,
    max_tokens=32,
    concurrency=(2, 4, 8, 16),
    seed=1,
    max_input_tokens=512,
    lengths=SyntheticLengths(
        input=UniformLength(low_tokens=32, high_tokens=512), output=UniformLength(low_tokens=16, high_tokens=64)
    ),
)
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0


def measure_http() -> dict[str, object]:
    """Profile the mock over HTTP; return each coefficient's relative error and the judgement on held-out arrivals."""
    begun_s = time.perf_counter()
    with _mock_process(ENGINE) as base_url:
        raw = asyncio.run(_profile(base_url))
    measured = conclude(raw)
    model = measured.profile.latency
    if model is None:
        return {"error": measured.no_model}
    errors = {
        fitted: abs(getattr(model.step, fitted) / getattr(ENGINE, scripted) - 1.0)
        for fitted, scripted in SCRIPTED.items()
    }
    return {
        "error_max": max(errors.values()),
        "errors": errors,
        "attention_s_per_token2": model.step.attention_s_per_token2,
        "frontend_s": model.frontend_s,
        "held_out_mape": {name: found.mape for name, found in measured.judgement.items()},
        "held_out_coverage_p95": {name: found.coverage for name, found in measured.judgement.items()},
        "points": len(raw.points),
        "invalid": {one.point.shape: list(one.point.invalid) for one in raw.points if one.point.invalid},
        "wall_s": round(time.perf_counter() - begun_s, 1),
    }


async def _profile(base_url: str) -> RawMeasurement:
    facts = TierFacts(
        tier="mock",
        checkpoint_digest=None,
        engine=EngineIdentity(name="mock"),
        hardware_fingerprint="virtual",
        device="cpu:0",
        context_tokens=ENGINE.context_tokens,
    )
    unscored = Prompt(id="unscored", messages=(Message(role="user", content="hello"),))
    async with (
        LoadClient(base_url) as load_client,
        EngineClient(base_url, model_name=ENGINE.model_name) as chat_client,
    ):
        bench = Bench(client=load_client, tier="mock", model_name=ENGINE.model_name, identity={})
        return await measure_tier(bench, chat_client, facts, Evaluation(prompts=[unscored], digest=""), SETTINGS)


@contextmanager
def _mock_process(settings: MockSettings) -> Iterator[str]:
    """Run the mock engine as a process; lends its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.json"
        path.write_text(json.dumps(asdict(settings)), encoding="utf-8")
        command = [sys.executable, "-m", "llmtier.engine.mock", "--port", str(port), "--settings", str(path)]
        process = subprocess.Popen(command)
        try:
            _wait_until_up(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=STOP_TIMEOUT_S)


def _wait_until_up(base_url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.perf_counter() + START_TIMEOUT_S
    while process.poll() is None and time.perf_counter() < deadline_s:
        try:
            with urlopen(f"{base_url}/health", timeout=1.0):  # noqa: S310 - our own loopback address
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError("the mock engine did not start")
