"""Data in the repository is what it says it is."""

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llmtier.store.calibration import read_calibration
from llmtier.store.config import load_config
from llmtier.store.profiles import find_profiles, read_profile

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("recipe", sorted((ROOT / "calibration").glob("*.toml")), ids=lambda path: path.stem)
def test_calibration_set_matches_its_recipe(recipe):
    stated = tomllib.loads(recipe.read_text(encoding="utf-8"))
    path = recipe.with_suffix(".jsonl")

    assert stated["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert stated["rows"] == len(read_calibration(path).rows)


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
