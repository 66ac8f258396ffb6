"""Ports and the end of the server."""

import asyncio
import os
import signal
import socket

import pytest

from llmtier.core.errors import MachineError, PortInUseError
from llmtier.serve.run import check_port, run_in_loop, serve_forever


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_taken_port_is_named(taken_port):
    with pytest.raises(PortInUseError, match=f"127.0.0.1:{taken_port} is in use"):
        check_port("127.0.0.1", taken_port)


def test_a_free_port_stays_free():
    check_port("127.0.0.1", 0)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(MachineError, match="cannot listen there"):
        check_port("192.0.2.1", 0)


@pytest.mark.anyio
async def test_serving_on_a_taken_port_fails(make_state, taken_port):
    with pytest.raises(PortInUseError):
        await serve_forever(make_state({"small": "http://127.0.0.1:1"}), host="127.0.0.1", port=taken_port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_returns_to_the_caller(make_state, number, monkeypatch):
    monkeypatch.setattr("llmtier.serve.run.settle_memory", lambda: None)  # this process is to test on
    state = make_state({"small": "http://127.0.0.1:1"})

    async def serve():
        pid = os.getpid()
        await serve_forever(state, host="127.0.0.1", port=0, on_ready=lambda _: os.kill(pid, number))
        return "cleaned up"

    assert "cleaned up" == run_in_loop(asyncio.wait_for(serve(), 10))
