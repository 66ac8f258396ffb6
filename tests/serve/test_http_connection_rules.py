"""Single rules of how an engine's bytes are read and its answers end."""

import asyncio

import pytest

from llmtier.serve.http_answer import UpstreamBrokenError
from llmtier.serve.http_connection import MAX_HEAD_BYTES
from tests.serve.http_line import OK, Line, cut


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_end_with_their_head(loop, status):
    line = Line(loop)

    line.feed(b"HTTP/1.1 %d Said\r\netag: 1\r\n\r\n" % status)

    assert line.ended.done()
    assert [line.connection] == line.pool.free


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n",
    ],
)
def test_a_connection_that_is_to_be_closed_is_not_kept(loop, head):
    line = Line(loop)

    line.feed(head + b"ok")

    assert line.failure is None
    assert line.pieces == [b"ok"]
    assert line.transport.is_aborted
    assert not line.pool.free


def test_switching_protocols_is_broken(loop):
    line = Line(loop)

    line.feed(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n\x00\x00")

    assert isinstance(line.failure, UpstreamBrokenError)


@pytest.mark.parametrize("coding", [b"gzip", b"chunked, gzip"])
def test_a_foreign_coding_ends_with_the_connection(loop, coding):
    line = Line(loop)

    line.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: %b\r\n\r\nabc" % coding)
    line.end()

    assert line.failure is None
    assert line.pieces == [b"abc"]


def test_chunks_under_another_coding_are_chunks(loop):
    line = Line(loop)

    line.feed(OK + b"transfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n")
    line.end()

    assert isinstance(line.failure, UpstreamBrokenError)
    assert line.pieces == [b"abc"]


def test_a_connection_lost_with_an_error_cuts_an_answer_that_ends_with_it(loop):
    line = Line(loop)

    line.feed(OK + b"\r\nabc")
    line.connection.connection_lost(ConnectionResetError("reset"))

    assert isinstance(line.failure, UpstreamBrokenError)


@pytest.mark.parametrize("n_reads", [1, 7])
@pytest.mark.parametrize(
    "data",
    [
        OK + b"x-long: " + b"a" * MAX_HEAD_BYTES + b"\r\ncontent-length: 2\r\n\r\nok",
        OK + b"".join(b"x-%d: a\r\n" % number for number in range(MAX_HEAD_BYTES // 8)) + b"\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD_BYTES // 20),
        OK + b"transfer-encoding: chunked\r\n\r\n0\r\nx-long: " + b"a" * MAX_HEAD_BYTES * 2,
        OK + b"transfer-encoding: chunked\r\n\r\n1;" + b"a" * MAX_HEAD_BYTES * 2,
    ],
    ids=["one header", "many headers", "interim", "trailer", "chunk extension"],
)
def test_headers_without_end_are_broken(loop, data, n_reads):
    line = Line(loop)

    for piece in cut(data, [len(data) * number // n_reads for number in range(n_reads)]):
        line.feed(piece)

    assert isinstance(line.failure, UpstreamBrokenError)
    assert line.transport.is_aborted


def test_a_body_longer_than_a_head_may_be_is_fine(loop):
    body = b"a" * MAX_HEAD_BYTES * 3
    line = Line(loop)

    line.feed(OK + b"content-length: %d\r\n\r\n" % len(body) + body)

    assert line.failure is None
    assert body == b"".join(line.pieces)


def test_only_bytes_in_a_row_count_as_headers_without_end(loop):
    line = Line(loop)
    line.feed(OK + b"transfer-encoding: chunked\r\n\r\n")
    extension = b"a" * (MAX_HEAD_BYTES // 2)

    for _ in range(4):
        line.feed(b"1;" + extension)
        line.feed(b"\r\na\r\n")
    line.feed(b"0\r\n\r\n")

    assert line.failure is None
    assert b"aaaa" == b"".join(line.pieces)


def test_the_chunks_of_one_read_come_in_one_call(loop):
    line = Line(loop)
    line.feed(OK + b"transfer-encoding: chunked\r\n\r\n")

    line.feed(b"2\r\nab\r\n2\r\ncd\r\n")
    line.feed(b"1\r\ne\r\n0\r\n\r\n")

    assert line.pieces == [b"abcd", b"e"]


def test_the_clock_of_the_last_bytes_is_kept(loop):
    line = Line(loop)

    line.now_s = 3.0
    line.feed(OK)
    assert line.answer.last_byte_s == 3.0
    line.now_s = 5.0
    line.feed(b"content-length: 1\r\n\r\n")

    assert line.answer.last_byte_s == 5.0


def test_a_taker_may_close_in_the_middle(loop):
    line = Line(loop)
    line.connection.data_received(OK + b"content-length: 4\r\n\r\n")

    ended = line.answer.pipe(lambda _: line.answer.close())
    line.connection.data_received(b"abcd")

    assert isinstance(ended.exception(), UpstreamBrokenError)
    assert line.transport.is_aborted
    assert not line.pool.free


def test_a_taker_that_ends_its_future_ends_the_delivery(loop):
    line = Line(loop)
    line.feed(OK + b"content-length: 9\r\n\r\n")

    line.ended.cancel()
    line.feed(b"abc")

    assert line.pieces == []
    assert line.transport.is_aborted


def test_closing_an_ended_answer_leaves_the_connection_to_the_next(loop):
    line = Line(loop)
    line.feed(OK + b"content-length: 0\r\n\r\n")

    later = line.connection.ask(b"POST / HTTP/1.1\r\n\r\n", b"")
    line.answer.close()
    line.answer.pause()
    line.connection.data_received(OK + b"content-length: 0\r\nretry-after: 3\r\ncontent-type: a/b; c\r\n\r\n")

    assert not line.transport.is_aborted
    assert not line.transport.is_paused
    assert later.head.done()
    assert (later.retry_after, later.content_type) == (b"3", b"a/b; c")


def test_a_paused_answer_that_ends_leaves_the_connection_reading(loop):
    line = Line(loop)
    line.connection.data_received(OK + b"content-length: 4\r\n\r\n")
    line.answer.pipe(lambda _: line.answer.pause())

    line.connection.data_received(b"abcd")

    assert [line.connection] == line.pool.free
    assert not line.transport.is_paused


def test_an_unread_body_stops_the_reading_until_somebody_asks(loop):
    line = Line(loop)
    piece = b"a" * 200_000
    line.connection.data_received(OK + b"content-length: 600000\r\n\r\n")

    line.connection.data_received(piece)
    assert not line.transport.is_paused
    line.connection.data_received(piece)
    assert line.transport.is_paused
    line.answer.pause()
    line.answer.resume()
    assert line.transport.is_paused
    line.pipe()

    assert not line.transport.is_paused
    line.connection.data_received(piece)
    assert [400_000, 200_000] == [len(taken) for taken in line.pieces]
    assert line.ended.done()


def test_asking_for_a_body_does_not_undo_a_pause(loop):
    line = Line(loop)
    line.connection.data_received(OK + b"content-length: 600000\r\n\r\n" + b"a" * 300_000)
    line.answer.pause()

    line.pipe()

    assert line.transport.is_paused
    line.answer.resume()
    assert not line.transport.is_paused


def test_an_answer_is_read_once(loop):
    line = Line(loop)
    line.feed(OK + b"content-length: 4\r\n\r\n")

    with pytest.raises(RuntimeError, match="once"):
        line.answer.pipe(line.pieces.append)


def test_a_large_body_waits_for_the_transport(loop):
    line = Line(loop)
    line.feed(OK + b"content-length: 0\r\n\r\n")
    body = bytes(range(256)) * 8192
    line.transport.written.clear()

    line.connection.pause_writing()
    line.connection.ask(b"head", body)
    assert line.transport.written == [b"head"]
    line.connection.resume_writing()

    assert b"head" + body == b"".join(line.transport.written)
    assert max(map(len, line.transport.written)) <= 256 * 1024


def test_an_answer_before_the_end_of_the_request_costs_the_connection(loop):
    line = Line(loop)
    line.feed(OK + b"content-length: 0\r\n\r\n")
    line.pool.free.clear()

    line.connection.pause_writing()
    answer = line.connection.ask(b"head", b"a" * 2_000_000)
    line.connection.data_received(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")

    assert answer.status == 413
    assert line.transport.is_aborted
    assert not line.pool.free


def test_a_whole_read_that_is_too_long_for_its_limit_breaks_though_it_is_all_there(loop):
    line = Line(loop)
    line.connection.data_received(OK + b"content-length: 4\r\n\r\nabcd")

    with pytest.raises(UpstreamBrokenError, match="longer than 3 bytes"):
        loop.run_until_complete(line.answer.read_whole(limit_bytes=3))
    assert [line.connection] == line.pool.free


def test_a_whole_read_that_grows_too_long_closes_the_connection(loop):
    line = Line(loop)
    line.connection.data_received(OK + b"\r\nab")
    loop.call_soon(line.connection.data_received, b"cd")

    with pytest.raises(UpstreamBrokenError, match="longer than 3 bytes"):
        loop.run_until_complete(line.answer.read_whole(limit_bytes=3))
    assert line.transport.is_aborted
    assert not line.pool.free


def test_a_whole_read_after_a_cut_is_broken(loop):
    line = Line(loop)
    line.connection.data_received(OK + b"content-length: 4\r\n\r\nab")
    line.connection.connection_lost(None)

    with pytest.raises(UpstreamBrokenError):
        loop.run_until_complete(line.answer.read_whole(limit_bytes=9))


def test_a_whole_read_holds_more_than_the_backlog_may(loop):
    line = Line(loop)
    line.connection.data_received(OK + b"content-length: 900000\r\n\r\n")
    line.connection.data_received(b"a" * 300_000)
    assert line.transport.is_paused
    loop.call_soon(line.connection.data_received, b"a" * 300_000)
    loop.call_soon(line.connection.data_received, b"a" * 300_000)

    assert loop.run_until_complete(line.answer.read_whole(limit_bytes=900_000)) == b"a" * 900_000
    assert not line.transport.is_paused


def test_a_taker_may_close_while_it_is_given_what_came_before(loop):
    line = Line(loop)
    line.connection.data_received(OK + b"content-length: 4\r\n\r\nab")

    ended = line.answer.pipe(lambda _: line.answer.close())

    assert isinstance(ended.exception(), UpstreamBrokenError)
    assert line.transport.is_aborted
