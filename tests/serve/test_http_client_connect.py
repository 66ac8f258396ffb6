"""How the client of the engines finds and reaches them: names, ports, TLS, and what a URL may be."""

import asyncio
import socket
import ssl

import pytest

from llmtier.serve.http_client import UpstreamClient, UpstreamConnectError
from tests.serve.http_peers import OK, ask_whole, asking, saying, serving, silence, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_no_listener_is_a_connect_error():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        client = UpstreamClient(f"http://127.0.0.1:{probe.getsockname()[1]}")

        with pytest.raises(UpstreamConnectError, match=r"127\.0\.0\.1"):
            await client.send("/", b"{}")
        assert client.n_open == 0


async def test_an_unknown_name_is_a_connect_error():
    client = UpstreamClient("http://nowhere.invalid:1")

    with pytest.raises(UpstreamConnectError, match="nowhere"):
        await client.get("/")


async def test_a_slow_connection_is_a_connect_error_and_closed():
    async with serving(silence) as peer:  # it never says hello: TLS waits
        url = peer.url.replace("http:", "https:")
        async with asking(peer, url=url, connect_s=0.02) as client:
            with pytest.raises(UpstreamConnectError, match="slow"):
                await client.get("/")
            await peer.gone(1)


async def test_cancelling_while_connecting_closes_the_socket():
    async with serving(silence) as peer, asking(peer, url=peer.url.replace("http:", "https:")) as client:
        task = asyncio.create_task(client.get("/"))
        await until(lambda: peer.n_connections)

        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        await peer.gone(1)


def anonymous_tls(protocol):
    """Return a context that needs no certificate."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context


async def test_https_works():
    tls = anonymous_tls(ssl.PROTOCOL_TLS_CLIENT)
    async with serving(saying(OK), ssl=anonymous_tls(ssl.PROTOCOL_TLS_SERVER)) as peer, asking(peer, tls=tls) as client:
        assert await ask_whole(client, b"a" * 3_000_000) == b"ok"
        assert await ask_whole(client) == b"ok"

        assert peer.n_connections == 1


async def test_https_refuses_an_engine_without_a_certificate():
    async with serving(saying(OK), ssl=anonymous_tls(ssl.PROTOCOL_TLS_SERVER)) as peer, asking(peer) as client:
        with pytest.raises(UpstreamConnectError):
            await client.get("/")


async def test_ipv6_addresses_work():
    try:
        async with serving(saying(OK), host="::1") as peer, asking(peer) as client:
            assert await ask_whole(client) == b"ok"
            assert b"host: [::1]:" in peer.requests[0][0]
    except OSError:
        pytest.skip("this machine has no IPv6")


async def test_small_writes_are_not_delayed():
    async with serving(saying(OK)) as peer, asking(peer) as client:
        await ask_whole(client)

        peer_socket = client._idle[0]._transport.get_extra_info("socket")
        assert peer_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "ftp://h", "http://", "http://u:p@h", "http://h/?a", "http://h/#a", "http://h:99999"]
)
async def test_a_base_url_that_cannot_be_meant_is_refused(url):
    with pytest.raises(ValueError, match=r"URL|Port"):
        UpstreamClient(url)


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("http://h", "h"),
        ("http://h:80/x", "h"),
        ("https://h:443", "h"),
        ("https://h:80", "h:80"),
        ("http://[::1]:8", "[::1]:8"),
        ("http://[fe80::1%25eth0]", "[fe80::1]"),
        ("http://bücher.example", "xn--bcher-kva.example"),
    ],
)
async def test_the_host_field_follows_the_url(url, field):
    assert field == UpstreamClient(url)._host_field


@pytest.mark.parametrize("path", ["", "v1", "/a b", "/a\r\nx: y", "/é"])
async def test_a_path_that_would_break_the_head_is_refused(path):
    with pytest.raises(ValueError, match="no path"):
        await UpstreamClient("http://h").get(path)
