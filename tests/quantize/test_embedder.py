"""Exporting an embedder: the manifest, refusals, and what a failing worker leaves. A script stands in for the worker."""

import json
import sys
from pathlib import Path

import pytest

from llmtier.core.errors import InputFileError, MachineError, NegativeAnswerError, UsageError
from llmtier.quantize import embedder
from llmtier.quantize.embedder import EmbedderJob, export_embedder
from llmtier.quantize.worker.export_embedder import read_modules, read_pooling
from llmtier.quantize.worker.report import WorkerError
from llmtier.store.embedders import read_embedder_manifest

GOLDEN = Path(__file__).parents[1] / "golden" / "embedder"
PYTHON = Path(sys.executable)
WORKER = """
import json, pathlib, shutil, sys

def report(event, **facts):
    print(json.dumps({{"event": event, **facts}}), flush=True)

job = json.loads(sys.argv[1])
pathlib.Path({record!r}).write_text(sys.argv[1])
for name in ("model.onnx", "tokenizer.json"):
    shutil.copy(pathlib.Path({golden!r}) / name, job["out"])
report("note", message="tracing the model")
{end}
"""
DONE = 'report("exported", dimensions=8, max_tokens=6, pooling="mean", agreement={}, versions={{"onnx": "1"}})'


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Return a function that makes a script the worker; it ends with the given lines."""

    def set_worker(end):
        path = tmp_path / "worker.py"
        path.write_text(WORKER.format(record=str(tmp_path / "job.json"), golden=str(GOLDEN), end=end))
        monkeypatch.setattr(embedder, "EXPORT_EMBEDDER", (str(path),))

    return set_worker


@pytest.fixture
def make_job(tmp_path):
    """Return a function: facts to a job whose result goes to ``tmp_path/out/tiny``."""

    def make(**changes):
        facts = {"model": Path("models/tiny"), "name": "tiny", "out": tmp_path / "out" / "tiny", "precision": "fp32"}
        return EmbedderJob(**{**facts, **changes})

    return make


def left_behind(job):
    return sorted(path.name for path in job.out.parent.glob("*")) if job.out.parent.exists() else []


def test_an_export_is_put_in_place_with_its_manifest(play, make_job, tmp_path):
    play(DONE.format("0.99999"))
    notes = []
    job = make_job()

    manifest = export_embedder(job, python=PYTHON, on_note=notes.append)

    assert manifest == read_embedder_manifest(job.out)
    assert ("tiny", 8, 6, "mean", 0.99999) == (
        manifest.name,
        manifest.dimensions,
        manifest.max_tokens,
        manifest.pooling,
        manifest.agreement,
    )
    assert ["tiny"] == left_behind(job)
    assert ["tracing the model"] == notes
    told = json.loads((tmp_path / "job.json").read_text())
    assert ("fp32", 96, None) == (told["precision"], told["max_tokens"], told["hub_id"])


@pytest.mark.parametrize(("precision", "agreement"), [("fp32", "0.9998"), ("int8", "0.95"), ("int8", "float('nan')")])
def test_an_export_that_does_not_agree_is_refused_and_not_kept(play, make_job, precision, agreement):
    play(DONE.format(agreement))
    job = make_job(precision=precision)

    with pytest.raises(NegativeAnswerError, match=f"tiny: as {precision} its embeddings agree"):
        export_embedder(job, python=PYTHON)
    assert [] == left_behind(job)


def test_int8_may_agree_less(play, make_job):
    play(DONE.format("0.98"))

    assert 0.98 == export_embedder(make_job(precision="int8"), python=PYTHON).agreement


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        ('report("refused", message="no such pooling", kind="input"); sys.exit(1)', InputFileError, "no such pooling"),
        ("raise SystemError('broken')", MachineError, "broken"),
        ("", MachineError, "without a result"),
    ],
)
def test_a_worker_that_fails_leaves_nothing(play, make_job, end, error, message):
    play(end)
    job = make_job()

    with pytest.raises(error, match=message):
        export_embedder(job, python=PYTHON)
    assert [] == left_behind(job)


def test_a_folder_that_holds_something_is_replaced_only_when_forced(play, make_job):
    play(DONE.format("1.0"))
    job = make_job()
    export_embedder(job, python=PYTHON)
    (job.out / "mine.txt").write_text("keep")

    with pytest.raises(UsageError, match="--force"):
        export_embedder(job, python=PYTHON)
    assert (job.out / "mine.txt").exists()
    export_embedder(job, python=PYTHON, force=True)
    assert not (job.out / "mine.txt").exists()


def write_model(folder, modules, pooling=None):
    (folder / "1_Pooling").mkdir(parents=True)
    if modules is not None:
        entries = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules]
        (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {}))
    return folder


def test_modules_say_how_token_vectors_become_one(tmp_path):
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")]
    folder = write_model(tmp_path, modules, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})

    assert ("cls", [folder / "2_Dense"], folder) == read_modules(folder)


def test_a_plain_transformer_gets_the_mean(tmp_path):
    assert ("mean", [], tmp_path) == read_modules(write_model(tmp_path, None))


def test_a_module_of_another_kind_is_refused(tmp_path):
    with pytest.raises(WorkerError, match="'CLIPModel' is not known"):
        read_modules(write_model(tmp_path, [("CLIPModel", "")]))


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}, "mean"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "lasttoken"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
    ],
)
def test_a_pooling_is_read_as_it_is_written(tmp_path, config, pooling):
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert pooling == read_pooling(tmp_path / "config.json")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode": "sum"},
    ],
)
def test_no_pooling_two_and_unknown_ones_are_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(WorkerError, match="expected one pooling of mean, cls, max, lasttoken"):
        read_pooling(tmp_path / "config.json")


@pytest.mark.parametrize("text", [None, "{"])
def test_a_pooling_that_cannot_be_read_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)

    with pytest.raises(WorkerError, match="cannot be read as JSON"):
        read_pooling(tmp_path / "config.json")
