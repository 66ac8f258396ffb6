"""The body: what routing reads of it, and that the rest reaches the engine as it came."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.wire import Endpoint, decode_request

HELLO = [{"role": "user", "content": "hello there"}]


def decode(body, endpoint=Endpoint.CHAT):
    return decode_request(endpoint, json.dumps(body).encode())


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
        {"type": "image_url", "image_url": {"url": "x"}},
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


@given(
    extra=st.dictionaries(st.text().filter(lambda key: key not in READ), json_values, max_size=4), stream=st.booleans()
)
def test_forwards_everything_but_the_model(extra, stream):
    body = {"tools": [{"model": "auto"}], **extra, "model": "auto", "messages": HELLO, "stream": stream}

    forwarded = json.loads(decode(body).forwarded('tier "x"'))

    expected = {**body, "model": 'tier "x"'}
    if stream:
        expected["stream_options"] = {"include_usage": True}
    assert expected == forwarded


def test_values_are_carried_over_byte_for_byte():
    body = b'{"model":"auto", "messages":[ {"role":"user","content":"\\u00e9\\/ \xc3\xa9"} ], "seed": 1.0e2}'

    forwarded = decode_request(Endpoint.CHAT, body).forwarded("m")

    assert b'{"model":"m","messages":[ {"role":"user","content":"\\u00e9\\/ \xc3\xa9"} ],"seed":1.0e2}' == forwarded


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
    | st.dictionaries(st.sampled_from(sorted(READ)), json_values, max_size=8).map(lambda d: json.dumps(d).encode()),
)
def test_any_body_is_decoded_or_refused(endpoint, body):
    try:
        request = decode_request(endpoint, body)
    except RequestRefusedError:
        return

    assert "m" == json.loads(request.forwarded("m"))["model"]
    assert 64 == len(request.prompt_sha256)
