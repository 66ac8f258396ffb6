"""Wait until an instant more exactly than an event loop does: a kernel timer where there is one.

asyncio and libuv round waits to a millisecond, which is as much as a small model's step. Linux's
timerfd has no such grain and wakes the loop like any socket; elsewhere the loop's own timer is used
and the schedule delay shows what that costs. Source: timerfd_create(2).
"""

import asyncio
import ctypes
import os
import sys
import time
from types import TracebackType
from typing import Self

_CLOCK_MONOTONIC = 1  # what time.perf_counter reads on Linux
_ABSOLUTE = 1
_NANOSECONDS = 1_000_000_000


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Pacer:
    """Lets one coroutine wait for instants on ``time.perf_counter``; a context manager."""

    def __init__(self) -> None:
        self._libc: ctypes.CDLL | None = None
        self._descriptor: int | None = None
        self._woken: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        """Open the timer in the running event loop."""
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            if descriptor >= 0:
                self._descriptor = descriptor
                asyncio.get_running_loop().add_reader(descriptor, self._ring)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the timer."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    async def until(self, instant_s: float) -> None:
        """Wait until ``instant_s``; an instant that has passed gives other tasks no turn."""
        now_s = time.perf_counter()
        if instant_s <= now_s:
            return
        if self._descriptor is None:
            await asyncio.sleep(instant_s - now_s)
            return
        self._woken = asyncio.get_running_loop().create_future()
        self._arm(instant_s)
        await self._woken

    def _arm(self, instant_s: float) -> None:
        seconds, nanoseconds = divmod(round(instant_s * _NANOSECONDS), _NANOSECONDS)
        spec = _TimerSpec(value=_TimeSpec(seconds, nanoseconds))
        if self._libc is None or self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def _ring(self) -> None:
        if self._descriptor is None:
            return
        os.read(self._descriptor, 8)
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
