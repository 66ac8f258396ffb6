"""``llmtier quantize --export`` and ``--dry-run``: what is refused before anything starts, and what only tells."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MINI = str(ROOT / "examples" / "demo" / "models" / "mini")
SET = str(ROOT / "examples" / "demo" / "calibration.jsonl")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMTIER_HOME", str(tmp_path / "home"))
    return tmp_path


def test_dry_run_of_an_export_only_names_the_folder(llmtier, folder):
    ended = llmtier("quantize", "models/x@gptq", "--export", "autoawq", "--dry-run", "--json")

    assert 0 == ended.code
    assert ["models/x@gptq-autoawq"] == json.loads(ended.out)["checkpoints"]
    assert [] == list(folder.iterdir())


@pytest.mark.parametrize("option", [("--calibration", SET), ("--revision", "main"), ("--kv-cache", "fp8")])
def test_export_of_a_checkpoint_refuses_what_means_nothing_to_it(llmtier, folder, option):
    ended = llmtier("quantize", "models/x@gptq", "--export", "autoawq", *option)

    assert 2 == ended.code
    assert option[0] in ended.err


@pytest.mark.parametrize("option", [("--backend", "autoawq"), ("--kv-cache", "fp8")])
def test_export_that_the_layout_cannot_hold_is_refused_before_the_work(llmtier, folder, option):
    ended = llmtier("quantize", MINI, "--scheme", "awq", "--calibration", SET, "--export", "autoawq", *option)

    assert 2 == ended.code
    assert option[0] in ended.err
    assert [] == list(folder.iterdir())


def test_dry_run_writes_the_plan_and_nothing_else(llmtier, folder):
    ended = llmtier("quantize", MINI, "--scheme", "int8", "--target", "h100", "--dry-run", "--json")

    document = json.loads(ended.out)
    assert (True, ["models/mini@int8"]) == (document["is_plan"], document["checkpoints"])
    assert "fast" == document["schemes"][0]["verdict"]["grade"]
    assert [] == list(folder.iterdir())
