"""A clock that jumps, and a server that plays back bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest


class JumpingClock:
    """A virtual clock for one sleeper: a sleep takes no time and moves the clock on."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        return self.time_s

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(0)
        self.time_s += duration_s


class PlaybackServer:
    """Answers the n-th request with the n-th script, then closes or keeps the connection."""

    def __init__(self, scripts: Sequence[bytes | None]) -> None:
        self.scripts = list(scripts)
        self.requests: list[bytes] = []
        self.n_connections = 0
        self.n_left = 0
        self.base_url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_connections += 1
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                script = self.scripts.pop(0)
                if script is None:  # hang up without a byte
                    break
                writer.write(script)
                await writer.drain()
                if b"connection: close" in script[:400].lower():
                    break
            self.n_left += 1
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.lower().split(b"\r\n")
    length = next((int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


Playback = Callable[..., AbstractAsyncContextManager[PlaybackServer]]


@pytest.fixture
def playback() -> Playback:
    """Return a context manager that serves scripted bytes on a loopback port."""

    @asynccontextmanager
    async def serve(*scripts: bytes | None) -> AsyncIterator[PlaybackServer]:
        playback = PlaybackServer(scripts)
        server = await asyncio.start_server(playback.serve, "127.0.0.1", 0)
        playback.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield playback

    return serve


@pytest.fixture
def jumping_clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
def golden() -> Path:
    """Return the folder of recorded bytes."""
    return Path(__file__).parents[1] / "golden"
