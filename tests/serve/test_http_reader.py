"""Requests out of bytes: any cut gives the same, faults stop everything, limits hold; without sockets."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmtier.serve.http_reader import BodyBudget, Phase, RequestReader
from llmtier.serve.http_request import ServerLimits

LIMITS = ServerLimits(head_bytes=4_096, body_bytes=100_000, buffered_bytes=1_000_000)
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def make_reader(**changes):
    limits = ServerLimits(**{**{name: getattr(LIMITS, name) for name in LIMITS.__slots__}, **changes})
    return RequestReader(limits, BodyBudget(limit_bytes=limits.buffered_bytes))


def feed_all(reader, pieces, now_s=1.0):
    """Feed pieces as a server does: what is left over goes in once the request before it is taken."""
    taken = []
    for piece in pieces:
        rest = piece
        while True:
            rest = reader.feed(rest, now_s)
            taken += reader.requests
            reader.requests.clear()
            if not rest or reader.fault or reader.is_ended:
                break
    return taken


def read(data, **changes):
    reader = make_reader(**changes)
    return feed_all(reader, [data]), reader.fault


def with_header(line, body=b""):
    return b"POST /a HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n" + body


def cut_at(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def test_a_request_is_read_whole_and_raw():
    head = b"POST /v1/%2e%2E//x?a=b?c HTTP/1.1\r\nHost: x\r\nX-Two:  one \t\r\nx-two: Two\r\nContent-Length: 3\r\n\r\n"

    (request,), fault = read(head + b"abc")

    assert fault is None
    assert ("POST", "/v1/%2e%2E//x", "a=b?c", b"abc") == (request.method, request.path, request.query, request.body)
    assert [(b"host", b"x"), (b"x-two", b"one"), (b"x-two", b"Two"), (b"content-length", b"3")] == request.headers
    assert b"one" == request.header(b"x-two")
    assert request.header(b"accept") is None
    assert request.is_keep_alive
    assert not request.is_http10


def test_the_clock_is_read_when_a_head_begins_and_a_body_ends():
    reader = make_reader()
    data = with_header(b"Content-Length: 2", b"ab")

    reader.feed(b"\r\n", 1.0)
    reader.feed(data[:5], 2.0)
    reader.feed(data[5:-1], 3.0)
    reader.feed(data[-1:], 4.0)

    assert (2.0, 4.0) == (reader.requests[0].received_s, reader.requests[0].complete_s)


MESSAGES = [
    (with_header(b"Content-Length: 11", b"hello world"), b"hello world"),
    (with_header(b"Content-Length: 30000", b"0123456789" * 3_000), b"0123456789" * 3_000),
    (CHUNKED + b"5\r\nhello\r\n006;a=b\r\n world\r\n0\r\nX-Trailer: y\r\n\r\n", b"hello world"),
    (CHUNKED + b"2710\r\n" + b"y" * 10_000 + b"\r\n0\r\n\r\n", b"y" * 10_000),
    (b"GET /?q HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n", b""),
    (with_header(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3", b"GET"), b"GET"),
    (CHUNKED[:-2] + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
    (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b""),
]


@given(
    chosen=st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=4),
    places=st.lists(st.integers(0, 1 << 20), max_size=12),
)
@example(chosen=[MESSAGES[2]], places=range(200))
def test_any_cut_gives_the_same_requests(chosen, places):
    data = b"".join(message for message, _ in chosen)
    expected, fault = read(data)

    reader = make_reader()
    got = feed_all(reader, cut_at(data, places))

    assert fault is None
    assert reader.fault is None
    assert [body for _, body in chosen] == [request.body for request in expected]
    assert expected == got
    assert Phase.IDLE is reader.phase


@given(
    prefix=st.sampled_from([b"", b"GET / HTTP/1.1\r\nHost: x\r\n", CHUNKED, with_header(b"Content-Length: 9")]),
    noise=st.binary(max_size=200) | st.text("0123456789abcdefGET/ :;\r\n\t\x00HTP.1", max_size=120).map(str.encode),
    places=st.lists(st.integers(0, 1 << 20), max_size=6),
)
def test_noise_gives_requests_or_one_fault_and_never_an_exception(prefix, noise, places):
    reader = make_reader()
    budget = reader._budget

    got = feed_all(reader, cut_at(prefix + noise, places))

    assert reader.fault is None or reader.fault.status in {400, 413, 417, 431, 501, 505}
    reader.close()
    assert sum(len(request.body) for request in got) == budget.n_bytes


SMUGGLING = {
    "CL.TE": with_header(b"Content-Length: 6\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "TE.CL": with_header(b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"0\r\n\r\n"),
    "TE.TE": with_header(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"0\r\n\r\n"),
    "TE.TE same": with_header(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    "TE list": with_header(b"Transfer-Encoding: chunked, identity", b"0\r\n\r\n"),
    "TE vertical tab": with_header(b"Transfer-Encoding: \x0bchunked", b"0\r\n\r\n"),
    "TE in 1.0": b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two CL": with_header(b"Content-Length: 0\r\nContent-Length: 5"),
    "two CL alike": with_header(b"Content-Length: 0\r\nContent-Length: 0"),
    "CL list": with_header(b"Content-Length: 0, 0"),
    "CL sign": with_header(b"Content-Length: +0"),
    "CL negative": with_header(b"Content-Length: -1"),
    "CL empty": with_header(b"Content-Length: "),
    "CL hex": with_header(b"Content-Length: 0x0"),
    "CL underscore": with_header(b"Content-Length: 1_0"),
    "CL overflow": with_header(b"Content-Length: 18446744073709551616"),
    "CL of zeros": with_header(b"Content-Length: " + b"0" * 5_000),
    **{
        f"chunk size {size!r}": CHUNKED + size + b"\r\nhello\r\n0\r\n\r\n"
        for size in (b"0x5", b"+5", b" 5", b"5 ", b"-5", b"", b"5_0", b"g", b"fffffffffffffffff", b"5;", b"5\n", b"\n5")
    },
    "LF in chunk extension": CHUNKED + b"5;a\nhello\r\n0\r\n\r\n",
    "LF in quoted chunk extension": CHUNKED + b'5;a="b\nc"\r\nhello\r\n0\r\n\r\n',
    "CR in chunk extension": CHUNKED + b"5;a=\rb\r\nhello\r\n0\r\n\r\n",
    "LF after chunk": CHUNKED + b"5\r\nhello\n0\r\n\r\n",
    "nothing after chunk": CHUNKED + b"5\r\nhello0\r\n\r\n",
    "LF for last CRLF": CHUNKED + b"0\r\n\n",
    "LF only": b"GET / HTTP/1.1\nHost: x\n\n",
    "LF after header": b"GET / HTTP/1.1\r\nHost: x\n\r\n",
    "LF ends head": b"GET / HTTP/1.1\r\nHost: x\r\n\n",
    "CR only": b"GET / HTTP/1.1\rHost: x\r\r",
    "folded header": with_header(b"X-A: b\r\n c"),
    "NUL in value": with_header(b"X-A: b\0c"),
    "NUL in name": with_header(b"X-\0A: b"),
    "control in value": with_header(b"X-A: b\x01c"),
    "CR in value": with_header(b"X-A: b\rc"),
    "CR in name": with_header(b"X-\rA: b"),
    "space before colon": with_header(b"Content-Length : 0"),
    "space before name": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "no name": with_header(b": b"),
    "no colon": with_header(b"Content-Length"),
    "no Host": b"GET / HTTP/1.1\r\nAccept: x\r\n\r\n",
    "two Hosts": with_header(b"Host: y"),
    "absolute form": b"GET http://x/admin HTTP/1.1\r\nHost: x\r\n\r\n",
    "authority form": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "authority as a path": b"CONNECT /a HTTP/1.1\r\nHost: x\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "fragment": b"GET /a#/b HTTP/1.1\r\nHost: x\r\n\r\n",
    "eight bits in target": b"GET /a\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "unknown method": b"SMUGGLE / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("data", SMUGGLING.values(), ids=SMUGGLING.keys())
@pytest.mark.parametrize("is_cut", [False, True])
def test_what_parsers_disagree_on_is_refused_with_all_that_follows(data, is_cut):
    reader = make_reader(head_bytes=10_000)
    sent = data + NEXT

    got = feed_all(reader, [sent[at : at + 1] for at in range(len(sent))] if is_cut else [sent])

    assert [] == got
    assert reader.fault is not None
    assert 400 == reader.fault.status


@pytest.mark.parametrize("encoding", [b"gzip, chunked", b"xchunked", b"identity", b"gzip"])
def test_other_encodings_are_not_implemented(encoding):
    got, fault = read(with_header(b"Transfer-Encoding: " + encoding, b"0\r\n\r\n") + NEXT)

    assert ([], 501) == (got, fault.status)


@pytest.mark.parametrize(
    "line", [b"GET / HTTP/2.0", b"GET / HTTP/1.2", b"GET / HTTP/3.0", b"GET / HTTP/0.9", b"PRI * HTTP/2.0"]
)
def test_other_versions_are_not_spoken(line):
    got, fault = read(line + b"\r\nHost: x\r\n\r\nSM\r\n\r\n")

    assert ([], 505) == (got, fault.status)


def test_a_huge_chunk_is_read_only_to_the_limit():
    reader = make_reader()

    got = feed_all(reader, [CHUNKED + b"ffffffffffffffff\r\n", *[b"x" * 10_000] * 11, NEXT])

    assert [] == got
    assert 413 == reader.fault.status
    assert 0 == reader._budget.n_bytes


def test_trailers_are_no_headers():
    (request,), _ = read(CHUNKED + b"0\r\nAuthorization: Bearer z\r\n\r\n")

    assert request.header(b"authorization") is None


@pytest.mark.parametrize(("n_bytes", "status"), [(100_000, None), (100_001, 413)])
def test_the_length_of_a_body_is_limited(n_bytes, status):
    declared = make_reader()
    counted = make_reader()

    declared.feed(with_header(b"Content-Length: %d" % n_bytes), 1.0)
    feed_all(counted, [CHUNKED, *[b"1\r\nx\r\n"] * n_bytes])

    assert status == (declared.fault and declared.fault.status)
    assert status == (counted.fault and counted.fault.status)


def test_a_declared_length_is_refused_before_the_client_is_asked_for_it():
    reader = make_reader()

    reader.feed(with_header(b"Content-Length: 100001\r\nExpect: 100-continue"), 1.0)

    assert 413 == reader.fault.status
    assert not reader.wants_continue


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize(("n_more", "is_refused"), [(0, False), (1, True)])
def test_the_length_of_a_head_is_limited_however_it_is_cut(is_cut, n_more, is_refused):
    value = b"v" * (LIMITS.head_bytes - len(b"/" + b"host" + b"x" + b"x-long") - 2 * 3 + n_more)
    data = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + value + b"\r\n\r\n"
    reader = make_reader()

    got = feed_all(reader, cut_at(data, range(0, len(data), 7)) if is_cut else [data])

    assert (0 if is_refused else 1) == len(got)
    assert (431 if is_refused else None) == (reader.fault and reader.fault.status)


@pytest.mark.parametrize(
    "start",
    [b"GET /", b"GET / HTTP/1.1\r\nX-A: ", b"GET / HTTP/1.1\r\nX-", CHUNKED + b"1;a=", CHUNKED + b"0\r\nX-A: "],
    ids=["target", "value", "name", "chunk extension", "trailer"],
)
def test_endless_lines_are_refused(start):
    reader = make_reader()

    for _ in range(5):
        reader.feed(start, 1.0)
        start = b"a" * 4_096

    assert 431 == reader.fault.status


def test_many_small_headers_are_refused():
    reader = make_reader()

    got = feed_all(reader, [b"GET / HTTP/1.1\r\nHost: x\r\n", *[b"a: b\r\n"] * 900, b"\r\n"])

    assert [] == got
    assert 431 == reader.fault.status


def test_bodies_of_all_readers_share_a_budget():
    budget = BodyBudget(limit_bytes=15)
    first, second = RequestReader(LIMITS, budget), RequestReader(LIMITS, budget)

    first.feed(with_header(b"Content-Length: 10", b"x" * 10), 1.0)
    second.feed(with_header(b"Content-Length: 10", b"x" * 9), 1.0)

    assert 503 == second.fault.status
    assert 10 == budget.n_bytes
    first.close()
    assert 0 == budget.n_bytes


@pytest.mark.parametrize(
    ("data", "late_s"), [(b"GET / HT", 10.0), (with_header(b"Content-Length: 2", b"a"), 30.0)], ids=["head", "body"]
)
def test_slow_requests_expire_by_their_first_byte(data, late_s):
    reader = make_reader()
    for at in range(len(data)):
        reader.feed(data[at : at + 1], 5.0 + 9.0 * at / len(data) if b"Content" not in data else 5.0)

    assert not reader.expire(5.0 + late_s)
    assert reader.expire(5.0 + late_s + 0.1)
    assert 408 == reader.fault.status


def test_an_idle_connection_does_not_expire():
    assert not make_reader().expire(1e9)


@pytest.mark.parametrize(
    ("line", "wants", "status"),
    [(b"Expect: 100-Continue", True, None), (b"Expect: 100-continue, x", False, 417)],
)
def test_expectations(line, wants, status):
    reader = make_reader()

    reader.feed(with_header(line + b"\r\nContent-Length: 2"), 1.0)

    assert wants == reader.wants_continue
    assert status == (reader.fault and reader.fault.status)
    if wants:
        reader.feed(b"a", 1.0)
        assert not reader.wants_continue


def test_http10_knows_no_continue():
    reader = make_reader()

    reader.feed(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", 1.0)

    assert reader.fault is None
    assert not reader.wants_continue


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"])
@pytest.mark.parametrize("follows", [NEXT, b"\x00\xff", b"\r\n"])
def test_nothing_is_read_after_a_last_request(head, follows):
    reader = make_reader()

    got = feed_all(reader, [head + follows, follows])

    assert ["/"] == [request.path for request in got]
    assert not got[0].is_keep_alive
    assert reader.is_ended
    assert reader.fault is None


def test_requests_before_a_fault_are_kept():
    got, fault = read(NEXT + b"\x00\x00")

    assert ["/smuggled"] == [request.path for request in got]
    assert 400 == fault.status


def test_few_requests_are_read_ahead():
    reader = make_reader()

    rest = reader.feed(NEXT * 5_000, 1.0)

    assert 1 == len(reader.requests)
    assert len(NEXT) * 4_999 == len(rest)


def test_a_read_request_is_not_kept_by_its_reader():
    reader = make_reader()
    feed_all(reader, [with_header(b"Content-Length: 50000", b"x" * 50_000)])

    assert not reader._pieces
    assert not reader._headers
    assert not reader._chunks


def test_bugs_in_callbacks_are_not_taken_for_bad_requests(monkeypatch):
    reader = make_reader()
    monkeypatch.setattr("llmtier.serve.http_reader._FRAMING", None)

    with pytest.raises(Exception, match="callback"):
        reader.feed(NEXT, 1.0)


def test_limits_must_be_above_zero():
    with pytest.raises(ValueError, match="head_s is 0"):
        ServerLimits(head_s=0)
