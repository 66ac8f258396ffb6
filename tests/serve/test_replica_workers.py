"""Replicas behind several worker processes: what one finds out holds for all, and conversations keep their engine."""

import asyncio
import os
import signal
from functools import partial

import aiohttp
import pytest

from llmtier.serve.control import ControlPlan, control_forever
from llmtier.serve.metrics import CountBook, Metrics
from llmtier.serve.pool import ServedTier, TierPool
from llmtier.serve.run import run_in_loop
from llmtier.serve.state import AppState
from llmtier.serve.watch import WatchPlan
from llmtier.serve.worker import work
from tests.serve.scripted_server import CHAT, ask, requests, scripted_server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

CLOSED = {"connection": "close"}


def make_state(tier, board, number, line):
    pool = TierPool([tier], board=board, worker=number)
    return AppState(pool=pool, metrics=Metrics(pool), default_tier="small", watch=None, page=line.page, sticky_s=60)


def run_worker(tier, seat, number, connection):
    """Serve in a process of its own; must be importable there."""
    run_in_loop(work(seat, number, connection, make_state=partial(make_state, tier)))


async def test_two_workers_spread_requests_keep_conversations_and_leave_a_dead_engine_alone(eventually):
    async with scripted_server() as one, scripted_server() as two, aiohttp.ClientSession() as client:
        tier = ServedTier(name="small", base_url=one.url, more_urls=(two.url,), model_name="m")
        async with asyncio.TaskGroup() as group:
            ready = asyncio.get_running_loop().create_future()
            watch = WatchPlan(health_interval_s=60, metrics_interval_s=60)
            plan = ControlPlan(host="127.0.0.1", port=0, n_workers=2, grace_s=1, watch=watch)
            task = group.create_task(
                control_forever(
                    [tier],
                    plan,
                    make_target=lambda seat: partial(run_worker, tier, seat),
                    make_book=CountBook,
                    on_ready=lambda *urls: ready.set_result(urls),
                )
            )
            url, admin = await ready

            async def serve(n, session):
                """Ask so often, over a connection each; return how many requests each engine got."""
                before = len(one.requests), len(two.requests)
                for number in range(n):
                    headers = {**CLOSED, "x-llmtier-session": session or str(number)}
                    async with client.post(url + CHAT, json=ask(), headers=headers) as answer:
                        assert (200, "small") == (answer.status, answer.headers["x-llmtier-tier"])
                return len(one.requests) - before[0], len(two.requests) - before[1]

            spread = await serve(24, None)
            kept = await serve(8, "one conversation")
            await one.stop()
            after = await serve(24, None)

            async def shows():
                async with client.get(admin + "/metrics") as page:
                    text = await page.text()
                return (
                    f"{requests('small', 'ok')} 56.0" in text
                    and 'llmtier_engine_up{replica="1",tier="small"} 0.0' in text
                    and 'llmtier_engine_up{replica="2",tier="small"} 1.0' in text
                    and 'llmtier_tier_healthy{tier="small"} 1.0' in text
                )

            await eventually(shows, within_s=20)
            async with client.get(admin + "/ready") as page:
                assert {"ready": True, "healthy": {"small": True}} == await page.json()
            os.kill(os.getpid(), signal.SIGTERM)
            await task

    assert min(spread) > 0
    assert [0, 8] == sorted(kept)
    assert 24 == after[1]
