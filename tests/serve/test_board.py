"""The board: who writes what, what the others read, what a dead worker leaves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtier.serve.board import N_COUNTS, Board, BoardShape, EngineSlot, board_of, share

SHAPE = BoardShape(sites=("a", "b"), n_workers=3)


@pytest.fixture
def board():
    return Board(SHAPE, share(SHAPE))


def test_a_new_board_knows_nothing(board):
    assert not board.is_alive("a")
    assert 0 == board.n_in_flight("a")
    assert math.isnan(board.engine("a", EngineSlot.KV_USAGE))
    assert (0, 0, 0, 0, 0) == board.others(0, "b")


@given(counts=st.lists(st.tuples(*[st.floats(0, 1e9)] * N_COUNTS), min_size=6, max_size=6))
def test_every_worker_reads_the_sum_of_the_others(counts):
    board = Board(SHAPE, share(SHAPE))
    for number, values in enumerate(counts):
        board.set_counts(number // 2, "ab"[number % 2], values)

    for worker in range(3):
        for column, tier in enumerate("ab"):
            others = [counts[2 * other + column] for other in range(3) if other != worker]
            expected = [math.fsum(column) for column in zip(*others, strict=True)]
            assert pytest.approx(expected) == board.others(worker, tier)


def test_one_process_has_no_others():
    assert board_of(["a"]).others(0, "a") is None


def test_views_of_one_memory_see_each_other():
    memory = share(SHAPE)
    Board(SHAPE, memory).set_counts(1, "b", (2, 3, 40, 50, 0.5))

    assert 5 == Board(SHAPE, memory).n_in_flight("b")
    assert 0 == Board(SHAPE, memory).n_in_flight("a")


def test_a_lost_engine_is_dead_for_all_until_it_answers_again(board):
    board.set_engine("a", EngineSlot.ALIVE, 1.0)
    board.set_engine("a", EngineSlot.ALIVE_S, 10.0)
    assert board.is_alive("a")

    board.note_lost(2, "a", 10.5)
    assert not board.is_alive("a")
    assert not Board(SHAPE).is_alive("a")

    board.set_engine("a", EngineSlot.ALIVE_S, 11.0)
    assert board.is_alive("a")


def test_a_dead_worker_is_taken_off(board):
    board.set_counts(1, "a", (1, 1, 10, 10, 1))
    board.set_counts(2, "a", (4, 0, 0, 10, 1))
    board.clear_worker(1)

    assert 4 == board.n_in_flight("a")
