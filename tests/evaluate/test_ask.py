"""Asking a mock engine: order, scores, failures as outcomes, and an engine that is down."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from llmtier.core.errors import EngineRequestError
from llmtier.engine.client import EngineClient
from llmtier.engine.mock import running_mock
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.evaluate.ask import ask_all

FAST = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0, output_tokens=2)


@asynccontextmanager
async def client_of(settings):
    async with running_mock(settings) as base_url, EngineClient(base_url, model_name="mock") as client:
        yield client


@pytest.mark.anyio
async def test_outcomes_come_in_prompt_order_with_scores(make_prompts):
    prompts = make_prompts(12, answers=[f"word {index}" if index % 3 else "other" for index in range(12)])

    async with client_of(FAST) as client:
        outcomes = await ask_all(client, prompts, tier="t", concurrency=5, max_tokens=8)

    assert [prompt.id for prompt in prompts] == [outcome.prompt_id for outcome in outcomes]
    assert [float(index % 3 > 0) for index in range(12)] == [outcome.score for outcome in outcomes]
    assert all(outcome.tier == "t" and outcome.error is None for outcome in outcomes)
    assert all(outcome.n_output_tokens == 2 and outcome.n_input_tokens == 2 for outcome in outcomes)
    assert all(outcome.ttft_s is not None and outcome.ttft_s <= outcome.e2el_s for outcome in outcomes)


@pytest.mark.anyio
async def test_unlabelled_prompts_have_text_but_no_score(make_prompts):
    async with client_of(FAST) as client:
        [outcome] = await ask_all(client, make_prompts(1), tier="t", concurrency=1, max_tokens=8)

    assert "word 0" == outcome.text
    assert outcome.score is None


@pytest.mark.anyio
async def test_a_prompt_may_name_its_own_max_tokens(make_prompts):
    prompts = make_prompts(2)
    prompts[1] = replace(prompts[1], max_tokens=1)

    async with client_of(replace(FAST, output_tokens=None)) as client:
        outcomes = await ask_all(client, prompts, tier="t", concurrency=1, max_tokens=3)

    assert [3, 1] == [outcome.n_output_tokens for outcome in outcomes]


@pytest.mark.anyio
async def test_failures_are_recorded_and_told_not_raised(make_prompts):
    faults = (
        Fault(kind=FaultKind.ERROR, on_nth_request=2),
        Fault(kind=FaultKind.CUT, on_nth_request=4, after_tokens=1),
    )
    told = []

    async with client_of(replace(FAST, faults=faults)) as client:
        outcomes = await ask_all(
            client,
            make_prompts(5, answers=[f"word {index}" for index in range(5)]),
            tier="t",
            concurrency=1,
            max_tokens=8,
            on_outcome=told.append,
        )

    assert [1.0, None, 1.0, None, 1.0] == [outcome.score for outcome in outcomes]
    assert [True, False, True, False, True] == [outcome.error is None for outcome in outcomes]
    assert [outcome.text is None for outcome in outcomes] == [outcome.error is not None for outcome in outcomes]
    assert told == outcomes


@pytest.mark.anyio
async def test_few_prompts_may_all_fail(make_prompts):
    async with client_of(replace(FAST, faults=(Fault(kind=FaultKind.REFUSE),))) as client:
        outcomes = await ask_all(client, make_prompts(3), tier="t", concurrency=2, max_tokens=8)

    assert all("503" in outcome.error for outcome in outcomes)


@pytest.mark.anyio
async def test_an_engine_that_answers_nothing_ends_the_run(make_prompts):
    told = []

    async with client_of(replace(FAST, faults=(Fault(kind=FaultKind.REFUSE),))) as client:
        with pytest.raises(EngineRequestError, match="first 20 requests all failed") as caught:
            await ask_all(client, make_prompts(500), tier="t", concurrency=4, max_tokens=8, on_outcome=told.append)

    assert 503 == caught.value.status
    assert len(told) < 25


@pytest.mark.anyio
async def test_an_engine_that_dies_late_ends_the_run(make_prompts):
    """Ten thousand failures in a row are no measurement; what came before has been told by then."""
    faults = tuple(Fault(kind=FaultKind.ERROR, on_nth_request=number) for number in range(2, 60))
    told = []

    async with client_of(replace(FAST, faults=faults)) as client:
        with pytest.raises(EngineRequestError, match="stopped answering"):
            await ask_all(client, make_prompts(40), tier="t", concurrency=1, max_tokens=8, on_outcome=told.append)

    assert 1 == sum(outcome.error is None for outcome in told)
    assert len(told) < 40
