"""The real vLLM on a CPU: started, asked, cancelled, killed."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil
import pytest

from llmtier.core.errors import EngineRequestError, EngineStartError
from llmtier.core.prompt import Message
from llmtier.engine.client import EngineClient
from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.engine.launch import EngineSpec, running_engine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300), pytest.mark.anyio]

NANO = Path(__file__).parents[2] / "examples" / "demo" / "models" / "nano"
ARGS = {"max_model_len": 256, "enforce_eager": True}
HELLO = (Message(role="user", content="What is 2 + 2?"),)


@pytest.fixture
def make_spec() -> Callable[..., EngineSpec]:
    """Return a maker of specs of the demo's smallest model, pinned to one core."""
    environment = find_environment(EnvironmentName.ENGINE_CPU, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install engine-cpu'")
    core = min(os.sched_getaffinity(0))

    def make(**args: object) -> EngineSpec:
        return EngineSpec(
            tier="nano@bf16", model_path=str(NANO), python=environment.python, args={**ARGS, **args}, cores=(core,)
        )

    return make


def family(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def wait_until_gone(pids: list[int]) -> list[int]:
    """Return those of the processes that still run after 20 s."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    return [process.pid for process in alive]


async def n_running(base_url: str) -> float:
    """Return how many requests the engine itself says it is running."""
    async with aiohttp.ClientSession() as session, session.get(f"{base_url}/metrics") as response:
        found = re.search(r"^vllm:num_requests_running\{.*\} (\S+)$", await response.text(), re.MULTILINE)

    assert found is not None
    return float(found[1])


async def test_engine_is_described_answers_and_leaves_nothing(
    make_spec: Callable[..., EngineSpec], tmp_path: Path
) -> None:
    spec = make_spec()
    async with running_engine(spec, log_path=tmp_path / "engine.log") as engine:
        pids = family(engine.pid)
        masks = {tuple(psutil.Process(pid).cpu_affinity()) for pid in pids}
        async with EngineClient(engine.base_url, model_name=engine.model_name) as client:
            twice = [await client.stream_chat(HELLO, max_tokens=16, extra={"ignore_eos": True}) for _ in range(2)]
            with pytest.raises(EngineRequestError, match="maximum context length is 256") as refused:
                await client.stream_chat((Message(role="user", content="x" * 400),), max_tokens=1)
            await cancel_midway(client, engine.base_url)

    assert "vllm" == engine.identity.name
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", engine.identity.version or "")
    assert ("--enforce-eager", "--gpu-memory-utilization 0.3", "--max-model-len 256") == engine.identity.flags
    assert 256 == engine.context_tokens
    assert {spec.cores} == masks
    assert 400 == refused.value.status
    for completion in twice:
        timing = completion.timing
        assert 16 == timing.n_output_tokens
        assert "length" == completion.finish_reason
        assert timing.tpot_s is not None
        assert timing.tpot_s > 0
        assert sorted(timing.content_s) == list(timing.content_s)
    assert twice[0].text == twice[1].text
    assert [] == wait_until_gone(pids)


async def cancel_midway(client: EngineClient, base_url: str) -> None:
    """Cancel a running request; fail unless the engine stops working on it."""
    task = asyncio.create_task(client.stream_chat(HELLO, max_tokens=200, extra={"ignore_eos": True}))
    async with asyncio.timeout(10):
        while await n_running(base_url) == 0 and not task.done():
            pass
        task.cancel()
        while await n_running(base_url):
            pass


async def test_engine_that_refuses_its_arguments_says_why(make_spec: Callable[..., EngineSpec], tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="ended with exit code") as caught:
        async with running_engine(make_spec(max_model_len=100_000), log_path=tmp_path / "engine.log"):
            pass

    assert any("max_model_len" in line for line in caught.value.last_lines)


HOLDER = """
import asyncio, json, sys
from pathlib import Path
from llmtier.engine.launch import EngineSpec, running_engine

async def main(python, model, log):
    spec = EngineSpec(tier="nano@bf16", model_path=model, python=Path(python),
                      args={"max_model_len": 256, "enforce_eager": True})
    async with running_engine(spec, log_path=Path(log)) as engine:
        print(engine.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def test_engine_does_not_outlive_a_killed_parent(make_spec: Callable[..., EngineSpec], tmp_path: Path) -> None:
    spec = make_spec()
    words = [str(spec.python), spec.model_path, str(tmp_path / "engine.log")]
    with subprocess.Popen([sys.executable, "-c", HOLDER, *words], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = family(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)

    assert len(pids) >= 3  # the reaper, the server, its core
    assert [] == wait_until_gone(pids)
