"""A mock engine that speaks vLLM's HTTP: scripted speed, scripted answers, scripted faults.

For trying a configuration, a gateway or a profiler without a model. Reads its
settings; writes nothing. Run it as ``python -m llmtier.engine.mock --port 8001
--settings FILE.json``, or inside a program with ``running_mock``.
"""

import argparse
import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np

from llmtier.engine.clock import Clock, SystemClock
from llmtier.engine.loopback import serving
from llmtier.engine.mock_answer import MockAnswer, choose_answer, count_tokens
from llmtier.engine.mock_engine import MockSequence
from llmtier.engine.mock_metrics import MeteredEngine, render_metrics
from llmtier.engine.mock_settings import Fault, FaultKind, MockSettings, read_mock_settings
from llmtier.engine.mock_wire import (
    DONE,
    AnswerShape,
    Exchange,
    GenerationRequest,
    Receive,
    RefusalError,
    Scope,
    Send,
    decode_request,
    error_document,
    event,
    model_list,
)

_REFUSALS = {FaultKind.REFUSE: 503, FaultKind.RATE_LIMIT: 429, FaultKind.ERROR: 500}


class MockApp:
    """The ASGI application.

    Args:
        settings: What it is told to be.
        clock: Paces the engine and the faults.

    Attributes:
        engine: Its counters tell a test what happened.
        n_requests: Generation requests so far; the next is number ``n_requests + 1``.
    """

    def __init__(self, settings: MockSettings, *, clock: Clock) -> None:
        self.engine = MeteredEngine(settings, clock=clock)
        self.n_requests = 0
        self._settings = settings
        self._clock = clock
        self._started_s = clock.now_s()
        self._answering: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        try:
            self._require_started()
            await self._route(exchange)
        except RefusalError as refusal:
            document = error_document(refusal.message, status=refusal.status)
            await exchange.respond(msgspec.json.encode(document), status=refusal.status, headers=refusal.headers)

    async def close(self) -> None:
        """Drop every request that is still being answered."""
        for task in self._answering:
            task.cancel()
        await self.engine.close()

    def _require_started(self) -> None:
        if self._clock.now_s() - self._started_s < self._settings.start_s:
            raise RefusalError("the engine is starting", status=503)

    async def _route(self, exchange: Exchange) -> None:
        settings = self._settings
        match (exchange.method, exchange.path):
            case ("POST", "/v1/chat/completions"):
                await self._generate(exchange, is_chat=True)
            case ("POST", "/v1/completions"):
                await self._generate(exchange, is_chat=False)
            case ("GET", "/v1/models"):
                await exchange.respond(msgspec.json.encode(model_list(settings.model_name, settings.context_tokens)))
            case ("GET", "/health"):
                await exchange.respond(b"")
            case ("GET", "/version"):
                await exchange.respond(msgspec.json.encode({"version": settings.version}))
            case ("GET", "/metrics"):
                page = render_metrics(
                    self.engine, model_name=settings.model_name, kv_capacity_tokens=settings.kv_capacity_tokens
                )
                await exchange.respond(page, content_type="text/plain; version=0.0.4; charset=utf-8")
            case ("POST", "/reset_prefix_cache"):
                await exchange.respond(msgspec.json.encode({"success": self.engine.n_running == 0}))
            case _:
                raise RefusalError("Not Found", status=404)

    async def _generate(self, exchange: Exchange, *, is_chat: bool) -> None:
        """Answer until the end, or until the client leaves."""
        self.n_requests += 1
        number = self.n_requests
        request = decode_request(await exchange.body(), is_chat=is_chat)
        self._check(request)
        answering = asyncio.create_task(self._answer(exchange, request, number))
        gone = asyncio.create_task(exchange.until_disconnected())
        self._answering.add(answering)
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._answering.discard(answering)
            answering.cancel()
            gone.cancel()
            await asyncio.wait((answering, gone))
        if not answering.cancelled():
            answering.result()

    def _check(self, request: GenerationRequest) -> None:
        settings = self._settings
        if request.model != settings.model_name:
            raise RefusalError(
                f"The model `{request.model}` does not exist. Valid aliases: {settings.model_name}.", status=404
            )
        n_tokens = count_tokens(request.texts, settings.tokenizer) + (request.output_limit or 1)
        if n_tokens > settings.context_tokens:
            raise RefusalError(
                f"This model's maximum context length is {settings.context_tokens} tokens. "
                f"However, you requested {n_tokens} tokens. Please reduce the length of the input prompt.",
                status=400,
            )

    async def _answer(self, exchange: Exchange, request: GenerationRequest, number: int) -> None:
        fault = self._fault_of(number)
        if fault is not None:
            await self._fail_early(fault)
        answer = choose_answer(
            request.last_user_text,
            self._settings,
            max_tokens=request.output_limit,
            ignores_end=request.ignore_eos,
        )
        shape = AnswerShape(
            is_chat=request.messages is not None,
            model_name=request.model,
            request_id=f"mock-{number}",
            n_prompt_tokens=count_tokens(request.texts, self._settings.tokenizer),
            has_logprobs=bool(request.logprobs),
        )
        sequence = self.engine.submit(
            n_prompt_tokens=shape.n_prompt_tokens,
            n_output_tokens=len(answer.tokens),
            finish_reason=answer.finish_reason,
        )
        try:
            if request.stream:
                has_usage = request.stream_options is not None and request.stream_options.include_usage
                await self._stream(exchange, sequence, answer, shape, fault=fault, has_usage=has_usage)
            else:
                await self._respond(exchange, sequence, answer, shape, fault=fault)
        finally:
            self.engine.cancel(sequence)

    def _fault_of(self, number: int) -> Fault | None:
        for index, fault in enumerate(self._settings.faults):
            if fault.on_nth_request not in (None, number):
                continue
            # A generator per request and fault: the draw does not depend on the order of arrival.
            draw = np.random.default_rng((self._settings.seed, number, index)).random()
            if draw < fault.probability:
                return fault
        return None

    async def _fail_early(self, fault: Fault) -> None:
        if fault.kind in _REFUSALS:
            headers = (
                {"retry-after": str(math.ceil(fault.delay_s or 0))} if fault.kind is FaultKind.RATE_LIMIT else None
            )
            raise RefusalError("scripted fault", status=_REFUSALS[fault.kind], headers=headers)
        if fault.kind is FaultKind.HANG:
            await self._pause(None)
        if fault.kind is FaultKind.SLOW_START:
            await self._pause(fault.delay_s or 0.0)

    async def _stream(
        self,
        exchange: Exchange,
        sequence: MockSequence,
        answer: MockAnswer,
        shape: AnswerShape,
        *,
        fault: Fault | None,
        has_usage: bool,
    ) -> None:
        await exchange.start(200, "text/event-stream; charset=utf-8")
        if fault is not None and fault.kind is FaultKind.HEADERS_ONLY:
            await self._pause(None)
        if fault is not None and fault.kind is FaultKind.EMPTY_BODY:
            await exchange.end()
            return
        n_tokens = len(answer.tokens)
        async for number in sequence.tokens():
            if number == 0:
                await exchange.write(shape.opening())
            if fault is not None and number == fault.after_tokens and await self._break(exchange, fault):
                return
            reason = answer.finish_reason if number == n_tokens - 1 else None
            await exchange.write(shape.token(answer.tokens[number], finish_reason=reason))
        await exchange.write((shape.usage(n_tokens) if has_usage else b"") + DONE)
        await exchange.end()

    async def _break(self, exchange: Exchange, fault: Fault) -> bool:
        """Let a fault happen inside a stream; return whether the stream is over."""
        match fault.kind:
            case FaultKind.CUT:
                return True  # the server closes a connection whose response has no end
            case FaultKind.STALL:
                await self._pause(fault.delay_s)
            case FaultKind.MALFORMED:
                await exchange.write(b'data: {"choices": [{"delta\n\n')
            case FaultKind.ERROR_CHUNK:
                await exchange.write(event(error_document("EngineCore encountered an issue.", status=500)) + DONE)
                await exchange.end()
                return True
            case _:
                pass
        return False

    async def _respond(
        self, exchange: Exchange, sequence: MockSequence, answer: MockAnswer, shape: AnswerShape, *, fault: Fault | None
    ) -> None:
        """Answer with one document; a fault strikes in its middle."""
        n_tokens = len([number async for number in sequence.tokens()])
        body = shape.whole("".join(answer.tokens), n_output_tokens=n_tokens, finish_reason=answer.finish_reason)
        half = len(body) // 2
        match fault.kind if fault is not None else None:
            case FaultKind.ERROR_CHUNK:
                raise RefusalError("EngineCore encountered an issue.", status=500)
            case FaultKind.EMPTY_BODY:
                await exchange.respond(b"")
            case FaultKind.MALFORMED:
                await exchange.respond(body[:half])
            case FaultKind.CUT | FaultKind.STALL | FaultKind.HEADERS_ONLY as kind:
                await exchange.start(200, "application/json", {"content-length": str(len(body))})
                if kind is FaultKind.CUT:
                    await exchange.write(body[:half])
                    return
                await self._pause(fault.delay_s if fault is not None and kind is FaultKind.STALL else None)
                await exchange.write(body)
                await exchange.end()
            case _:
                await exchange.respond(body)

    async def _pause(self, duration_s: float | None) -> None:
        """Wait; without a duration until the client leaves or the mock closes."""
        if duration_s is None:
            await asyncio.get_running_loop().create_future()
        else:
            await self._clock.sleep(duration_s)


def mock_app(settings: MockSettings, *, clock: Clock | None = None) -> MockApp:
    """Return a mock engine as an ASGI application."""
    return MockApp(settings, clock=clock or SystemClock())


@asynccontextmanager
async def running_mock(settings: MockSettings, *, clock: Clock | None = None) -> AsyncIterator[str]:
    """Serve a mock engine on an ephemeral loopback port of this event loop; lends the base URL."""
    async with running_app(mock_app(settings, clock=clock)) as base_url:
        yield base_url


@asynccontextmanager
async def running_app(app: MockApp) -> AsyncIterator[str]:
    """Serve an application whose counters the caller wants to read; otherwise as ``running_mock``."""
    async with serving(app) as base_url:
        try:
            yield base_url
        finally:
            await app.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve a mock engine until a signal comes."""
    import uvicorn

    parser = argparse.ArgumentParser(prog="python -m llmtier.engine.mock", description="Serve a mock engine.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--settings", type=Path, help="JSON file of MockSettings fields")
    options = parser.parse_args(arguments)
    settings = read_mock_settings(options.settings) if options.settings else MockSettings()
    uvicorn.run(
        mock_app(settings), host=options.host, port=options.port, lifespan="off", log_level="warning", ws="none"
    )


if __name__ == "__main__":
    main()
