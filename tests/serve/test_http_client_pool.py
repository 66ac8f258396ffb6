"""Which connections to an engine are used again, and which are not."""

import asyncio

import pytest

from llmtier.serve.http_client import UpstreamBrokenError, UpstreamClient, UpstreamConnectError

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Engine:
    """Answers the requests of each connection after a script of its own.

    Attributes:
        n_requests: Of each connection, in the order in which they were accepted.
        gone: Numbers of the connections that have ended.
    """

    def __init__(self, *scripts):
        self.n_requests = []
        self.gone = set()
        self.writers = []
        self._scripts = scripts

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self.wait(lambda: len(self.gone) == len(self.n_requests))

    async def wait(self, condition):
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0)

    async def _serve(self, reader, writer):
        number = len(self.n_requests)
        self.n_requests.append(0)
        self.writers.append(writer)
        script = self._scripts[min(number, len(self._scripts) - 1)]
        try:
            for answer in script:
                await reader.readuntil(b"\r\n\r\n{}")
                self.n_requests[number] += 1
                if answer is None:
                    return
                writer.write(answer)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.gone.add(number)
            writer.transport.abort()


class Clock:
    """Stands still until told."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


async def ask(client):
    answer = await client.send("/", b"{}")
    return await answer.read_whole(limit_bytes=1 << 20)


async def ask_together(client, n):
    """Open ``n`` connections by as many requests at once."""
    async with asyncio.TaskGroup() as group:
        for _ in range(n):
            group.create_task(ask(client))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def client_of(clock):
    """Return a maker of clients that are closed after the test."""
    clients = []

    def make(engine, **options):
        clients.append(UpstreamClient(engine.url, **{"clock": clock, **options}))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


async def test_one_connection_serves_many_requests(client_of):
    async with Engine([OK] * 9) as engine:
        client = client_of(engine)
        for _ in range(9):
            assert await ask(client) == b"ok"

        assert engine.n_requests == [9]
        await client.close()


async def test_the_connection_used_last_is_used_first(client_of):
    async with Engine([OK] * 9) as engine:
        client = client_of(engine)
        await ask_together(client, 3)
        assert client.n_idle == 3
        newest = client._idle[-1]
        await ask(client)
        await ask(client)

        assert client._idle[-1] is newest
        assert sorted(engine.n_requests) == [1, 1, 3]
        await client.close()


async def test_a_connection_is_reused_until_it_has_been_idle_too_long(client_of, clock):
    async with Engine([OK] * 9) as engine:
        client = client_of(engine, idle_s=4.0)
        await ask(client)
        clock.now_s += 3.9
        await ask(client)
        assert engine.n_requests == [2]
        clock.now_s += 4.0
        await ask(client)

        assert engine.n_requests == [2, 1]
        await engine.wait(lambda: engine.gone == {0})
        assert client.n_open == 1
        await client.close()


async def test_a_sweep_closes_what_is_too_old_and_keeps_the_rest(client_of, clock):
    async with Engine([OK] * 9) as engine:
        client = client_of(engine, idle_s=4.0)
        await ask_together(client, 3)
        clock.now_s += 3.0
        await ask(client)
        clock.now_s += 2.0
        client._sweep()

        assert client.n_idle == 1
        await engine.wait(lambda: len(engine.gone) == 2)
        await client.close()


async def test_idle_connections_are_closed_without_further_requests():
    async with Engine([OK] * 9) as engine:
        client = UpstreamClient(engine.url, idle_s=0.01)
        await ask_together(client, 2)

        await engine.wait(lambda: len(engine.gone) == 2)
        await engine.wait(lambda: client.n_open == 0)
        assert client._sweeping is None
        await client.close()


async def test_no_more_idle_connections_are_kept_than_allowed(client_of):
    async with Engine([OK] * 9) as engine:
        client = client_of(engine, max_idle=2)
        await ask_together(client, 5)

        await engine.wait(lambda: len(engine.gone) == 3)
        assert client.n_idle == 2
        await client.close()


async def test_a_reused_connection_that_dies_silently_is_tried_once_more(client_of):
    async with Engine([OK, None], [OK]) as engine:
        client = client_of(engine)
        await ask(client)

        assert await ask(client) == b"ok"
        assert engine.n_requests == [2, 1]
        await client.close()


async def test_the_second_try_uses_a_fresh_connection_and_is_the_last(client_of):
    async with Engine([OK, None], [OK, None], [None]) as engine:
        client = client_of(engine)
        await ask_together(client, 2)

        with pytest.raises(UpstreamBrokenError) as caught:
            await ask(client)
        assert not caught.value.had_bytes
        assert sorted(engine.n_requests) == [1, 1, 2]
        await client.close()


async def test_a_fresh_connection_that_dies_is_not_tried_again(client_of):
    async with Engine([None]) as engine:
        client = client_of(engine)

        with pytest.raises(UpstreamBrokenError) as caught:
            await ask(client)
        assert not caught.value.had_bytes
        assert engine.n_requests == [1]
        await client.close()


async def test_a_reused_connection_that_has_begun_to_answer_is_not_tried_again(client_of):
    async with Engine([OK, b"HTTP/1.1 200", None]) as engine:
        client = client_of(engine)
        await ask(client)

        task = asyncio.create_task(ask(client))
        await engine.wait(lambda: engine.n_requests == [2])
        engine.writers[0].close()

        with pytest.raises(UpstreamBrokenError) as caught:
            await task
        assert caught.value.had_bytes
        assert engine.n_requests == [2]
        await client.close()


@pytest.mark.parametrize("extra", [b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"x"])
async def test_bytes_on_an_idle_connection_close_it(client_of, extra):
    async with Engine([OK] * 9) as engine:
        client = client_of(engine)
        await ask(client)
        engine.writers[0].write(extra)

        await engine.wait(lambda: engine.gone == {0})
        await engine.wait(lambda: client.n_idle == 0)
        assert await ask(client) == b"ok"
        assert engine.n_requests == [1, 1]
        await client.close()


async def test_a_connection_that_the_engine_closes_leaves_the_pool(client_of):
    async with Engine([OK] * 9) as engine:
        client = client_of(engine)
        await ask(client)
        engine.writers[0].close()

        await engine.wait(lambda: client.n_open == 0)
        assert client.n_idle == 0
        assert await ask(client) == b"ok"
        await client.close()


async def test_closing_the_client_breaks_what_is_under_way_and_takes_no_more(client_of):
    async with Engine([OK, b""]) as engine:
        client = client_of(engine)
        await ask(client)
        task = asyncio.create_task(ask(client))
        await engine.wait(lambda: engine.n_requests == [2])

        await client.close()

        with pytest.raises(UpstreamBrokenError, match="closed"):
            await task
        with pytest.raises(UpstreamConnectError, match="closed"):
            await ask(client)
        assert engine.n_requests == [2]
        await client.close()


async def test_closing_the_client_while_it_connects_closes_that_connection_too(client_of):
    async with Engine([OK]) as engine:
        client = client_of(engine)
        task = asyncio.create_task(ask(client))
        await asyncio.sleep(0)

        await client.close()

        with pytest.raises(UpstreamConnectError, match="closed"):
            await task
        assert client.n_open == 0


async def test_a_connection_that_ends_while_it_is_made_is_broken(client_of, monkeypatch):
    async with Engine([OK]) as engine:
        client = client_of(engine)
        monkeypatch.setattr("llmtier.serve.http_client.UpstreamConnection.is_open", False)

        with pytest.raises(UpstreamBrokenError, match="at once"):
            await ask(client)
        monkeypatch.undo()
        await client.close()


async def test_paths_are_remembered_within_bounds(client_of):
    async with Engine([OK] * 200) as engine:
        client = client_of(engine)
        for number in range(150):
            await (await client.send(f"/{number}", b"{}")).read_whole(limit_bytes=2)

        assert len(client._heads) <= 64
        await client.close()
