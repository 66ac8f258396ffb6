"""``llmtier embedder export`` as a user meets it; a script stands in for the worker."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from llmtier.quantize import embedder

GOLDEN = Path(__file__).parents[1] / "golden" / "embedder"
WORKER = """
import json, pathlib, shutil, sys
job = json.loads(sys.argv[1])
for name in ("model.onnx", "tokenizer.json"):
    shutil.copy(pathlib.Path({golden!r}) / name, job["out"])
facts = {{"dimensions": 8, "max_tokens": job["max_tokens"], "pooling": "mean", "versions": {{}}}}
print(json.dumps({{"event": "exported", "agreement": 0.98, **facts}}))
"""


@pytest.fixture
def worker(monkeypatch, tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(WORKER.format(golden=str(GOLDEN)))
    monkeypatch.setattr(embedder, "EXPORT_EMBEDDER", (str(path),))


@pytest.fixture
def model(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "models" / "tiny"))


@pytest.mark.usefixtures("worker")
def test_export_prints_the_folder_and_nothing_else_on_stdout(llmtier, model, tmp_path):
    ended = llmtier("embedder", "export", model, "-o", tmp_path / "out", "--int8", "--python", sys.executable)

    assert (0, f"{tmp_path / 'out'}\n") == (ended.code, ended.out)
    assert "8 dimensions, 96 tokens, cosine 0.98" in ended.err


@pytest.mark.usefixtures("worker")
def test_export_as_json_is_one_document(llmtier, model, tmp_path):
    words = ("--int8", "--json", "--max-tokens", "64", "--python", sys.executable)
    document = json.loads(llmtier("embedder", "export", model, "-o", tmp_path / "out", *words).out)

    assert (1, "tiny", "int8", 64, 8) == tuple(
        document[key] for key in ("schema_version", "name", "precision", "max_tokens", "dimensions")
    )
    assert len(document["digest"]) == 64


@pytest.mark.usefixtures("worker")
def test_an_export_that_does_not_agree_exits_5(llmtier, model, tmp_path):
    ended = llmtier("embedder", "export", model, "-o", tmp_path / "out", "--python", sys.executable)

    assert (5, "") == (ended.code, ended.out)
    assert "0.9800, more than 0.9999 is needed" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_taken_folder_is_refused_before_anything_is_installed(llmtier, model, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTIER_HOME", str(tmp_path / "home"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    ended = llmtier("embedder", "export", model, "-o", tmp_path / "out")

    assert 2 == ended.code
    assert "--force" in ended.err
    assert not (tmp_path / "home").exists()


def test_a_mistyped_folder_is_a_usage_error_before_anything_is_installed(llmtier, model, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMTIER_HOME", str(tmp_path / "home"))
    ended = llmtier("embedder", "export", model.with_name("tinny"), "-o", tmp_path / "out")

    assert 2 == ended.code
    assert "did you mean" in ended.err
    assert not (tmp_path / "home").exists()
