"""The faults that the soak's engines play, and how often each.

All that an engine can show of a gateway's fault matrix; what takes a signal (SIGKILL, SIGSTOP, hung while its health is
good) is ``soak_chaos.py``'s.
"""

from enum import StrEnum
from random import Random


class EngineFault(StrEnum):
    """What goes wrong with one request; ``NONE`` mostly."""

    NONE = "none"
    STATUS_500 = "status-500"
    STATUS_502 = "status-502"
    STATUS_503 = "status-503"
    STATUS_429 = "status-429"  # with Retry-After
    CLOSE = "close-before-answer"
    RESET = "reset-before-answer"
    HANG = "never-answers"
    HEAD_ONLY = "head-then-nothing"
    EMPTY_BODY = "empty-body"
    EMPTY_ANSWER = "empty-answer"
    REPETITION = "one-token-repeated"
    NAN = "nan-logprobs"
    CUT = "cut"
    CUT_RESET = "cut-by-reset"
    CUT_EVENT = "cut-in-event"
    CUT_CHARACTER = "cut-in-character"
    STALL = "stall"
    PAUSE = "pause-then-rest"  # no fault to a client
    MALFORMED = "malformed-line"
    ERROR_CHUNK = "error-chunk"
    NO_DONE = "end-without-done"
    BAD_CHUNK = "bad-chunk-size"
    DRIBBLE = "bytes-cut-anywhere"  # no fault to a client
    ONE_CHUNK = "one-huge-chunk"  # no fault to a client


_ANY = {
    EngineFault.STATUS_500: 6,
    EngineFault.STATUS_502: 3,
    EngineFault.STATUS_503: 6,
    EngineFault.STATUS_429: 4,
    EngineFault.CLOSE: 6,
    EngineFault.RESET: 6,
    EngineFault.HANG: 1,
    EngineFault.HEAD_ONLY: 1,
    EngineFault.EMPTY_BODY: 4,
    EngineFault.CUT: 6,
    EngineFault.CUT_RESET: 6,
    EngineFault.STALL: 1,
    EngineFault.DRIBBLE: 12,
}
_GENERATED = {EngineFault.REPETITION: 3, EngineFault.NAN: 3}
_CHATTED = {EngineFault.EMPTY_ANSWER: 4}  # to a completion it is a good answer
_STREAMED = {
    EngineFault.CUT_EVENT: 6,
    EngineFault.CUT_CHARACTER: 6,
    EngineFault.PAUSE: 6,
    EngineFault.MALFORMED: 4,
    EngineFault.ERROR_CHUNK: 6,
    EngineFault.NO_DONE: 6,
    EngineFault.BAD_CHUNK: 4,
    EngineFault.ONE_CHUNK: 8,
}


def draw_fault(rng: Random, share: float, *, is_stream: bool, is_generated: bool, is_chat: bool) -> EngineFault:
    """Return what goes wrong with a request; ``share`` of them get something."""
    if rng.random() >= share:
        return EngineFault.NONE
    weights = dict(_ANY)
    for extra, holds in ((_GENERATED, is_generated), (_CHATTED, is_chat), (_STREAMED, is_stream)):
        weights |= extra if holds else {}
    return rng.choices(list(weights), list(weights.values()))[0]
