"""Several worker processes behind one address: started, heard, started again, ended."""

import asyncio
import os
import signal
from functools import partial

import aiohttp
import pytest

from llmtier.core.errors import MachineError
from llmtier.serve.board import Board, BoardShape, share
from llmtier.serve.control import ControlPlan, control_forever
from llmtier.serve.metrics import CountBook, Metrics
from llmtier.serve.pool import ServedTier, TierPool
from llmtier.serve.run import run_in_loop
from llmtier.serve.state import AppState
from llmtier.serve.watch import WatchPlan
from llmtier.serve.worker import work
from llmtier.serve.workers import Workers

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

TIER = ServedTier(name="small", base_url="http://127.0.0.1:1", model_name="m")


def make_state(board, number, line):
    pool = TierPool([TIER], board=board, worker=number)
    return AppState(pool=pool, metrics=Metrics(pool), default_tier="small", watch=None, page=line.page)


def run_worker(seat, number, connection):
    """Serve in a process of its own; must be importable there."""
    run_in_loop(work(seat, number, connection, make_state=make_state))


def fail_at_once(number, connection):
    """Die before anything is said."""
    os._exit(3)


async def start_gateway(group, n_workers=2):
    ready = asyncio.get_running_loop().create_future()
    plan = ControlPlan(host="127.0.0.1", port=0, n_workers=n_workers, grace_s=1, watch=WatchPlan(metrics_interval_s=60))
    task = group.create_task(
        control_forever(
            [TIER],
            plan,
            make_target=lambda seat: partial(run_worker, seat),
            make_book=CountBook,
            on_ready=lambda *urls: ready.set_result(urls),
        )
    )
    return task, *await ready


async def test_workers_share_an_address_and_their_counts_are_added_up(eventually):
    async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as client:
        task, url, admin = await start_gateway(group)
        for _ in range(8):  # a connection each, so that the kernel deals them out
            async with client.get(url + "/health", headers={"connection": "close"}) as answer:
                assert 200 == answer.status
        for _ in range(3):
            async with client.post(url + "/v1/chat/completions", data=b"{", headers={"connection": "close"}) as refused:
                assert 400 == refused.status

        async def are_counted():
            async with client.get(admin + "/metrics") as page:
                return 'llmtier_requests_total{outcome="refused",tier="none"} 3.0' in await page.text()

        await eventually(are_counted)
        async with client.get(admin + "/workers") as page:
            pids = (await page.json())["pids"]
        async with client.get(url + "/metrics") as page:
            assert 'outcome="refused",tier="none"} 3.0' in await page.text()
        os.kill(os.getpid(), signal.SIGTERM)
        await task

    assert 2 == len(set(pids))
    assert not any(is_alive(pid) for pid in pids)


async def test_a_worker_that_dies_is_replaced_and_its_counts_stay(eventually):
    async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as client:
        task, url, admin = await start_gateway(group, n_workers=1)

        async def state():
            async with client.get(admin + "/workers") as page:
                return await page.json()

        async with client.get(url + "/nowhere"):
            pass
        async with client.post(url + "/v1/chat/completions", data=b"{") as refused:
            assert 400 == refused.status

        async def are_counted():
            async with client.get(admin + "/metrics") as page:
                return 'llmtier_requests_total{outcome="refused",tier="none"} 1.0' in await page.text()

        await eventually(are_counted)
        (pid,) = (await state())["pids"]
        os.kill(pid, signal.SIGKILL)

        async def is_replaced():
            found = await state()
            return found["n_restarts"] == 1 and found["pids"] not in ([], [pid])

        await eventually(is_replaced, within_s=20)
        await eventually(are_counted)

        async def serves_again():
            try:
                async with client.get(url + "/health") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(serves_again, within_s=20)
        os.kill(os.getpid(), signal.SIGTERM)
        await task


async def test_workers_that_cannot_start_are_an_error():
    shape = BoardShape(sites=("small",), n_workers=2)
    workers = Workers(
        fail_at_once,
        Board(shape, share(shape)),
        n_workers=2,
        on_counts=lambda *_: None,
        on_death=lambda _: None,
        make_page=lambda: b"",
    )

    with pytest.raises(MachineError, match="ended while starting"):
        await workers.start()
    await workers.end(0.1, asyncio.Event())

    assert [] == workers.pids


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
