"""An engine's own signs: read from its page, unknown where the page is silent, and mute when old."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.core.decision import MissReason
from llmtier.engine.metrics_page import read_snapshot
from llmtier.serve.scrape import MAX_AGE_S, EngineSigns, SignLimits, SignsReader, find_overload, read_page

GOLDEN = Path(__file__).parents[1] / "golden" / "vllm_0.32.0_metrics.txt"
UNKNOWN = EngineSigns(read_s=0.0)


def make_page(*, running=0, waiting=0, kv=0.0, preemptions=0, steps=0, born_s=100):
    return (
        f'vllm:num_requests_running{{engine="0"}} {running}\n'
        f'vllm:num_requests_waiting{{engine="0"}} {waiting}\n'
        f'vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} 99\n'
        f'vllm:kv_cache_usage_perc{{engine="0"}} {kv}\n'
        f'vllm:num_preemptions_total{{engine="0"}} {preemptions}\n'
        f'vllm:iteration_tokens_total_count{{engine="0"}} {steps}\n'
        f'vllm:iteration_tokens_total_sum{{engine="0"}} {9 * steps}\n'
        f"process_start_time_seconds {born_s}\n"
    ).encode()


def test_the_few_lines_say_what_the_whole_page_says():
    whole, found = read_snapshot(GOLDEN.read_text()), read_page(GOLDEN.read_bytes())

    assert (whole.n_running, whole.n_waiting, whole.kv_usage) == (found.n_running, found.n_waiting, found.kv_usage)
    assert whole.counters["n_preemptions"] == found.counters["n_preemptions"]
    assert 52 == whole.tallies["iteration_tokens"].n == found.tallies["iteration_tokens"].n


def test_a_page_is_read_into_signs():
    signs = SignsReader().read(make_page(running=3, waiting=2, kv=0.5), now_s=7.0)

    assert EngineSigns(n_running=3, n_waiting=2, kv_usage=0.5, read_s=7.0) == signs


def test_engines_behind_one_page_are_added_up_and_the_fullest_cache_counts():
    page = make_page(running=3, kv=0.2) + make_page(running=4, kv=0.9).replace(b'"0"', b'"1"')
    signs = SignsReader().read(page, now_s=0.0)

    assert (7, 0.9) == (signs.n_running, signs.kv_usage)


def test_preemptions_are_a_rate_between_two_pages():
    reader = SignsReader()
    assert reader.read(make_page(preemptions=10), now_s=1.0).preemptions_per_s is None
    assert 3.0 == reader.read(make_page(preemptions=16), now_s=3.0).preemptions_per_s
    assert 0.0 == reader.read(make_page(preemptions=16), now_s=4.0).preemptions_per_s
    assert reader.read(make_page(preemptions=17), now_s=4.0).preemptions_per_s is None  # no time has passed


@pytest.mark.parametrize(
    "after", [{"preemptions": 2, "born_s": 200}, {"preemptions": 12, "steps": 9, "born_s": 200}, {"steps": 1}]
)
def test_an_engine_that_was_restarted_has_no_rate(after):
    reader = SignsReader()
    reader.read(make_page(preemptions=10, steps=5), now_s=1.0)

    assert reader.read(make_page(**after), now_s=2.0).preemptions_per_s is None


def test_others_load_is_what_the_gateway_does_not_explain_on_two_pages():
    reader = SignsReader()
    page = make_page(running=6, waiting=3)

    assert reader.read(page, now_s=1.0, n_own=2).n_foreign is None
    assert 1.0 == reader.read(page, now_s=2.0, n_own=8).n_foreign
    assert 1.0 == reader.read(page, now_s=3.0, n_own=2).n_foreign  # a moment's difference is no load
    assert 7.0 == reader.read(page, now_s=4.0, n_own=2).n_foreign
    assert 0.0 == reader.read(page, now_s=5.0, n_own=50).n_foreign
    assert reader.read(page, now_s=6.0).n_foreign is None


@pytest.mark.parametrize(
    ("before", "after", "is_stuck"),
    [
        ({"running": 1, "steps": 5}, {"running": 1, "steps": 5}, True),
        ({"running": 1, "steps": 5}, {"running": 1, "steps": 6}, False),
        ({"running": 0, "steps": 5}, {"running": 1, "steps": 5}, False),
        ({"running": 1, "steps": 5}, {"running": 1, "steps": 4}, None),  # restarted
    ],
)
def test_an_engine_with_requests_and_without_steps_is_stuck(before, after, is_stuck):
    reader = SignsReader()
    assert reader.read(make_page(**before), now_s=1.0).is_stuck is None
    assert is_stuck is reader.read(make_page(**after), now_s=2.0).is_stuck


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\xff\xfe\x00",
        b"<html>502 Bad Gateway</html>",
        b"vllm:num_requests_running oops\n",
        b'vllm:num_requests_running{engine="0" 3\n',
        b"vllm:num_requests_running NaN\n",
        b"other_metric 3\n",
        b"process_start_time_seconds 3\n",
    ],
)
def test_a_page_that_cannot_be_read_is_unknown_and_the_next_one_starts_anew(page):
    reader = SignsReader()
    reader.read(make_page(preemptions=1), now_s=1.0, n_own=0)

    assert EngineSigns(read_s=2.0) == reader.read(page, now_s=2.0, n_own=0)
    following = reader.read(make_page(preemptions=9, running=1), now_s=3.0, n_own=0)
    assert (None, None, 1) == (following.preemptions_per_s, following.n_foreign, following.n_running)


def test_a_missing_metric_is_unknown_and_nothing_else():
    page = b"\n".join(line for line in make_page(running=2).split(b"\n") if b"kv_cache" not in line)
    signs = SignsReader().read(page, now_s=0.0)

    assert (None, 2) == (signs.kv_usage, signs.n_running)
    assert find_overload(signs, now_s=0.0, n_prefilling=0) is None


@given(st.binary() | st.binary().map(lambda junk: make_page(running=1) + b"vllm:num_requests_running" + junk))
def test_no_page_breaks_the_reader(page):
    reader = SignsReader()
    for now_s in (1.0, 2.0):
        reader.read(page, now_s=now_s, n_own=1)


def overload(*, now_s=0.0, n_prefilling=0, limits=None, **signs):
    more = {} if limits is None else {"limits": limits}
    return find_overload(EngineSigns(read_s=0.0, **signs), now_s=now_s, n_prefilling=n_prefilling, **more)


@pytest.mark.parametrize(
    ("signs", "reason"),
    [
        ({}, None),
        ({"kv_usage": 0.949}, None),
        ({"kv_usage": 0.95}, MissReason.KV),
        ({"preemptions_per_s": 1.0}, None),
        ({"preemptions_per_s": 1.1}, MissReason.PREEMPTIONS),
        ({"n_waiting": 8}, None),
        ({"n_waiting": 9}, MissReason.QUEUE),
        ({"n_waiting": 9, "n_prefilling": 1}, None),  # the ledger explains it
        ({"n_waiting": 60, "n_foreign": 3}, None),  # our own, served since
        ({"n_waiting": 60, "n_foreign": 9}, MissReason.QUEUE),
        ({"kv_usage": 1.0, "preemptions_per_s": 9.0, "n_waiting": 99}, MissReason.KV),
    ],
)
def test_an_overload_has_a_name_while_it_is_fresh(signs, reason):
    assert reason is overload(**signs)
    assert reason is overload(now_s=MAX_AGE_S, **signs)
    assert overload(now_s=MAX_AGE_S + 0.1, **signs) is None


def test_limits_can_be_set():
    assert overload(kv_usage=0.9, limits=SignLimits(kv_usage=0.9)) is MissReason.KV
    assert overload(n_waiting=1, limits=SignLimits(n_waiting=0)) is MissReason.QUEUE
    assert overload(preemptions_per_s=0.1, limits=SignLimits(preemptions_per_s=0)) is MissReason.PREEMPTIONS


def test_old_or_unknown_load_of_others_is_none():
    signs = EngineSigns(n_foreign=3.0, read_s=10.0)

    assert [3.0, 0.0] == [signs.foreign_at(now_s) for now_s in (10.0 + MAX_AGE_S, 10.1 + MAX_AGE_S)]
    assert 0.0 == UNKNOWN.foreign_at(0.0)
