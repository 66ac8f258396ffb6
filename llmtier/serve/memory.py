"""How a process that serves for months keeps its memory: the garbage collector's pace, and what goes back to the kernel."""

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_LARGE_BYTES = 1 << 20
_N_ARENAS = 2


def settle_memory() -> None:
    """Do both, once what a process needs is loaded and before it serves."""
    calm_collector()
    return_large_blocks()


def calm_collector() -> None:
    """Let the garbage collector look at what requests leave behind, seldom, and never again at what was loaded.

    Requests leave few cycles; looking for them after each 700 new objects, all modules included, takes 5 % of a
    gateway's processor time and some milliseconds now and then.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def return_large_blocks() -> bool:
    """Have bodies of a megabyte and more go back to the kernel when they are done with; return whether the C library can.

    By default glibc takes a large block that was freed for a sign that more will come, and keeps up to 32 MB of each from
    then on, in holes that small objects fill: memory creeps up under mixed bodies. Other C libraries do not do so.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    wanted = {_M_MMAP_THRESHOLD: _LARGE_BYTES, _M_TRIM_THRESHOLD: _LARGE_BYTES, _M_ARENA_MAX: _N_ARENAS}
    n_taken = sum(int(mallopt(name, value)) for name, value in wanted.items())
    return n_taken == len(wanted)
