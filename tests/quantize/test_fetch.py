"""A folder or a hub id, and what each way to fail says; the real hub library runs in tests/e2e/test_fetch_model.py."""

import json
import sys
from pathlib import Path

import pytest

from llmtier.core.errors import DiskError, InputFileError, MachineError, UsageError
from llmtier.quantize.fetch import HUB_ID, Failure, ResolvedModel, resolve_model
from llmtier.quantize.worker import fetch_model
from llmtier.quantize.worker.fetch_model import FetchError, choose_files

FAKE_PYTHON = """#!{python}
import json, sys

job = json.loads(sys.argv[-1])

def report(event, **facts):
    print(json.dumps({{"event": event, **facts}}), flush=True)

{body}
"""


@pytest.fixture
def resolve(tmp_path):
    """Return a call of ``resolve_model`` whose worker does what it is told."""

    def call(text, body="raise SystemExit('not to be run')", revision=None):
        path = tmp_path / "python"
        path.write_text(FAKE_PYTHON.format(python=sys.executable, body=body))
        path.chmod(0o755)
        seen = []
        model = resolve_model(
            text, revision=revision, python_of=lambda: path, on_progress=lambda progress: seen.append(progress.message)
        )
        return model, seen

    return call


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Make ``models/llama-8b`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama-8b").mkdir(parents=True)
    return tmp_path / "models"


def failed(reason):
    return f"report('failed', reason={str(reason)!r}, detail='the detail', endpoint='https://hub')"


def test_folder_is_used_as_it_is(resolve, models, monkeypatch):
    for text in ("models/llama-8b", str(models / "llama-8b"), "./models/llama-8b"):
        assert ResolvedModel(path=Path(text), name="llama-8b", revision=None) == resolve(text)[0]
    monkeypatch.chdir(models / "llama-8b")
    assert "llama-8b" == resolve(".")[0].name


def test_folder_has_no_revision(resolve, models):
    with pytest.raises(UsageError, match="leave --revision out"):
        resolve("models/llama-8b", revision="main")


def test_hub_id_is_downloaded_with_its_lines_for_people(resolve):
    body = (
        "report('found', revision='0123456789abcdef', n_files=3, n_bytes=2_500_000_000)\n"
        "report('bytes', n_done=1_000_000_000, n_total=2_500_000_000)\n"
        "report('cached', detail='refused')\n"
        "report('fetched', path='/cache/' + job['hub_id'], revision=job['revision'])"
    )

    model, seen = resolve("org/llama-8b", body, revision="v2")

    assert ResolvedModel(path=Path("/cache/org/llama-8b"), name="llama-8b", revision="v2") == model
    assert [
        "org/llama-8b: revision 0123456789ab, 2.50 GB in 3 files; downloading what the cache lacks",
        "org/llama-8b: 1.00 of 2.50 GB",
        "org/llama-8b: the hub cannot be reached; using the copy in the cache (refused)",
    ] == seen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("./models/llama8b", r"\./models/llama8b: no such folder; did you mean models/llama-8b\?"),
        ("models/lama-8b", r"did you mean models/llama-8b\? .*add --revision main"),
        ("model", r"model: no such folder; did you mean models\?"),
        ("/nowhere/at/all", r"/nowhere/at/all: no such folder; give a folder, or a hub id such as org/name"),
        ("a/b/c", "a/b/c: no such folder; give a folder"),
        ("", "no such folder"),
    ],
)
def test_folder_that_is_not_there_names_those_that_are(text, said, resolve, models):
    if not text:  # the current folder
        assert models.parent.name == resolve(text)[0].name
        return
    with pytest.raises(UsageError, match=said):
        resolve(text)


def test_revision_tells_a_hub_id_from_a_slip(resolve, models):
    body = "report('fetched', path='/cache', revision='c0ffee')"

    assert "c0ffee" == resolve("models/lama-8b", body, revision="main")[0].revision
    assert "c0ffee" == resolve("models/phi", body)[0].revision


def test_file_is_no_model(resolve, tmp_path):
    (tmp_path / "model.gguf").touch()

    with pytest.raises(InputFileError, match="is a file; give the folder"):
        resolve(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("failure", list(Failure))
def test_every_failure_is_an_error_that_names_the_model_and_what_to_do(failure, resolve):
    expected = {
        Failure.MISSING: (InputFileError, "check the spelling"),
        Failure.NO_REVISION: (InputFileError, "has no revision v9; give a branch"),
        Failure.NO_WEIGHTS: (InputFileError, r"holds no safetensors; convert .*the detail"),
        Failure.NO_CONFIG: (InputFileError, r"holds no config\.json"),
        Failure.GATED: (MachineError, "accept the licence at https://hub/org/name and set HF_TOKEN"),
        Failure.DENIED: (MachineError, "accept the licence at https://hub/org/name and set HF_TOKEN"),
        Failure.HIDDEN: (MachineError, "check the spelling, or set HF_TOKEN"),
        Failure.UNREACHABLE: (MachineError, r"cannot be reached \(the detail\); check the network"),
        Failure.HUB_ERROR: (MachineError, r"failed \(the detail\); try again"),
        Failure.DISK: (DiskError, "the detail; free some space, or set HF_HOME"),
    }
    error, said = expected[failure]

    with pytest.raises(error, match=said) as caught:
        resolve("org/name", failed(failure.value), revision="v9")

    assert "org/name" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "ended without a result"),
        (failed("bored"), "unknown reason 'bored'"),
        ("report('dance')", "unknown progress 'dance'"),
        ("sys.exit('no module named huggingface_hub')", "no module named huggingface_hub"),
    ],
)
def test_worker_that_breaks_its_word_is_a_machine_error(body, said, resolve):
    with pytest.raises(MachineError, match=said):
        resolve("org/name", body)


def test_worker_and_stage_know_the_same_failures():
    assert {failure.value for failure in Failure} == set(fetch_model.FAILURES)


@pytest.mark.parametrize("text", ["meta-llama/Llama-3.1-8B", "org/a", "Qwen/Qwen2.5-0.5B-Instruct", "a_b/c_"])
def test_hub_ids_are_known(text):
    assert HUB_ID.fullmatch(text)


@pytest.mark.parametrize("text", ["gpt2", "../x/y", "~/x", "/x", "x/", "a/b/c", "a--b/c", "a/b..c", "-a/b", "a/b c"])
def test_paths_are_no_hub_ids(text):
    assert not HUB_ID.fullmatch(text)


@pytest.mark.parametrize("text", ["a\0b/c", "x" * 5000, "~nobody-of-this-name/x", "\ud800/x", "//", "org/" + "n" * 300])
def test_odd_names_are_refused_not_crashed_on(text, resolve):
    with pytest.raises((UsageError, InputFileError), match=r"no such folder|cannot be read|is a local folder"):
        resolve(text, revision="main")


def test_weights_as_transformers_names_them_come_alone():
    names = [
        *("config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt", "README.md", "LICENSE"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
        *("consolidated.safetensors", "pytorch_model.bin", "onnx/model.safetensors", "original/consolidated.00.pth"),
    ]

    assert [
        *("LICENSE", "config.json", "merges.txt", "model-00001-of-00002.safetensors"),
        *(
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
    ] == choose_files(names)
    assert ["config.json", "weights.safetensors"] == choose_files(["weights.safetensors", "config.json", "x.bin"])


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["config.json", "pytorch_model.bin"], "no_weights"),
        (["config.json", "sub/model.safetensors"], "no_weights"),
        (["config.json", "model.safetensors.index.json"], "no_weights"),
        (["model.safetensors"], "no_config"),
        ([], "no_weights"),
    ],
)
def test_repository_that_cannot_be_quantized_is_told_by_its_files(names, reason):
    with pytest.raises(FetchError) as caught:
        choose_files(names)

    assert reason == caught.value.reason
    assert json.dumps(caught.value.detail)
