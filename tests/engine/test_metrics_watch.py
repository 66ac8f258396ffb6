"""Watching a metrics page through a load point: polling, engines that die, points that are broken off."""

import asyncio

import pytest

from llmtier.engine.metrics_watch import MetricsWatch


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def counted(tokens: int, *, n_waiting: int = 0) -> bytes:
    return answer(f"vllm:generation_tokens_total {tokens}\nvllm:num_requests_waiting {n_waiting}\n".encode())


@pytest.mark.anyio
async def test_watch_gives_the_delta_of_a_point(playback):
    scripts = [counted(tokens) for tokens in (10, 25)]
    async with playback(*scripts) as server, MetricsWatch(server.base_url, period_s=None) as watch:
        assert watch.delta is None

    assert 15 == watch.delta.generation_tokens
    assert watch.reason is None


@pytest.mark.anyio
async def test_watch_polls_and_leaves_out_pages_that_do_not_come(playback):
    first, high, last = counted(10), counted(20, n_waiting=9), counted(30)
    scripts = [first, answer(b"", "500 Oops"), high, *[last] * 1000]
    async with playback(*scripts) as server, MetricsWatch(server.base_url, period_s=0.001) as watch:
        async with asyncio.timeout(30):
            while len(server.requests) < 4:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.001)

    assert 20 == watch.delta.generation_tokens
    assert 9 == watch.delta.n_waiting_max
    assert watch.delta.n_snapshots >= 3


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("scripts", "words"),
    [
        ([answer(b"", "404 Not Found")], "no metrics page"),
        ([answer(b"", "500 Oops")], "HTTP 500"),
        ([answer(b"<html>"), answer(b"<html>")], "Prometheus text format"),
        ([answer(b"node_load1 1\n"), answer(b"node_load1 1\n")], "none of the counters"),
        ([counted(9), counted(1)], "restarted"),
        ([counted(9), None, None], "disconnected"),
    ],
)
async def test_watch_says_why_there_is_no_delta(playback, scripts, words):
    async with playback(*scripts) as server, MetricsWatch(server.base_url, period_s=None) as watch:
        pass

    assert watch.delta is None
    assert words in watch.reason


@pytest.mark.anyio
async def test_watch_of_a_point_that_is_broken_off_asks_no_more(playback):
    async with playback(counted(9)) as server:
        watch = MetricsWatch(server.base_url, period_s=None)
        with pytest.raises(ValueError, match="mine"):
            async with watch:
                raise ValueError("mine")

    assert 1 == len(server.requests)
    assert "broken off" in watch.reason
