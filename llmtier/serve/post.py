"""What the control process and a worker tell each other: typed messages over one pipe.

Worker to control: that it serves, its counts, that it wants the metrics page. Control to worker: end, cut what is open,
here is the page. Messages are msgpack; a pipe of ``multiprocessing`` keeps their bounds. No prompt ever passes.
"""

import asyncio
from collections.abc import Callable
from multiprocessing.connection import Connection

import msgspec


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker listens."""

    url: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot start, and why."""

    reason: str


class Counted(msgspec.Struct, frozen=True, tag=True):
    """The worker's counts since it started, encoded."""

    tally: bytes


class WantPage(msgspec.Struct, frozen=True, tag=True):
    """The worker wants the metrics page of the whole gateway."""


class Page(msgspec.Struct, frozen=True, tag=True):
    """That page."""

    text: bytes


class End(msgspec.Struct, frozen=True, tag=True):
    """Stop accepting; let open requests finish; after ``grace_s`` cut them."""

    grace_s: float


class Cut(msgspec.Struct, frozen=True, tag=True):
    """Cut open requests now."""


class Renew(msgspec.Struct, frozen=True, tag=True):
    """Read the configuration anew."""


FromWorker = Ready | Failed | Counted | WantPage
ToWorker = Page | End | Cut | Renew

_ENCODER = msgspec.msgpack.Encoder()


class Post:
    """One end of the pipe, read by an event loop.

    Args:
        connection: The pipe; ``close`` closes it.
        kind: What arrives here: ``FromWorker`` or ``ToWorker``.
    """

    def __init__(self, connection: Connection, kind: object) -> None:
        self._connection = connection
        self._decoder: msgspec.msgpack.Decoder[FromWorker | ToWorker] = msgspec.msgpack.Decoder(kind)
        self._is_listening = False

    def listen(self, on_message: Callable[[FromWorker | ToWorker], None], on_end: Callable[[], None]) -> None:
        """Call ``on_message`` with each message, and ``on_end`` once when the other side is gone."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                message = self._decoder.decode(self._connection.recv_bytes())
            except (EOFError, OSError):
                self._stop_listening()
                on_end()
                return
            on_message(message)

        loop.add_reader(self._connection.fileno(), read)
        self._is_listening = True

    def send(self, message: FromWorker | ToWorker) -> bool:
        """Send a message; return whether the other side was still there."""
        try:
            self._connection.send_bytes(_ENCODER.encode(message))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close this end."""
        self._stop_listening()
        self._connection.close()

    def _stop_listening(self) -> None:
        if self._is_listening:
            self._is_listening = False
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
