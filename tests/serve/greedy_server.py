"""An engine that generates the same tokens after any beginning of them, and dies in the middle when told to."""

import asyncio
import json

from typing_extensions import override

from llmtier.serve.wire import Endpoint
from tests.serve.scripted_server import CHAT, DONE, END, EVENTS, ScriptedServer, chunk, event

PROMPT_IDS = [7, 8, 9]


class GreedyServer(ScriptedServer):
    """Speaks as vLLM does.

    Attributes:
        tokens: The answer.
        name: In the id of each answer.
        cut_after: Events after which ``faults`` come; ``None`` answers in full.
        faults: Steps of a script.
        cuts_once: Whether later answers are whole.
        go: What it waits for before the fault, so that the client has all events: RST overtakes what is unread.
    """

    def __init__(self, tokens, *, name="engine"):
        super().__init__()
        self.tokens = tokens
        self.name = name
        self.cut_after = None
        self.faults = ()
        self.cuts_once = False
        self.go = asyncio.Event()

    @override
    async def start(self):
        """Listen; after ``refuse`` at the same address again."""
        port = int(self.url.rsplit(":", 1)[1]) if self.url else 0
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @override
    async def _answer(self, path, body, reader, writer):
        if path not in {CHAT, Endpoint.COMPLETIONS.value} or path in self.scripts or self.turns:
            return await super()._answer(path, body, reader, writer)
        events = self.generate(json.loads(body), is_chat=path == CHAT)
        steps = [EVENTS, *map(chunk, events), END]
        if self.cut_after is not None and not (self.cuts_once and len(self.requests) > 1):
            steps = [EVENTS, *map(chunk, events[: self.cut_after]), self.go, *self.faults]
        try:
            return await self._play(steps, reader, writer)
        except ConnectionError:
            self.n_gone += 1
            raise

    def generate(self, request, *, is_chat):
        """Return the events of an answer."""
        start = self._count_given(request, is_chat=is_chat)
        has_ids = request.get("return_token_ids", False)
        stop = min(start + request["max_tokens"], len(self.tokens))
        frame = {"id": f"{self.name}-{len(self.requests)}", "created": len(self.requests), "model": self.name}
        first = {"prompt_token_ids": PROMPT_IDS if has_ids else None}
        out = []
        if is_chat:
            delta = {"role": "assistant", "content": ""}
            out.append(event({**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **first}))
        for at in range(start, stop):
            text = self.tokens[at]
            finish = None if at + 1 < stop else "stop" if stop == len(self.tokens) else "length"
            ids = {"token_ids": [100 + at] if has_ids else None, **({} if is_chat or at > start else first)}
            said = {"delta": {"content": text}} if is_chat else {"text": text}
            out.append(event({**frame, "choices": [{"index": 0, **said, "finish_reason": finish, **ids}]}))
        usage = {"prompt_tokens": len(PROMPT_IDS) + start, "completion_tokens": stop - start}
        usage["total_tokens"] = sum(usage.values())
        if request.get("stream_options"):
            out.append(event({**frame, "choices": [], "usage": usage}))
        return [*out, DONE]

    def _count_given(self, request, *, is_chat):
        if not is_chat and isinstance(request["prompt"], list):
            return len(request["prompt"]) - len(PROMPT_IDS)
        last = request["messages"][-1] if is_chat else {"role": "assistant", "content": request["prompt"][2:]}
        given = last["content"] if last["role"] == "assistant" else ""
        return next(n for n in range(len(self.tokens) + 1) if "".join(self.tokens[:n]) == given)
