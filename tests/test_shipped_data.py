"""Data in the repository is what it says it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmtier.quantize.calibration.check import check_set
from llmtier.quantize.calibration.scan import scan
from llmtier.store.calibration import read_calibration
from llmtier.store.calibration_recipe import read_recipe
from llmtier.store.config import load_config
from llmtier.store.profiles import find_profiles, read_profile

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "calibration").glob("*.toml"))
SOURCES = sorted((ROOT / "calibration" / "sources").glob("*.jsonl"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_calibration_sources_are_distinct_conversations(path):
    rows = read_calibration(path).rows
    turns = [[turn["role"] for turn in row["messages"] if turn["role"] != "system"] for row in rows]

    assert len(rows) >= 40
    assert len(rows) == len({json.dumps(row) for row in rows})
    assert all(roles == ["user", "assistant"] * (len(roles) // 2) for roles in turns)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_calibration_sources_hold_nothing_private(path):
    turns = [turn["content"] for row in read_calibration(path).rows for turn in row["messages"]]

    assert [] == [finding for turn in turns for finding in scan(turn)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_calibration_recipe_mixes_its_domain_with_general_texts(path):
    recipe = read_recipe(path).recipe

    assert path.stem == recipe.name
    assert {path.stem: 0.75, "general": 0.25} == recipe.share_by_domain


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_calibration_set_is_what_its_recipe_builds(path):
    verdict = check_set(path)

    assert () == tuple(verdict.problems)


def test_calibration_recipe_for_every_domain():
    assert {"support", "code", "extraction", "math"} == {path.stem for path in RECIPES}


def test_demo_calibration_set_can_be_read():
    assert 256 == len(read_calibration(ROOT / "examples" / "demo" / "calibration.jsonl").rows)


def test_shipped_profiles_can_be_read():
    folders = find_profiles(ROOT / "profiles")

    assert len(folders) >= 4
    assert all(read_profile(folder).points and read_profile(folder).cost for folder in folders.values())


def test_demo_configuration_is_valid():
    assert 4 == len(load_config(ROOT / "examples" / "demo" / "llmtier.yaml").tiers)


def test_demo_data_is_what_its_script_makes():
    script = ROOT / "examples" / "demo" / "make_data.py"

    assert 0 == subprocess.run([sys.executable, script.name, "--check"], cwd=script.parent, check=False).returncode


def test_demo_weights_stay_small():
    size_bytes = sum(path.stat().st_size for path in (ROOT / "examples" / "demo" / "models").rglob("*.safetensors"))

    assert size_bytes <= 20_000_000
