"""Killed runs with the real llm-compressor: what was finished is used, and the result is the undisturbed one, bit for bit."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from llmtier.core.errors import InputFileError
from llmtier.core.hardware import Hardware
from llmtier.core.provenance import Provenance
from llmtier.core.tier import Scheme
from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.quantize import run
from llmtier.quantize.job import QuantizeJob
from llmtier.quantize.process import worker_command
from llmtier.quantize.progress import Progress, Step
from llmtier.quantize.workplace import WORK_FOLDER
from llmtier.store.checkpoints import infer_scheme, open_checkpoint
from llmtier.store.safetensors import read_tensors

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

MAKE_MODEL = """
import sys
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
import torch

torch.manual_seed(0)
words = ["<s>", "</s>", *map(chr, range(32, 127))]
tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(sys.argv[1])
config = LlamaConfig(vocab_size=len(words), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
                     num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128,
                     tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)
model = LlamaForCausalLM(config).to(torch.bfloat16)
if len(sys.argv) > 2:
    model.model.layers[1].post_attention_layernorm.weight.data.fill_(float(sys.argv[2]))
model.save_pretrained(sys.argv[1])
"""


@pytest.fixture(scope="module")
def python() -> Path:
    environment = find_environment(EnvironmentName.QUANTIZE, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install quantize'")
    return environment.python


@pytest.fixture(scope="module")
def make_source(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(*arguments: str) -> Path:
        folder = tmp_path_factory.mktemp("source") / "tiny"
        subprocess.run([str(python), "-I", "-c", MAKE_MODEL, str(folder), *arguments], check=True, capture_output=True)
        return folder

    return make


@pytest.fixture(scope="module")
def source(make_source: Callable[..., Path]) -> Path:
    return make_source()


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "support.jsonl"
    path.write_text("".join(json.dumps({"text": f"Order {17 * n} left on day {n}. " * 3}) + "\n" for n in range(12)))
    return path


def provenance_of(inputs: Mapping[str, str]) -> Provenance:
    hardware = Hardware(cpu_model="test", cpu_flags=(), n_cores=1, memory_bytes=1)
    return Provenance(
        llmtier_version="0", command=("test",), created_at="2026-11-21T00:00:00+00:00", hardware=hardware, inputs=inputs
    )


def ignore(_step: Progress) -> None:
    """Nobody watches."""


def quantize(job: QuantizeJob, python: Path, on_progress: run.OnProgress = ignore) -> Path:
    paths = run.quantize(job, python=python, provenance_of=provenance_of, on_progress=on_progress)
    return paths[0]


class Killer:
    """Kills the worker, as the kernel would, when it reports a layer."""

    def __init__(self, at_layer: int) -> None:
        self._at_layer = at_layer

    def __call__(self, step: Progress) -> None:
        if step.event is Step.LAYER and step.n_done == self._at_layer:
            mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            os.kill(int(mine[-1]), signal.SIGKILL)


CASES = [(Scheme.GPTQ, None, 1), (Scheme.AWQ, None, 2), (Scheme.INT8, 0.8, 4)]
"""Scheme, SmoothQuant's alpha, and the layer after which the worker is killed: SmoothQuant takes three of its six."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].value)
def test_killed_run_goes_on_to_the_same_bytes(python, source, calibration, tmp_path, case):
    scheme, smoothing_strength, at_layer = case
    undisturbed = QuantizeJob(
        model=source,
        schemes=(scheme,),
        out=tmp_path / "undisturbed",
        calibration=calibration,
        smoothing_strength=smoothing_strength,
    )
    killed = replace(undisturbed, out=tmp_path / "killed")
    expected = quantize(undisturbed, python)
    with pytest.raises(run.MachineError, match="signal 9"):
        quantize(killed, python, on_progress=Killer(at_layer))
    assert [WORK_FOLDER] == [path.name for path in killed.out.iterdir()]

    seen: list[Progress] = []
    found = quantize(killed, python, on_progress=seen.append)

    resumed = [step.n_done for step in seen if step.event is Step.LAYER and step.is_resumed]
    assert at_layer <= len(resumed)
    assert list(range(1, len(resumed) + 1)) == resumed
    assert open_checkpoint(expected).digest == open_checkpoint(found).digest
    assert [found.name] == [path.name for path in killed.out.iterdir()]


def test_cache_in_files_changes_no_bit(python, source, calibration, tmp_path, monkeypatch):
    job = QuantizeJob(model=source, schemes=(Scheme.GPTQ,), out=tmp_path / "memory", calibration=calibration)
    in_memory = quantize(job, python)
    original = run.Writer.worker_part

    def spilling(self, folder, workplace):
        return original(self, folder, workplace) | {"spills": True}

    monkeypatch.setattr(run.Writer, "worker_part", spilling)

    in_files = quantize(replace(job, out=tmp_path / "files"), python)

    assert open_checkpoint(in_memory).digest == open_checkpoint(in_files).digest


@pytest.mark.parametrize(
    ("value", "where"), [("nan", "weight model.layers.1.post_attention_layernorm.weight"), ("3e38", "layer 2")]
)
def test_numbers_that_are_none_end_the_run(python, make_source, calibration, tmp_path, value, where):
    job = QuantizeJob(model=make_source(value), schemes=(Scheme.GPTQ,), out=tmp_path / "out", calibration=calibration)

    with pytest.raises(InputFileError, match=rf"{where}.*NaN or infinity"):
        quantize(job, python)


def test_messages_without_a_chat_template_are_said_to_be_plain_text(python, source, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Where is my order?"}]}) + "\n")
    seen: list[Progress] = []
    job = QuantizeJob(model=source, schemes=(Scheme.GPTQ,), out=tmp_path / "out", calibration=path)

    quantize(job, python, on_progress=seen.append)

    assert any("plain text" in (step.message or "") for step in seen if step.event is Step.NOTE)


def test_fp8_scales_for_the_kv_cache_are_calibrated(python, source, calibration, tmp_path):
    job = QuantizeJob(
        model=source, schemes=(Scheme.INT8,), out=tmp_path, calibration=calibration, has_fp8_kv_cache=True
    )

    path = quantize(job, python)

    config = json.loads((path / "config.json").read_text())["quantization_config"]
    assert (8, "float") == (config["kv_cache_scheme"]["num_bits"], config["kv_cache_scheme"]["type"])
    assert Scheme.INT8 is infer_scheme(path)
    scales = {tensor.name for tensor in read_tensors(path) if tensor.name.endswith(("k_scale", "v_scale"))}
    assert {f"model.layers.{n}.self_attn.{kind}_scale" for n in range(3) for kind in "kv"} == scales


ARENAS = """
import sys, runpy
from pathlib import Path
import torch
runpy.run_path(sys.argv[1])["enter_package"](Path(sys.argv[2]))
from llmtier.quantize.worker import spill

spill.ARENA_BYTES = 1000
folder = Path(sys.argv[3])
arenas = spill.Arenas(folder)
tensors = [torch.randn(3, 7), torch.arange(11), torch.tensor(1.5), torch.randn(40, 40).to(torch.bfloat16), torch.empty(0)]
kept = [arenas.keep(tensor) for tensor in tensors]
assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(tensors, kept, strict=True))
mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
assert len(mapped) == 2 and all("(deleted)" in line for line in mapped), mapped
assert not list(folder.iterdir())
del kept, arenas
assert str(folder) not in Path("/proc/self/maps").read_text()
"""


def test_spilled_tensors_lie_in_nameless_files_that_go_with_them(python, tmp_path):
    script, _ = worker_command("spill")
    package = Path(script).parents[2]

    done = subprocess.run(
        [str(python), "-I", "-c", ARENAS, script, str(package), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )

    assert 0 == done.returncode, done.stderr


def test_fp8_in_blocks_is_written_for_a_gpu(python, source, tmp_path):
    job = QuantizeJob(model=source, schemes=(Scheme.FP8_BLOCK,), out=tmp_path, device="h100")

    assert Scheme.FP8_BLOCK is infer_scheme(quantize(job, python))


def test_worker_is_found_by_the_environments_interpreter(python):
    script, module = worker_command("tokens")

    assert 0 == subprocess.run([str(python), "-I", script, module], check=False).returncode
