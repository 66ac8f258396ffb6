"""Real compressed-tensors checkpoints in AutoAWQ's layout: equal weights, read back by others, served by the real vLLM."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from llmtier.core.errors import InputFileError
from llmtier.core.hardware import Hardware
from llmtier.core.prompt import Message
from llmtier.core.provenance import Provenance
from llmtier.core.tier import Scheme
from llmtier.engine.client import EngineClient
from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.engine.launch import EngineSpec, running_engine
from llmtier.quantize.export import autoawq_folder, export_autoawq
from llmtier.quantize.process import running_worker, worker_command
from llmtier.quantize.progress import Step, parse_progress
from llmtier.store.checkpoints import open_checkpoint, read_manifest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300), pytest.mark.anyio]

MINI = Path(__file__).parents[2] / "examples" / "demo" / "models" / "mini"

# Rounding without data writes the same files as awq and gptq do, in a second.
MAKE = """
import pathlib, sys
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

source, out = map(pathlib.Path, sys.argv[1:])
ways = {
    "awq": {"strategy": "group", "group_size": 32, "symmetric": False},
    "gptq": {"strategy": "group", "group_size": 32, "symmetric": True, "actorder": "static"},
    "channel": {"strategy": "channel", "symmetric": True},
}
for name, way in ways.items():
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", **way}}}
    oneshot(model=model, recipe=[QuantizationModifier(config_groups=groups, ignore=["lm_head"])])
    model.save_pretrained(out / name, save_compressed=True)
    AutoTokenizer.from_pretrained(source).save_pretrained(out / name)
"""

# Reads both with compressed-tensors' own code, never with ours. Prints the layers that differ in anything.
COMPARE = """
import glob, json, sys
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
from safetensors.torch import load_file

def load(folder):
    return {name: tensor for path in glob.glob(folder + "/*.safetensors") for name, tensor in load_file(path).items()}

def spread(values, n_in):
    return values.repeat_interleave(n_in // values.shape[1], dim=1)

source, export = map(load, sys.argv[1:])
config = json.load(open(sys.argv[2] + "/config.json"))["quantization_config"]
layers = [name.removesuffix(".weight_packed") for name in source if name.endswith(".weight_packed")]
wrong = []
for layer in layers:
    shape = torch.Size(source[layer + ".weight_shape"].tolist())
    codes = unpack_from_int32(source[layer + ".weight_packed"], 4, shape)
    scale = source[layer + ".weight_scale"]
    zero = torch.zeros(scale.shape, dtype=torch.int8)
    if layer + ".weight_zero_point" in source:
        zero = unpack_from_int32(source[layer + ".weight_zero_point"], 4, scale.shape, packed_dim=0)
    expected = (codes - spread(zero, shape[1])).float() * spread(scale.half().float(), shape[1])
    got_codes, got_zero = AutoAWQConverter.reverse_awq_order(
        *AutoAWQConverter.unpack_awq(export[layer + ".qweight"], export[layer + ".qzeros"], 4), 4)
    got = ((got_codes & 15) - (got_zero & 15).repeat_interleave(shape[1] // got_zero.shape[0], dim=0)).float()
    got *= export[layer + ".scales"].float().repeat_interleave(shape[1] // got_zero.shape[0], dim=0)
    if not torch.equal(expected, got.T):
        wrong.append(layer)
others = [name for name in source if name.rpartition(".")[0] not in layers]
wrong += [name for name in others if not torch.equal(source[name].half(), export[name])]
if config["group_size"] > 0:
    back = AutoAWQConverter.from_autoawq_config(config).process(dict(export))
    for name in source:
        if "weight_zero_point" not in name and not torch.equal(source[name].to(back[name].dtype), back[name]):
            wrong.append("back: " + name)
        elif "weight_zero_point" in name and not torch.equal(source[name], back[name]):
            wrong.append("back: " + name)
print(json.dumps({"n_layers": len(layers), "wrong": wrong, "n_extra": len(export) - 3 * len(layers) - len(others)}))
"""

# Multiplies one layer's scales, as a damaged or exotic checkpoint would have them.
ENLARGE = """
import sys
from safetensors.torch import load_file, save_file

tensors = load_file(sys.argv[1])
tensors[sys.argv[2]] *= 1e8
save_file(tensors, sys.argv[1], metadata={"format": "pt"})
"""


@pytest.fixture(scope="module")
def python() -> Path:
    environment = find_environment(EnvironmentName.QUANTIZE, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install quantize'")
    return environment.python


@pytest.fixture(scope="module")
def checkpoints(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the demo's ``mini`` as ``awq``, ``gptq`` and ``channel``."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run_script(python, MAKE, MINI, folder)
    return folder


def run_script(python: Path, script: str, *words: Path | str) -> str:
    done = subprocess.run(
        [str(python), "-I", "-c", script, *map(str, words)], check=False, capture_output=True, text=True
    )
    assert 0 == done.returncode, done.stderr[-2000:]
    return done.stdout


def provenance_of(inputs: Mapping[str, str]) -> Provenance:
    hardware = Hardware(cpu_model="test", cpu_flags=(), n_cores=1, memory_bytes=1)
    return Provenance(
        llmtier_version="0", command=("test",), created_at="2026-11-21T00:00:00+00:00", hardware=hardware, inputs=inputs
    )


@pytest.mark.parametrize(("name", "group_size"), [("awq", 32), ("gptq", 32), ("channel", -1)])
def test_export_holds_equal_weights_and_converts_back(name, group_size, python, checkpoints, tmp_path):
    source, out = checkpoints / name, tmp_path / "out"

    assert out == export_autoawq(source, out, python=python, provenance_of=provenance_of)

    compared = json.loads(run_script(python, COMPARE, source, out))
    n_layers = 7 * json.loads((MINI / "config.json").read_text())["num_hidden_layers"]
    assert {"n_layers": n_layers, "wrong": [], "n_extra": 0} == compared
    config = json.loads((out / "config.json").read_text())
    quantization = config["quantization_config"]
    assert ("awq", 4, "gemm", True, group_size) == tuple(
        quantization[key] for key in ("quant_method", "bits", "version", "zero_point", "group_size")
    )
    assert "lm_head" in quantization["modules_to_not_convert"]
    assert "float16" == config["torch_dtype"]
    assert (source / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    manifest = read_manifest(out)
    assert manifest is not None
    assert 0 < manifest.recipe["casts"]["n_scales"]
    assert Scheme.AWQ is open_checkpoint(out).scheme


def test_scale_that_float16_cannot_hold_is_named_by_its_layer(python, checkpoints, tmp_path):
    source = tmp_path / "large"
    shutil.copytree(checkpoints / "awq", source)
    run_script(python, ENLARGE, source / "model.safetensors", "model.layers.1.mlp.up_proj.weight_scale")

    with pytest.raises(InputFileError, match=r"large: model\.layers\.1\.mlp\.up_proj: holds .*e\+0.*no float16"):
        export_autoawq(source, tmp_path / "out", python=python, provenance_of=provenance_of)

    assert ["large"] == [path.name for path in tmp_path.iterdir()]


def test_file_that_is_cut_is_an_input_error(python, checkpoints, tmp_path):
    source = tmp_path / "cut"
    shutil.copytree(checkpoints / "gptq", source)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(InputFileError, match=r"model\.safetensors: cannot be read"):
        export_autoawq(source, tmp_path / "out", python=python, provenance_of=provenance_of)


async def answers_of(checkpoint: Path, log: Path) -> list[str]:
    """Return what the real vLLM answers to four short questions."""
    environment = find_environment(EnvironmentName.ENGINE_CPU, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install engine-cpu'")
    args = {"max_model_len": 256, "enforce_eager": True}
    spec = EngineSpec(tier="mini@awq", model_path=str(checkpoint), python=environment.python, args=args)
    async with (
        running_engine(spec, log_path=log) as engine,
        EngineClient(engine.base_url, model_name=engine.model_name) as client,
    ):
        questions = [(Message(role="user", content=f"What is {n} + {n + 1}?"),) for n in range(2, 6)]
        return [(await client.stream_chat(question, max_tokens=8)).text for question in questions]


def quantize_with_autoawq(folder: Path) -> list[dict[str, object]]:
    """Run the ``autoawq`` worker on ``mini``; return its events."""
    environment = find_environment(EnvironmentName.AUTOAWQ, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install autoawq'")
    (folder / "out").mkdir()
    (folder / "work").mkdir()
    rows = [{"messages": [{"role": "user", "content": f"What is {n} + {n + 1}?"}]} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = {"scheme": "awq", "group_size": 32, "ignore": ["lm_head"], "needs_data": True}
    job = {
        "model": str(MINI),
        "calibration": str(folder / "rows.jsonl"),
        "tokens": str(folder / "tokens.json"),
        "n_samples": 6,
        "max_seq_tokens": 64,
        "seed": 0,
        "schemes": [{**part, "out": str(folder / "out"), "work": str(folder / "work")}],
    }
    with running_worker(job, python=environment.python, worker=worker_command("autoawq")) as events:
        return list(events)


async def test_autoawq_itself_writes_what_vllm_serves(tmp_path):
    events = quantize_with_autoawq(tmp_path)

    progress = [parse_progress(event) for event in events]
    n_layers = json.loads((MINI / "config.json").read_text())["num_hidden_layers"]
    layers = [(step.n_done, step.n_total) for step in progress if step.event is Step.LAYER]
    assert [(n + 1, n_layers) for n in range(n_layers)] == layers
    assert 6 == next(step.n_samples for step in progress if step.event is Step.TOKENIZED)
    saved = next(step for step in progress if step.event is Step.SAVED)
    assert {"torch", "transformers", "autoawq"} == set(saved.versions)
    assert Step.DONE is progress[-1].event
    assert Scheme.AWQ is open_checkpoint(tmp_path / "out").scheme
    assert (MINI / "tokenizer.json").read_bytes() == (tmp_path / "out" / "tokenizer.json").read_bytes()
    answers = await answers_of(tmp_path / "out", tmp_path / "engine.log")
    assert sum(bool(re.match(r"\d\+\d=\d", answer)) for answer in answers) >= 3


async def test_vllm_serves_the_export_without_being_told_how(python, checkpoints, tmp_path):
    out = export_autoawq(
        checkpoints / "awq", autoawq_folder(tmp_path / "mini@awq"), python=python, provenance_of=provenance_of
    )

    answers = await answers_of(out, tmp_path / "engine.log")

    # What mini has learned to say; codes in a wrong order would leave noise.
    assert sum(bool(re.match(r"\d\+\d=\d", answer)) for answer in answers) >= 3
    assert "AutoAWQ" in (tmp_path / "engine.log").read_text()
