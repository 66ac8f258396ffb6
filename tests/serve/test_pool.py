"""The pool: counts, what routing is shown of each tier, liveness and readiness."""

import pytest

from llmtier.core.errors import PlanError
from llmtier.core.latency_model import LoadState
from llmtier.engine.wire import Usage
from llmtier.serve.ledger import PromptSize
from llmtier.serve.pool import ServedTier, TierPool

SIZE = PromptSize(n_characters=40)


def make_tier(name, profile=None):
    return ServedTier(name=name, base_url="http://127.0.0.1:1", model_name=name, profile=profile)


def make_pool(*names):
    return TierPool([make_tier(name) for name in names])


def serve(pool, name="a"):
    return pool.serving(name, SIZE, is_stream=True)


def test_counts_what_is_in_flight_even_when_serving_fails():
    pool = make_pool("a")

    def fail(flight):
        flight.note_piece(1.0)
        raise ConnectionError(pool.n_in_flight("a"))

    with pytest.raises(ConnectionError, match="2"), serve(pool), serve(pool) as flight:
        fail(flight)

    assert 0 == pool.n_in_flight("a")
    assert LoadState() == pool.states()["a"].load


def test_routing_is_shown_the_load_at_the_pools_own_time():
    clock = iter([10.0, 12.5])
    pool = TierPool([make_tier("a")], clock=lambda: next(clock))
    with serve(pool) as flight:
        flight.note_piece(11.0)
        load = pool.states()["a"].load

    assert LoadState(n_decoding=1, kv_tokens=11, step_age_s=1.5) == load


def test_routing_is_shown_which_co_tenants_are_at_work(make_profile):
    profile = make_profile("a", co_tenants=("b", "c", "elsewhere"))
    pool = TierPool([make_tier("a", profile), make_tier("b"), make_tier("c")])
    with serve(pool, "b"):
        busy = pool.states()

    assert (("b", 1.0), ("c", 0.0)) == busy["a"].load.co_tenants
    assert () == busy["b"].load.co_tenants
    assert (("b", 0.0), ("c", 0.0)) == pool.states()["a"].load.co_tenants


def test_what_an_engine_counted_makes_later_prompts_longer():
    pool = make_pool("a", "b")
    with serve(pool) as flight:
        flight.learn(Usage(prompt_tokens=400))

    assert pool.states()["a"].tokens_per_character > 0.25 == pool.states()["b"].tokens_per_character


def test_is_ready_once_all_have_answered_and_while_one_does():
    pool = make_pool("a", "b")
    pool.mark_alive("a")
    assert not pool.is_ready

    pool.mark_alive("b")
    pool.mark_dead("a")
    assert pool.is_ready

    pool.mark_dead("b")
    assert not pool.is_ready


def test_one_missed_probe_is_forgiven_and_three_are_not():
    pool = make_pool("a")
    pool.mark_alive("a")
    pool.mark_silent("a")
    pool.mark_silent("a")
    assert pool.is_healthy("a")

    pool.mark_silent("a")
    assert not pool.is_healthy("a")


@pytest.mark.parametrize("names", [(), ("a", "a"), ("auto",)])
def test_refuses_names_that_cannot_be_told_apart(names):
    with pytest.raises(PlanError):
        make_pool(*names)


def test_a_key_is_never_shown():
    tier = ServedTier(name="a", base_url="http://h", model_name="a", api_key="secret")

    assert "secret" not in repr(tier)
