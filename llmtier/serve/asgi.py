"""ASGI in the small: read a body within limits, answer once, notice when the client leaves.

Holds the three types of the protocol and what every route needs of it; knows no routing.
Specification: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from typing import Any

from llmtier.serve.refusal import RequestRefusedError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

JSON = b"application/json"


class Reply:
    """The one response of one request.

    Args:
        send: The server's ``send``.

    Attributes:
        status: HTTP status; ``None`` until the response has started.
        headers: Sent with whatever answer it becomes, so set before it starts.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}

    async def start(self, status: int, *, content_type: bytes, headers: Headers = ()) -> None:
        """Send the status line and headers."""
        self.status = status
        fields = [(b"content-type", content_type), *self.headers.items(), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def send(self, body: bytes, *, is_last: bool = False) -> None:
        """Send a piece; returns when the connection can take more."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def send_whole(self, status: int, body: bytes, *, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Send a complete response."""
        length = (b"content-length", b"%d" % len(body))
        await self.start(status, content_type=content_type, headers=(length, *headers))
        await self.send(body, is_last=True)

    async def refuse(self, refusal: RequestRefusedError) -> None:
        """Send an error of the gateway's own, unless a response is under way."""
        if self.status is not None:
            return
        retry = [] if refusal.retry_after_s is None else [(b"retry-after", b"%d" % refusal.retry_after_s)]
        await self.send_whole(refusal.status, refusal.body, headers=retry)


async def read_body(receive: Receive, headers: Headers, *, limit_bytes: int, timeout_s: float) -> bytes | None:
    """Return the request body; ``None`` when the client left before its end.

    Raises:
        RequestRefusedError: 413 above ``limit_bytes``, counted and not only as declared; 408 when it is too slow.
    """
    declared = next((value for name, value in headers if name == b"content-length"), b"0")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _collect(receive, limit_bytes)
    except TimeoutError as exc:
        message = f"the request body did not arrive within {timeout_s:g} s"
        raise RequestRefusedError(message, status=408, code="request_timeout") from exc


async def run_until_gone(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Run ``work``, but cancel it as soon as the client leaves; return whether it ran to its end."""
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            watcher = group.create_task(_cancel_when_gone(receive, task))
            task.add_done_callback(lambda _: watcher.cancel())
    except BaseExceptionGroup as failed:  # only `work` can fail, so there is one
        raise failed.exceptions[0] from None
    return not task.cancelled()


async def _collect(receive: Receive, limit_bytes: int) -> bytes | None:
    pieces: list[bytes] = []
    n_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        n_bytes += len(pieces[-1])
        if n_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _cancel_when_gone(receive: Receive, task: asyncio.Task[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def _too_large(limit_bytes: int) -> RequestRefusedError:
    message = f"the request body is longer than {limit_bytes} bytes; send a shorter prompt"
    return RequestRefusedError(message, status=413, code="request_too_large")
