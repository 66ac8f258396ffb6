"""Values that the tests of store share."""

import errno
import os
from collections.abc import Callable

import pytest

from llmtier.core.hardware import Gpu, Hardware
from llmtier.core.latency_model import DomainBox, LatencyModel, Metric, ResidualBucket, StepModel
from llmtier.core.provenance import Provenance
from llmtier.core.tier import EngineIdentity


@pytest.fixture
def hardware() -> Hardware:
    gpu = Gpu(name="NVIDIA L4", compute_capability=(8, 9), memory_bytes=23_000_000_000)
    return Hardware(
        cpu_model="AMD EPYC 7B13", cpu_flags=("avx2",), n_cores=2, memory_bytes=8_000_000_000, gpus=(gpu, gpu)
    )


@pytest.fixture
def provenance(hardware: Hardware) -> Provenance:
    return Provenance(
        llmtier_version="0.1.0",
        command=("llmtier", "profile"),
        created_at="2026-11-20T12:00:00+00:00",
        seed=3,
        hardware=hardware,
        engine=EngineIdentity(name="vllm", version="0.32.0", flags=("--enforce-eager",), environment=("A=1",)),
        inputs={"evaluation.jsonl": "ab" * 32},
    )


@pytest.fixture
def latency_model() -> LatencyModel:
    step = StepModel(
        alpha_s=0.004, prefill_s_per_token=1e-4, attention_s_per_token2=0.1 + 0.2, sequence_s=1e-5, kv_s_per_token=1e-7
    )
    return LatencyModel(
        step=step,
        frontend_s=0.001,
        frontend_s_per_token=1e-6,
        wait_share=0.5,
        mean_input_tokens=100.0,
        mean_output_tokens=50.0,
        domain=DomainBox(input_tokens=(1.0, 512.0), output_tokens=(1.0, 128.0), n_in_flight=(0.0, 16.0)),
        residuals=(
            ResidualBucket(metric=Metric.TTFT, max_in_flight=4, n=90, quantiles=((0.5, -0.01), (0.95, 0.3))),
            ResidualBucket(metric=Metric.TTFT, max_in_flight=None, n=7, quantiles=()),
        ),
        n_fit=97,
        max_batched_tokens=2048,
        co_tenants=(("nano@int8", 0.25),),
    )


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes ``os.write`` or ``os.replace`` fail as a full disk does."""

    def fill(call: str) -> None:
        def fail(*args: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, call, fail)

    return fill
