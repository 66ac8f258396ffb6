"""Whole answers: what is complained about, and that healthy ones never are."""

import base64
import json
from array import array
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.answer_check import Complaint, Expected, check_answer, check_vectors, expect
from llmtier.serve.wire import Endpoint

GOLDEN = Path(__file__).parents[1] / "golden"
EMPTY, NAN, REPETITION, ERROR = Complaint
UNEMPTY_WORDS = st.text(min_size=1, max_size=12)
LANGUAGES = [
    "The quick brown fox jumps over the lazy dog. ",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. ",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ。",
    "视野无限广,窗外有蓝天。微风迎客,软语伴茶。",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. ",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. ",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश। ",
    "다람쥐 헌 쳇바퀴에 타고파. ",
    "👩‍👩‍👧‍👦 🎉🎉 ❤️‍🔥 ",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "if x:\n        return [0, 0, 0]\n",
]
ORDINARY = st.lists(st.sampled_from(LANGUAGES) | UNEMPTY_WORDS, min_size=2, max_size=12, unique=True).map("".join)


def chat(*choices, n_tokens=9, **fields):
    usage = {"prompt_tokens": 6, "completion_tokens": n_tokens}
    return json.dumps({"id": "a", "choices": list(choices), "usage": usage, **fields}).encode()


def said(content=None, finish="stop", stop=None, logprobs=None, **message):
    message = {"role": "assistant", "content": content, "refusal": None, "audio": None, **message}
    return {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish, "stop_reason": stop}


def wrote(text="", finish="stop", logprobs=None):
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish, "stop_reason": None}


def test_recorded_answer_is_fine():
    assert check_answer((GOLDEN / "vllm_0.32.0_chat.json").read_bytes()) is None


@given(texts=st.lists(ORDINARY, min_size=1, max_size=3), n_tokens=st.integers(1, 5000), is_ascii=st.booleans())
def test_ordinary_text_is_never_complained_about(texts, n_tokens, is_ascii):
    answers = [{"choices": [said(text) for text in texts]}, {"choices": [wrote(text) for text in texts]}]
    for answer in answers:
        answer["usage"] = {"completion_tokens": n_tokens}
        assert check_answer(json.dumps(answer, ensure_ascii=is_ascii).encode()) is None


NAMES = st.sampled_from(["choices", "error", "data", "message", "usage", "embedding", "logprobs", "text"])
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@given(document=st.binary(max_size=60) | DOCUMENTS.map(lambda value: json.dumps(value).encode()))
def test_no_document_raises(document):
    check_answer(document)
    check_vectors(document)


@pytest.mark.parametrize(("text", "complaint"), [("!" * 100, REPETITION), ("".join(map(str, range(99))), None)])
def test_one_token_again_and_again_in_a_response(text, complaint):
    message = {"type": "message", "content": [{"type": "output_text", "text": text, "annotations": []}]}
    output = [{"type": "reasoning", "summary": []}, message]
    usage = {"input_tokens": 3, "output_tokens": 100}

    assert complaint is check_answer(json.dumps({"object": "response", "output": output, "usage": usage}).encode())
    assert check_answer(json.dumps({"output": [{"content": "?"}, message], "usage": usage}).encode()) is None


@pytest.mark.parametrize(
    "choice",
    [
        said("", "stop"),
        said(None, "stop"),
        said(None, None),
        said("", "abort"),
        {"index": 0, "finish_reason": "stop"},
        said([], "stop", tool_calls=[], function_call=None),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_without_anything_is_empty(choice, n):
    assert EMPTY is check_answer(chat(*[choice] * n, n_tokens=1))


def test_an_answer_without_choices_is_empty():
    assert EMPTY is check_answer(chat(n_tokens=0))
    assert EMPTY is check_answer(b'{"object":"response","error":null,"output":[]}')
    assert check_answer(b'{"object":"response","error":null,"output":[{"type":"message"}]}') is None
    assert check_answer(b"{}") is None


@pytest.mark.parametrize(
    "choice",
    [
        said(" "),
        said(None, reasoning="so"),
        said(None, reasoning_content="so"),
        said(None, refusal="no"),
        said(None, "tool_calls", tool_calls=[{"id": "1"}]),
        said(None, "stop", tool_calls=[{"id": "1"}]),
        said(None, "function_call", function_call={"name": "f"}),
        said(None, audio={"id": "1"}),
        said([{"type": "text", "text": "hi"}]),
        said("", "content_filter"),
        said("", "stop", stop="\n"),
        said("", "stop", stop=128009),
        said("", "length"),
    ],
)
def test_an_answer_with_anything_or_with_a_reason_is_not(choice):
    assert check_answer(chat(choice, n_tokens=15)) is None


def test_one_choice_with_text_excuses_the_others():
    assert check_answer(chat(said(""), said("yes"))) is None


@pytest.mark.parametrize(("n_tokens", "complaint"), [(1, None), (15, None), (16, EMPTY), (4096, EMPTY)])
def test_many_tokens_without_text_are_special_ones(n_tokens, complaint):
    for choice in (said("", "length"), wrote("", "length")):
        assert complaint is check_answer(chat(choice, n_tokens=n_tokens), Expected(may_stop_at_once=True))


def test_hidden_thoughts_explain_tokens_without_text():
    details = {"prompt_tokens": 1, "completion_tokens": 500, "completion_tokens_details": {"reasoning_tokens": 500}}

    assert check_answer(chat(said("", "length"), n_tokens=500), Expected(hides_thoughts=True)) is None
    assert check_answer(chat(said("", "stop"), n_tokens=500), Expected(hides_thoughts=True)) is None
    assert check_answer(chat(said("", "length"), usage=details)) is None


def test_what_a_request_allows():
    def of(endpoint, **fields):
        return expect(endpoint, {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()})

    may_stop = Expected(may_stop_at_once=True)
    assert Expected() == of(Endpoint.CHAT, stop=None, stop_token_ids=[], include_reasoning=True, echo=True)
    assert may_stop == of(Endpoint.CHAT, stop="\n") == of(Endpoint.CHAT, stop_token_ids=[1])
    assert may_stop == of(Endpoint.CHAT, continue_final_message=True) == of(Endpoint.COMPLETIONS)
    assert Expected(hides_thoughts=True) == of(Endpoint.CHAT, include_reasoning=False)
    assert Expected(may_stop_at_once=True, echoes=True) == of(Endpoint.COMPLETIONS, echo=True)
    assert check_answer(chat(wrote("", "stop"), n_tokens=1), may_stop) is None
    assert EMPTY is check_answer(chat(wrote("", "abort"), n_tokens=1), may_stop)


@pytest.mark.parametrize("unit", ["!", " the", "\ufffd", "\n", '"', "\\", "好", "🎉", " 0x"])
@pytest.mark.parametrize("before", ["", "Sure:"])
def test_one_token_again_and_again(unit, before):
    text = before + unit * 400
    thoughts = said(None, "length", reasoning=text)

    for choice in (said(text, "length"), wrote(text, "length"), thoughts):
        assert REPETITION is check_answer(chat(choice, n_tokens=402))
        assert REPETITION is check_answer(chat(choice, choice, n_tokens=804))
        assert check_answer(chat(choice, said("Hello"), n_tokens=402)) is None


@pytest.mark.parametrize(
    ("text", "n_tokens"),
    [
        ("-" * 100, 3),  # asked for, and written in tokens of many dashes each
        ("-" * 63, 63),
        ("!" * 400, None),
        ("I am sorry. " * 100, 400),  # a loop, but of no single token
        ("ab" * 100, 400),
        ("The answer is long before it fails. " + "!" * 200, 240),
        ("!" * 400 + " Done.", 403),
        ("a" * 400 + "b" * 64, 464),
    ],
)
def test_other_repetition_is_let_pass(text, n_tokens):
    assert check_answer(chat(said(text), n_tokens=n_tokens)) is None


def of_tokens(*values):
    return {"content": [{"token": "a", "logprob": value, "top_logprobs": []} for value in values]}


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_a_token_without_a_number(at, value):
    values = [-0.1, -0.2]
    values[at] = value

    assert NAN is check_answer(chat(said("aa", logprobs=of_tokens(*values))))
    assert NAN is check_answer(chat(wrote("aa", logprobs={"tokens": ["a", "a"], "token_logprobs": values})))


def test_logprobs_that_are_fine():
    alternative = {"token": "b", "logprob": None, "bytes": None}
    token = {"token": "a", "logprob": -9999.0, "bytes": None, "top_logprobs": [alternative]}
    echoed = {"token_logprobs": [None, -0.5], "top_logprobs": [None, {}], "tokens": ["a", "b"]}

    assert check_answer(chat(said("a", logprobs={"content": [token]}))) is None
    assert check_answer(chat(said("a", logprobs={"content": None}))) is None
    assert check_answer(chat(wrote("ab", logprobs=echoed)), Expected(echoes=True)) is None
    assert NAN is check_answer(chat(wrote("ab", logprobs=echoed)))
    assert check_answer(chat(said("a", logprobs={"content": "of another form", "more": None}))) is None


def test_words_in_the_text_are_no_signs():
    text = 'NaN, Infinity, null, "error": {"message": "no"}, {"choices": []}, [NaN]'

    assert check_answer(chat(said(text))) is None
    assert check_answer(b'{"choices": "cut short: NaN') is None


@pytest.mark.parametrize("error", [{"message": "died", "code": 500}, "died", {}])
def test_an_error_inside_a_success(error):
    assert ERROR is check_answer(chat(said("a"), error=error))
    assert ERROR is check_vectors(json.dumps({"error": error, "data": []}).encode())
    assert check_answer(chat(said("a"), error=None)) is None


def vectors(*embeddings, **fields):
    return json.dumps({"object": "list", "data": [{"index": 0, "embedding": e} for e in embeddings], **fields}).encode()


def packed(*numbers):
    return base64.b64encode(array("f", numbers).tobytes()).decode()


@pytest.mark.parametrize("form", [lambda *numbers: list(numbers), packed])
def test_vectors_of_nothing_or_of_no_numbers(form):
    nan = float("nan")

    assert NAN is check_vectors(vectors(form(nan, nan, nan)))
    assert NAN is check_vectors(vectors(form(0.0, nan, 1.0), form(1.0, 2.0)))
    assert EMPTY is check_vectors(vectors(form(0.0, 0.0, -0.0), form(0.0, 0.0, 0.0)))
    assert EMPTY is check_vectors(vectors(form()))
    assert check_vectors(vectors(form(0.0, 0.0), form(0.0, 1e-9))) is None
    assert check_vectors(vectors(form(0.25, -1.0, 0.0), user=None)) is None


def test_vectors_that_are_absent():
    assert NAN is check_vectors(vectors([0.5, None]))
    assert NAN is check_vectors(vectors([0.5, 0.25], None))
    assert NAN is check_vectors(vectors([0.5, float("nan")]))
    assert EMPTY is check_vectors(vectors())
    assert check_vectors(b"null") is None
    assert check_vectors(b'{"data": null}') is None
    assert check_vectors(vectors("AA~~")) is None
    assert check_vectors(vectors("AAAAAAA=")) is None


@given(rows=st.lists(st.lists(st.floats(-10.0, 10.0, width=32).filter(bool), min_size=1, max_size=8), min_size=1))
def test_vectors_of_numbers_are_never_complained_about(rows):
    assert check_vectors(vectors(*rows)) is None
    assert check_vectors(vectors(*(packed(*row) for row in rows))) is None
