"""What a body may hold: bounds that name their field, and fields that are refused unless allowed."""

import json

import pytest

from llmtier.serve.caps import Caps
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.wire import BodyReader, Endpoint
from llmtier.store.permissions import Permission

HELLO = [{"role": "user", "content": "hello there"}]


def decode(body, endpoint=Endpoint.CHAT, **caps):
    return BodyReader(Caps(**caps)).read(endpoint, json.dumps(body).encode())


def refusal(body, endpoint=Endpoint.CHAT, **caps):
    with pytest.raises(RequestRefusedError) as caught:
        decode(body, endpoint, **caps)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"best_of": 9}, "best_of"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_completion_tokens": 101}, "max_completion_tokens"),
        ({"tools": [{}] * 3}, "tools"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"guided_regex": "a" * 513}, "guided_regex"),
        ({"structured_outputs": {"regex": "a" * 513}}, "structured_outputs"),
        ({"structured_outputs": {"json": "a" * 2000}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": "a" * 2000}}}, "response_format"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"n": True}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"model": None}, "model"),
    ],
)
def test_bounds_name_the_field_that_breaks_them(fields, param):
    body = {"model": "m", "messages": HELLO, **fields}

    refused = refusal(body, max_tokens=100, tools=2, schema_bytes=1000)

    assert (400, param) == (refused.status, refused.param)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 8, "max_tokens": 100, "tools": [{}, {}], "stop": "a" * 99, "logprobs": True, "top_logprobs": 20},
        {
            "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
            "structured_outputs": {"regex": "a"},
        },
        {"priority": None, "echo": True, "chat_template": None, "background": False},
        {"user": "u", "seed": 4, "min_p": 0.1, "brand_new_option": {"deep": [1]}},
    ],
)
def test_what_keeps_within_bounds_or_is_unknown_passes_untouched(fields):
    body = {"model": "auto", "messages": HELLO, **fields}

    forwarded = json.loads(decode(body, max_tokens=100, tools=2).forwarded("m"))

    assert {**body, "model": "m"} | ({} if "max_tokens" in fields else {"max_tokens": 100}) == forwarded


@pytest.mark.parametrize("field", sorted(set(Permission) - {Permission.ECHO, Permission.MEDIA_URLS}))
def test_what_can_hurt_an_engine_is_refused_unless_allowed_by_name(field):
    body = {"model": "m", "messages": HELLO, field.value: 1}

    refused = refusal(body)

    assert ("field_not_allowed", field.value) == (refused.code, refused.param)
    assert body == json.loads(decode(body, allowed=frozenset({field})).forwarded("m"))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
        {"type": "input_image", "image_url": "https://example.com/x.png"},
        {"type": "input_file", "file_url": "https://example.com/x.pdf"},
    ],
)
def test_no_engine_fetches_what_a_client_names(part):
    endpoint = (
        Endpoint.CHAT if isinstance(part.get("image_url", {}), dict) and "file_url" not in part else Endpoint.RESPONSES
    )
    turns = [{"role": "user", "content": [part]}]
    body = {"model": "m", "messages": turns, "input": turns}

    assert "field_not_allowed" == refusal(body, endpoint).code
    assert body == json.loads(decode(body, endpoint, allowed=frozenset({Permission.MEDIA_URLS})).forwarded("m"))


def test_a_cap_on_length_holds_where_the_client_sets_none():
    for endpoint, name in ((Endpoint.CHAT, "max_tokens"), (Endpoint.RESPONSES, "max_output_tokens")):
        body = {"model": "m", "messages": HELLO, "input": "x", "n": 2}
        request = decode(body, endpoint, max_tokens=50)

        assert (50, 2) == (request.max_tokens, request.n)
        assert {**body, name: 50} == json.loads(request.forwarded("m"))


def test_many_prompts_are_bounded():
    assert "prompt" == refusal({"model": "m", "prompt": ["a"] * 4}, Endpoint.COMPLETIONS, inputs=3).param
    assert "input" == refusal({"model": "m", "input": [[1]] * 4}, Endpoint.EMBEDDINGS, inputs=3).param
