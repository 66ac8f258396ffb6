"""The watcher: which answers make an engine alive, and what its page puts on the board."""

import asyncio
import math

import pytest

from llmtier.engine.loopback import serving
from llmtier.serve.board import EngineSlot, board_of
from llmtier.serve.pool import ServedTier
from llmtier.serve.watch import TIMEOUTS_UNTIL_DEAD, Watcher, WatchPlan

pytestmark = pytest.mark.anyio

PAGE = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_waiting{model_name="m"} 2.0
vllm:kv_cache_usage_perc{model_name="m"} 0.5
"""


class Engine:
    """An engine with a health and a metrics page."""

    def __init__(self, *, status=200, page=PAGE, page_status=200):
        self.status, self.page, self.page_status = status, page, page_status
        self.n_pages = 0
        self.is_silent = False

    async def __call__(self, scope, receive, send):
        if self.is_silent:
            await asyncio.get_running_loop().create_future()
        is_page = scope["path"] == "/metrics"
        self.n_pages += is_page
        status = self.page_status if is_page else self.status
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": self.page if is_page else b""})


def make_watcher(url, board, **plan):
    tier = ServedTier(name="a", base_url=url, model_name="m")
    return Watcher([tier], board, WatchPlan(**{"health_interval_s": 0.01, "metrics_interval_s": 0.01, **plan}))


@pytest.mark.parametrize(("status", "is_alive"), [(200, True), (404, True), (503, False)])
async def test_any_answer_below_500_is_life(status, is_alive):
    board = board_of(["a"])
    async with serving(Engine(status=status)) as url:
        watcher = make_watcher(url, board)
        await watcher.probe()
        await watcher.close()

    assert is_alive == board.is_alive("a")


async def test_nobody_there_is_death():
    board = board_of(["a"])
    watcher = make_watcher("http://127.0.0.1:1", board)
    await watcher.probe()
    await watcher.close()

    assert not board.is_alive("a")
    assert 0 == board.engine("a", EngineSlot.WAS_ALIVE)


async def test_a_missed_probe_is_forgiven_and_some_are_not():
    board = board_of(["a"])
    engine = Engine()
    async with serving(engine) as url:
        watcher = make_watcher(url, board)
        await watcher.probe()
        engine.is_silent = True
        for _ in range(TIMEOUTS_UNTIL_DEAD - 1):
            await watcher.probe(timeout_s=0.01)
        assert board.is_alive("a")

        await watcher.probe(timeout_s=0.01)
        assert not board.is_alive("a")
        await watcher.close()


async def test_the_page_is_read_onto_the_board(eventually):
    board = board_of(["a"])

    async def is_read():
        return board.engine("a", EngineSlot.N_WAITING) == 2.0

    async with serving(Engine()) as url:
        watcher = make_watcher(url, board)
        task = asyncio.create_task(watcher.run())
        await eventually(is_read)
        task.cancel()
        await watcher.close()

    assert 3.0 == board.engine("a", EngineSlot.N_RUNNING)
    assert 0.5 == board.engine("a", EngineSlot.KV_USAGE)


@pytest.mark.parametrize("page", [b"", b"\xff\x00 garbage {{{", b"vllm:num_requests_waiting NaN\n"])
async def test_a_page_of_garbage_says_nothing(page, eventually):
    board = board_of(["a"])
    engine = Engine(page=page)

    async def is_asked_twice():
        return engine.n_pages >= 2

    async with serving(engine) as url:
        watcher = make_watcher(url, board)
        task = asyncio.create_task(watcher.run())
        await eventually(is_asked_twice)
        task.cancel()
        await watcher.close()

    assert math.isnan(board.engine("a", EngineSlot.N_WAITING))


async def test_an_engine_without_a_page_is_not_asked_again(eventually):
    board = board_of(["a"])
    engine = Engine(page_status=404)

    async def has_lived():
        return board.engine("a", EngineSlot.ALIVE_S) > 0 and engine.n_pages > 0

    async with serving(engine) as url:
        watcher = make_watcher(url, board)
        task = asyncio.create_task(watcher.run())
        await eventually(has_lived)
        await asyncio.sleep(0.05)
        task.cancel()
        await watcher.close()

    assert 1 == engine.n_pages
