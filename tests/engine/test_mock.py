"""The mock engine: known speed on a virtual clock, vLLM's shapes on the wire, faults as scripted."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.errors import ConfigError
from llmtier.engine.mock import mock_app, running_app, running_mock
from llmtier.engine.mock_answer import choose_answer, count_tokens, split_tokens
from llmtier.engine.mock_engine import MockEngine, MockSequence
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings, MockTokenizer, read_mock_settings

KNOWN = MockSettings(alpha_s=1.0, beta_s_per_token=0.01, sequence_s=0.1, gamma_s_per_kv_token=0.001)


async def finish_s(engine: MockEngine, clock, sequence: MockSequence) -> list[float]:
    """Return the instant of each token."""
    return [clock.now_s() async for _ in sequence.tokens()]


@pytest.mark.anyio
async def test_one_request_takes_exactly_the_known_steps(jumping_clock) -> None:
    engine = MockEngine(KNOWN, clock=jumping_clock)
    times = await finish_s(engine, jumping_clock, engine.submit(n_prompt_tokens=20, n_output_tokens=3))

    first = 1.0 + 0.01 * 20 + 0.1 + 0.001 * 20
    second = first + 1.0 + 0.1 + 0.001 * 21
    assert pytest.approx([first, second, second + 1.0 + 0.1 + 0.001 * 22]) == times


@pytest.mark.anyio
async def test_requests_share_steps_up_to_the_limit_and_then_wait(jumping_clock) -> None:
    settings = MockSettings(alpha_s=1.0, beta_s_per_token=0.0, sequence_s=0.0, max_num_seqs=2)
    engine = MockEngine(settings, clock=jumping_clock)
    sequences = [engine.submit(n_prompt_tokens=1, n_output_tokens=n) for n in (1, 3, 1)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(finish_s(engine, jumping_clock, sequence)) for sequence in sequences]

    assert [[1.0], [1.0, 2.0, 3.0], [2.0]] == [task.result() for task in tasks]
    assert 3 == engine.counters.n_steps
    assert 5 == engine.counters.n_generation_tokens


@pytest.mark.anyio
async def test_cancelled_request_leaves_its_place_to_the_next(jumping_clock) -> None:
    engine = MockEngine(MockSettings(alpha_s=1.0, sequence_s=0.0, max_num_seqs=1), clock=jumping_clock)
    running, waiting = (engine.submit(n_prompt_tokens=1, n_output_tokens=100) for _ in range(2))
    await anext(running.tokens())
    engine.cancel(running)
    await anext(waiting.tokens())

    assert (1, 0) == (engine.n_running, engine.n_waiting)
    assert 1 == engine.counters.finished["abort"]
    await engine.close()
    assert (0, 0) == (engine.n_running, engine.n_waiting)


@pytest.mark.anyio
async def test_noise_has_mean_one_and_follows_the_seed(jumping_clock) -> None:
    async def total_s(seed: int) -> float:
        settings = MockSettings(alpha_s=1.0, beta_s_per_token=0.0, sequence_s=0.0, noise=0.2, seed=seed)
        engine = MockEngine(settings, clock=jumping_clock)
        began_s = jumping_clock.now_s()
        await finish_s(engine, jumping_clock, engine.submit(n_prompt_tokens=1, n_output_tokens=2000))
        return float(jumping_clock.now_s() - began_s)

    one, again, other = await total_s(1), await total_s(1), await total_s(2)

    assert pytest.approx(one) == again
    assert one != pytest.approx(other)
    assert pytest.approx(2000, rel=0.02) == one  # 4.5 standard errors: 0.2 / sqrt(2000) = 0.0045


@given(text=st.text(max_size=200), tokenizer=st.sampled_from(MockTokenizer))
def test_tokens_joined_are_the_text(text: str, tokenizer: MockTokenizer) -> None:
    assert text == "".join(split_tokens(text, tokenizer))


@given(text=st.text(max_size=30), n=st.integers(1, 50), tokenizer=st.sampled_from(MockTokenizer))
def test_unscripted_answers_have_the_asked_length(text: str, n: int, tokenizer: MockTokenizer) -> None:
    answer = choose_answer(text, MockSettings(tokenizer=tokenizer), max_tokens=n, ignores_end=False)

    assert n == len(answer.tokens)
    assert "length" == answer.finish_reason


@pytest.mark.parametrize(
    ("max_tokens", "ignores_end", "expected"),
    [
        (None, False, ("It is four", "stop")),
        (3, False, ("It is four", "stop")),
        (2, False, ("It is", "length")),
        (5, True, ("It is four It is", "length")),
    ],
)
def test_scripted_answer_is_given_cut_or_repeated(max_tokens, ignores_end: bool, expected: tuple[str, str]) -> None:
    settings = MockSettings(answers={"2+2?": "It is four"})
    answer = choose_answer("2+2?", settings, max_tokens=max_tokens, ignores_end=ignores_end)

    assert expected == ("".join(answer.tokens), answer.finish_reason)


def test_output_tokens_end_an_unscripted_answer() -> None:
    answer = choose_answer("a b", MockSettings(output_tokens=3), max_tokens=10, ignores_end=False)

    assert (("a", " b", " a"), "stop") == (answer.tokens, answer.finish_reason)


def test_empty_prompt_counts_one_token() -> None:
    assert 1 == count_tokens([""], MockTokenizer.WORDS)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"alpha": 1}, "unknown key 'alpha'; did you mean 'alpha_s'"),
        ({"alpha_s": "fast"}, "alpha_s"),
        ({"alpha_s": -1}, "alpha_s must be >= 0, got -1"),
        ({"alpha_s": float("nan")}, "alpha_s must be >= 0, got nan"),
        ({"max_num_seqs": 0}, "max_num_seqs must be >= 1"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"faults": [{"kind": "cut", "after": 3}]}, "mock.faults: unknown key 'after'"),
        ({"faults": ["cut"]}, "expected key: value pairs"),
        ({"faults": [{"kind": "explode"}]}, "explode"),
        ({"faults": [{"kind": "cut", "probability": 2}]}, "probability"),
    ],
)
def test_wrong_settings_name_the_key(mapping, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        MockSettings.from_mapping(mapping)


def test_settings_come_from_plain_data(tmp_path: Path) -> None:
    file = tmp_path / "mock.json"
    file.write_text('{"alpha_s": 0, "answers": {"a": "b"}, "faults": [{"kind": "cut", "on_nth_request": 2}]}')

    assert MockSettings(
        alpha_s=0, answers={"a": "b"}, faults=(Fault(kind=FaultKind.CUT, on_nth_request=2),)
    ) == read_mock_settings(file)


@pytest.mark.parametrize("text", ["[]", "{", None])
def test_settings_file_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "mock.json"
    if text is not None:
        file.write_text(text)

    with pytest.raises(ConfigError, match=r"mock\.json: expected a JSON object"):
        read_mock_settings(file)


CHAT = {"model": "mock", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 3}
INSTANT = {"alpha_s": 0, "beta_s_per_token": 0, "sequence_s": 0}


async def post(base_url: str, body: object, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.post(base_url + path, json=body) as response:
        return response.status, await response.read()


async def get(base_url: str, path: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(base_url + path) as response:
        return response.status, await response.read()


def keys_of(document: object) -> object:
    """Return a document's shape: keys without values."""
    if isinstance(document, dict):
        return {key: keys_of(value) for key, value in document.items() if value is not None}
    return [keys_of(value) for value in document] if isinstance(document, list) else None


@pytest.mark.anyio
async def test_stream_has_the_shape_of_recorded_vllm_bytes(golden: Path) -> None:
    body = CHAT | {"max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    async with running_mock(MockSettings.from_mapping(INSTANT)) as base_url:
        _, stream = await post(base_url, body)
    recorded = (golden / "vllm_0.32.0_chat_stream.sse").read_bytes()

    for ours, theirs in zip(stream.split(b"\n\n"), recorded.split(b"\n\n"), strict=True):
        assert ours[:6] == theirs[:6]
        if ours.startswith(b"data: {"):
            known = json.loads(theirs[6:])
            known.pop("system_fingerprint", None)
            assert keys_of(known) == keys_of(json.loads(ours[6:]))


@pytest.mark.anyio
async def test_whole_answers_count_their_tokens() -> None:
    async with running_mock(MockSettings.from_mapping(INSTANT)) as base_url:
        _, chat = await post(base_url, CHAT)
        _, text = await post(base_url, {"model": "mock", "prompt": "x", "max_tokens": 2}, "/v1/completions")

    assert "one two one" == json.loads(chat)["choices"][0]["message"]["content"]
    assert {"prompt_tokens": 2, "total_tokens": 5, "completion_tokens": 3} == json.loads(chat)["usage"]
    assert "x x" == json.loads(text)["choices"][0]["text"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (CHAT | {"model": "other"}, 404, "The model `other` does not exist"),
        (CHAT | {"max_tokens": 8191}, 400, "maximum context length is 8192"),
        (CHAT | {"max_tokens": 0}, 400, "max_tokens must be at least 1"),
        (CHAT | {"n": 2}, 400, "n must be 1"),
        ({"model": "mock"}, 400, "body.messages"),
        ([], 400, "validation error"),
    ],
)
async def test_refusals_have_the_shape_of_vllm(body: object, status: int, words: str, golden: Path) -> None:
    async with running_mock(MockSettings()) as base_url:
        got, answer = await post(base_url, body)

    assert status == got
    assert words in json.loads(answer)["error"]["message"]
    recorded = json.loads((golden / "vllm_0.32.0_unknown_model.json").read_bytes())["error"]
    assert recorded.keys() == json.loads(answer)["error"].keys()


@pytest.mark.anyio
async def test_metrics_are_named_and_counted_as_in_vllm(golden: Path) -> None:
    async with running_mock(MockSettings.from_mapping(INSTANT)) as base_url:
        await post(base_url, CHAT)
        _, page = await get(base_url, "/metrics")
        missing = await get(base_url, "/elsewhere")
    names = re.compile(r"^(vllm:\w+)\{", re.MULTILINE)
    values = dict(re.findall(r"^vllm:(\w+)\{.*\} (\S+)$", page.decode(), re.MULTILINE))

    recorded = set(names.findall((golden / "vllm_0.32.0_metrics.txt").read_text()))
    assert set(names.findall(page.decode())) - recorded <= {"vllm:iteration_tokens_total_bucket"}
    assert {"prompt_tokens_total": "2.0", "generation_tokens_total": "3.0"}.items() <= values.items()
    assert {"iteration_tokens_total_count": "3.0", "iteration_tokens_total_sum": "5.0"}.items() <= values.items()
    assert 'finished_reason="length",model_name="mock"} 1.0' in page.decode()
    assert 404 == missing[0]


@pytest.mark.anyio
async def test_metrics_show_what_runs_and_waits() -> None:
    app = mock_app(MockSettings(alpha_s=0.02, max_num_seqs=1, kv_capacity_tokens=100))
    async with running_app(app) as base_url, asyncio.TaskGroup() as group:
        tasks = [group.create_task(post(base_url, CHAT | {"max_tokens": 500})) for _ in range(2)]
        async with asyncio.timeout(20):
            while not app.engine.n_waiting:  # noqa: ASYNC110 - the engine tells nobody
                await asyncio.sleep(0.005)
        _, page = await get(base_url, "/metrics")
        for task in tasks:
            task.cancel()

    assert 'vllm:num_requests_running{engine="0",model_name="mock"} 1.0' in page.decode()
    assert 'vllm:num_requests_waiting{engine="0",model_name="mock"} 1.0' in page.decode()
    assert re.search(r"kv_cache_usage_perc\{.*\} 0\.0[2-9]", page.decode())


@pytest.mark.anyio
async def test_starting_engine_refuses_until_it_is_ready(jumping_clock) -> None:
    async with running_mock(MockSettings(start_s=5.0), clock=jumping_clock) as base_url:
        before, _ = await get(base_url, "/health")
        jumping_clock.time_s += 5.0
        after, _ = await get(base_url, "/health")

    assert (503, 200) == (before, after)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (FaultKind.REFUSE, 503),
        (FaultKind.RATE_LIMIT, 429),
        (FaultKind.ERROR, 500),
        (FaultKind.ERROR_CHUNK, 500),
        (FaultKind.EMPTY_BODY, b""),
        (FaultKind.MALFORMED, json.JSONDecodeError),
        (FaultKind.CUT, aiohttp.ClientPayloadError),
        (FaultKind.HANG, TimeoutError),
        (FaultKind.HEADERS_ONLY, TimeoutError),
        (FaultKind.STALL, TimeoutError),
    ],
)
async def test_faults_strike_whole_answers_too(kind: FaultKind, expected: object) -> None:
    settings = MockSettings(faults=(Fault(kind=kind),))
    async with running_mock(settings) as base_url:
        outcome: object
        try:
            async with asyncio.timeout(0.1):
                status, body = await post(base_url, CHAT)
                outcome = (status if status != 200 else body) if kind is not FaultKind.MALFORMED else json.loads(body)
        except (TimeoutError, aiohttp.ClientPayloadError, json.JSONDecodeError) as error:
            outcome = type(error)

    assert expected == outcome


@pytest.mark.anyio
async def test_fault_probability_is_drawn_per_request_from_the_seed() -> None:
    faults = (Fault(kind=FaultKind.ERROR, probability=0.5),)

    async def statuses(seed: int) -> list[int]:
        settings = MockSettings.from_mapping(
            INSTANT | {"seed": seed, "faults": [{"kind": "error", "probability": 0.5}]}
        )
        assert faults == settings.faults
        async with running_mock(settings) as base_url:
            return [(await post(base_url, CHAT))[0] for _ in range(20)]

    one, again, other = await statuses(1), await statuses(1), await statuses(2)

    assert one == again != other
    assert 4 <= one.count(500) <= 16


@pytest.mark.anyio
async def test_rate_limit_names_the_wait_in_whole_seconds() -> None:
    settings = MockSettings(faults=(Fault(kind=FaultKind.RATE_LIMIT, delay_s=1.5),))
    async with (
        running_mock(settings) as base_url,
        aiohttp.ClientSession(base_url) as session,
        session.post("/v1/chat/completions", json=CHAT) as response,
    ):
        assert "2" == response.headers["retry-after"]


def test_command_shows_its_options() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "llmtier.engine.mock", "--help"], capture_output=True, text=True, check=True
    )

    assert "--settings" in shown.stdout


@pytest.mark.anyio
async def test_logprobs_come_when_asked_for_in_vllms_shape() -> None:
    settings = MockSettings(alpha_s=0.0, beta_s_per_token=0.0, sequence_s=0.0, output_tokens=2)
    async with running_mock(settings) as base_url, aiohttp.ClientSession() as session:
        body = {"model": "mock", "messages": [{"role": "user", "content": "one two"}], "stream": True}
        chunks = {}
        for logprobs in (True, False):
            async with session.post(f"{base_url}/v1/chat/completions", json=body | {"logprobs": logprobs}) as response:
                lines = [line[6:] for line in (await response.text()).splitlines() if line.startswith("data: {")]
            chunks[logprobs] = [json.loads(line)["choices"][0] for line in lines]

    tokens = [choice["logprobs"]["content"] for choice in chunks[True] if choice["logprobs"]]
    assert ["one", " two"] == [entry["token"] for [entry] in tokens]
    assert all(-1.0 < entry["logprob"] <= 0.0 and entry["top_logprobs"] == [] for [entry] in tokens)
    assert all(choice["logprobs"] is None for choice in chunks[False])
