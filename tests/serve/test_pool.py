"""The pool: counts, what routing is shown of each tier, liveness and readiness."""

import pytest

from llmtier.core.decision import MissReason
from llmtier.core.errors import PlanError
from llmtier.core.latency_model import LoadState
from llmtier.engine.wire import Usage
from llmtier.serve.board import Board, BoardShape, EngineSlot, share
from llmtier.serve.ledger import PromptSize
from llmtier.serve.pool import ServedTier, TierPool

SIZE = PromptSize(n_characters=40)


class Clock:
    """A clock that stands."""

    def __init__(self, now_s=10.0):
        self.now_s = now_s

    def __call__(self):
        return self.now_s


def make_tier(name, profile=None):
    return ServedTier(name=name, base_url="http://127.0.0.1:1", model_name=name, profile=profile)


def make_pool(*names, **changes):
    return TierPool([make_tier(name) for name in names], clock=Clock(), **changes)


def begin(pool, name="a"):
    return pool.begin(name, SIZE, is_stream=True)


def set_alive(pool, name, *, is_alive=True, at_s=10.0):
    if is_alive:
        pool.board.set_engine(name, EngineSlot.WAS_ALIVE, 1.0)
        pool.board.set_engine(name, EngineSlot.ALIVE_S, at_s)
    pool.board.set_engine(name, EngineSlot.ALIVE, float(is_alive))


def test_counts_what_is_in_flight():
    pool = make_pool("a")
    flights = [begin(pool), begin(pool)]
    flights[0].note_piece(1.0)
    assert 2 == pool.n_in_flight("a") == pool.board.n_in_flight("a")

    for flight in flights:
        pool.end("a", flight)

    assert 0 == pool.n_in_flight("a") == pool.board.n_in_flight("a")


def test_routing_is_shown_the_load_at_the_pools_own_time():
    clock = Clock()
    pool = TierPool([make_tier("a")], clock=clock)
    begin(pool).note_piece(11.0)
    clock.now_s = 12.5

    assert LoadState(n_decoding=1, kv_tokens=11, step_age_s=1.5) == pool.states()["a"].load


def test_routing_is_shown_which_co_tenants_are_at_work(make_profile):
    profile = make_profile("a", co_tenants=("b", "c", "elsewhere"))
    pool = TierPool([make_tier("a", profile), make_tier("b"), make_tier("c")])
    flight = begin(pool, "b")
    busy = {name: state.load.co_tenants for name, state in pool.states().items()}
    pool.end("b", flight)

    assert (("b", 1.0), ("c", 0.0)) == busy["a"]
    assert () == busy["b"]
    assert (("b", 0.0), ("c", 0.0)) == pool.states()["a"].load.co_tenants


def test_routing_is_shown_what_other_processes_have_there():
    shape = BoardShape(sites=("a",), n_workers=2)
    memory = share(shape)
    mine, other = (
        TierPool([make_tier("a")], clock=Clock(), board=Board(shape, memory), worker=number) for number in range(2)
    )
    begin(other).note_piece(10.0)
    begin(other)

    assert 0 == mine.n_in_flight("a")
    assert 2 == mine.states()["a"].load.n_in_flight


def test_what_an_engine_counted_makes_later_prompts_longer():
    pool = make_pool("a", "b")
    begin(pool).learn(Usage(prompt_tokens=400))

    assert pool.states()["a"].tokens_per_character > 0.25 == pool.states()["b"].tokens_per_character


def test_is_ready_once_all_have_answered_and_while_one_does():
    pool = make_pool("a", "b")
    set_alive(pool, "a")
    assert not pool.is_ready

    set_alive(pool, "b")
    set_alive(pool, "a", is_alive=False)
    assert pool.is_ready

    set_alive(pool, "b", is_alive=False)
    assert not pool.is_ready


def test_an_engine_that_was_lost_is_out_until_it_answers_again():
    clock = Clock(10.0)
    pool = TierPool([make_tier("a")], clock=clock)
    set_alive(pool, "a", at_s=9.0)
    pool.report_lost("a")
    assert not pool.is_healthy("a")
    assert not pool.states()["a"].is_healthy

    set_alive(pool, "a", at_s=11.0)
    assert pool.is_healthy("a")


def test_a_full_cache_is_a_reason_against_a_tier_while_the_sign_is_fresh():
    clock = Clock(100.0)
    pool = TierPool([make_tier("a")], clock=clock)
    pool.board.set_engine("a", EngineSlot.KV_USAGE, 0.99)
    pool.board.set_engine("a", EngineSlot.SIGNS_S, 99.0)
    assert MissReason.KV is pool.states()["a"].unusable

    clock.now_s = 200.0
    assert pool.states()["a"].unusable is None


@pytest.mark.parametrize("names", [(), ("a", "a"), ("auto",)])
def test_refuses_names_that_cannot_be_told_apart(names):
    with pytest.raises(PlanError):
        make_pool(*names)


def test_a_key_is_never_shown():
    tier = ServedTier(name="a", base_url="http://h", model_name="a", api_key="secret")

    assert "secret" not in repr(tier)
