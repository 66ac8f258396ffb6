"""The fault matrix, third part: the gateway's own end, its engines' pages, its log and its clocks.

The table is in ``docs/faults.md``.
"""

import asyncio
import errno
import importlib.util
import json
import os
import signal
import sys
import threading
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from time import perf_counter

import aiohttp
import pytest
from typing_extensions import override

from llmtier.serve.log import SLICE_ROWS, QueueBounds, TrafficLog
from llmtier.serve.relay import Deadlines
from llmtier.serve.run import serve_forever
from llmtier.serve.watch import WatchPlan
from llmtier.store.traffic import Rotation, TrafficWriter, read_traffic
from tests.serve.scripted_server import (
    CHAT,
    DONE,
    END,
    EVENTS,
    SELDOM,
    STREAM,
    Step,
    ask,
    chunk,
    requests,
    rigged,
    scripted_server,
    token,
    whole,
)

pytestmark = pytest.mark.anyio

PATIENT = Deadlines(first_byte_s=10, stall_s=10, total_s=15)


@pytest.fixture
def anyio_backend():
    """Run on the loop that the gateway runs on."""
    return "asyncio", {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


@pytest.fixture
def rig(make_state, running_gateway):
    return partial(rigged, make_state, running_gateway, deadlines=PATIENT)


@pytest.fixture
def signalled(make_state):
    """Return a context manager that serves one scripted engine until a signal; lends engine, state, port and task."""

    @asynccontextmanager
    async def run(*, grace_s):
        async with scripted_server() as engine:
            state = make_state({"small": engine.url}, deadlines=PATIENT, watch=SELDOM)
            url = asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(
                serve_forever(state, host="127.0.0.1", port=0, grace_s=grace_s, on_ready=url.set_result)
            )
            port = int((await url).rsplit(":", 1)[1])
            try:
                yield engine, state, port, serving
            finally:
                serving.cancel()
                await asyncio.wait([serving])

    return run


async def open_request(port, **more):
    """Ask over a bare socket; return its reader, and the writer to close."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(ask(**more)).encode()
    writer.write(b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    return reader, writer


async def until_closed(port):
    """Wait until nobody listens any more."""
    async with asyncio.timeout(30):
        with suppress(ConnectionRefusedError):
            while True:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_streams_end_well_after_a_signal_and_nothing_new_begins(signalled, number):
    async with signalled(grace_s=10) as (engine, state, port, serving):
        engine.say(EVENTS, chunk(token("a")), go := asyncio.Event(), chunk(token("b") + DONE), END)
        reader, writer = await open_request(port, stream=True)
        body = await reader.readuntil(token("a"))
        late, asking = await asyncio.open_connection("127.0.0.1", port)
        asking.write(b"GET /ready HTTP/1.1\r\nhost: h\r\n")  # a request that is under way when the signal comes
        await asyncio.sleep(0.05)
        os.kill(os.getpid(), number)
        await until_closed(port)
        asking.write(b"\r\n")
        ready = await late.read()
        assert not serving.done()
        go.set()
        body += await reader.read()
        await asyncio.wait_for(serving, 5)
        for end in (writer, asking):
            end.close()

    assert b" 503 " in ready.splitlines()[0]
    assert b'"ready":false' in ready
    assert body.endswith(b"\r\n\r\n" + token("a") + token("b") + DONE)
    assert f"{requests('small', 'ok')} 1.0" in state.metrics.render().decode()


@pytest.mark.parametrize("is_hurried", [True, False], ids=["second signal", "grace"])
async def test_what_outlasts_the_end_is_told_so(signalled, is_hurried):
    async with signalled(grace_s=60 if is_hurried else 0.2) as (engine, state, port, serving):
        engine.turns.extend([[EVENTS, chunk(token("a")), Step.HANG], [Step.HANG]])
        streamed, first = await open_request(port, stream=True)
        await streamed.readuntil(token("a"))
        unsent, second = await open_request(port)
        await engine.asked(2)
        os.kill(os.getpid(), signal.SIGTERM)
        if is_hurried:
            await asyncio.sleep(0.05)
            assert not serving.done()
            os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(30):
            rest, refusal = await streamed.read(), await unsent.read()
            await serving
        await engine.left(2)
        first.close()
        second.close()

    error = json.loads(rest.removeprefix(b"data: "))["error"]
    assert ("shutting_down", "server_error") == (error["code"], error["type"])
    assert b" 503 " in refusal.splitlines()[0]
    assert b"retry-after: 1" in refusal.lower()
    assert b'"shutting_down"' in refusal
    assert f"{requests('small', 'aborted')} 2.0" in state.metrics.render().decode()


@asynccontextmanager
async def running_command(folder, *, n_workers):
    """Run ``llmtier serve`` in a process before one scripted engine; lends the engine, the process and its URL."""
    async with scripted_server() as engine:
        engine.say(whole(body=b'{"object":"list","data":[{"id":"engine","object":"model"}]}'), path="/v1/models")
        address = {"kind": "openai", "url": engine.url, "model_name": "engine"}
        tiers = [{"name": name, "model": "m", "scheme": "bf16", "engine": address} for name in ("small", "large")]
        config = {"tiers": tiers, "gateway": {"default_tier": "small", "workers": n_workers}}
        (folder / "llmtier.yaml").write_text(json.dumps(config))
        with (folder / "stderr").open("wb") as stderr:
            command = (sys.executable, "-m", "llmtier", "serve", "--port", "0")
            process = await asyncio.create_subprocess_exec(*command, cwd=folder, stderr=stderr)
        try:
            yield engine, process, await find_url(folder / "stderr", process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def find_url(path, process):
    """Return the address that the gateway says it serves on."""
    while process.returncode is None:
        for line in path.read_text().splitlines():
            if line.startswith("serving on"):
                return line.split()[-1].removesuffix("/v1")
        await asyncio.sleep(0.02)
    return pytest.fail(f"the gateway ended: {path.read_text()}")


@pytest.mark.parametrize("n_signals", [1, 2])
async def test_a_gateway_of_two_processes_ends_as_one(tmp_path, n_signals):
    async with (
        running_command(tmp_path, n_workers=2) as (engine, process, url),
        aiohttp.ClientSession(url) as client,
    ):
        engine.say(EVENTS, chunk(token("a")), go := asyncio.Event(), chunk(DONE), END)
        answers = [await client.post(CHAT, json=ask(stream=True)) for _ in range(4)]
        for answer in answers:
            assert token("a") == await answer.content.readany()
        for _ in range(n_signals):
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.2)
        if n_signals == 1:
            go.set()
        rests = [await answer.read() for answer in answers]
        assert 0 == await process.wait()

    if n_signals == 1:
        assert [DONE] * 4 == rests
    else:
        assert ["shutting_down"] * 4 == [json.loads(rest.removeprefix(b"data: "))["error"]["code"] for rest in rests]


async def has_refused(client):
    async with client.get("/metrics") as page:
        return 'llmtier_config_reloads_total{outcome="refused"} 1.0' in await page.text()


async def test_a_reload_leaves_streams_unharmed(tmp_path, eventually):
    """The new configuration holds for what comes; a broken one changes nothing."""
    async with (
        running_command(tmp_path, n_workers=1) as (engine, process, url),
        aiohttp.ClientSession(url) as client,
    ):
        engine.turns.append([EVENTS, chunk(token("a")), go := asyncio.Event(), chunk(DONE), END])
        answer = await client.post(CHAT, json=ask(stream=True))
        config = json.loads((tmp_path / "llmtier.yaml").read_text())
        config["gateway"]["default_tier"] = "large"
        (tmp_path / "llmtier.yaml").write_text(json.dumps(config))
        process.send_signal(signal.SIGHUP)
        tier = None
        async with asyncio.timeout(10):
            while tier != "large":
                async with client.post(CHAT, json=ask()) as asked:
                    tier = asked.headers["x-llmtier-tier"]
        (tmp_path / "llmtier.yaml").write_text("tiers: [")
        process.send_signal(signal.SIGHUP)
        await eventually(partial(has_refused, client))
        async with client.post(CHAT, json=ask()) as asked:
            assert "large" == asked.headers["x-llmtier-tier"]
        go.set()

        assert token("a") + DONE == await answer.read()


def make_page(*, kv=0.0, running=0, n_steps=0):
    return (
        f'vllm:num_requests_running{{engine="0"}} {running}\nvllm:num_requests_waiting{{engine="0"}} 0\n'
        f'vllm:kv_cache_usage_perc{{engine="0"}} {kv}\n'
        f'vllm:iteration_tokens_total_count{{engine="0"}} {n_steps}\n'
        f'vllm:iteration_tokens_total_sum{{engine="0"}} {n_steps}\n'
    ).encode()


BAD_PAGES = {
    "garbage": [whole(body=bytes(range(256)) * 16)],
    "half numbers": [whole(body=make_page(kv="NaN", running="many"))],
    "empty": [whole()],
    "500": [whole(500, b"no")],
    "silence": [Step.HANG],
    "a half page, then silence": [EVENTS, chunk(make_page()[:40]), Step.HANG],
    "reset": [Step.RESET],
    "no HTTP": [b"vllm:num_requests_running 0\n", Step.CLOSE],
    "endless": [EVENTS, *[chunk(b"#" * 65536)] * 300, Step.CLOSE],
}


@pytest.mark.parametrize("bad", BAD_PAGES.values(), ids=BAD_PAGES)
async def test_a_metrics_page_that_cannot_be_read_says_nothing(rig, eventually, bad):
    """What it said before is believed for five seconds at most; health has its own voice all the while."""
    offset_s = 0.0
    watch = WatchPlan(health_interval_s=0.02, metrics_interval_s=0.02)
    async with rig(watch=watch, clock=lambda: perf_counter() + offset_s) as ground:

        async def is_served_by(tier):
            _, headers, _ = await ground.ask()
            assert "cheapest_feasible" == headers["x-llmtier-reason"]
            return tier == headers["x-llmtier-tier"]

        ground.small.say(whole(body=make_page(kv=0.99)), path="/metrics")
        await eventually(partial(is_served_by, "large"))
        ground.small.say(*bad, path="/metrics")
        await asyncio.sleep(0.1)
        offset_s = 6.0
        await eventually(partial(is_served_by, "small"))
        assert ground.state.pool.is_healthy("small")
        ground.small.say(whole(503), path="/health")
        await eventually(partial(is_served_by, "large"))
        ground.small.say(whole(), path="/health")
        await eventually(partial(is_served_by, "small"))


async def test_a_silent_health_page_is_believed_at_the_third_time(rig, eventually, monkeypatch):
    monkeypatch.setattr("llmtier.serve.watch.PROBE_TIMEOUT_S", 0.1)
    async with rig(watch=WatchPlan(health_interval_s=0.02, metrics_interval_s=60)) as ground:

        async def is_dead():
            return not ground.state.pool.is_healthy("small")

        turns = 0

        class Slow:
            """Two probes of three are answered too late."""

            def __iter__(self):
                nonlocal turns
                turns += 1
                return iter([Step.HANG] if turns % 3 else [whole()])

        ground.small.scripts["/health"] = Slow()
        async with asyncio.timeout(30):
            while turns < 7:
                assert not await is_dead()
                await asyncio.sleep(0.01)
        ground.small.say(Step.HANG, path="/health")
        await eventually(is_dead)
        assert "large" == (await ground.ask())[1]["x-llmtier-tier"]


async def test_an_engine_that_hangs_behind_a_healthy_page_is_left_alone(rig, eventually):
    offset_s = 0.0
    watch = WatchPlan(health_interval_s=0.02, metrics_interval_s=0.02)
    async with rig(watch=watch, clock=lambda: perf_counter() + offset_s) as ground:
        ground.small.say(whole(body=make_page(running=1, n_steps=7)), path="/metrics")
        await asyncio.sleep(0.1)
        offset_s = 120.0

        async def is_avoided():
            return "large" == (await ground.ask())[1]["x-llmtier-tier"]

        await eventually(is_avoided, within_s=1)


class SlowDisk(TrafficWriter):
    """A writer that stands still until it may go on."""

    may_go_on: threading.Event

    @override
    def extend(self, rows):
        self.may_go_on.wait(10)
        super().extend(rows)


async def test_a_log_slower_than_the_traffic_loses_rows_and_nothing_else(rig, tmp_path):
    writer = SlowDisk(tmp_path)
    writer.may_go_on = threading.Event()
    bounds = QueueBounds(n_requests=5, interval_s=0.01)

    def count(n_rows):
        ground.state.metrics.log_dropped.inc(n_rows)

    log = TrafficLog(writer, on_dropped=count, bounds=bounds)
    async with rig(traffic=log) as ground:
        try:
            assert {200} == {(await ground.ask())[0] for _ in range(40)}
            n_dropped = (await ground.counts())["llmtier_log_dropped_total"]
        finally:
            writer.may_go_on.set()

    assert 40 - bounds.n_requests - SLICE_ROWS <= n_dropped < 40
    assert 40 == n_dropped + len(read_traffic(tmp_path))


async def test_a_full_disk_costs_rows_and_nothing_else(rig, tmp_path, monkeypatch, eventually):
    def refuse(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    def count(n_rows):
        ground.state.metrics.log_dropped.inc(n_rows)

    writer = TrafficWriter(tmp_path, rotation=Rotation(rows=1))
    log = TrafficLog(writer, on_dropped=count, bounds=QueueBounds(interval_s=0.01))
    async with rig(traffic=log) as ground:
        with monkeypatch.context() as patch:
            patch.setattr("llmtier.store.traffic_folder.write_all", refuse)
            assert {200} == {(await ground.ask())[0] for _ in range(20)}

            async def is_counted():
                return (await ground.counts())["llmtier_log_dropped_total"] >= 10

            await eventually(is_counted)
            n_written = len([*tmp_path.glob("*.parquet")])
        assert 200 == (await ground.ask())[0]
    n_dropped = ground.state.metrics.snapshot().counts[("llmtier_log_dropped",)]

    assert 0 == n_written
    assert [] == [*tmp_path.glob("*tmp*")]
    assert 21 == n_dropped + len(read_traffic(tmp_path))
    assert len(read_traffic(tmp_path)) >= 2  # what waited for the disk, and what came after


async def test_a_wall_clock_that_jumps_changes_stamps_alone(rig, tmp_path):
    stamps = [datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=days) for days in (0, -3650, 9000, -9000)]
    log = TrafficLog(TrafficWriter(tmp_path), on_dropped=pytest.fail)
    async with rig(traffic=log, now=iter([stamps[0], *stamps]).__next__) as ground:  # the first is the gateway's start
        ground.small.say(STREAM)
        for _ in stamps:
            assert 200 == (await ground.ask(stream=True))[0]
        assert 4 == (await ground.counts())[requests("small", "ok")]
    rows = read_traffic(tmp_path)

    assert [stamp.isoformat() for stamp in stamps] == [row.received_at for row in rows]
    for row in rows:
        assert 0 <= row.overhead_s <= row.ttft_s <= row.e2el_s < 15
