"""A source checkpoint whose weights are zeros, a calibration set, and stand-ins for the worker."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from llmtier.core.hardware import Hardware
from llmtier.core.provenance import Provenance
from llmtier.quantize.architecture import Architecture, describe_architecture
from llmtier.quantize.demand import uniform_workload
from llmtier.quantize.survey import Survey, read_registry
from llmtier.store.safetensors import DTYPE_BYTES, Tensor

MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "head_dim": 32,
    "dtype": "bfloat16",
}

SMALL_LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
}

ROWS = uniform_workload(n_rows=256, n_tokens=200)
ZEN4_CPU = Hardware(
    cpu_model="CPU", cpu_flags=("avx2", "avx512_bf16", "avx512_vnni", "avx512f"), n_cores=2, memory_bytes=2**34
)

# What the real worker promises: progress on stdout, noise on stderr, files in each scheme's folder.
WORKER = """
import json, os, pathlib, sys, time

pathlib.Path({starts!r}).open("a").write(f"{{os.getpid()}}\\n")
job = json.loads(sys.stdin.readline() if sys.argv[1] == "-" else sys.argv[1])
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
    """A script that stands in for ``worker/oneshot.py``, and what it was asked."""

    def __init__(self, folder: Path, body: str) -> None:
        self._record = folder / "calls.jsonl"
        self._starts = folder / "starts.txt"
        path = folder / "fake_worker.py"
        self.command = (str(path),)
        path.write_text(WORKER.format(record=str(self._record), starts=str(self._starts), body=body))

    @property
    def started(self) -> list[int]:
        """The process ids of those that were started, with a job or without."""
        return [int(line) for line in self._starts.read_text().splitlines()] if self._starts.exists() else []

    @property
    def calls(self) -> list[dict[str, object]]:
        """The jobs it got, each with its process id."""
        return [json.loads(line) for line in self._record.read_text().splitlines()] if self._record.exists() else []


@pytest.fixture
def model_config() -> dict[str, object]:
    return dict(MODEL_CONFIG)


@pytest.fixture
def source(tmp_path: Path, write_headers) -> Path:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(MODEL_CONFIG))
    write_headers(folder / "model.safetensors", llama_shapes(SMALL_LLAMA))
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


def llama_shapes(config: Mapping[str, int], *, is_tied: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Llama by name."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim", hidden // heads)
    kv_width, vocabulary = config.get("num_key_value_heads", heads) * size, config.get("vocab_size", 256)
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (heads * size, hidden),
        "self_attn.k_proj": (kv_width, hidden),
        "self_attn.v_proj": (kv_width, hidden),
        "self_attn.o_proj": (hidden, heads * size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes if is_tied else {**shapes, "lm_head.weight": (vocabulary, hidden)}


def tensors_of(shapes: Mapping[str, tuple[int, ...]], *, dtype: str = "BF16") -> tuple[Tensor, ...]:
    """Return what the headers of weight files would say of these tensors."""
    width = DTYPE_BYTES[dtype]
    return tuple(
        Tensor(name=name, dtype=dtype, shape=shape, n_bytes=width * math.prod(shape)) for name, shape in shapes.items()
    )


@pytest.fixture(scope="session")
def llama():
    """Make the architecture of a Llama: ``llama(hidden_size=256)``."""

    def make(*, name: str = "LlamaForCausalLM", is_tied: bool = False, **fields: int) -> Architecture:
        config = {**SMALL_LLAMA, **fields}
        described = {**config, "architectures": [name], "model_type": "llama"}
        return describe_architecture(described, tensors_of(llama_shapes(config, is_tied=is_tied)))

    return make


@pytest.fixture(scope="session")
def tensors():
    return tensors_of


@pytest.fixture(scope="session")
def write_headers():
    """Write a weight file of zeros: its header, and a hole where the data would lie."""

    def write(path: Path, shapes: Mapping[str, tuple[int, ...]], *, dtype: str = "BF16") -> Path:
        header, end = {}, 0
        for tensor in tensors_of(shapes, dtype=dtype):
            header[tensor.name] = {
                "dtype": dtype,
                "shape": tensor.shape,
                "data_offsets": [end, end + tensor.n_bytes],
            }
            end += tensor.n_bytes
        raw = json.dumps(header).encode()
        with path.open("wb") as stream:
            stream.write(len(raw).to_bytes(8, "little") + raw)
            stream.truncate(8 + len(raw) + end)
        return path

    return write


@pytest.fixture
def write_llama(tmp_path: Path, write_headers):
    """Write a Llama's folder, weights of zeros: ``write_llama(hidden_size=256)``."""

    def write(*, architecture: str = "LlamaForCausalLM", **fields: int) -> Path:
        folder = tmp_path / "models" / "llama"
        folder.mkdir(parents=True, exist_ok=True)
        config = {**SMALL_LLAMA, **fields}
        document = {**config, "architectures": [architecture], "model_type": "llama"}
        (folder / "config.json").write_text(json.dumps(document))
        write_headers(folder / "model.safetensors", llama_shapes(config))
        return folder

    return write


@pytest.fixture
def look(llama):
    """Make what a survey would have found."""

    def make(*, model=None, rows=ROWS, memory=2**36, disk=2**40, machine=ZEN4_CPU, mappings=None, **fields):
        return Survey(
            architecture=model or llama(**fields),
            max_position=4096,
            machine=machine,
            free_memory_bytes=memory,
            free_disk_bytes=disk,
            gflops=200.0,
            rows=rows,
            awq_mappings=mappings,
            registry=read_registry(),
        )

    return make
