"""The gateway as an ASGI application: routes, life-span, and the one place that catches everything.

    POST /v1/chat/completions  POST /v1/completions      routed to a tier
    GET  /v1/models   the tiers and "auto"               GET /metrics  Prometheus text
    GET  /health      this process answers               GET /ready    every engine has answered

Anything else is 404; there is no catch-all proxy. Paths come from ``scope["path"]``, never from
the Host header.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec

from llmtier.core.errors import PlanError
from llmtier.serve.answer import CompletionHandler
from llmtier.serve.asgi import JSON, Receive, Reply, Scope, Send
from llmtier.serve.choose import AUTO_ALIASES
from llmtier.serve.health import probe_tiers, watch_health
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.relay import open_session
from llmtier.serve.state import AppState
from llmtier.serve.wire import Endpoint

logger = logging.getLogger(__name__)

FIRST_PROBE_S = 1.0
"""A gateway opens its port after this long even when an engine keeps silent; ``/ready`` tells."""

_ENDPOINTS = {endpoint.value: endpoint for endpoint in Endpoint}


class Gateway:
    """The application; ``build_gateway`` makes it.

    Args:
        state: What the gateway is made of.
    """

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._created_s = int(state.now().timestamp())
        self._completions: CompletionHandler | None = None
        self._pages: dict[str, Callable[[Reply], Awaitable[None]]] = {
            "/v1/models": self._send_models,
            "/health": self._send_health,
            "/ready": self._send_ready,
            "/metrics": self._send_metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._guard(scope, receive, Reply(send))

    async def _guard(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        try:
            await self._route(scope, receive, reply)
        except RequestRefusedError as refusal:
            await reply.refuse(refusal)
        except Exception:
            logger.exception("request failed inside the gateway", extra={"path": scope["path"]})
            message = "the gateway failed on this request; its log has the reason"
            await reply.refuse(RequestRefusedError(message, status=500, code="internal_error"))

    async def _route(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        path, method = scope["path"], scope["method"]
        endpoint, page = _ENDPOINTS.get(path), self._pages.get(path)
        if endpoint is None and page is None:
            known = ", ".join((*_ENDPOINTS, *self._pages))
            raise RequestRefusedError(f"no such path; known: {known}", status=404, code="not_found")
        allowed = "GET" if endpoint is None else "POST"
        if method != allowed:
            reply.headers[b"allow"] = allowed.encode()
            raise RequestRefusedError(f"{path} takes {allowed}", status=405, code="method_not_allowed")
        if page is not None:
            await page(reply)
        elif endpoint is not None and self._completions is not None:
            await self._completions.handle(endpoint, scope["headers"], receive, reply)
        else:
            raise RequestRefusedError("the gateway is not running", status=503, code="not_ready")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        state = self._state
        if state.traffic is not None:
            state.traffic.start()
        try:
            async with open_session(state.deadlines) as session, self._watching(session):
                self._completions = CompletionHandler(state, session)
                yield
        finally:
            self._completions = None
            if state.traffic is not None:
                await asyncio.to_thread(state.traffic.close)

    @asynccontextmanager
    async def _watching(self, session: aiohttp.ClientSession) -> AsyncIterator[None]:
        state = self._state
        await probe_tiers(session, state.pool, timeout_s=FIRST_PROBE_S)
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(watch_health(session, state.pool, interval_s=state.limits.health_interval_s))
            try:
                yield
            finally:
                watcher.cancel()

    async def _send_models(self, reply: Reply) -> None:
        names = (AUTO_ALIASES[0], *self._state.pool.tiers)
        cards = [{"id": name, "object": "model", "created": self._created_s, "owned_by": "llmtier"} for name in names]
        await reply.send_whole(200, msgspec.json.encode({"object": "list", "data": cards}))

    async def _send_health(self, reply: Reply) -> None:
        await reply.send_whole(200, b'{"status":"ok"}')

    async def _send_ready(self, reply: Reply) -> None:
        pool = self._state.pool
        tiers = {name: pool.is_healthy(name) for name in pool.tiers}
        document = msgspec.json.encode({"ready": pool.is_ready, "healthy": tiers})
        await reply.send_whole(200 if pool.is_ready else 503, document, content_type=JSON)

    async def _send_metrics(self, reply: Reply) -> None:
        metrics = self._state.metrics
        await reply.send_whole(200, metrics.render(), content_type=metrics.content_type)


def build_gateway(state: AppState) -> Gateway:
    """Return the ASGI application; it opens connections only when the server starts its life-span.

    Raises:
        PlanError: The default tier is not served.
    """
    default, served = state.default_tier, state.pool.tiers
    if default is not None and default not in served:
        raise PlanError(f"gateway.default_tier: {default!r} is not served; served: {', '.join(served)}")
    return Gateway(state)
