"""Whether a broken stream is resumed, and what the second engine is asked."""

import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.resume import Closing, Origin, Recipe, Refusal, ResumeAsk, ResumePlan, ends_within_stop, plan
from llmtier.serve.resume_log import RefusalReason, ResumeLog, UnreadableError, read_sent
from llmtier.serve.wire import Endpoint

MESSAGES = [{"role": "user", "content": "Tell me."}]


def event(document):
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(text=None, *, delta=None, finish=None, ids=None, **more):
    choice = {"index": 0, "delta": delta or {"content": text}, "finish_reason": finish, "token_ids": ids}
    return event({"id": "chatcmpl-1", "created": 7, "model": "tier-a", "choices": [choice], **more})


def role(**more):
    return chunk(delta={"role": "assistant", "content": ""}, **more)


def completion(text, **more):
    return event({"id": "cmpl-1", "created": 7, "model": "t", "choices": [{"index": 0, "text": text, **more}]})


def log_of(*events):
    log = ResumeLog()
    for piece in events:
        log.note(piece)
    return log


def ask(
    *, endpoint=Endpoint.CHAT, max_tokens=None, wants_usage=True, context_tokens=None, max_repeated_tokens=0, **fields
):
    prompt = {"messages": MESSAGES} if endpoint is Endpoint.CHAT else {"prompt": "Once"}
    body = {"model": "auto", "stream": True, **prompt, **fields}
    raw = msgspec.json.decode(json.dumps(body), type=dict[str, msgspec.Raw])
    return ResumeAsk(
        endpoint=endpoint,
        fields=raw,
        max_tokens=max_tokens,
        wants_usage=wants_usage,
        context_tokens=context_tokens,
        max_repeated_tokens=max_repeated_tokens,
    )


def body_of(planned):
    assert isinstance(planned, ResumePlan), planned
    return json.loads(planned.body("engine-model"))


SENT = (role(), chunk("It"), chunk(" was"), chunk(" un"), chunk("bel"))


def test_sampled_chat_goes_on_after_all_that_was_sent():
    planned = plan(ask(temperature=0.7, max_tokens=20, user="u", llmtier={"accuracy": 0.9}), log_of(*SENT))

    assert {
        "model": "engine-model",
        "stream": True,
        "messages": [*MESSAGES, {"role": "assistant", "content": "It was unbel"}],
        "temperature": 0.7,
        "user": "u",
        "max_tokens": 16,
        "add_generation_prompt": False,
        "continue_final_message": True,
        "stream_options": {"include_usage": True},
    } == body_of(planned)
    assert "" == planned.seam.overlap


def test_greedy_text_is_cut_back_to_the_start_of_a_word():
    planned = plan(ask(temperature=0, max_completion_tokens=20, max_tokens=20), log_of(*SENT))

    assert {"role": "assistant", "content": "It was"} == body_of(planned)["messages"][-1]
    assert 18 == body_of(planned)["max_completion_tokens"]
    assert " unbel" == planned.seam.overlap
    assert 2 == planned.seam.n_resent_tokens


@pytest.mark.parametrize(("limit", "recipe"), [(4, Recipe.REPEAT), (3, Recipe.TEXT)])
def test_short_greedy_answer_is_generated_again_whole(limit, recipe):
    planned = plan(ask(temperature=0, max_repeated_tokens=limit, max_tokens=9), log_of(*SENT))

    assert recipe is planned.recipe
    assert (recipe is Recipe.REPEAT) is planned.is_exact
    if recipe is Recipe.REPEAT:
        assert MESSAGES == body_of(planned)["messages"]
        assert "continue_final_message" not in body_of(planned)
        assert 9 == body_of(planned)["max_tokens"]
        assert ("It was unbel", 0) == (planned.seam.overlap, planned.seam.n_resent_tokens)


def test_sampled_answer_is_never_generated_again():
    assert Recipe.TEXT is plan(ask(temperature=0.1, max_repeated_tokens=99), log_of(*SENT)).recipe


def test_long_text_without_spaces_is_cut_where_it_broke():
    planned = plan(ask(temperature=0), log_of(role(), *[chunk("x")] * 40))

    assert "x" * 40 == body_of(planned)["messages"][-1]["content"]
    assert "" == planned.seam.overlap


def test_completion_text_goes_behind_the_prompt_and_keeps_the_default_length():
    sent = [completion("upon"), completion(" a"), completion(" ti")]

    planned = plan(ask(endpoint=Endpoint.COMPLETIONS), log_of(*sent))

    assert "Onceupon a ti" == body_of(planned)["prompt"]
    assert 13 == body_of(planned)["max_tokens"]


def test_token_ids_of_a_chat_are_continued_as_a_completion():
    sent = [role(prompt_token_ids=[1, 5, 6]), chunk("He", ids=[8]), chunk("y 😀", ids=[9, 10]), chunk("", ids=[11])]

    planned = plan(ask(max_completion_tokens=20, max_tokens=20, logprobs=False, n=1), log_of(*sent))

    assert {
        "model": "engine-model",
        "stream": True,
        "prompt": [1, 5, 6, 8, 9, 10],
        "max_tokens": 17,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    } == body_of(planned)
    assert (Recipe.IDS, Endpoint.COMPLETIONS) == (planned.recipe, planned.endpoint)


@pytest.mark.parametrize(("context_tokens", "recipe"), [(100, Recipe.IDS), (None, Recipe.TEXT), (4, Recipe.TEXT)])
def test_token_ids_of_a_chat_without_a_length_need_the_length_of_the_context(context_tokens, recipe):
    sent = [role(prompt_token_ids=[1, 5, 6]), chunk("Hey", ids=[8])]

    planned = plan(ask(context_tokens=context_tokens), log_of(*sent))

    assert recipe is planned.recipe
    assert (96 if recipe is Recipe.IDS else None) == body_of(planned).get("max_tokens")


def test_token_ids_are_not_used_where_text_is_held_back_for_a_stop():
    sent = [role(prompt_token_ids=[1, 5, 6]), chunk("Hey", ids=[8])]

    assert Recipe.TEXT is plan(ask(stop="END", max_tokens=9), log_of(*sent)).recipe


def test_token_ids_are_not_used_where_one_event_lacks_them():
    sent = [role(prompt_token_ids=[1, 5, 6]), chunk("Hey", ids=[8]), chunk("you")]

    assert Recipe.TEXT is plan(ask(max_tokens=9), log_of(*sent)).recipe


def test_token_prompt_is_resumed_by_token_ids_alone():
    question = ask(endpoint=Endpoint.COMPLETIONS, prompt=[4, 5])

    assert Refusal(reason=RefusalReason.PROMPT) == plan(question, log_of(completion("a")))
    known = completion("a", token_ids=[9], prompt_token_ids=[4, 5])
    assert [4, 5, 9] == body_of(plan(question, log_of(known)))["prompt"]


def test_request_is_repeated_while_no_text_was_sent():
    planned = plan(ask(seed=3, min_tokens=2, max_tokens=5), log_of(role()))

    assert Recipe.REPEAT is planned.recipe
    assert (MESSAGES, 3, 2, 5) == tuple(
        body_of(planned)[key] for key in ("messages", "seed", "min_tokens", "max_tokens")
    )


def test_least_length_shrinks_by_what_is_resent():
    assert 1 == body_of(plan(ask(temperature=0, min_tokens=3), log_of(*SENT)))["min_tokens"]


def test_counts_of_the_engine_are_believed_over_the_number_of_events():
    def counted(text, n):
        return chunk(text, usage={"prompt_tokens": 5, "completion_tokens": n})

    planned = plan(ask(temperature=1, max_tokens=20), log_of(role(), counted("a b", 3), counted(" c", 4)))

    assert 16 == body_of(planned)["max_tokens"]
    assert (4, 5) == (planned.seam.n_resent_tokens, planned.seam.sent.n_prompt_tokens)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n": 2}, RefusalReason.SEVERAL_ANSWERS),
        ({"n": True}, RefusalReason.SEVERAL_ANSWERS),
        ({"tools": [{"type": "function"}]}, RefusalReason.TOOLS),
        ({"tool_choice": "auto"}, RefusalReason.TOOLS),
        ({"logprobs": True}, RefusalReason.LOGPROBS),
        ({"response_format": {"type": "json_object"}}, RefusalReason.GRAMMAR),
        ({"structured_outputs": {"regex": "a"}}, RefusalReason.GRAMMAR),
        ({"guided_json": {}}, RefusalReason.GRAMMAR),
        ({"presence_penalty": 0.5}, RefusalReason.PENALTY),
        ({"echo": True}, RefusalReason.FIELD),
        ({"invented_yesterday": 0}, RefusalReason.FIELD),
        ({"continue_final_message": True}, RefusalReason.FIELD),
        ({"seed": 1}, RefusalReason.SEED),
        ({"seed": 1, "temperature": 0.5}, RefusalReason.SEED),
        ({"min_tokens": 9}, RefusalReason.MIN_TOKENS),
        ({"stop": ["zz", "bell"]}, RefusalReason.STOP),
        ({"ignore_eos": True}, RefusalReason.SEAM),
        ({"stream": False}, RefusalReason.NOT_A_STREAM),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, RefusalReason.PROMPT),
        ({"endpoint": Endpoint.RESPONSES}, RefusalReason.ENDPOINT),
    ],
)
def test_what_may_not_survive_is_refused(fields, reason):
    assert Refusal(reason=reason) == plan(ask(**fields), log_of(*SENT))


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1, "temperature": 0},
        {"stop": "\n\n"},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "n": None, "echo": False},
        {"presence_penalty": 0.0, "frequency_penalty": 0, "logprobs": False, "top_logprobs": 0, "audio": None},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ],
)
def test_what_changes_nothing_is_no_reason_to_refuse(fields):
    assert isinstance(plan(ask(**fields), log_of(*SENT)), ResumePlan)


def test_logprobs_of_0_are_logprobs_in_a_completion():
    refused = plan(ask(endpoint=Endpoint.COMPLETIONS, logprobs=0), log_of(completion("a")))

    assert Refusal(reason=RefusalReason.LOGPROBS) == refused


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], None, 3])
def test_other_prompts_than_one_are_refused(prompt):
    refused = plan(ask(endpoint=Endpoint.COMPLETIONS, prompt=prompt), log_of(completion("a")))

    assert Refusal(reason=RefusalReason.PROMPT) == refused


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ((), RefusalReason.NOTHING_SENT),
        ((b": ping\n\n",), RefusalReason.NOTHING_SENT),
        ((b"data: {oops\n\n",), RefusalReason.MALFORMED),
        ((role(), event({"error": {"message": "died"}})), RefusalReason.ERROR_SENT),
        ((role(), chunk(delta={"reasoning": "hm"})), RefusalReason.REASONING),
        ((role(), chunk(delta={"reasoning_content": "hm"})), RefusalReason.REASONING),
        ((role(), chunk(delta={"tool_calls": [{"index": 0}]})), RefusalReason.TOOLS),
        ((event({"choices": [{"index": 1, "text": "b"}]}),), RefusalReason.SEVERAL_ANSWERS),
        ((event({"choices": [{"index": 0, "text": "b", "logprobs": {"tokens": []}}]}),), RefusalReason.LOGPROBS),
        ((role(), chunk("x" * 300_000)), RefusalReason.TOO_LONG),
        ((role(), chunk(delta={"refusal": "no"})), RefusalReason.FIELD),
        ((role(), chunk("a\n")), RefusalReason.SEAM),
        ((role(), chunk(" a")), RefusalReason.SEAM),
    ],
)
def test_what_was_sent_may_forbid_it(sent, reason):
    assert Refusal(reason=reason) == plan(ask(), log_of(*sent))


def test_log_that_overflowed_stays_empty():
    log = ResumeLog(limit_bytes=10)
    for piece in (b"12345", b"678901", b"1"):
        log.note(piece)

    assert log.is_overfull
    assert b"" == log.data


def test_log_holds_its_limit_exactly():
    log = ResumeLog(limit_bytes=10)
    log.note(b"1234567890")

    assert not log.is_overfull
    assert b"1234567890" == log.data


def documents(tail):
    return [json.loads(part[6:]) for part in tail.split(b"\n\n") if part.startswith(b"data: {")]


def test_answer_of_full_length_is_closed_without_an_engine():
    sent = [role(prompt_token_ids=[1, 5]), chunk("a", ids=[3]), chunk("b", ids=[4])]

    closing = plan(ask(max_tokens=2), log_of(*sent))

    assert isinstance(closing, Closing)
    last, usage = documents(closing.tail)
    assert ("chatcmpl-1", "length") == (last["id"], last["choices"][0]["finish_reason"])
    assert {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4} == usage["usage"]
    assert closing.tail.endswith(b"}\n\ndata: [DONE]\n\n")


def test_usage_that_nobody_knows_is_left_out():
    closing = plan(ask(), log_of(*SENT, chunk("!", finish="stop")))

    assert Closing(tail=b"data: [DONE]\n\n") == closing


def test_finished_stream_needs_nothing():
    assert Closing(tail=b"") == plan(ask(), log_of(*SENT, chunk("!", finish="stop"), b"data: [DONE]\n\n"))


SITE = {"engine_kind": "vllm", "engine_version": "0.32.0", "checkpoint_digest": "d"}


@pytest.mark.parametrize(
    ("change", "may"),
    [
        ({}, True),
        ({"checkpoint_digest": "e"}, False),
        ({"engine_version": "0.33.0"}, False),
        ({"engine_kind": "mock"}, False),
    ],
)
def test_only_the_same_model_on_the_same_engine_goes_on(change, may):
    assert may is Origin(**{**SITE, **change}).can_continue(Origin(**SITE))


@pytest.mark.parametrize("change", [{"checkpoint_digest": None}, {"engine_kind": "openai"}])
def test_unknown_model_or_engine_does_not_even_continue_itself(change):
    site = Origin(**{**SITE, **change})

    assert not site.can_continue(site)


@given(text=st.text("ab", max_size=8), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_open_stop_is_what_some_ending_could_still_complete(text, stops):
    endings = [text[start:] for start in range(len(text))]

    assert any(stop.startswith(end) for stop in stops for end in endings) == ends_within_stop(text, tuple(stops))


@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for stream in (data, b"data: " + data + b"\n\n"):
        with contextlib.suppress(UnreadableError):
            read_sent(stream)
