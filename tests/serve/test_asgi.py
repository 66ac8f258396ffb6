"""Reading a body within limits, and noticing who leaves; without sockets."""

import asyncio

import pytest

from llmtier.serve.asgi import read_body, run_until_gone
from llmtier.serve.refusal import RequestRefusedError

pytestmark = pytest.mark.anyio


def receiver(*messages):
    """Return an ASGI ``receive`` that gives ``messages`` and then nothing for ever."""
    left = list(messages)

    async def receive():
        return left.pop(0) if left else await asyncio.get_running_loop().create_future()

    return receive


def piece(body, *, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


async def read(*messages, headers=(), timeout_s=5.0):
    return await read_body(receiver(*messages), headers, limit_bytes=4, timeout_s=timeout_s)


async def test_pieces_are_joined():
    assert b"abcd" == await read(piece(b"ab"), piece(b"cd", more=False))


async def test_a_client_that_leaves_early_has_no_body():
    assert await read(piece(b"ab"), GONE) is None


@pytest.mark.parametrize(
    ("messages", "headers"),
    [((piece(b"abc"), piece(b"de")), ()), ((), [(b"content-length", b"5")])],
)
async def test_too_long_is_refused_as_soon_as_it_is_known(messages, headers):
    with pytest.raises(RequestRefusedError, match="longer than 4 bytes") as caught:
        await read(*messages, headers=headers)

    assert 413 == caught.value.status


async def test_too_slow_is_refused():
    with pytest.raises(RequestRefusedError, match=r"within 0\.01 s") as caught:
        await read(piece(b"a"), timeout_s=0.01)

    assert 408 == caught.value.status


async def test_work_runs_to_its_end_while_the_client_stays():
    async def work():
        await asyncio.sleep(0)

    assert await run_until_gone(work(), receiver(piece(b"")))


async def test_work_is_cancelled_when_the_client_leaves():
    async def work():
        await asyncio.get_running_loop().create_future()

    assert not await run_until_gone(work(), receiver(piece(b""), GONE))


async def test_an_error_of_the_work_comes_through_as_it_is():
    async def work():
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        await run_until_gone(work(), receiver())


async def test_cancelling_the_caller_cancels_the_work():
    has_ended = asyncio.Event()

    async def work():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            has_ended.set()

    running = asyncio.create_task(run_until_gone(work(), receiver()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert has_ended.is_set()
