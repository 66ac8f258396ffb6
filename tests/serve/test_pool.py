"""The ledger: counts, liveness and readiness."""

import pytest

from llmtier.core.errors import PlanError
from llmtier.serve.pool import ServedTier, TierPool


def make_pool(*names):
    return TierPool([ServedTier(name=name, base_url="http://127.0.0.1:1", model_name=name) for name in names])


def test_counts_what_is_in_flight_even_when_serving_fails():
    pool = make_pool("a")

    def fail():
        raise ConnectionError(pool.n_in_flight("a"))

    with pytest.raises(ConnectionError, match="2"), pool.serving("a"), pool.serving("a"):
        fail()

    assert 0 == pool.n_in_flight("a")


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
