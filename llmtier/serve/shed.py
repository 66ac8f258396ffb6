"""What a request is told that was not let in: the stable word, the status, and when to ask again.

Written by ``admission.py``, sent by the caller. Sends nothing.
"""

from dataclasses import dataclass
from enum import StrEnum

from llmtier.serve.refusal import RequestRefusedError

_HEADERS = (b"x-llmtier-dropped-reason", b"x-llm-d-request-dropped-reason")


class ShedReason(StrEnum):
    """Why a request was not let in; stable words that clients see."""

    QUEUE_FULL = "queue-full"  # or it had to give way to a higher class
    KEY_SHARE = "key-share"
    DEADLINE = "deadline"
    DRAINING = "draining"


_WHY = {
    ShedReason.QUEUE_FULL: "the queue of tier {tier!r} is full",
    ShedReason.KEY_SHARE: "this API key has its share of the queue of tier {tier!r} waiting",
    ShedReason.DEADLINE: "tier {tier!r} cannot serve this request in time under its present load",
    ShedReason.DRAINING: "the gateway is shutting down",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shed:
    """What a request that was not let in is told.

    Attributes:
        tier: Where it could not run.
        reason: Why.
        retry_after_s: When the tier will have caught up, from the rate at which it does.
    """

    tier: str
    reason: ShedReason
    retry_after_s: int = 1

    @property
    def may_upgrade(self) -> bool:
        """Whether another tier may be tried instead."""
        return self.reason is not ShedReason.DRAINING

    @property
    def status(self) -> int:
        """429 where the client asks for too much, 503 where the gateway is too slow or about to leave."""
        return 429 if self.reason in {ShedReason.QUEUE_FULL, ShedReason.KEY_SHARE} else 503

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What says the reason, under the own name and llm-d's."""
        return [(name, self.reason.value.encode()) for name in _HEADERS]

    def refusal(self) -> RequestRefusedError:
        """Return the error to answer with; ``headers`` go with it."""
        why = _WHY[self.reason].format(tier=self.tier)
        code = self.reason.value.replace("-", "_")
        message = f"{why}; ask again in {self.retry_after_s} s"
        return RequestRefusedError(message, status=self.status, code=code, retry_after_s=self.retry_after_s)
