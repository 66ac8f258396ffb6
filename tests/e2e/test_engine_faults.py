"""The real vLLM behind a gateway: killed, stopped, asked for too much. The rest of the matrix is in ``tests/serve``."""

import asyncio
import io
import json
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from llmtier.engine.environment import EnvironmentName, find_environment, home_path
from llmtier.engine.launch import EngineSpec, running_engine
from llmtier.engine.mock import running_mock
from llmtier.engine.mock_settings import MockSettings
from llmtier.serve.metrics import Metrics
from llmtier.serve.pool import ServedTier, TierPool
from llmtier.serve.relay import Deadlines
from llmtier.serve.run import serve_forever
from llmtier.serve.state import AppState
from llmtier.serve.watch import WatchPlan

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300), pytest.mark.anyio]

MINI = Path(__file__).parents[2] / "examples" / "demo" / "models" / "mini"
CONTEXT_TOKENS = 4096
ARGS = {
    "max_model_len": CONTEXT_TOKENS,
    "enforce_eager": True,
    "hf_overrides": {"max_position_embeddings": CONTEXT_TOKENS},  # answers must last until they are cut
}
CHAT = "/v1/chat/completions"
LIMITS = Deadlines(first_byte_s=3, stall_s=3, total_s=60)


def ask(text="What is 2 + 2?", **more):
    return {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}


LONG = ask(stream=True, max_tokens=3_900, ignore_eos=True)
SHORT = ask(stream=True)


class Ground:
    """A gateway with vLLM as its default tier and a mock beside it.

    Attributes:
        engine: vLLM.
        client: Asks the gateway.
    """

    def __init__(self, engine, client):
        self.engine, self.client = engine, client

    def find(self, name):
        """Return the processes of vLLM whose command has ``name`` in it."""
        family = psutil.Process(self.engine.pid).children(recursive=True)
        return [process for process in family if name in " ".join([process.name(), *process.cmdline()])]

    async def is_well(self):
        """Return whether vLLM itself says that it is."""
        async with aiohttp.ClientSession() as client, client.get(f"{self.engine.base_url}/health") as answer:
            return answer.status == 200

    async def tier_of(self, body):
        """Ask and read to the end; return who answered."""
        async with self.client.post(CHAT, json=body) as answer:
            assert 200 == answer.status
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
            return answer.headers["x-llmtier-tier"]

    async def count(self, tier, outcome):
        name = f'llmtier_requests_total{{outcome="{outcome}",tier="{tier}"}} '
        async with self.client.get("/metrics") as page:
            lines = (await page.text()).splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    async def begin(self, body=LONG):
        """Begin a long answer on vLLM; return it once tokens flow."""
        answer = await self.client.post(CHAT, json=body)
        assert ("real", 200) == (answer.headers["x-llmtier-tier"], answer.status)
        for _ in range(4):
            assert (await answer.content.readuntil(b"\n\n")).startswith(b"data: ")
        return answer


@asynccontextmanager
async def running_gateway(state):
    stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve_forever(state, host="127.0.0.1", port=0, grace_s=1, on_ready=url.set_result, stop=stop))
        try:
            yield await url
        finally:
            stop.set()


@pytest.fixture
async def ground(tmp_path):
    environment = find_environment(EnvironmentName.ENGINE_CPU, home=home_path(os.environ))
    if environment is None:
        pytest.skip("run 'llmtier env install engine-cpu'")
    spec = EngineSpec(tier="mini@bf16", model_path=str(MINI), python=environment.python, args=ARGS)
    async with (
        running_engine(spec, log_path=tmp_path / "engine.log") as engine,
        running_mock(MockSettings(model_name="mock", answers={"What is 2 + 2?": "4"})) as mock_url,
    ):
        tiers = (
            ServedTier(name="real", base_url=engine.base_url, model_name=engine.model_name),
            ServedTier(name="mock", base_url=mock_url, model_name="mock"),
        )
        pool = TierPool(tiers)
        state = AppState(
            pool=pool,
            metrics=Metrics(pool),
            default_tier="real",
            deadlines=LIMITS,
            watch=WatchPlan(health_interval_s=60, metrics_interval_s=60),
        )
        async with running_gateway(state) as url, aiohttp.ClientSession(url) as client:
            yield Ground(engine, client)


def error_at_end(body):
    """Return the error that a stream ends with."""
    assert b"[DONE]" not in body
    *_, last, rest = body.split(b"\n\n")
    assert b"" == rest
    return json.loads(last.removeprefix(b"data: "))["error"]


async def test_an_engine_that_hangs_or_dies_is_replaced(ground):
    """One engine for all of it: a start takes half a minute."""
    await refuse_what_is_too_long(ground)
    await hang_and_come_back(ground)
    await kill_the_server(ground)


async def refuse_what_is_too_long(ground):
    """The engine's own refusal is passed on; what no engine should see is refused before; nobody else is harmed."""
    answer = await ground.begin({**LONG, "max_tokens": 400})
    async with ground.client.post(CHAT, json=ask("x " * 20_000)) as too_long:
        said = json.loads(await too_long.read())["error"]["message"]
        assert (400, "real") == (too_long.status, too_long.headers["x-llmtier-tier"])
        assert f"maximum context length is {CONTEXT_TOKENS}" in said
    async with ground.client.post(CHAT, data=io.BytesIO(b" " * 11_000_000)) as too_large:
        assert 413 == too_large.status

    assert (await answer.read()).endswith(b"data: [DONE]\n\n")
    assert 1 == await ground.count("real", "engine_refused")


async def hang_and_come_back(ground):
    """Its page says all the while that it is well."""
    (core,) = ground.find("EngineCore")
    answer = await ground.begin()
    core.send_signal(signal.SIGSTOP)
    try:
        error = error_at_end(await answer.read())
        assert await ground.is_well()
        assert "mock" == await ground.tier_of(SHORT)
    finally:
        core.send_signal(signal.SIGCONT)

    assert "upstream_interrupted" == error["code"]
    assert "sent nothing for 3 s" in error["message"]
    async with asyncio.timeout(60):  # it has what was aborted to finish first, and may fail a few requests more
        while await ground.tier_of(SHORT) != "real":  # noqa: ASYNC110  # what is asked lies behind a socket
            await asyncio.sleep(0.5)


async def kill_the_server(ground):
    """No core is left behind that holds on to its memory."""
    (server,) = [process for process in ground.find("api_server") if "EngineCore" not in process.name()]
    cores = ground.find("EngineCore")
    answer = await ground.begin()
    server.kill()
    error = error_at_end(await answer.read())

    assert "upstream_interrupted" == error["code"]
    assert 2 == await ground.count("real", "interrupted")
    assert "mock" == await ground.tier_of(SHORT)
    assert cores
    assert [] == psutil.wait_procs(cores, timeout=20)[1]


async def test_an_engine_whose_core_is_killed_is_replaced(ground):
    (core,) = ground.find("EngineCore")
    answer = await ground.begin()
    core.kill()
    body = await answer.read()

    assert b'"error"' in body
    assert 1 == await ground.count("real", "interrupted")
    assert "mock" == await ground.tier_of(SHORT)
