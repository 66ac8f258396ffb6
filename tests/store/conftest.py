"""Values that the tests of store share."""

import errno
import os
from collections.abc import Callable

import pytest

from llmtier.core.hardware import Gpu, Hardware
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
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes ``os.write`` or ``os.replace`` fail as a full disk does."""

    def fill(call: str) -> None:
        def fail(*args: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, call, fail)

    return fill
