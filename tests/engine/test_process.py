"""The reaper and the log, with a shell as the command."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from llmtier.engine.process import EngineProcess, running_process

pytestmark = pytest.mark.anyio

Run = Callable[..., AbstractAsyncContextManager[EngineProcess]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a context manager that runs a command with its output in a log."""

    def start(*command: str) -> AbstractAsyncContextManager[EngineProcess]:
        return running_process(
            command, environment={"PATH": os.defpath}, cores=None, log_path=tmp_path / "log", stop_grace_s=0.2
        )

    return start


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", -signal.SIGSEGV)])
async def test_exit_code_is_the_commands_own(run: Run, script: str, code: int) -> None:
    async with run("sh", "-c", script) as process:
        assert code == await process.wait()


async def test_command_that_is_not_there_exits_127(run: Run) -> None:
    async with run("/nowhere/python") as process:
        assert 127 == await process.wait()

    assert "cannot run /nowhere/python" in process.last_lines()[-1]


async def test_both_outputs_are_logged_and_the_last_lines_shown(run: Run) -> None:
    script = "i=0; while [ $i -lt 100 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; echo"
    async with run("sh", "-c", script) as process:
        await process.wait()

    assert ("out 98", "err 98", "out 99", "err 99") == process.last_lines(4)
    assert 200 == len(process.last_lines(1000))


async def test_only_the_end_of_a_long_log_is_read(run: Run) -> None:
    async with run("sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x; echo; echo end") as process:
        await process.wait()
    first, last = process.last_lines()

    assert "end" == last
    assert len(first) < 70_000


async def test_sigterm_to_the_leader_means_stop(run: Run) -> None:
    async with run("sh", "-c", "echo up; exec sleep 60") as process:
        async with asyncio.timeout(30):
            while not process.last_lines():  # noqa: ASYNC110 - the log is what tells
                await asyncio.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        assert 0 == await process.wait()


async def test_command_reads_no_input(run: Run) -> None:
    async with run("cat") as process:
        assert 0 == await process.wait()
