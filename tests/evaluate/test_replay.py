"""A replay asks each tier only what it has not answered, and lays the outcomes side by side."""

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import EngineRequestError
from llmtier.core.prompt import AnswerScorer, Message, Outcome, Prompt
from llmtier.engine.client import EngineClient
from llmtier.engine.mock import running_mock
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings
from llmtier.evaluate.replay import answered_pairs, merge_outcomes, replay_prompts

FAST = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0, output_tokens=2)


async def open_clients(stack, **settings_by_tier):
    clients = {}
    for tier, settings in settings_by_tier.items():
        base_url = await stack.enter_async_context(running_mock(settings))
        clients[tier] = await stack.enter_async_context(EngineClient(base_url, model_name="mock"))
    return clients


@pytest.mark.anyio
async def test_every_tier_answers_every_prompt(make_prompts):
    prompts = make_prompts(6, answers=["word 0", "no", "word 2", "no", "word 4", "no"])

    async with AsyncExitStack() as stack:
        clients = await open_clients(stack, small=replace(FAST, output_tokens=1), large=FAST)
        outcomes = await replay_prompts(clients, prompts, concurrency=3, max_tokens=8)
    labelled = merge_outcomes(prompts, outcomes)

    assert [(prompt.id, tier) for tier in clients for prompt in prompts] == [
        (outcome.prompt_id, outcome.tier) for outcome in outcomes
    ]
    assert prompts == [row.prompt for row in labelled]
    assert [{"small": 0.0, "large": 1.0 - index % 2} for index in range(6)] == [row.scores for row in labelled]
    assert all(row.output_tokens == {"small": 1, "large": 2} for row in labelled)


@pytest.mark.anyio
async def test_a_resumed_replay_asks_only_what_failed_or_is_missing(make_prompts):
    prompts = make_prompts(5, answers=[f"word {index}" for index in range(5)])
    journal = []
    faults = (Fault(kind=FaultKind.ERROR, on_nth_request=2),)

    async with AsyncExitStack() as stack:
        clients = await open_clients(stack, small=FAST, large=replace(FAST, faults=faults))
        await replay_prompts(clients, prompts, concurrency=1, max_tokens=8, on_outcome=journal.append)
        again = await replay_prompts(clients, prompts, concurrency=1, max_tokens=8, done=answered_pairs(journal))

    assert [("p1", "large")] == [(outcome.prompt_id, outcome.tier) for outcome in again]
    assert all(row.scores == {"small": 1.0, "large": 1.0} for row in merge_outcomes(prompts, journal + again))


@pytest.mark.anyio
async def test_nothing_is_asked_when_all_is_done(make_prompts):
    done = {(prompt.id, "t") for prompt in make_prompts(3)}

    assert [] == await replay_prompts({"t": None}, make_prompts(3), concurrency=2, max_tokens=8, done=done)


@pytest.mark.anyio
async def test_a_dead_tier_ends_the_replay(make_prompts):
    async with AsyncExitStack() as stack:
        dead = replace(FAST, faults=(Fault(kind=FaultKind.REFUSE),))
        clients = await open_clients(stack, alive=FAST, dead=dead)
        with pytest.raises(EngineRequestError, match="all failed"):
            await replay_prompts(clients, make_prompts(300), concurrency=2, max_tokens=8)


def test_failed_requests_and_unlabelled_prompts_leave_no_score(make_prompts):
    prompts = [*make_prompts(1, answers=["a"]), replace(make_prompts(2)[1], answer=None)]
    outcomes = [
        Outcome(prompt_id="p0", tier="s", text="a", n_output_tokens=3),
        Outcome(prompt_id="p0", tier="l", error="cut"),
        Outcome(prompt_id="p1", tier="s", text="a", n_output_tokens=4),
    ]

    first, second = merge_outcomes(prompts, outcomes)

    assert ({"s": 1.0}, {"s": 3}) == (first.scores, first.output_tokens)
    assert ({}, {"s": 4}) == (second.scores, second.output_tokens)


def test_scores_are_made_anew_from_the_texts(make_prompts):
    prompts = make_prompts(2, answers=["1", "2"], scorer=AnswerScorer.NUMBER)
    outcomes = [
        Outcome(prompt_id="p1", tier="t", text="it is 2", score=0.0),
        Outcome(prompt_id="p0", tier="t", error="cut"),
    ]

    assert [{}, {"t": 1.0}] == [row.scores for row in merge_outcomes(prompts, outcomes)]


def test_outcomes_of_other_prompts_are_refused(make_prompts):
    with pytest.raises(ValueError, match="outcome of x on t: no such prompt"):
        merge_outcomes(make_prompts(1), [Outcome(prompt_id="x", tier="t", text="")])


def test_rows_carry_weight_rating_and_mean_logprob(make_prompts):
    outcomes = [
        Outcome(prompt_id="p0", tier="s", text="a", mean_logprob=-0.5, min_logprob=-2.0),
        Outcome(prompt_id="p0", tier="l", text="b"),
    ]

    first, second = merge_outcomes(
        make_prompts(2, answers="ab"), outcomes, weights={"p0": 2.5}, ratings={"p0": None, "p1": 7.0}
    )

    assert (2.5, None, {"s": -0.5}) == (first.weight, first.rating, first.confidences)
    assert (1.0, 7.0, {}) == (second.weight, second.rating, second.confidences)


def test_a_later_failure_does_not_erase_an_answer(make_prompts):
    outcomes = [Outcome(prompt_id="p0", tier="s", text="a"), Outcome(prompt_id="p0", tier="s", error="cut")]

    [row] = merge_outcomes(make_prompts(1, answers=["a"]), outcomes)

    assert {"s": 1.0} == row.scores


PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content="?"),), answer=str(i % 2)) for i in range(4)]
PAIRS = st.dictionaries(
    st.tuples(st.sampled_from([prompt.id for prompt in PROMPTS]), st.sampled_from("ab")), st.sampled_from("01")
)


@given(PAIRS, st.randoms(use_true_random=False))
def test_merging_does_not_depend_on_the_order_of_outcomes(texts, rng):
    outcomes = [Outcome(prompt_id=prompt_id, tier=tier, text=text) for (prompt_id, tier), text in texts.items()]
    shuffled = rng.sample(outcomes, len(outcomes))

    assert merge_outcomes(PROMPTS, outcomes) == merge_outcomes(PROMPTS, shuffled)
