"""Work spread over the cores, results in order: for sources that are too large for one process to wait for.

Processes are started only when there is more than a little to do. They end with this one, however it ends.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from llmtier.core.errors import MachineError

N_INLINE = 2  # chunks; starting a process takes longer than reading these
QUEUE_PER_PROCESS = 2  # chunks on their way, which bounds the memory

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(work: Callable[[T], R], items: Iterable[T], *, n_processes: int) -> Iterator[R]:
    """Yield ``work(item)`` in the order of the items; at most a few items are on their way.

    Raises:
        MachineError: A process was killed, as the kernel does when memory runs out.
        Exception: What ``work`` raised, at the item's place in the order.
    """
    rest = iter(items)
    first = list(islice(rest, N_INLINE + 1))
    if n_processes <= 1 or len(first) <= N_INLINE:
        yield from map(work, chain(first, rest))
        return
    pool = ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"), initializer=leave_with_parent)
    try:
        yield from _feed(pool, work, chain(first, rest), n_queued=n_processes * QUEUE_PER_PROCESS)
    except BrokenProcessPool as exc:
        raise MachineError("a process of the build was killed, as happens when memory runs out; run it again") from exc
    finally:
        pool.shutdown(cancel_futures=True)


def _feed(pool: ProcessPoolExecutor, work: Callable[[T], R], items: Iterable[T], *, n_queued: int) -> Iterator[R]:
    queue: deque[Future[R]] = deque()
    for item in items:
        queue.append(pool.submit(work, item))
        if len(queue) >= n_queued:
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()


def leave_with_parent() -> None:
    """Prepare a process of the pool: Ctrl-C is the parent's business, and without a parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
