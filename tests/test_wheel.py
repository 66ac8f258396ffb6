"""The built wheel works from a clean environment, away from the checkout."""

import os
import shutil
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


def build_wheel(folder, **env):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(command, env={**os.environ, "LLMTIER_PURE": "", **env}, capture_output=True, check=True)
    [wheel] = folder.glob("llmtier-*.whl")
    return wheel


@pytest.mark.parametrize("env", [{"LLMTIER_PURE": "1"}, {"CC": "/nowhere/cc"}])
def test_without_a_compiler_the_wheel_is_pure(tmp_path, env):
    wheel = build_wheel(tmp_path, **env)

    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_wheel_installs_and_answers_help(tmp_path):
    wheel = build_wheel(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    is_native = "llmtier/score/_native.abi3.so" in names

    assert is_native == ("-cp311-abi3-" in wheel.name)
    assert is_native or shutil.which("cc") is None

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
    says = "from llmtier.score.native import find_native; print(find_native().is_native)"
    assert f"{is_native}\n" == run(python, "-c", says, cwd=tmp_path)
