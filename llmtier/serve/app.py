"""The gateway: routes, its life-span, and the one place that catches everything.

    POST /v1/chat/completions  /v1/completions  /v1/embeddings  /v1/responses     routed to a tier
    GET  /v1/models   the tiers and "auto"               GET /metrics  Prometheus text
    GET  /health      this process answers               GET /ready    every engine has answered

Anything else is 404; there is no catch-all proxy. Paths come from the request line, never from the Host header.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec

from llmtier.core.errors import LlmtierError, PlanError
from llmtier.serve.answer import CompletionHandler
from llmtier.serve.choose import AUTO_ALIASES
from llmtier.serve.http_client import UpstreamClient
from llmtier.serve.http_server import HttpRequest, Reply
from llmtier.serve.keys import hash_credential
from llmtier.serve.metrics import Metrics
from llmtier.serve.refusal import RequestRefusedError
from llmtier.serve.state import AppState
from llmtier.serve.watch import Watcher
from llmtier.serve.wire import Endpoint

logger = logging.getLogger(__name__)

FIRST_PROBE_S = 1.0
"""A gateway opens its port after this long even when an engine keeps silent; ``/ready`` tells."""

PUBLISH_INTERVAL_S = 1.0
"""How old the rates may be that other processes see."""

_ENDPOINTS = {endpoint.value: endpoint for endpoint in Endpoint}

Page = Callable[[HttpRequest, Reply], Awaitable[None]]


class Gateway:
    """The application; ``build_gateway`` makes it.

    Args:
        state: What the gateway is made of.
    """

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._created_s = int(state.now().timestamp())
        self._completions: CompletionHandler | None = None
        self._clients: dict[str, UpstreamClient] = {}
        self._is_leaving = False
        self._pages: dict[str, Page] = {
            "/v1/models": self._send_models,
            "/health": self._send_health,
            "/ready": self._send_ready,
            "/metrics": self._send_metrics,
        }

    async def __call__(self, request: HttpRequest, reply: Reply) -> None:
        """Serve one request.

        Raises:
            RequestRefusedError: The answer is an error of the gateway's own, which the server sends.
        """
        endpoint = _ENDPOINTS.get(request.path)
        if endpoint is not None and request.method == "POST" and self._completions is not None:
            await self._completions.handle(endpoint, request, reply)
        else:
            await self._route_rest(request, reply)

    async def _route_rest(self, request: HttpRequest, reply: Reply) -> None:
        page = self._pages.get(request.path)
        if request.path not in _ENDPOINTS and page is None:
            known = ", ".join((*_ENDPOINTS, *self._pages))
            raise RequestRefusedError(f"no such path; known: {known}", status=404, code="not_found")
        allowed = ("POST",) if page is None else ("GET", "HEAD")
        if request.method not in allowed:
            reply.headers[b"allow"] = ", ".join(allowed).encode()
            message = f"{request.path} takes {' or '.join(allowed)}"
            raise RequestRefusedError(message, status=405, code="method_not_allowed")
        if page is None:
            raise RequestRefusedError("the gateway is not running", status=503, code="not_ready")
        await page(request, reply)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the gateway able to serve; its engines are watched meanwhile unless another process does."""
        state = self._state
        if state.traffic is not None:
            state.traffic.start()
        clients = self._clients = {
            name: UpstreamClient(site.base_url, connect_s=state.deadlines.connect_s)
            for name, site in state.pool.sites.items()
        }
        try:
            async with self._watching(), asyncio.TaskGroup() as group:
                self._completions = CompletionHandler(state, clients)
                publishing = group.create_task(self._publish())
                try:
                    yield
                finally:
                    publishing.cancel()
        finally:
            self._completions = None
            for client in clients.values():
                await client.close()
            if state.traffic is not None:
                await asyncio.to_thread(state.traffic.close)

    async def serve_page(self, request: HttpRequest, reply: Reply) -> None:
        """Serve one request for a page, and no other: what an address for operators serves.

        Raises:
            RequestRefusedError: It is not for a page.
        """
        if request.path in _ENDPOINTS:
            raise RequestRefusedError(f"no such page; known: {', '.join(self._pages)}", status=404, code="not_found")
        await self._route_rest(request, reply)

    async def renew_on(self, wish: asyncio.Event) -> None:
        """Read the configuration anew whenever ``wish`` is set, until cancelled."""
        while True:
            await wish.wait()
            wish.clear()
            await self._renew()

    async def _renew(self) -> None:
        """Put a new configuration in force for the requests that come, if it is sound; open ones end under the old."""
        state = self._state
        if state.reload is None or self._completions is None:
            return
        try:
            renewed = await asyncio.to_thread(state.reload, state)
        except LlmtierError as failure:
            state.metrics.count_reload("refused")
            logger.error("reload refused, the old configuration stays", extra={"reason": str(failure)})  # noqa: TRY400
            return
        renewed.metrics.set_policy(renewed.policy_digest)
        renewed.metrics.count_reload("done")
        guard = self._completions.guard
        guard.admission.update({}, renewed.admission)
        self._completions = CompletionHandler(renewed, self._clients, guard)
        self._state = renewed
        logger.warning("configuration reloaded", extra={"policy": renewed.policy_digest})

    def leave(self) -> None:
        """Say that the gateway is about to end: it is not ready any more, but still serves."""
        self._is_leaving = True
        if self._completions is not None:
            self._completions.drain()

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        state = self._state
        if state.watch is None:
            yield
            return
        watcher = Watcher(state.pool.tiers.values(), state.pool.board, state.watch, clock=state.clock)
        try:
            await watcher.probe(timeout_s=FIRST_PROBE_S)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(watcher.run())
                try:
                    yield
                finally:
                    running.cancel()
        finally:
            await watcher.close()

    async def _publish(self) -> None:
        while True:
            self._state.pool.publish()
            if self._completions is not None:
                self._completions.tick()
            await asyncio.sleep(PUBLISH_INTERVAL_S)

    async def _send_models(self, request: HttpRequest, reply: Reply) -> None:
        state = self._state
        key = None if state.keys is None else state.keys.check(hash_credential(request.headers))
        names = [AUTO_ALIASES[0], *(name for name in state.pool.tiers if key is None or key.may_use(name))]
        cards = [{"id": name, "object": "model", "created": self._created_s, "owned_by": "llmtier"} for name in names]
        reply.send_whole(200, msgspec.json.encode({"object": "list", "data": cards}))

    async def _send_health(self, _: HttpRequest, reply: Reply) -> None:
        reply.send_whole(200, b'{"status":"ok"}')

    async def _send_ready(self, _: HttpRequest, reply: Reply) -> None:
        pool = self._state.pool
        is_ready = pool.is_ready and not self._is_leaving
        tiers = {name: pool.is_healthy(name) for name in pool.tiers}
        reply.send_whole(200 if is_ready else 503, msgspec.json.encode({"ready": is_ready, "healthy": tiers}))

    async def _send_metrics(self, _: HttpRequest, reply: Reply) -> None:
        state = self._state
        text = state.metrics.render() if state.page is None else await state.page()
        reply.send_whole(200, text, content_type=Metrics.content_type)


def build_gateway(state: AppState) -> Gateway:
    """Return the gateway; it opens connections only while it is ``running``.

    Raises:
        PlanError: The default or the safe tier is not served.
    """
    served = state.pool.tiers
    for key, wanted in (("default_tier", state.default_tier), ("safe_tier", state.safe_tier)):
        if wanted is not None and wanted not in served:
            raise PlanError(f"gateway.{key}: {wanted!r} is not served; served: {', '.join(served)}")
    return Gateway(state)
