"""Every scheme on a tiny random model with the real llm-compressor, run in the ``quantize`` environment."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from llmtier.core.hardware import Hardware
from llmtier.core.provenance import Provenance
from llmtier.core.tier import QUANTIZABLE_SCHEMES, Scheme
from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.quantize.job import QuantizeJob
from llmtier.quantize.progress import Progress, Step
from llmtier.quantize.run import quantize
from llmtier.store.checkpoints import infer_scheme, open_checkpoint, read_manifest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

# 160 = 5 x 32: the 4-bit schemes must reduce their groups. Tied weights, as small models have them.
MAKE_MODEL = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
import torch

torch.manual_seed(0)
words = ["<s>", "</s>", *map(chr, range(32, 127))]
tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
wrapped.chat_template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
wrapped.save_pretrained(sys.argv[1])
config = LlamaConfig(vocab_size=len(words), hidden_size=96, intermediate_size=160, num_hidden_layers=2,
                     num_attention_heads=3, num_key_value_heads=3, max_position_embeddings=128,
                     tie_word_embeddings=True, bos_token_id=0, eos_token_id=1)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
"""

# What an engine does with the folder: read the weights back and run them.
READ_BACK = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ids = AutoTokenizer.from_pretrained(sys.argv[1])("hello there", return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = [AutoModelForCausalLM.from_pretrained(path)(ids).logits.float() for path in sys.argv[1:]]
print(*(float(torch.nn.functional.cosine_similarity(logits[0], other, dim=-1).min()) for other in logits))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    environment = find_environment(EnvironmentName.QUANTIZE, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install quantize'")
    return environment.python


@pytest.fixture(scope="module")
def source(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny"
    subprocess.run([str(python), "-I", "-c", MAKE_MODEL, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "support.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"Where is order {17 * n}?"}]} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "It left on Monday."}]))
    return path


def provenance_of(inputs: Mapping[str, str]) -> Provenance:
    hardware = Hardware(cpu_model="test", cpu_flags=(), n_cores=1, memory_bytes=1)
    return Provenance(
        llmtier_version="0", command=("test",), created_at="2026-11-20T00:00:00+00:00", hardware=hardware, inputs=inputs
    )


SCHEMES = tuple(scheme for scheme in QUANTIZABLE_SCHEMES if scheme is not Scheme.FP8_BLOCK)
"""Blocks of 128 need another model: test_quantize_resume.py."""


def test_every_scheme_is_written_described_and_close_to_its_source(python, source, calibration, tmp_path):
    seen: list[Progress] = []
    job = QuantizeJob(model=source, schemes=SCHEMES, out=tmp_path, calibration=calibration, n_samples=8, device="h100")

    paths = quantize(job, python=python, provenance_of=provenance_of, on_progress=seen.append)

    layers = [(step.scheme, step.n_done) for step in seen if step.event is Step.LAYER]
    assert [(Scheme.AWQ, 1), (Scheme.AWQ, 2), (Scheme.GPTQ, 1), (Scheme.GPTQ, 2)] == layers
    assert any("group size 32" in (step.message or "") for step in seen if step.event is Step.NOTE)
    for scheme, path in zip(SCHEMES, paths, strict=True):
        assert scheme is infer_scheme(path)
        assert open_checkpoint(path).source_digest == open_checkpoint(source).digest
        assert (source / "tokenizer.json").read_bytes() == (path / "tokenizer.json").read_bytes()
        assert (path / "chat_template.jinja").exists()
        manifest = read_manifest(path)
        assert manifest is not None
        assert {"torch", "transformers", "llmcompressor", "compressed-tensors"} == set(manifest.recipe["versions"])
        assert manifest.seconds > 0
        assert manifest.peak_memory_bytes is not None
    read = subprocess.run(
        [str(python), "-I", "-c", READ_BACK, str(source), *map(str, paths)], check=True, capture_output=True, text=True
    )
    similarities = [float(word) for word in read.stdout.split("\n")[-2].split()]
    # 0.9: random weights of width 96 in 4 bits stay above 0.98; a wrong scale or order falls below 0.5.
    assert all(similarity > 0.9 for similarity in similarities)


def test_same_seed_gives_the_same_bytes(python, source, calibration, tmp_path):
    job = QuantizeJob(
        model=source, schemes=(Scheme.GPTQ,), out=tmp_path / "a", calibration=calibration, n_samples=4, seed=5
    )

    first = quantize(job, python=python, provenance_of=provenance_of)[0]
    second = quantize(replace(job, out=tmp_path / "b"), python=python, provenance_of=provenance_of)[0]

    assert open_checkpoint(first).digest == open_checkpoint(second).digest
