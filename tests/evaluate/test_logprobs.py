"""Log probabilities are asked for, kept, and done without where an engine refuses them."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from typing_extensions import override

from llmtier.core.errors import EngineRequestError
from llmtier.engine.client import EngineClient
from llmtier.engine.clock import SystemClock
from llmtier.engine.mock import MockApp, running_app
from llmtier.engine.mock_settings import MockSettings
from llmtier.engine.mock_wire import RefusalError
from llmtier.evaluate.ask import ask_all
from llmtier.evaluate.logprobs import LogprobsClient

pytestmark = pytest.mark.anyio
FAST = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0, output_tokens=2)


class RefusingApp(MockApp):
    """Refuses ``logprobs`` as some servers do, and counts how often it had to."""

    status = 400
    n_refused = 0

    @override
    def _check(self, request):
        super()._check(request)
        if request.logprobs:
            self.n_refused += 1
            raise RefusalError("logprobs are not supported", status=self.status)


@asynccontextmanager
async def client_of(app, refusals):
    async with running_app(app) as base_url, EngineClient(base_url, model_name="mock") as client:
        yield LogprobsClient(client, on_refusal=refusals.append)


async def test_outcomes_carry_mean_and_least_logprob(make_prompts):
    refusals = []
    async with client_of(MockApp(FAST, clock=SystemClock()), refusals) as client:
        [outcome] = await ask_all(client, make_prompts(1), tier="t", concurrency=1, max_tokens=8)

    assert "word 0" == outcome.text
    assert outcome.min_logprob < outcome.mean_logprob < 0.0
    assert [] == refusals


async def test_without_asking_there_are_none(make_prompts):
    async with (
        running_app(MockApp(FAST, clock=SystemClock())) as base_url,
        EngineClient(base_url, model_name="mock") as client,
    ):
        [outcome] = await ask_all(client, make_prompts(1), tier="t", concurrency=1, max_tokens=8)

    assert (None, None) == (outcome.mean_logprob, outcome.min_logprob)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_refusal_is_noted_once_and_answers_still_come(make_prompts, status):
    app, refusals = RefusingApp(FAST, clock=SystemClock()), []
    app.status = status
    async with client_of(app, refusals) as client:
        outcomes = await ask_all(client, make_prompts(12), tier="t", concurrency=4, max_tokens=8)

    assert [f"word {index}" for index in range(12)] == [outcome.text for outcome in outcomes]
    assert all(outcome.mean_logprob is None for outcome in outcomes)
    assert 1 == len(refusals)
    assert "not supported" in str(refusals[0])
    assert app.n_refused <= 4  # those that were under way together


async def test_other_errors_are_no_refusal(make_prompts):
    app, refusals = RefusingApp(FAST, clock=SystemClock()), []
    app.status = 503
    async with client_of(app, refusals) as client:
        [outcome] = await ask_all(client, make_prompts(1), tier="t", concurrency=1, max_tokens=8)

    assert "503" in outcome.error
    assert [] == refusals


async def test_a_prompt_that_is_refused_for_itself_proves_nothing(make_prompts):
    """Too long a prompt answers 400 too: with and without; the next one is asked with log probabilities again."""
    refusals = []
    prompts = make_prompts(3)
    prompts[0] = replace(prompts[0], max_tokens=5000)
    app = MockApp(replace(FAST, context_tokens=100), clock=SystemClock())
    async with client_of(app, refusals) as client:
        long, *others = await ask_all(client, prompts, tier="t", concurrency=1, max_tokens=8)

    assert "context length" in long.error
    assert all(outcome.mean_logprob is not None for outcome in others)
    assert [] == refusals
    assert 4 == app.n_requests


async def test_after_an_answer_with_logprobs_a_400_is_the_prompts_own(make_prompts):
    prompts = make_prompts(2)
    prompts[1] = replace(prompts[1], max_tokens=5000)
    app = MockApp(replace(FAST, context_tokens=100), clock=SystemClock())
    async with client_of(app, []) as client:
        await client.stream_chat(prompts[0].messages, max_tokens=8)
        with pytest.raises(EngineRequestError, match="context length"):
            await client.stream_chat(prompts[1].messages, max_tokens=5000)

    assert 2 == app.n_requests
