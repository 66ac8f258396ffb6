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


@pytest.fixture
def packed(folder):
    """A folder that says it is a gptq checkpoint."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True}
    quantization = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    quantization |= {"config_groups": {"group_0": {"weights": weights}}}
    path = folder / "models" / "x@gptq"
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return path


@pytest.mark.parametrize(("options", "parent"), [((), "models"), (("-o", "other"), "other")])
def test_dry_run_of_an_export_only_names_both_folders(llmtier, folder, packed, options, parent):
    ended = llmtier("quantize", "models/x@gptq", "--export", "autoawq", "--dry-run", "--json", *options)

    document = json.loads(ended.out)
    assert (0, True) == (ended.code, document["is_plan"])
    assert ("models/x@gptq", "gptq") == (document["exported_from"], document["exported_scheme"])
    assert [str(folder / parent / "x@gptq-autoawq")] == document["checkpoints"]
    assert [folder / "models"] == list(folder.iterdir())
    assert "x@gptq-autoawq" in llmtier("quantize", "models/x@gptq", "--export", "autoawq", "--dry-run").out


def test_dry_run_of_an_export_of_nothing_is_an_input_error(llmtier, folder):
    ended = llmtier("quantize", "models/x@gptq", "--export", "autoawq", "--dry-run")

    assert 3 == ended.code
    assert "config.json" in ended.err


@pytest.mark.parametrize(
    "option",
    [
        ("--calibration", SET),
        ("--revision", "main"),
        ("--kv-cache", "fp8"),
        ("--backend", "autoawq"),
        ("--samples", "9"),
        ("--target", "t4"),
        ("--smoothquant",),
    ],
)
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
