"""The pool keeps its width, takes jobs in order, and lets llmtier's own errors out bare."""

import asyncio

import pytest

from llmtier.core.errors import DiskError, EngineRequestError
from llmtier.evaluate.workers import GIVE_UP_AFTER, EngineWatch, run_workers, task_group

pytestmark = pytest.mark.anyio


class Gauge:
    """Counts jobs in flight; each takes a few turns of the loop."""

    def __init__(self):
        self.now = 0
        self.peak = 0
        self.seen = []

    async def work(self, job):
        self.seen.append(job)
        self.now += 1
        self.peak = max(self.peak, self.now)
        for _ in range(3):
            await asyncio.sleep(0)
        self.now -= 1


@pytest.mark.parametrize(("concurrency", "n_jobs", "peak"), [(1, 5, 1), (4, 20, 4), (8, 3, 3), (3, 0, 0)])
async def test_pool_keeps_its_width_and_does_every_job_once(concurrency, n_jobs, peak):
    gauge = Gauge()

    await run_workers(gauge.work, range(n_jobs), concurrency=concurrency)

    assert list(range(n_jobs)) == gauge.seen
    assert peak == gauge.peak


async def test_staggered_workers_begin_one_after_another():
    gauge = Gauge()

    await run_workers(gauge.work, range(3), concurrency=3, stagger_s=0.01)

    assert 1 == gauge.peak


async def test_a_pool_without_workers_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        await run_workers(Gauge().work, [1], concurrency=0)


async def test_an_own_error_comes_out_bare_and_ends_the_others():
    started = []

    async def work(job):
        started.append(job)
        if job == 1:
            raise DiskError("disk full")
        await asyncio.sleep(60)

    with pytest.raises(DiskError, match="disk full"):
        await run_workers(work, range(10), concurrency=3)

    assert [0, 1, 2] == started


async def test_a_bug_is_not_dressed_up_as_an_own_error():
    async def fail(error):
        raise error

    async def fail_twice():
        async with task_group() as group:
            group.create_task(fail(DiskError("disk full")))
            group.create_task(fail(ZeroDivisionError()))

    with pytest.raises(ExceptionGroup) as caught:
        await fail_twice()

    assert caught.group_contains(ZeroDivisionError)


async def test_cancelling_the_pool_cancels_its_jobs():
    ended = []

    async def work(job):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(job)

    pool = asyncio.create_task(run_workers(work, range(2), concurrency=2))
    await asyncio.sleep(0.01)
    pool.cancel()

    with pytest.raises(asyncio.CancelledError):
        await pool
    assert [0, 1] == sorted(ended)


def test_watch_gives_up_when_nothing_was_ever_answered():
    dead = EngineWatch()
    error = EngineRequestError("refused", status=503)

    for _ in range(GIVE_UP_AFTER - 1):
        dead.note_failure(error)

    with pytest.raises(EngineRequestError, match="first 20 requests all failed, the last with: refused") as caught:
        dead.note_failure(error)
    assert 503 == caught.value.status


def test_engine_that_dies_after_answers_counts_as_down():
    watch = EngineWatch()
    watch.note_answer()
    for _ in range(GIVE_UP_AFTER - 1):
        watch.note_failure(EngineRequestError("connection refused"))

    with pytest.raises(EngineRequestError, match="stopped answering"):
        watch.note_failure(EngineRequestError("connection refused"))


def test_refusals_and_single_failures_are_no_death():
    watch = EngineWatch()
    watch.note_answer()
    for _ in range(3 * GIVE_UP_AFTER):
        watch.note_failure(EngineRequestError("too long", status=400))
        watch.note_failure(EngineRequestError("connection reset"))
        watch.note_answer()
