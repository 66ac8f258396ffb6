"""What an engine is found to understand: a mock as it is, without chat, without usage, with its own idea of lengths."""

import json
from contextlib import asynccontextmanager

import pytest

from llmtier.core.errors import EngineRequestError, InputFileError
from llmtier.engine.load_client import LoadClient
from llmtier.engine.loopback import serving
from llmtier.engine.mock import mock_app, running_app
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.profile.probe import probe_engine
from llmtier.profile.synthetic import PROBE_WORDS
from llmtier.profile.workload import CHAT_PATH, COMPLETION_PATH, RequestStyle

pytestmark = pytest.mark.anyio

FAST = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0)


async def probe(settings):
    async with running_app(mock_app(settings)) as url, LoadClient(url, timeout_s=5) as client:
        return await probe_engine(client, "mock", seed=0)


class Script:
    """An engine that answers each request from ``answer(path, body) -> (status, events or message)``."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    async def __call__(self, scope, receive, send):
        assert "http" == scope["type"]
        body, is_more = b"", True
        while is_more:
            message = await receive()
            body, is_more = body + message["body"], message["more_body"]
        document = json.loads(body)
        self.asked.append((scope["path"], document))
        status, content = self.answer(scope["path"], document)
        text = (
            "".join(f"data: {json.dumps(event)}\n\n" for event in content) + "data: [DONE]\n\n"
            if status == 200
            else json.dumps({"error": {"message": content}})
        )
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})


@asynccontextmanager
async def scripted(answer):
    script = Script(answer)
    async with serving(script) as url, LoadClient(url, timeout_s=5) as client:
        yield script, client


def events(path, body, *, has_usage=True, tokens_per_word=1, fixed=0):
    """Return a stream that says ``x`` as often as asked, its prompt counted in words."""
    is_chat = path == CHAT_PATH
    text = body["messages"][0]["content"] if is_chat else body["prompt"]
    n_output = body["max_tokens"]
    part = {"delta": {"content": "x"}} if is_chat else {"text": "x"}
    stream = [{"choices": [{"index": 0, **part}]} for _ in range(n_output)]
    usage = {"prompt_tokens": tokens_per_word * len(text.split()) + fixed, "completion_tokens": n_output}
    return [*stream, {"choices": [], "usage": usage}] if has_usage else stream


async def test_a_mock_is_asked_by_chat_for_exact_lengths_of_one_token_per_word():
    manners = await probe(FAST)

    assert RequestStyle(is_chat=True, accepts_ignore_eos=True) == manners.style
    assert pytest.approx(1.0) == manners.budget.tokens_per_word
    assert pytest.approx(0.0, abs=1e-9) == manners.budget.tokens_fixed


async def test_answers_that_end_where_they_like_are_no_exact_lengths():
    """The engine takes ``ignore_eos`` and ignores it."""
    async with scripted(lambda path, body: (200, events(path, {**body, "max_tokens": 1}))) as (_, client):
        manners = await probe_engine(client, "m", seed=0)

    assert RequestStyle(is_chat=True, accepts_ignore_eos=False) == manners.style


async def test_a_chat_template_and_a_fine_tokenizer_are_budgeted():
    async with scripted(lambda path, body: (200, events(path, body, tokens_per_word=3, fixed=17))) as (_, client):
        manners = await probe_engine(client, "m", seed=0)

    assert pytest.approx(3.0) == manners.budget.tokens_per_word
    assert pytest.approx(17.0) == manners.budget.tokens_fixed
    assert 317 == manners.budget.n_tokens(100)


async def test_an_engine_without_chat_gets_raw_completions():
    def answer(path, body):
        return (200, events(path, body)) if path == COMPLETION_PATH else (404, "no chat template")

    async with scripted(answer) as (script, client):
        manners = await probe_engine(client, "m", seed=0)

    assert RequestStyle(is_chat=False, accepts_ignore_eos=True) == manners.style
    assert {COMPLETION_PATH} == {path for path, _ in script.asked[1:]}


async def test_an_engine_that_refuses_unknown_fields_is_not_sent_them():
    def answer(path, body):
        return (400, "unknown field ignore_eos") if "ignore_eos" in body else (200, events(path, body))

    async with scripted(answer) as (script, client):
        manners = await probe_engine(client, "m", seed=0)

    assert RequestStyle(is_chat=True, accepts_ignore_eos=False) == manners.style
    assert len(PROBE_WORDS) == sum("ignore_eos" not in body for _, body in script.asked[2:])


async def test_the_model_is_named_and_usage_asked_for():
    async with scripted(lambda path, body: (200, events(path, body))) as (script, client):
        await probe_engine(client, "the-model", seed=0)

    assert all("the-model" == body["model"] for _, body in script.asked)
    assert all({"include_usage": True} == body["stream_options"] for _, body in script.asked)


async def test_without_usage_no_length_can_be_asked_for():
    async with scripted(lambda path, body: (200, events(path, body, has_usage=False))) as (_, client):
        with pytest.raises(InputFileError, match="reports no usage"):
            await probe_engine(client, "m", seed=0)


async def test_usage_that_does_not_grow_with_the_prompt_is_refused():
    """Such as an engine that counts only what its prefix cache did not hold."""
    async with scripted(lambda path, body: (200, events(path, body, tokens_per_word=0, fixed=9))) as (_, client):
        with pytest.raises(InputFileError, match="do not grow"):
            await probe_engine(client, "m", seed=0)


async def test_an_engine_that_answers_nothing_names_both_failures():
    with pytest.raises(EngineRequestError, match=r"neither chat nor raw completions: .*503.*503"):
        await probe(MockSettings(faults=(Fault(kind=FaultKind.REFUSE),)))


async def test_a_probe_that_fails_says_which():
    faults = (Fault(kind=FaultKind.ERROR, on_nth_request=4),)

    with pytest.raises(EngineRequestError, match=f"a probe of {PROBE_WORDS[1]} words failed: .*500") as caught:
        await probe(MockSettings(alpha_s=0.0, faults=faults))

    assert 500 == caught.value.status


async def test_two_engines_are_asked_the_same_under_one_seed():
    asked = []
    for seed in (3, 3, 4):
        async with scripted(lambda path, body: (200, events(path, body))) as (script, client):
            await probe_engine(client, "m", seed=seed)
        asked.append(script.asked)

    assert asked[0] == asked[1] != asked[2]


async def test_short_context_is_probed_with_short_prompts():
    found = await probe(MockSettings(alpha_s=0.0, sequence_s=0.0, context_tokens=32))

    assert pytest.approx(1.0) == found.budget.tokens_per_word


async def test_engine_without_room_for_two_lengths_is_refused():
    with pytest.raises(EngineRequestError, match="refuses a prompt of 4 words"):
        await probe(MockSettings(alpha_s=0.0, sequence_s=0.0, context_tokens=4))
