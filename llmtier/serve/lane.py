"""One of two engines that are asked for the same answer: its own record and reply, until it wins or loses.

The first lane that has something to tell the client takes the client's reply; what the other one writes from then on goes
nowhere, and it is cancelled, which closes its engine's connection. Decides nothing.
"""

import asyncio
from collections.abc import Callable

from typing_extensions import override

from llmtier.serve.admission import Place
from llmtier.serve.http_reply import JSON, Fields
from llmtier.serve.http_server import Reply
from llmtier.serve.record import Record


class LaneReply(Reply):
    """What an attempt takes for the client's reply.

    Args:
        real: The client's.
        claim: Asked before the first byte whether this lane may have the reply; the answer stays the same.
    """

    __slots__ = ("_claim", "_has_won", "_on_unwritable", "_on_writable", "_real")

    def __init__(self, real: Reply, claim: Callable[[], bool]) -> None:
        self._real = real
        self._claim = claim
        self._has_won = False
        self._on_writable: Callable[[], None] | None = None
        self._on_unwritable: Callable[[], None] | None = None
        self.status = None
        self.headers = dict(real.headers)

    @property
    @override
    def is_writable(self) -> bool:
        return self._real.is_writable

    @property
    @override
    def is_client_gone(self) -> bool:  # type: ignore[override]  # the real one alone is told
        return self._real.is_client_gone

    @property
    @override
    def is_finished(self) -> bool:  # type: ignore[override]
        return self._real.is_finished or (self.status is not None and not self._has_won)

    @property  # type: ignore[explicit-override]  # mypy overlooks it on a property that can be set
    @override
    def on_writable(self) -> Callable[[], None] | None:
        return self._on_writable

    @on_writable.setter
    @override
    def on_writable(self, call: Callable[[], None] | None) -> None:
        self._on_writable = call
        if self._has_won:
            self._real.on_writable = call

    @property  # type: ignore[explicit-override]  # mypy overlooks it on a property that can be set
    @override
    def on_unwritable(self) -> Callable[[], None] | None:
        return self._on_unwritable

    @on_unwritable.setter
    @override
    def on_unwritable(self, call: Callable[[], None] | None) -> None:
        self._on_unwritable = call
        if self._has_won:
            self._real.on_unwritable = call

    @override
    def start(self, status: int, *, content_type: bytes, headers: Fields = ()) -> None:
        if self._take(status):
            self._real.start(status, content_type=content_type, headers=headers)

    @override
    def write(self, body: bytes) -> None:
        if self._has_won:
            self._real.write(body)

    @override
    def finish(self, body: bytes = b"") -> None:
        if self._has_won:
            self._real.finish(body)

    @override
    def send_whole(self, status: int, body: bytes, *, content_type: bytes = JSON, headers: Fields = ()) -> None:
        if self._take(status):
            self._real.send_whole(status, body, content_type=content_type, headers=headers)

    @override
    async def drain(self) -> None:
        await self._real.drain()

    def _take(self, status: int) -> bool:
        """Take the client's reply if it is still to be had; a lane that came too late believes that it has started."""
        self.status = status
        self._has_won = self._claim()
        if self._has_won:
            self._real.headers.update(self.headers)
            self._real.on_writable, self._real.on_unwritable = self._on_writable, self._on_unwritable
        return self._has_won


class Lane:
    """One attempt.

    Args:
        tier: Whom it asks.
        site: Which of that tier's engines.
        place: Its slot there.
        record: Its own, not yet the request's.

    Attributes:
        task: The attempt; set once it runs.
    """

    __slots__ = ("is_settled", "place", "record", "site", "task", "tier")

    task: "asyncio.Task[None]"

    def __init__(self, tier: str, site: str, place: Place, record: Record) -> None:
        self.tier = tier
        self.site = site
        self.place = place
        self.record = record
        self.is_settled = False


def copy_record(record: Record) -> Record:
    """Return a record of the same facts that may go its own way."""
    copied = Record(request_id=record.request_id, received_at=record.received_at, received_s=record.received_s)
    copied.__dict__.update(record.__dict__)
    return copied
