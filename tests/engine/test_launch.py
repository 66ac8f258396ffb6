"""Starting and stopping an engine: real processes, a stand-in for vLLM."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llmtier.core.errors import DiskError, EngineStartError, PortInUseError
from llmtier.engine.capability import explain_exit
from llmtier.engine.client import EngineClient
from llmtier.engine.launch import EngineSpec, running_engine

pytestmark = pytest.mark.anyio

MakeSpec = Callable[..., EngineSpec]


@pytest.fixture
def make_spec(tmp_path: Path) -> MakeSpec:
    """Return a maker of specs whose interpreter is the stand-in."""
    model = tmp_path / "model"
    model.mkdir()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{Path(__file__).with_name("fake_vllm.py")}" "$@"\n')
    python.chmod(0o755)

    def make(behaviour: str = "serve", **changes: object) -> EngineSpec:
        defaults: dict[str, object] = {
            "tier": "nano@bf16",
            "model_path": str(model),
            "python": python,
            "env": {"FAKE_VLLM": behaviour},
            "start_timeout_s": 10.0,
            "stop_grace_s": 0.2,
        }
        return EngineSpec(**{**defaults, **changes})  # type: ignore[arg-type]  # fields by name

    return make


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "engine.log"


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)


def wait_until_gone(pids: list[int]) -> list[int]:
    """Return those of the processes that still run after 30 s."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)
    return [process.pid for process in alive]


def family(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


async def test_engine_answers_is_described_and_leaves_nothing(make_spec: MakeSpec, log_path: Path) -> None:
    spec = make_spec(args={"max_model_len": 512}, cores=(0,))
    async with running_engine(spec, log_path=log_path) as engine:
        pids = family(engine.pid)
        async with EngineClient(engine.base_url, model_name=engine.model_name) as client:
            assert await client.health()

    assert ("vllm", "0.0-fake") == (engine.identity.name, engine.identity.version)
    assert ("--max-model-len 512",) == engine.identity.flags
    assert "cores=0" in engine.identity.environment
    assert (512, "nano@bf16") == (engine.context_tokens, engine.model_name)
    assert "cores [0]" in text_of(log_path)
    assert len(pids) >= 2
    assert [] == wait_until_gone(pids)


async def test_log_keeps_earlier_starts(make_spec: MakeSpec, log_path: Path) -> None:
    for _ in range(2):
        async with running_engine(make_spec(), log_path=log_path):
            pass

    assert 2 == text_of(log_path).count("cores")


async def test_death_while_starting_is_told_at_once_with_the_last_lines(make_spec: MakeSpec, log_path: Path) -> None:
    began_s = time.perf_counter()
    with pytest.raises(EngineStartError, match=r"tier nano@bf16: the engine ended with exit code 3") as caught:
        async with running_engine(make_spec("die"), log_path=log_path):
            pass

    assert time.perf_counter() - began_s < 5
    assert tuple(f"line {n}" for n in range(10, 30)) == caught.value.last_lines
    assert "line 29" in str(caught.value)


async def test_death_by_signal_is_named(make_spec: MakeSpec, log_path: Path) -> None:
    with pytest.raises(EngineStartError, match="killed by signal 9"):
        async with running_engine(make_spec("killed"), log_path=log_path):
            pass


async def test_death_with_a_known_cause_says_what_to_do(make_spec: MakeSpec, log_path: Path) -> None:
    with pytest.raises(EngineStartError) as caught:
        async with running_engine(make_spec("killed"), log_path=log_path):
            pass
    cause = explain_exit(-9, ())

    assert cause
    assert cause in str(caught.value)


async def test_configuration_in_the_log_is_no_cause(make_spec: MakeSpec, log_path: Path) -> None:
    with pytest.raises(EngineStartError) as caught:
        async with running_engine(make_spec("die"), log_path=log_path):
            pass

    assert "trust_remote_code" not in str(caught.value)


async def test_last_lines_of_an_earlier_start_are_not_shown(make_spec: MakeSpec, log_path: Path) -> None:
    write_text(log_path, "an old story\n")
    with pytest.raises(EngineStartError) as caught:
        async with running_engine(make_spec("killed"), log_path=log_path):
            pass

    assert "an old story" not in caught.value.last_lines


async def test_engine_that_loads_but_dies_at_its_first_answer_is_not_ready(make_spec: MakeSpec, log_path: Path) -> None:
    """vLLM says it is healthy with a head size its CPU kernels lack, and dies at the first request."""
    with pytest.raises(EngineStartError, match="first answer") as caught:
        async with running_engine(make_spec("dies_on_request"), log_path=log_path):
            pytest.fail("must not be ready")

    assert "head_dim=16" in str(caught.value)


async def test_engine_that_is_never_ready_is_stopped_at_its_deadline(make_spec: MakeSpec, log_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"not ready within 0\.3 s; raise engine\.start_timeout_s"):
        async with running_engine(make_spec("never_ready", start_timeout_s=0.3), log_path=log_path):
            pass


async def test_process_that_ignores_sigterm_in_a_session_of_its_own_is_killed(
    make_spec: MakeSpec, log_path: Path
) -> None:
    async with running_engine(make_spec("stubborn"), log_path=log_path) as engine:
        pids = family(engine.pid)

    assert len(pids) >= 3
    assert [] == wait_until_gone(pids)


async def test_children_of_an_engine_that_died_do_not_survive_it(make_spec: MakeSpec, log_path: Path) -> None:
    with pytest.raises(EngineStartError, match="exit code 4"):
        async with running_engine(make_spec("orphan"), log_path=log_path):
            pass
    child = re.search(r"child (\d+)", text_of(log_path))

    assert child is not None
    assert [] == wait_until_gone([int(child[1])])


async def test_cancelling_stops_the_engine(make_spec: MakeSpec, log_path: Path) -> None:
    started: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    async def hold() -> None:
        async with running_engine(make_spec(), log_path=log_path) as engine:
            started.set_result(family(engine.pid))
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    pids = await started
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert [] == wait_until_gone(pids)


async def test_cancelling_while_starting_stops_the_engine(make_spec: MakeSpec, log_path: Path) -> None:
    async def hold() -> None:
        async with running_engine(make_spec("never_ready"), log_path=log_path):
            pass

    task = asyncio.create_task(hold())
    async with asyncio.timeout(30):
        while not text_of(log_path):  # noqa: ASYNC110 - the log is what tells
            await asyncio.sleep(0.01)
    pids = family(psutil.Process().children()[-1].pid)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert [] == wait_until_gone(pids)


async def test_death_while_serving_can_be_awaited(make_spec: MakeSpec, log_path: Path) -> None:
    async with running_engine(make_spec(), log_path=log_path) as engine:
        os.kill(family(engine.pid)[1], signal.SIGKILL)
        async with asyncio.timeout(30):
            assert -9 == await engine.process.wait()


HOLDER = """
import asyncio, sys
from pathlib import Path
from llmtier.engine.launch import EngineSpec, running_engine

async def main(python, model, log):
    spec = EngineSpec(tier="t", model_path=model, python=Path(python), env={"FAKE_VLLM": "stubborn"}, stop_grace_s=0.2)
    async with running_engine(spec, log_path=Path(log)) as engine:
        print(engine.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_death_of_the_parent_leaves_no_process(make_spec: MakeSpec, log_path: Path, number: signal.Signals) -> None:
    spec = make_spec()
    command = [sys.executable, "-c", HOLDER, str(spec.python), spec.model_path, str(log_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        pids = family(int(parent.stdout.readline()))
        parent.send_signal(number)

    assert len(pids) >= 3
    assert [] == wait_until_gone(pids)


async def test_port_in_use_is_told_before_anything_starts(make_spec: MakeSpec, log_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} is taken"):
            async with running_engine(make_spec(port=port), log_path=log_path):
                pass

    assert "" == text_of(log_path)


async def test_given_port_is_used(make_spec: MakeSpec, log_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with running_engine(make_spec(port=port), log_path=log_path) as engine:
        assert f"http://127.0.0.1:{port}" == engine.base_url


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"python": Path("/nowhere/python")}, "no interpreter at"), ({"model_path": "/nowhere/m"}, "no model folder at")],
)
async def test_what_is_absent_is_named(make_spec: MakeSpec, log_path: Path, changes, words: str) -> None:
    with pytest.raises(EngineStartError, match=f"tier nano@bf16: {words}"):
        async with running_engine(make_spec(**changes), log_path=log_path):
            pass


async def test_log_that_cannot_be_written_is_a_disk_error(make_spec: MakeSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write the engine's log"):
        async with running_engine(make_spec(), log_path=tmp_path / "file" / "engine.log"):
            pass
