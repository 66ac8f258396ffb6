"""An answer lets go of whoever takes its pieces once it has ended: they would else wait for the collector together."""

import asyncio
import gc
import weakref

import pytest

from llmtier.serve.http_answer import UpstreamAnswer


class Source:
    def pause(self):
        pass

    def resume(self):
        pass

    def close(self):
        pass


class Taker:
    """Holds the answer that it takes the pieces of, as a relay does."""

    def __init__(self, answer):
        self.answer = answer
        self.taken = []

    def take(self, piece):
        self.taken.append(piece)


pytestmark = pytest.mark.anyio


@pytest.fixture
def without_collector():
    gc.disable()
    yield
    gc.enable()


def _late(answer, taker):
    ended = answer.pipe(taker.take)
    answer.take(b"a")
    answer.finish()
    return ended


def _at_once(answer, taker):
    answer.take(b"a")
    answer.finish()
    return answer.pipe(taker.take)


def _broken(answer, taker):
    ended = answer.pipe(taker.take)
    answer.take(b"a")
    answer.fail("cut")
    return ended


def _closed(answer, taker):
    ended = answer.pipe(taker.take)
    answer.take(b"a")
    answer.close()
    return ended


@pytest.mark.parametrize("play", [_late, _at_once, _broken, _closed])
async def test_an_answer_that_has_ended_lets_its_taker_go(without_collector, play):
    taker = Taker(UpstreamAnswer(Source(), asyncio.get_running_loop(), 0.0))
    assert play(taker.answer, taker).done()
    assert [b"a"] == taker.taken
    gone = weakref.ref(taker)
    del taker

    assert gone() is None
