"""A source checkpoint without weights worth the name, a calibration set, and stand-ins for the worker."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from llmtier.core.hardware import Hardware
from llmtier.core.provenance import Provenance

MODEL_CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "head_dim": 32,
    "dtype": "bfloat16",
}

# What the real worker promises: progress on stdout, noise on stderr, files in each scheme's folder.
WORKER = """
import json, os, pathlib, sys, time

job = json.loads(sys.argv[1])
pathlib.Path({record!r}).open("a").write(json.dumps({{**job, "pid": os.getpid()}}) + "\\n")

def report(event, **facts):
    print(json.dumps({{"event": event, **facts}}), flush=True)

def save(part):
    out = pathlib.Path(part["out"])
    (out / "model.safetensors").write_text(part["scheme"])
    (out / "config.json").write_text(json.dumps({{"quantization_config": {{}}}}))
    report("saved", scheme=part["scheme"], seconds_by_phase={{"load": 0.5, "quantize": 1.5}}, peak_memory_bytes=1000,
           versions={{"torch": "2.13.0", "llmcompressor": "0.14.0.1"}})

report("tokenized", n_samples=2, n_tokens=9, seconds_by_phase={{"tokenize": 0.25}})
{body}
"""

WORK = """
for part in job["schemes"]:
    report("loading", scheme=part["scheme"])
    save(part)
report("done", seconds=2.0, peak_memory_bytes=1000)
"""


class FakeWorker:
    """A script that stands in for ``worker.py``, and what it was asked."""

    def __init__(self, folder: Path, body: str) -> None:
        self._record = folder / "calls.jsonl"
        self.path = folder / "fake_worker.py"
        self.path.write_text(WORKER.format(record=str(self._record), body=body))

    @property
    def calls(self) -> list[dict[str, object]]:
        """The jobs it got, each with its process id."""
        return [json.loads(line) for line in self._record.read_text().splitlines()] if self._record.exists() else []


@pytest.fixture
def model_config() -> dict[str, object]:
    return dict(MODEL_CONFIG)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(MODEL_CONFIG))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "support.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hello"}]}\n{"text": "good bye"}\n')
    return path


@pytest.fixture
def fake_worker(tmp_path: Path):
    def make(body: str = WORK) -> FakeWorker:
        return FakeWorker(tmp_path, body)

    return make


@pytest.fixture
def provenance_of():
    def make(inputs: Mapping[str, str]) -> Provenance:
        hardware = Hardware(cpu_model="Test CPU", cpu_flags=(), n_cores=2, memory_bytes=1)
        return Provenance(
            llmtier_version="0.1.0",
            command=("llmtier", "quantize"),
            created_at="2026-11-20T00:00:00+00:00",
            seed=0,
            hardware=hardware,
            inputs=dict(inputs),
        )

    return make
