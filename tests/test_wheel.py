"""The built wheel works from a clean environment, away from the checkout."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(300)]


def run(*command, cwd):
    return subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=True).stdout


def test_wheel_installs_and_answers_help(tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    [wheel] = tmp_path.glob("llmtier-*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    assert "llmtier/py.typed" in names
    assert "llmtier/cli/templates/llmtier.yaml" in names
    assert "llmtier/engine/locks/engine-cpu.txt" in names
    assert not [name for name in names if name.startswith(("tests", "examples"))]

    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "requirements.lock", wheel, cwd=tmp_path)
    command = tmp_path / "clean" / "bin" / "llmtier"

    assert "fit-thresholds" in run(command, "--help", cwd=tmp_path)
    run(command, "init", cwd=tmp_path)
    assert (tmp_path / "llmtier.yaml").exists()
