"""The body: what routing reads of it, and that the rest reaches the engine as it came."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmtier.serve.caps import Caps, make_readers
from llmtier.serve.needs import Stated
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.wire import Endpoint, decode_request

HELLO = [{"role": "user", "content": "hello there"}]


COMPACT = (",", ":")


def decode(body, endpoint=Endpoint.CHAT):
    return decode_request(endpoint, json.dumps(body).encode())


def refusal(body, endpoint=Endpoint.CHAT):
    with pytest.raises(RequestRefusedError) as caught:
        decode(body, endpoint)
    return caught.value


def test_reads_the_fields_that_routing_needs():
    request = decode({"model": "auto", "messages": HELLO, "stream": True, "max_tokens": 5, "temperature": 0.5})

    assert ("auto", True, False, 5) == (request.model, request.is_stream, request.wants_usage, request.max_tokens)
    assert "hello there" == request.messages[0].content


def test_newer_name_of_the_length_limit_wins():
    request = decode({"model": "auto", "messages": HELLO, "max_tokens": 5, "max_completion_tokens": 7})

    assert 7 == request.max_tokens


def test_joins_the_text_parts_of_a_message():
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "text", "text": "b"},
    ]

    assert "a\nb" == decode({"model": "m", "messages": [{"role": "user", "content": parts}]}).messages[0].content


@pytest.mark.parametrize(("prompt", "n_tokens"), [([1, 2, 3], 3), ([[1, 2], [3, 4, 5, 6]], 4), ("x" * 60, 10)])
def test_counts_prompt_tokens_of_completions(prompt, n_tokens):
    request = decode({"model": "m", "prompt": prompt, "max_tokens": 2}, Endpoint.COMPLETIONS)

    assert n_tokens + 2 == request.context_tokens


def test_token_ids_are_no_text_to_score():
    request = decode({"model": "m", "prompt": [1, 2, 3]}, Endpoint.COMPLETIONS)

    assert request.to_prompt("id", domain=None) is None
    assert 64 == len(request.prompt_sha256)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
READ = {"model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n"}
LOOKED_INTO = READ | {"input", "instructions", "llmtier", *make_readers(Caps())}


plain_words = st.text(alphabet="amodel_-.é:,{}", max_size=6)


@st.composite
def written_bodies(draw, words):
    """A chat body and its bytes, its members in any order, spaced in any of the ways that clients write."""
    others = draw(st.dictionaries(words.filter(lambda key: key not in LOOKED_INTO), json_values, max_size=4))
    members = {**others, "tools": [{"model": "auto"}], "messages": HELLO, "model": draw(words)}
    members |= draw(st.sampled_from([{}, {"stream": True}, {"stream": False}, {"stream": None}]))
    body = dict(draw(st.permutations(list(members.items()))))
    style = draw(st.sampled_from([{}, {"separators": COMPACT}, {"indent": 2}, {"separators": (" , ", "\t:\r\n")}]))
    text = json.dumps(body, ensure_ascii=draw(st.booleans()), **style)
    return body, draw(st.sampled_from(["", " ", "\n\t"])).join(("", text, "")).encode(errors="surrogatepass")


@given(written_bodies(st.text()), st.text(alphabet=st.characters(codec="utf-8")))
def test_forwards_everything_but_the_model(written, model):
    body, data = written

    forwarded = decode_request(Endpoint.CHAT, data).forwarded(model)

    expected = {**body, "model": model}
    if body.get("stream"):
        expected["stream_options"] = {"include_usage": True}
    assert expected == json.loads(forwarded)


@given(written_bodies(plain_words))
def test_bytes_outside_of_the_edits_are_the_clients(written):
    body, data = written
    assume(
        all(key.isascii() or json.dumps(key).encode() not in data for key in body)
    )  # those with escapes are not kept
    key_at, value_at, end = find_model(data)
    usage = b'"stream_options":{"include_usage":true}'

    forwarded = decode_request(Endpoint.CHAT, data).forwarded("tier")

    in_place, after = data[key_at:value_at] + b'"tier"', data[end:]
    if not body.get("stream"):
        assert data[:key_at] + in_place + after == forwarded
    else:
        assert forwarded in {
            data[:key_at] + usage + b"," + in_place + after,
            data[:key_at] + in_place + after[:-1] + b"," + usage + b"}",  # where no blank stands between members
        }


def find_model(data):
    """Return where the top-level model's key, value and the end of that lie, by a decoder of another make."""
    text, decoder = data.decode(), json.JSONDecoder()
    at = text.index("{") + 1
    while True:
        at += len(text[at:]) - len(text[at:].lstrip(", \t\r\n"))
        key_at = at
        key, at = decoder.raw_decode(text, at)
        at += len(text[at:]) - len(text[at:].lstrip(": \t\r\n"))
        value_at = at
        _, at = decoder.raw_decode(text, at)
        if key == "model":
            return tuple(len(text[:place].encode()) for place in (key_at, value_at, at))


def test_values_are_carried_over_byte_for_byte():
    body = b'{"model":"auto", "messages":[ {"role":"user","content":"\\u00e9\\/ \xc3\xa9"} ], "seed": 1.0e2}'

    forwarded = decode_request(Endpoint.CHAT, body).forwarded("m")

    assert body.replace(b'"auto"', b'"m"') == forwarded


@pytest.mark.parametrize(
    "body",
    [
        b'{"mod\\u0065l": "a", "messages": [{"role": "user", "content": "x"}], "user": {"model": "a"}}',
        b'{"model": "a", "messages": [{"role": "user", "content": "x"}], "mod\\u0065l": "a"}',
        b'{"model": "a", "messages": [{"role": "user", "content": "x"}], "model": "a"}',
        b'{"model": "b", "n": {"x":1, "messages": 2}, "model": "a", "messages": [{"role": "user", "content": "x"}], "n": 1}',
        b'{"model": "a", "n": 1, "messages": [{"role": "user", "content": "x"}], "n": 8}',
    ],
)
def test_what_is_not_plain_is_written_anew_each_key_once(body):
    request = decode_request(Endpoint.CHAT, body)

    forwarded = json.loads(request.forwarded("m"), object_pairs_hook=list)

    assert "a" == request.model
    assert sorted(json.loads(body)) == sorted(key for key, _ in forwarded)
    assert {**json.loads(body), "model": "m"} == json.loads(request.forwarded("m"))


@given(
    data=st.lists(
        st.sampled_from(
            [
                b"{",
                b"}",
                b'"model":',
                b'"model": ',
                b'"a"',
                b'"b"',
                b",",
                b", ",
                b'"n":',
                b'"n": ',
                b"1",
                b"12",
                b'"messages":[{"role":"user","content":""}]',
                b'"x":',
                b'"mod\\u0065l":',
                b'"',
                b'{"model":"a"}',
            ]
        ),
        max_size=14,
    ).map(b"".join)
)
def test_no_arrangement_of_members_lets_engine_and_gateway_read_two_requests(data):
    try:
        request = decode_request(Endpoint.CHAT, data)
    except RequestRefusedError:
        return

    pairs = json.loads(request.forwarded("m"), object_pairs_hook=list)

    assert len(dict(pairs)) == len(pairs)
    assert {**json.loads(data), "model": "m"} == json.loads(request.forwarded("m"))


def test_a_key_given_twice_is_forwarded_once():
    body = b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}],"n":1,"n":2}'

    request = decode_request(Endpoint.CHAT, body)

    assert "b" == request.model
    assert b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":2}' == request.forwarded("m")


def test_other_stream_options_survive():
    body = {"model": "m", "messages": HELLO, "stream": True, "stream_options": {"continuous_usage_stats": False}}

    options = json.loads(decode(body).forwarded("m"))["stream_options"]

    assert {"continuous_usage_stats": False, "include_usage": True} == options


def test_a_client_that_asks_for_usage_is_left_alone():
    body = {"model": "m", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}

    assert decode(body).wants_usage
    assert body == json.loads(decode(body).forwarded("m"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"\xff":1}',
        b'{"model":1,"messages":[{"role":"user"}]}',
        b'{"model":"m"}',
        b'{"model":"m","messages":[]}',
        b'{"model":"m","messages":[{"content":"x"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user"}],"max_tokens":-1}',
        b'{"model":"m","messages":[{"role":"user"}],"max_tokens":1e999}',
        b'{"model":"m","messages":[{"role":"user"}],"n":0}',
        b'{"model":"m","messages":[{"role":"user"}],"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_refuses_junk(body):
    with pytest.raises(RequestRefusedError) as caught:
        decode_request(Endpoint.CHAT, body)

    assert 400 == caught.value.status


@pytest.mark.parametrize("prompt", [None, "", []])
def test_refuses_an_empty_prompt(prompt):
    with pytest.raises(RequestRefusedError, match="prompt must not be empty"):
        decode({"model": "m", "prompt": prompt}, Endpoint.COMPLETIONS)


@given(
    endpoint=st.sampled_from(Endpoint),
    body=st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(sorted(LOOKED_INTO)), json_values, max_size=8).map(
        lambda fields: json.dumps(fields).encode()
    ),
)
def test_any_body_is_decoded_or_refused(endpoint, body):
    try:
        request = decode_request(endpoint, body)
    except RequestRefusedError:
        return

    assert "m" == json.loads(request.forwarded("m"))["model"]
    assert 64 == len(request.prompt_sha256)


def test_the_bodys_own_needs_are_read_and_go_no_further():
    body = {"llmtier": {"accuracy": 0.9, "ttft_ms": 400, "class": "chat"}, "model": "auto", "messages": HELLO}

    request = decode(body)

    assert Stated(accuracy=0.9, ttft_ms=400.0, slo_class="chat") == request.stated
    assert {"model": "m", "messages": HELLO} == json.loads(request.forwarded("m"))


@pytest.mark.parametrize(
    "needs",
    [{"accuracy": 1.1}, {"ttft": 4}, {"ttft_ms": -1}, {"ttft_ms": "4"}, {"class": "a b"}, {"domain": "a\n"}, [], 3],
)
def test_refuses_needs_that_cannot_be_meant(needs):
    assert "llmtier" == refusal({"llmtier": needs, "model": "m", "messages": HELLO}).param


def test_refuses_infinite_needs():
    body = b'{"model":"m","messages":[{"role":"user"}],"llmtier":{"max_usd":1e999}}'

    with pytest.raises(RequestRefusedError, match="llmtier"):
        decode_request(Endpoint.CHAT, body)


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
def test_streams_ask_for_usage_once(endpoint, options):
    body = {"model": "m", "messages": HELLO, "prompt": "x", "stream": True, "stream_options": options}

    request = decode(body, endpoint)

    assert not request.wants_usage
    assert {**body, "stream_options": {"include_usage": True}} == json.loads(request.forwarded("m"))


def test_streams_of_responses_tell_usage_anyway():
    body = {"model": "m", "input": "hello", "stream": True}

    request = decode(body, Endpoint.RESPONSES)

    assert (True, True) == (request.is_stream, request.wants_usage)
    assert body == json.loads(request.forwarded("m"))


def test_reads_a_response_request():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "42"},
        {"type": "message", "role": "assistant", "content": "c"},
    ]
    body = {"model": "m", "instructions": "be brief", "input": items, "max_output_tokens": 9}

    request = decode(body, Endpoint.RESPONSES)

    assert [("system", "be brief"), ("user", "a\nb"), ("tool", "42"), ("assistant", "c")] == [
        (message.role, message.content) for message in request.messages
    ]
    assert (9, None) == (request.max_tokens, request.needs_pin)


@pytest.mark.parametrize("field", ["previous_response_id", "conversation"])
def test_what_one_engine_keeps_needs_its_tier_named(field):
    assert field in decode({"model": "m", "input": "x", field: "resp_1"}, Endpoint.RESPONSES).needs_pin
    assert decode({"model": "m", "input": "x", field: None}, Endpoint.RESPONSES).needs_pin is None


@pytest.mark.parametrize(
    ("given_input", "n_tokens"), [("x" * 60, 10), (["x" * 60, "y" * 6], 10), ([1, 2, 3], 3), ([[1], [2, 3]], 2)]
)
def test_reads_what_is_to_be_embedded(given_input, n_tokens):
    body = {"model": "m", "input": given_input, "encoding_format": "float"}

    request = decode(body, Endpoint.EMBEDDINGS)

    assert (n_tokens, False) == (request.context_tokens, request.is_stream)
    assert "vectors" in request.needs_pin
    assert {**body, "model": "t"} == json.loads(request.forwarded("t"))


@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, Endpoint.RESPONSES])
@pytest.mark.parametrize("nothing", [None, "", []])
def test_refuses_empty_input(endpoint, nothing):
    assert "input" == refusal({"model": "m", "input": nothing}, endpoint).param


def test_a_fail_over_names_another_model_in_the_same_body():
    request = decode({"model": "auto", "messages": HELLO, "stream": True})

    first, second = request.forwarded("small"), request.forwarded("large")

    assert first.replace(b'"small"', b'"large"') == second
