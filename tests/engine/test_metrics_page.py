"""An engine's metrics page against a recorded one, old names, restarts, and the mock's known truth."""

import asyncio

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.engine_delta import EngineDelta, Tally
from llmtier.core.errors import EngineRequestError
from llmtier.engine import metrics_page
from llmtier.engine.metrics_page import delta, fetch_page, read_snapshot, reset_prefix_cache
from llmtier.engine.mock import mock_app, running_app, running_mock
from llmtier.engine.mock_metrics import MeteredEngine, render_metrics
from llmtier.engine.mock_settings import MockSettings

LLAMACPP = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 120
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 64
# TYPE llamacpp:predicted_tokens_seconds gauge
llamacpp:predicted_tokens_seconds nan
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 3
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 1
# TYPE llamacpp:kv_cache_usage_ratio gauge
llamacpp:kv_cache_usage_ratio 0.25
"""
KNOWN = MockSettings(alpha_s=1.0, beta_s_per_token=0.01, sequence_s=0.1, max_num_seqs=1)


def page(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_recorded_page_is_read_whole(golden):
    snapshot = read_snapshot((golden / "vllm_0.32.0_metrics.txt").read_text())

    assert (0, 0, 0.0) == (snapshot.n_running, snapshot.n_waiting, snapshot.kv_usage)
    assert {
        "n_preemptions": 0,
        "prompt_tokens": 38,
        "generation_tokens": 52,
        "prefix_query_tokens": 38,
        "prefix_hit_tokens": 0,
    } == snapshot.counters
    assert {"stop": 0, "length": 7, "abort": 0, "error": 0, "repetition": 0} == snapshot.finished
    assert {
        "ttft_s": Tally(total=0.17983055114746094, n=7),
        "itl_s": Tally(total=0.13391383400062296, n=45),
        "queue_s": Tally(total=0.00015239599997585174, n=7),
        "prefill_s": Tally(total=0.11632230499981233, n=7),
        "decode_s": Tally(total=0.13391383400062296, n=7),
        "e2el_s": Tally(total=0.31178712844848633, n=7),
        "iteration_tokens": Tally(total=90.0, n=52),
    } == snapshot.tallies


def test_absent_metric_is_none_and_never_zero():
    snapshot = read_snapshot(page("vllm:num_requests_running 2"))
    difference = delta(snapshot, snapshot)

    assert (2, None, None) == (snapshot.n_running, snapshot.n_waiting, snapshot.kv_usage)
    assert EngineDelta(n_snapshots=2, n_running_max=2) == difference
    assert difference.prefix_hit_share is None


@pytest.mark.parametrize("value", ["NaN", "+Inf"])
def test_value_that_is_no_number_counts_as_absent(value):
    assert read_snapshot(page(f"vllm:kv_cache_usage_perc {value}")).kv_usage is None


def test_older_names_of_vllm_are_read():
    old = read_snapshot(
        page(
            'vllm:gpu_cache_usage_perc{model_name="m"} 0.5',
            "# TYPE vllm:gpu_prefix_cache_queries counter",
            'vllm:gpu_prefix_cache_queries{model_name="m"} 10.0',
            'vllm:gpu_prefix_cache_hits_total{model_name="m"} 4.0',
            'vllm:time_per_output_token_seconds_sum{model_name="m"} 2.0',
            'vllm:time_per_output_token_seconds_count{model_name="m"} 100.0',
        )
    )

    assert 0.5 == old.kv_usage
    assert {"prefix_query_tokens": 10, "prefix_hit_tokens": 4} == old.counters
    assert {"itl_s": Tally(total=2.0, n=100)} == old.tallies


def test_new_name_wins_where_a_page_shows_both():
    both = read_snapshot(page("vllm:gpu_cache_usage_perc 0.5", "vllm:kv_cache_usage_perc 0.4"))

    assert 0.4 == both.kv_usage


def test_llamacpp_page_gives_what_it_has():
    snapshot = read_snapshot(LLAMACPP)

    assert (3, 1, 0.25) == (snapshot.n_running, snapshot.n_waiting, snapshot.kv_usage)
    assert {"prompt_tokens": 120, "generation_tokens": 64} == snapshot.counters
    assert {} == snapshot.tallies
    assert snapshot.finished is None


def test_several_engines_add_up_but_the_fullest_cache_counts():
    snapshot = read_snapshot(
        page(
            'vllm:num_requests_running{engine="0"} 2.0',
            'vllm:num_requests_running{engine="1"} 3.0',
            'vllm:kv_cache_usage_perc{engine="0"} 0.7',
            'vllm:kv_cache_usage_perc{engine="1"} 0.9',
            'vllm:generation_tokens_total{engine="0"} 10.0',
            'vllm:generation_tokens_total{engine="1"} 30.0',
            'vllm:request_success_total{engine="0",finished_reason="stop"} 1.0',
            'vllm:request_success_total{engine="1",finished_reason="stop"} 2.0',
        )
    )

    assert (5, 0.9) == (snapshot.n_running, snapshot.kv_usage)
    assert {"generation_tokens": 40} == snapshot.counters
    assert {"stop": 3} == snapshot.finished


@pytest.mark.parametrize(
    "junk",
    ["<html><body>It works!</body></html>", '{"error": "no"}', "vllm:num_requests_running", 'a{b="c} 1', "x y z w"],
)
def test_junk_is_an_error(junk):
    with pytest.raises(EngineRequestError, match="Prometheus text format"):
        read_snapshot(junk)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        snapshot = read_snapshot(text)
    except EngineRequestError:
        return

    assert snapshot.is_empty or "vllm" in text or "llamacpp" in text


def test_another_programs_page_is_empty():
    assert read_snapshot(page("node_load1 0.5", "process_start_time_seconds 1.0")).is_empty
    assert not read_snapshot(LLAMACPP).is_empty


def counted(tokens: float, *, engine: int = 0, queue_s: float = 0.0) -> list[str]:
    return [
        f'vllm:generation_tokens_total{{engine="{engine}"}} {tokens}',
        f'vllm:request_queue_time_seconds_sum{{engine="{engine}"}} {queue_s}',
        f'vllm:request_queue_time_seconds_count{{engine="{engine}"}} {tokens}',
        f'vllm:kv_cache_usage_perc{{engine="{engine}"}} {tokens / 1000}',
    ]


def test_delta_subtracts_and_looks_at_gauges_in_between():
    before, middle, after = (
        read_snapshot(page(*counted(tokens, queue_s=queue_s)))
        for tokens, queue_s in ((10, 1.0), (500, 2.0), (510, 26.0))
    )
    high = read_snapshot(page(*counted(500), "vllm:num_requests_waiting 7"))
    difference = delta(before, after, between=[middle, high])

    assert 500 == difference.generation_tokens
    assert Tally(total=25.0, n=500) == difference.queue_s
    assert 0.05 == difference.queue_s.mean
    assert (4, 0.51, 7) == (difference.n_snapshots, difference.kv_usage_max, difference.n_waiting_max)


def test_prefix_hits_are_a_share_of_the_tokens_looked_up():
    assert 0.25 == EngineDelta(n_snapshots=2, prefix_query_tokens=8, prefix_hit_tokens=2).prefix_hit_share
    assert EngineDelta(n_snapshots=2, prefix_query_tokens=0, prefix_hit_tokens=0).prefix_hit_share is None


def test_histogram_without_its_count_is_absent():
    assert {} == read_snapshot(page("vllm:request_queue_time_seconds_sum 1.0")).tallies


def test_mean_of_nothing_is_none():
    snapshot = read_snapshot(page(*counted(10)))

    assert Tally(total=0.0, n=0) == delta(snapshot, snapshot).queue_s
    assert delta(snapshot, snapshot).queue_s.mean is None


def test_counter_that_fell_means_a_restart():
    before, after = read_snapshot(page(*counted(10))), read_snapshot(page(*counted(9)))

    with pytest.raises(EngineRequestError, match=r"restarted during the point: vllm:generation_tokens_total.* to 9"):
        delta(before, after)


def test_restart_of_one_engine_of_two_is_seen_though_the_sum_grew():
    before = read_snapshot(page(*counted(10), *counted(10, engine=1)))
    after = read_snapshot(page(*counted(100), *counted(2, engine=1)))

    with pytest.raises(EngineRequestError, match="restarted"):
        delta(before, after)


def test_restart_between_two_pages_is_seen_though_the_counters_caught_up():
    first, middle, last = (read_snapshot(page(*counted(tokens))) for tokens in (10, 1, 20))

    with pytest.raises(EngineRequestError, match="restarted"):
        delta(first, last, between=[middle])


def test_younger_process_means_a_restart():
    before = read_snapshot(page(*counted(10), "process_start_time_seconds 1000.0"))
    after = read_snapshot(page(*counted(20), "process_start_time_seconds 1010.0"))

    with pytest.raises(EngineRequestError, match="process_start_time_seconds changed"):
        delta(before, after)


def test_counter_that_vanished_means_a_restart():
    before, after = read_snapshot(page(*counted(10))), read_snapshot(page("vllm:num_requests_running 0"))

    with pytest.raises(EngineRequestError, match="to nothing"):
        delta(before, after)


def test_reason_that_shows_up_later_had_counted_none():
    before = read_snapshot(page('vllm:request_success_total{finished_reason="stop"} 3'))
    after = read_snapshot(
        page(
            'vllm:request_success_total{finished_reason="stop"} 5',
            'vllm:request_success_total{finished_reason="abort"} 1',
        )
    )

    assert (("abort", 1), ("stop", 2)) == delta(before, after).finished


@pytest.mark.anyio
async def test_mock_page_shows_the_times_that_the_script_makes(jumping_clock):
    engine = MeteredEngine(KNOWN, clock=jumping_clock)
    shown = {"model_name": "mock", "kv_capacity_tokens": 1000}
    before = read_snapshot(render_metrics(engine, **shown).decode())
    for sequence in [engine.submit(n_prompt_tokens=n, n_output_tokens=3) for n in (20, 10)]:
        _ = [number async for number in sequence.tokens()]
    dropped = engine.submit(n_prompt_tokens=5, n_output_tokens=3)
    engine.cancel(dropped)
    difference = delta(before, read_snapshot(render_metrics(engine, **shown).decode()))
    await engine.close()

    # One place: 3 steps of 1.1 s and 0.2 s prefill, then the other waits for 3.5 s and has 0.1 s of prefill.
    assert pytest.approx(1.3 + 3.5 + 1.2) == difference.ttft_s.total
    assert (2, 4, 2) == (difference.ttft_s.n, difference.itl_s.n, difference.e2el_s.n)
    assert pytest.approx(1.1) == difference.itl_s.mean
    assert pytest.approx(3.5 / 2) == difference.queue_s.mean
    assert pytest.approx((1.3 + 1.2) / 2) == difference.prefill_s.mean
    assert pytest.approx(2.2) == difference.decode_s.mean
    assert pytest.approx((3.5 + 6.9) / 2) == difference.e2el_s.mean
    assert (30, 6) == (difference.prompt_tokens, difference.generation_tokens)
    assert Tally(total=36.0, n=6) == difference.iteration_tokens
    assert (("abort", 1), ("error", 0), ("length", 2), ("stop", 0)) == difference.finished


@pytest.mark.anyio
async def test_mock_page_is_fetched_under_any_spelling_of_the_url():
    async with running_mock(MockSettings()) as base_url:
        plain, versioned = await fetch_page(base_url), await fetch_page(base_url + "/v1/")

    assert plain == versioned
    assert 0 == read_snapshot(plain or "").n_running


@pytest.mark.anyio
@pytest.mark.parametrize("status", ["404 Not Found", "501 Not Implemented", "401 Unauthorized"])
async def test_page_that_is_not_served_is_none(playback, status):
    async with playback(answer(b"no", status)) as server:
        assert await fetch_page(server.base_url, "key") is None

    assert b"authorization: bearer key" in server.requests[0].lower()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "words"),
    [(answer(b"oops", "500 Internal Server Error"), "HTTP 500"), (answer(b"\xff"), "UTF-8"), (None, "disconnected")],
)
async def test_page_that_fails_is_an_error(playback, script, words):
    async with playback(script, script) as server:  # a connection that breaks at once is tried twice
        with pytest.raises(EngineRequestError, match=words):
            await fetch_page(server.base_url)


@pytest.mark.anyio
async def test_endless_page_is_refused(playback, monkeypatch):
    monkeypatch.setattr(metrics_page, "_MAX_PAGE_BYTES", 10)
    async with playback(answer(b"12345678901")) as server:
        with pytest.raises(EngineRequestError, match="longer than 10 bytes"):
            await fetch_page(server.base_url)


@pytest.mark.anyio
async def test_silent_engine_is_an_error(playback, monkeypatch):
    monkeypatch.setattr(metrics_page, "PAGE_TIMEOUT_S", 0.0)
    async with playback() as server:
        with pytest.raises(EngineRequestError, match="no answer within 0 s"):
            await fetch_page(server.base_url)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (answer(b""), True),
        (answer(b'{"success": true}'), True),
        (answer(b'{"success":false}'), False),
        (answer(b"<html>"), False),
        (answer(b"", "404 Not Found"), False),
        (answer(b'{"success": true}', "202 Accepted"), False),
    ],
)
async def test_prefix_cache_counts_as_reset_only_when_the_engine_says_so(playback, script, expected):
    async with playback(script) as server:
        assert expected is await reset_prefix_cache(server.base_url)

    assert server.requests[0].startswith(b"POST /reset_prefix_cache HTTP/1.1\r\n")


@pytest.mark.anyio
async def test_reset_of_a_dead_engine_is_an_error(playback):
    async with playback(None) as server:
        with pytest.raises(EngineRequestError):
            await reset_prefix_cache(server.base_url)


@pytest.mark.anyio
async def test_mock_refuses_to_reset_while_it_runs_requests():
    body = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10_000, "temperature": 0}
    app = mock_app(MockSettings(alpha_s=0.05, context_tokens=20_000))

    async def ask(session: aiohttp.ClientSession, base_url: str) -> None:
        async with session.post(base_url + "/v1/chat/completions", json=body) as response:
            await response.read()

    async with running_app(app) as base_url, aiohttp.ClientSession() as session:
        idle = await reset_prefix_cache(base_url)
        asking = asyncio.create_task(ask(session, base_url))
        async with asyncio.timeout(20):
            while not app.engine.n_running:  # noqa: ASYNC110 - the engine tells nobody
                await asyncio.sleep(0.005)
        busy = await reset_prefix_cache(base_url)
        asking.cancel()

    assert (True, False) == (idle, busy)
