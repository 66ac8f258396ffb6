"""Measure the measuring client against the mock engine, whose times are known exactly.

Starts the mock as a process of its own, as a real engine is; returns what this machine's client can resolve. Its
errors include the mock's own lateness, so they are upper bounds.
"""

import asyncio
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from llmtier.core.errors import EngineStartError
from llmtier.engine.client import EngineClient
from llmtier.engine.load_client import LoadClient
from llmtier.engine.mock_settings import MockSettings
from llmtier.profile.load import LoadPlan, LoadResult, run_load
from llmtier.profile.sample import RequestSample
from llmtier.profile.shapes import ClosedLoop, ConstantRate, LoadShape
from llmtier.profile.workload import CHAT_PATH, WorkItem
from llmtier.stats.quantiles import quantile

STEP_S = 0.004
N_STREAMS = 48
RATE_RPS = 200.0
_TOKENS = 50
_N_ALONE = 100

Samples = Sequence[RequestSample]
_START_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """What the client can resolve on this machine, measured beside the mock.

    Attributes:
        n_streams: Streams at once.
        chunks_per_s: Content chunks received per second.
        client_cpu_s_per_chunk: Processor seconds of this process per chunk, decoding included.
        ttft_error_p50_s: Measured TTFT of lone requests less the mock's; likewise ``ttft_error_p95_s``.
        itl_error_mean_s: Measured mean gap less the mock's step.
        rate_rps: Of the schedule that the delays were taken on.
        schedule_delay_p50_s: Sent minus scheduled; likewise ``p99``.
    """

    n_streams: int
    chunks_per_s: float
    client_cpu_s_per_chunk: float
    ttft_error_p50_s: float
    ttft_error_p95_s: float
    itl_error_mean_s: float
    rate_rps: float
    schedule_delay_p50_s: float
    schedule_delay_p99_s: float


async def run_self_test(*, n_requests: int = 240, n_scheduled: int = 600) -> SelfTest:
    """Measure the client.

    Args:
        n_requests: Of the streams.
        n_scheduled: Of the schedule.

    Raises:
        EngineStartError: The mock did not start.
    """
    settings = MockSettings(
        alpha_s=STEP_S, beta_s_per_token=0.0, sequence_s=0.0, max_num_seqs=4 * N_STREAMS, output_tokens=_TOKENS
    )
    async with _mock_process(settings) as base_url, LoadClient(base_url) as client:
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        streams = await _load(client, settings, ClosedLoop(concurrency=N_STREAMS), n_requests, _TOKENS)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - begun_s
        alone = await _load(client, settings, ClosedLoop(concurrency=1), _N_ALONE, 2)
        scheduled = await _load(client, settings, ConstantRate(rate_rps=RATE_RPS), n_scheduled, 1)
    return _summarize(streams.samples, alone.samples, scheduled.samples, cpu_s=cpu_s, wall_s=wall_s)


def self_test_document(found: SelfTest) -> dict[str, object]:
    """Return a self-test as plain data for a manifest."""
    return asdict(found)


async def _load(
    client: LoadClient, settings: MockSettings, shape: LoadShape, n_requests: int, max_tokens: int
) -> LoadResult:
    plan = LoadPlan(
        tier="self-test",
        model_name=settings.model_name,
        shape=shape,
        n_requests=n_requests,
        warmup_requests=N_STREAMS,
        seed=0,
    )
    return await run_load(client, plan, _items(max_tokens))


def _items(max_tokens: int) -> Iterator[WorkItem]:
    fields = {"messages": [{"role": "user", "content": "say it again"}], "max_tokens": max_tokens}
    for number in itertools.count():
        yield WorkItem(id=str(number), path=CHAT_PATH, fields=fields, prompt_id=str(number))


def _summarize(streams: Samples, alone: Samples, scheduled: Samples, *, cpu_s: float, wall_s: float) -> SelfTest:
    counted = [sample for sample in streams if sample.is_ok and not sample.is_warmup]
    n_chunks = sum(len(sample.content_s) for sample in streams)
    # An idle engine begins its step when a request comes: a lone request's TTFT is one step.
    ttft_s = [
        value - STEP_S for sample in alone if not sample.is_warmup and (value := sample.timing.ttft_s) is not None
    ]
    gaps_s = [gap for sample in counted for gap in sample.timing.itl_s]
    delays_s = [sample.row.sent_s - sample.row.scheduled_s for sample in scheduled if not sample.is_warmup]
    return SelfTest(
        n_streams=N_STREAMS,
        chunks_per_s=n_chunks / wall_s,
        client_cpu_s_per_chunk=cpu_s / max(n_chunks, 1),
        ttft_error_p50_s=_known(quantile(ttft_s, 0.5)),
        ttft_error_p95_s=_known(quantile(ttft_s, 0.95)),
        itl_error_mean_s=sum(gaps_s) / max(len(gaps_s), 1) - STEP_S,
        rate_rps=RATE_RPS,
        schedule_delay_p50_s=_known(quantile(delays_s, 0.5)),
        schedule_delay_p99_s=_known(quantile(delays_s, 0.99)),
    )


def _known(value: float | None) -> float:
    if value is None:
        raise EngineStartError("the mock engine of the self-test answered nothing")
    return value


@asynccontextmanager
async def _mock_process(settings: MockSettings) -> AsyncIterator[str]:
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="llmtier-selftest-") as folder:
        path = Path(folder) / "mock.json"
        path.write_text(json.dumps(asdict(settings)), encoding="utf-8")
        command = [sys.executable, "-m", "llmtier.engine.mock", "--port", str(port), "--settings", str(path)]
        process = await asyncio.to_thread(
            subprocess.Popen, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        base_url = f"http://127.0.0.1:{port}"
        try:
            await _wait_until_up(base_url, settings.model_name, process)
            yield base_url
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)


async def _wait_until_up(base_url: str, model_name: str, process: "subprocess.Popen[bytes]") -> None:
    ends_s = time.perf_counter() + _START_TIMEOUT_S
    async with EngineClient(base_url, model_name=model_name) as probe:
        while not await probe.health():
            if process.poll() is not None or time.perf_counter() > ends_s:
                raise EngineStartError("the mock engine of the self-test did not start")
            await asyncio.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
