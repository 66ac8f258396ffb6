"""Prompts become requests: in a fair order, in the wire's shape, whatever characters they hold."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.prompt import Message, Prompt
from llmtier.engine.mock_wire import decode_request
from llmtier.profile.workload import PromptSource, RequestStyle, WorkItem, cycle_prompts, encode


def take(n, source):
    return list(itertools.islice(source, n))


def make_item(**fields):
    return WorkItem(id="0-a", path="/v1/chat/completions", fields=fields, prompt_id="a")


@pytest.mark.parametrize("n_prompts", [1, 2, 7])
@pytest.mark.parametrize("seed", [0, 1, 99])
def test_no_prompt_comes_again_before_all_have_come(make_prompts, n_prompts, seed):
    prompts = make_prompts(n_prompts)

    ids = [item.prompt_id for item in take(3 * n_prompts, PromptSource(prompts=prompts, max_tokens=8, seed=seed))]

    for begin in range(0, len(ids), n_prompts):
        assert {prompt.id for prompt in prompts} == set(ids[begin : begin + n_prompts])
    assert ids == [prompt.id for prompt in take(len(ids), cycle_prompts(prompts, seed=seed))]


def test_the_order_is_the_seeds_or_the_files(make_prompts):
    prompts = make_prompts(30)

    orders = {
        seed: [item.prompt_id for item in take(60, PromptSource(prompts=prompts, max_tokens=8, seed=seed))]
        for seed in (1, 2, None)
    }

    assert orders[1] != orders[2]
    assert [prompt.id for prompt in prompts] * 2 == orders[None]
    assert orders[1] == [item.prompt_id for item in take(60, PromptSource(prompts=prompts, max_tokens=8, seed=1))]


def test_each_request_has_an_id_of_its_own_and_the_prompts_own_limit():
    messages = (Message(role="system", content="be brief"), Message(role="user", content="hi"))
    prompts = [Prompt(id="a", messages=messages), Prompt(id="b", messages=messages, max_tokens=3)]

    items = take(4, PromptSource(prompts=prompts, max_tokens=64, seed=None))

    assert ["0-a", "1-b", "2-a", "3-b"] == [item.id for item in items]
    assert [64, 3, 64, 3] == [item.fields["max_tokens"] for item in items]
    assert [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}] == items[0].fields["messages"]
    assert {None} == {item.n_output_tokens for item in items}
    assert "ignore_eos" not in items[0].fields


def test_raw_completions_carry_the_texts_of_all_messages():
    messages = (Message(role="system", content="be brief"), Message(role="user", content="hi"))
    source = PromptSource(
        prompts=[Prompt(id="a", messages=messages)], max_tokens=4, seed=1, style=RequestStyle(is_chat=False)
    )

    [item] = take(1, source)

    assert "/v1/completions" == item.path
    assert "be brief\nhi" == item.fields["prompt"]
    assert "messages" not in item.fields


def test_an_exact_answer_is_asked_only_where_the_engine_understands():
    messages = [Message(role="user", content="hi")]
    exact = {"ignore_eos": True, "min_tokens": 9}

    understands, does_not = RequestStyle(accepts_ignore_eos=True), RequestStyle()

    assert exact.items() <= understands.fields(messages, max_tokens=9, is_exact=True).items()
    assert not exact.keys() & understands.fields(messages, max_tokens=9, is_exact=False).keys()
    assert not exact.keys() & does_not.fields(messages, max_tokens=9, is_exact=True).keys()
    assert 9 == understands.expected_output_tokens(9)
    assert does_not.expected_output_tokens(9) is None


def test_a_workload_of_nothing_is_refused(make_prompts):
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptSource(prompts=[], max_tokens=8, seed=1)
    with pytest.raises(ValueError, match="max_tokens"):
        PromptSource(prompts=make_prompts(1), max_tokens=0, seed=1)


def test_an_encoded_request_streams_with_usage_and_engines_read_it(make_prompts):
    style = RequestStyle(accepts_ignore_eos=True)
    fields = style.fields(make_prompts(1)[0].messages, max_tokens=5, is_exact=True)

    body = encode(make_item(**fields), "tiny")

    document = msgspec.json.decode(body)
    assert document["model"] == "tiny"
    assert document["stream"] is True
    assert document["stream_options"] == {"include_usage": True}
    assert document["temperature"] == 0
    request = decode_request(body, is_chat=True)
    assert (5, True, "word 0") == (request.output_limit, request.ignore_eos, request.last_user_text)


@given(text=st.text(st.characters(exclude_categories=[])))
def test_any_text_is_encoded(text):
    document = msgspec.json.decode(encode(make_item(prompt=text), "tiny"))

    assert text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") == document["prompt"]


def test_half_of_a_surrogate_pair_becomes_a_replacement_character():
    assert "a\ufffdb" == msgspec.json.decode(encode(make_item(prompt="a\ud800b"), "tiny"))["prompt"]
