"""Laws of how an engine's bytes are read, over a transport that is none."""

import asyncio

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmtier.serve.http_answer import UpstreamBrokenError
from tests.serve.http_line import Line, cut


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=8).map(lambda word: b"x-" + word.encode())
VALUE = st.text("abc 0123=;,/", min_size=1, max_size=20).map(lambda text: text.strip().encode() or b"v")
BODY = st.binary(max_size=400)


@st.composite
def responses(draw, framings=("length", "chunked", "eof")):
    """Return (bytes, status, headers, body, framing) of a valid response."""
    framing = draw(st.sampled_from(framings))
    status = draw(st.sampled_from([200, 201, 400, 404, 429, 500, 503]))
    headers = draw(st.lists(st.tuples(TOKEN, VALUE), max_size=4))
    body = draw(BODY)
    chunks = [body]
    if framing == "length":
        headers.append((b"Content-Length", b"%d" % len(body)))
    elif framing == "chunked":
        headers.append((b"Transfer-Encoding", b"chunked"))
        chunks = cut(body, draw(st.lists(st.integers(0, 400), max_size=6)))
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2))
    lines = [b"%b: %b\r\n" % header for header in headers]
    head = b"HTTP/1.1 %d Said\r\n" % status + b"".join(lines) + b"\r\n"
    if framing == "chunked":
        trailers = draw(st.sampled_from([b"", b"x-sum: 1\r\n"]))
        body_bytes = b"".join(b"%x;a=b\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)
        body_bytes += b"0\r\n" + trailers + b"\r\n"
    else:
        body_bytes = body
    return interim + head + body_bytes, status, [(name.lower(), value) for name, value in headers], body, framing


CUTS = st.lists(st.integers(0, 1200), max_size=12)


@given(response=responses(), places=CUTS)
def test_an_answer_does_not_depend_on_how_its_bytes_are_cut(loop, response, places):
    data, status, headers, body, framing = response
    line = Line(loop)

    for piece in cut(data, places):
        line.feed(piece)

    assert (framing != "eof") == bool(line.pool.free)
    line.end()
    assert line.failure is None
    assert (status, headers, body) == (line.answer.status, line.answer.headers, b"".join(line.pieces))


@given(response=responses(), places=CUTS, n_first=st.integers(0, 12))
def test_a_late_reader_gets_the_same_body(loop, response, places, n_first):
    data, _, _, body, _ = response
    line = Line(loop)
    pieces = cut(data, places)

    for piece in pieces[:n_first]:
        if not line.transport.is_aborted:
            line.connection.data_received(piece)
    for piece in pieces[n_first:]:
        line.feed(piece)
    line.end()

    assert line.failure is None
    assert body == b"".join(line.pieces)


@given(response=responses(framings=("length", "chunked")), places=CUTS, n_kept=st.integers(0, 1200))
def test_a_cut_answer_is_broken_and_its_bytes_are_a_prefix(loop, response, places, n_kept):
    data, _, _, body, _ = response
    n_kept %= len(data)
    line = Line(loop)

    for piece in cut(data[:n_kept], places):
        if piece:
            line.feed(piece)
    line.end()

    assert isinstance(line.failure, UpstreamBrokenError)
    assert (n_kept > 0) == line.failure.had_bytes
    assert body.startswith(b"".join(line.pieces))
    assert not line.pool.free


EXTRA = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"H", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno"]),
)


@given(response=responses(framings=("length", "chunked")), extra=EXTRA, places=CUTS)
def test_bytes_after_the_end_cost_the_connection_not_the_answer(loop, response, extra, places):
    assume(extra.strip(b"\r\n"))  # empty lines between two answers say nothing
    data, _, _, body, _ = response
    line = Line(loop)

    for piece in cut(data + extra, places):
        line.feed(piece)
    line.end()

    assert line.failure is None
    assert body == b"".join(line.pieces)
    assert line.transport.is_aborted


@given(garbage=st.binary(min_size=1, max_size=200), places=CUTS)
def test_random_bytes_are_a_broken_answer(loop, garbage, places):
    line = Line(loop)

    for piece in cut(garbage, places):
        line.feed(piece)
    line.end()

    assert isinstance(line.failure, UpstreamBrokenError)
    assert line.transport.is_aborted
    assert not line.pool.free


@given(response=responses(), noise=st.binary(min_size=1, max_size=12), at=st.integers(0, 600), places=CUTS)
def test_damage_ends_an_answer_and_raises_nothing_else(loop, response, noise, at, places):
    data = response[0]
    line = Line(loop)

    for piece in cut(data[:at] + noise + data[at + len(noise) :], places):
        line.feed(piece)
    line.end()

    assert line.failure is None or isinstance(line.failure, UpstreamBrokenError)
    assert line.answer.head.done()
