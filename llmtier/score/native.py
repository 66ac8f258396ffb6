"""Whether the learned scorer runs in C or in numpy, and the objects in C where it does.

The C is optional: an installation without a compiler has none, and ``LLMTIER_PURE=1`` leaves it out. Both compute the
same bits; numpy's says what they mean. Decided once, when the first scorer is laid out.
"""

import importlib
import logging
import os
from functools import cache
from typing import NamedTuple

REVISION = 1
"""Of the calls into C that this package makes; a file compiled from another one's source is left alone."""

PURE_VARIABLE = "LLMTIER_PURE"

_MODULE = "llmtier.score._native"
_logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """What was found.

    Attributes:
        is_native: Whether the C runs.
        reason: Why not; empty where it does.
    """

    is_native: bool
    reason: str = ""

    def describe(self) -> str:
        """Say it in a line."""
        return "C" if self.is_native else f"numpy, slower ({self.reason})"


@cache
def find_native() -> Found:
    """Look for the compiled module, once a process."""
    found = _look(os.environ.get(PURE_VARIABLE, ""))
    _logger.debug("learned scorer", extra={"runs_in": found.describe()})
    return found


def _look(pure: str) -> Found:
    if pure not in {"", "0"}:
        return Found(is_native=False, reason=f"{PURE_VARIABLE} is set")
    try:
        revision = importlib.import_module(_MODULE).REVISION
    except ImportError:
        return Found(is_native=False, reason="not compiled; install again where there is a C compiler")
    if revision != REVISION:
        reason = f"compiled from revision {revision} of its source, this is {REVISION}; install again"
        return Found(is_native=False, reason=reason)
    return Found(is_native=True)
